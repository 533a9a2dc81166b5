"""YAML files and `key.sub=value` overrides become validated, frozen models.

This module is mechanism only: each part of the project owns the model of its own section, and
train/config.py and preprocessing/plan.py compose them.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetPydanticSchema, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from hvdlm.errors import UserError


class Section(BaseModel):
    """A frozen part of a config; unknown keys are errors, and so are "7" for a number and `1` for a bool.

    YAML has no paths and tuples, so fields of these types say `strict=False`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=Section)


def choice_of(names: Iterable[str]) -> Any:
    """What makes a `str` one of `names`, the keys of a registry: `name: Annotated[str, choice_of(OPTIMIZERS)]`.

    Errors and JSON schema are those of a Literal of these names.
    """
    schema = core_schema.literal_schema(list(names))
    return GetPydanticSchema(lambda _source, _handler: schema)


@dataclass(frozen=True)
class _TaggedUnion:
    sections: tuple[type[Section], ...]
    tag: str

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(Annotated[Union[self.sections], Field(discriminator=self.tag)])  # noqa: UP007


def tagged_union(sections: Mapping[str, type[Section]], tag: str) -> Any:
    """What makes a section one of a registry's, told apart by the key `tag`: `Annotated[Shared, tagged_union(…)]`.

    `Shared` is the class that all of them come from. ValueError for one that is registered under another name than
    its own, the default of its field `tag`.
    """
    for name, section in sections.items():
        if section.model_fields[tag].default != name:
            raise ValueError(f"{section.__name__} has {tag}: {section.model_fields[tag].default}, not {name}")
    return _TaggedUnion(tuple(sections.values()), tag)


def sections_of(field: FieldInfo) -> list[type[Section]]:
    """The sections that a field may hold, alone, among others or as items; empty for a plain value."""
    union = next((part for part in field.metadata if isinstance(part, _TaggedUnion)), None)
    candidates = union.sections if union else typing.get_args(field.annotation) or (field.annotation,)
    return [option for option in candidates if isinstance(option, type) and issubclass(option, Section)]


FREE = "free on resume"
Free = Annotated[T, FREE]  # a field that may have another value when a run is resumed; of a section, all of it


def free_on_resume(section: type[Section]) -> set[str]:
    """The keys, as `train.steps`, of the fields below that are Free, which may differ when a run is resumed."""
    found = set()
    for name, field in section.model_fields.items():
        if FREE in field.metadata:
            found.add(name)
        else:
            found |= {f"{name}.{key}" for option in sections_of(field) for key in free_on_resume(option)}
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader in which 1e-4 is a number, as YAML 1.2 says, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:float"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"),
    list("-+.0123456789"),
)


def load(model: type[ModelT], path: str | Path, overrides: tuple[str, ...] = ()) -> ModelT:
    """Read a YAML file, apply overrides such as `optim.lr=1e-3`, and validate.

    Raises UserError that names file, line, key and the nearest valid key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UserError(f"{path}: cannot read this config ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the config as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, this is {type(values).__name__}")
    return validate(model, values, path, overrides, node)


def validate(
    model: type[ModelT], values: dict, origin: Path, overrides: tuple[str, ...] = (), node: yaml.Node | None = None
) -> ModelT:
    """Apply overrides to plain values and validate; `node` gives error messages their line."""
    overridden = {}
    for override in overrides:
        key, value = _parse_override(override)
        _assign(values, key, value, override)
        overridden[key] = override
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(model, error, origin, node, overridden)) from None


def to_yaml(config: Section) -> str:
    """The resolved config as YAML; reading it back gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {text!r}: write key.sub=value, for example optim.lr=1e-3")
    try:
        return tuple(key.strip().split(".")), yaml.load(value, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        raise UserError(f"override {text!r}: the value is not valid YAML; quote it") from None


def _assign(values: dict, key: tuple[str, ...], value: Any, override: str) -> None:
    for depth, part in enumerate(key[:-1]):
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {'.'.join(key[: depth + 1])} is a value, not a section")
    values[key[-1]] = value


def _explain(
    model: type[Section],
    error: ValidationError,
    path: Path,
    node: yaml.Node | None,
    overridden: dict[tuple[str, ...], str],
) -> str:
    """One line for the first problem, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    section, loc = _section_of(model, tuple(str(part) for part in first["loc"]))
    place = _place(path, node, loc, overridden)
    key = ".".join(loc)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        valid = sorted(section.model_fields)
        near = difflib.get_close_matches(loc[-1], valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"{place}: unknown key {key!r}; {hint}{more}"
    if first["type"] == "missing":
        return f"{place}: the key {key!r} is required{more}"
    if first["input"] is None:  # `run_dir:` alone; of a union, loc ends with a type and not with the key
        name = next((part for part in reversed(loc) if part in section.model_fields), None)
        if name is not None and section.model_fields[name].is_required():
            return f"{place}: the key {key[: key.rindex(name) + len(name)]!r} is required{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{place}: {key + ': ' if key else ''}{message}{got}{more}"


def _place(path: Path, node: yaml.Node | None, loc: tuple[str, ...], overridden: dict) -> str:
    """`FILE:LINE` of the deepest part of `loc` that the file holds, or the override that set it."""
    for key, override in overridden.items():
        if loc and loc[: len(key)] == key[: len(loc)]:
            return f"override {override!r}"
    line = None
    for part in loc:
        children = node.value if isinstance(node, yaml.MappingNode) else ()
        child = next((pair for pair in children if pair[0].value == part), None)
        if child is None:
            break
        line, node = child[0].start_mark.line + 1, child[1]
    return f"{path}:{line}" if line else str(path)


def _section_of(model: type[Section], loc: tuple[str, ...]) -> tuple[type[Section], tuple[str, ...]]:
    """The innermost section that `loc` names, and `loc` without the tags that pydantic adds for unions."""
    key: list[str] = []
    options: list[type[Section]] = []
    for part in loc:
        field = model.model_fields.get(part)
        tagged = (option for option in options if part in {other.default for other in option.model_fields.values()})
        if field is not None:
            key.append(part)
            options = sections_of(field)
            model = options[0] if len(options) == 1 else model
        elif part.isdigit():  # a place in a list of sections
            key.append(part)
        elif (found := next(tagged, None)) is not None:
            model = found
        else:
            key.append(part)
            break
    return model, tuple(key)
