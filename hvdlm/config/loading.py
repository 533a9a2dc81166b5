"""From a YAML file, or plain values, and overrides to a validated config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from hvdlm.config.faults import Origin, explain
from hvdlm.config.reading import NULLS, collection, fit
from hvdlm.config.sections import Section, sections_of, short_of, union_of
from hvdlm.config.written import Fault, Written, compose, read
from hvdlm.errors import UserError

ModelT = TypeVar("ModelT", bound=Section)
Key = tuple[str, ...]


def load(model: type[ModelT], path: str | Path, overrides: tuple[str, ...] = ()) -> ModelT:
    """Read a YAML file, apply overrides such as `optim.lr=1e-3`, and validate.

    Raises UserError that names file, line, key and the nearest valid key.
    """
    return opened(path, overrides)(model)


def opened(path: str | Path, overrides: tuple[str, ...] = ()) -> Callable[[type[ModelT]], ModelT]:
    """`load` in two parts: what is wrong with the file is told here, before the model and all it needs is imported."""
    node, values = read(Path(path))
    for override in overrides:
        _parse(override)
    return lambda model: validate(model, values, Path(path), overrides, node)


def validate(
    model: type[ModelT], values: dict, origin: Path, overrides: tuple[str, ...] = (), node: yaml.Node | None = None
) -> ModelT:
    """Apply overrides to values, plain or `Written` ones, and validate; `node` gives error messages their line.

    What stands behind the `=` of an override is taken whole, without the quotes around all of it; of two for the same
    key the last one holds.
    """
    overridden: dict[Key, str] = {}
    for override in overrides:
        key, value = _parse(override)
        values = _assigned(model, _written_out(model, values, key), key, value, override)
        overridden.pop(key, None)
        overridden[key] = override
    source = Origin(origin, node, overridden)
    for key, text in _texts(values):
        _check_text(text, key, source)
    try:
        return model.model_validate(fit(model, values))
    except ValidationError as error:
        raise UserError(explain(model, error, values, source)) from None


def to_yaml(config: Section) -> str:
    """The resolved config as YAML; reading it back gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _parse(override: str) -> tuple[Key, Written]:
    name, equals, value = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise UserError(f"override {override!r}: write key.sub=value, for example optim.lr=1e-3")
    return key, _typed(value)


def _typed(value: str) -> Written:
    """What stands behind the `=` as it is, but for a value that is one quoted scalar of YAML from end to end.

    >>> _typed("' '"), _typed('"a\\\\tb"'), _typed("it's 'so'"), _typed("'a' 'b'")
    (' ', 'a\\tb', "it's 'so'", "'a' 'b'")
    """
    if value[:1] in ("'", '"') and value[-1:] == value[:1]:
        try:
            node = compose(value)
        except Fault:
            return Written(value, "typed")
        if isinstance(node, yaml.ScalarNode) and node.end_mark.index == len(value):
            return Written(node.value, "quoted")
    return Written(value, "typed")


def _written_out(model: type[Section], values: dict[str, Any], key: Key) -> dict[str, Any]:
    """`fields: {label: label}` as `fields: {label: {type: label}}` where an override goes on below that name."""
    short, named = short_of(model.model_fields.get(key[0])), values.get(key[0])
    if not short or len(key) < 3 or not isinstance(named, dict):
        return values
    below = named.get(key[1])
    below = collection(below) if isinstance(below, Written) else below
    return {**values, key[0]: {**named, key[1]: {short: below}}} if isinstance(below, str) else values


def _assigned(
    model: type[Section] | None, values: dict[str, Any], key: Key, value: Any, override: str, depth: int = 0
) -> dict[str, Any]:
    """`values` with `value` at `key`; the given ones, which aliases may share, stay as they are."""
    name, is_last = key[depth], depth == len(key) - 1
    if is_last:
        return {**values, name: value}
    field = model.model_fields.get(name) if model else None
    union = union_of(field) if field else None
    below = values.get(name)
    if isinstance(below, Written):
        below = {} if below.style == "plain" and below in NULLS else collection(below)
    below = {} if below is None else below
    if union and isinstance(below, str):  # `sync=local_sgd sync.every=4`
        below = {union.tag: below}
    if not isinstance(below, dict):
        name = ".".join(key[: depth + 1])
        what = f"a list, which is set as a whole: '{name}=[…]'" if isinstance(below, list) else "a value, not a section"
        if field is not None and sections_of(field):
            what = f"a value here; to make it a section, replace it: '{name}={{{key[depth + 1]}: {value}}}'"
        raise UserError(f"override {override!r}: {name} is {what}")
    return {**values, name: _assigned(None, below, key, value, override, depth + 1)}


def _texts(values: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    if isinstance(values, Written):
        yield key, values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _texts(value, (*key, name))
    elif isinstance(values, list):
        for place, value in enumerate(values):
            yield from _texts(value, (*key, str(place)))


def _check_text(text: str, key: Key, origin: Origin) -> None:
    """Half a surrogate pair, which also stands for a byte that is not UTF-8, could not be written to any file."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{origin.of(key)}: {'.'.join(key)}: character {error.start} is not Unicode") from None
