"""What a config is made of: frozen sections, choices by name, unions of sections told apart by a key."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetPydanticSchema
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema


class Section(BaseModel):
    """A frozen part of a config; unknown keys are errors, and so are "7" for a number and `1` for a bool.

    YAML has no paths and tuples, so fields of these types say `strict=False`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    other_names: ClassVar[Mapping[str, str]] = {}  # of keys, as other tools call them: for messages alone
    short: ClassVar[str] = ""  # in a mapping of sections: the key that a mere value stands for, as of `label: label`


T = TypeVar("T")


def choice_of(names: Iterable[str]) -> Any:
    """What makes a `str` one of `names`, the keys of a registry: `name: Annotated[str, choice_of(OPTIMIZERS)]`.

    Errors and JSON schema are those of a Literal of these names.
    """
    schema = core_schema.literal_schema(list(names))
    return GetPydanticSchema(lambda _source, _handler: schema)


@dataclass(frozen=True)
class TaggedUnion:
    """The sections that a field may hold, told apart by the value of their key `tag`: those of a registry, as it is.

    What is registered later is known to a model after its `model_rebuild(force=True)`.
    """

    registry: Mapping[str, type[Section]]
    tag: str

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        self.check()
        return handler.generate_schema(Annotated[Union[self.sections], Field(discriminator=self.tag)])  # noqa: UP007

    @property
    def sections(self) -> tuple[type[Section], ...]:
        return tuple(self.registry.values())

    @property
    def by_name(self) -> dict[str, type[Section]]:
        return dict(self.registry)

    def check(self) -> None:
        """ValueError for one that is registered under another name than its own, the default of its field `tag`."""
        for name, section in self.registry.items():
            if section.model_fields[self.tag].default != name:
                raise ValueError(
                    f"{section.__name__} has {self.tag}: {section.model_fields[self.tag].default}, not {name}"
                )


def tagged_union(registry: Mapping[str, type[Section]], tag: str) -> Any:
    """What makes a section one of a registry's, told apart by the key `tag`: `Annotated[Shared, tagged_union(…)]`.

    `Shared` is the class that all of them come from. ValueError for one that is registered under another name than
    its own.
    """
    union = TaggedUnion(registry, tag)
    union.check()
    return union


def by_name(tag: str) -> Callable[[Any], Any]:
    """A validator before others, by which `sync: tree` stands for `sync: {kind: tree}`."""
    return lambda value: {tag: value} if isinstance(value, str) else value


def union_of(field: FieldInfo) -> TaggedUnion | None:
    return next((part for part in field.metadata if isinstance(part, TaggedUnion)), None)


def options_of(annotation: Any) -> list[Any]:
    """The types that a value may have: of a union its members, without what pydantic is told beside them.

    >>> options_of(Annotated[int | None, "meaning"])
    [<class 'int'>, <class 'NoneType'>]
    """
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return options_of(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in options_of(part)]
    return [annotation]


def is_section(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, Section)


def sections_of(field: FieldInfo) -> list[type[Section]]:
    """The sections that a field may hold, alone, among others or as items; empty for a plain value."""
    if union := union_of(field):
        return list(union.sections)
    options = options_of(field.annotation)
    return [option for option in options if is_section(option)] + items_of(field)


def items_of(field: FieldInfo) -> list[type[Section]]:
    """The sections that a list, a tuple or a mapping in the field holds."""
    parts = [part for option in options_of(field.annotation) for part in typing.get_args(option)]
    return [item for part in parts for item in options_of(part) if is_section(item)]


def has_names(field: FieldInfo) -> bool:
    """Whether it is a mapping of sections, by names that the user chooses."""
    is_mapping = any(typing.get_origin(option) is dict for option in options_of(field.annotation))
    return is_mapping and bool(items_of(field))


def short_of(field: FieldInfo | None) -> str:
    """The key that a mere value stands for under a name of the mapping in a field; "" where it is none of sections."""
    return items_of(field)[0].short if field is not None and has_names(field) else ""


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


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], *, free: Collection[str] = (), at: str = ""
) -> list[str]:
    """`key: old -> new` for every plain value that differs, but for keys in `free`.

    >>> changes({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    ['b.c: 2 -> 3']
    """
    changed = []
    for key in sorted(before.keys() | now.keys()):
        name, old, new = at + key, before.get(key), now.get(key)
        if name in free or old == new:
            continue
        if isinstance(old, dict | None) and isinstance(new, dict | None):  # a section that was not there had no keys
            changed += changes(old or {}, new or {}, free=free, at=f"{name}.")
        else:
            changed.append(f"{name}: {old} -> {new}")
    return changed
