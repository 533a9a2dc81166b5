"""What a written scalar means for a key that wants a certain type; text keys take it as it stands."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from hvdlm.config.sections import Section, TaggedUnion, is_section, options_of, union_of
from hvdlm.config.written import Fault, Written, compose, values_of
from hvdlm.numerals import LARGEST, LARGEST_FLOAT, number, truth, whole_number

NULLS = ("", "~", "null", "Null", "NULL")  # YAML's
TYPED_NULLS = ("", "~", "null", "none")


def _single(text: str) -> float | None:
    """A number that float32 has, too; inf and nan are read, for the message that refuses them."""
    found = number(text)
    return None if found is not None and LARGEST_FLOAT < abs(found) < math.inf else found


READERS = {bool: truth, int: whole_number, float: _single}


def fit(model: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """`values` with every `Written` scalar, down to the innermost, read as its key in `model` wants it.

    What cannot be read so stays text, and validation refuses it. A section with nothing below it has its defaults.
    """
    fitted = {}
    for name, value in values.items():
        field = model.model_fields.get(name)
        fitted[name] = value if field is None else _fit_field(field, value)
        if field is not None and fitted[name] is None and _must_be_section(field):
            del fitted[name]
            if field.is_required():
                fitted[name] = {}
    return fitted


def _must_be_section(field: FieldInfo) -> bool:
    options = options_of(field.annotation)
    return type(None) not in options and all(map(is_section, options))


def _fit_field(field: FieldInfo, value: Any) -> Any:
    if union := union_of(field):
        return _fit_union(union, value)
    return _fit(value, options_of(field.annotation))


def _fit_union(union: TaggedUnion, value: Any) -> Any:
    value = collection(value) if isinstance(value, Written) else value
    if isinstance(value, Written):
        return _scalar(value, [str])
    name = value.get(union.tag) if isinstance(value, dict) else None
    section = union.by_name.get(name) if isinstance(name, str) else None
    return fit(section, value) if section else value


def _fit(value: Any, options: Sequence[Any]) -> Any:
    """`value` for a key that takes one of `options`, types as `options_of` gives them."""
    kinds = {typing.get_origin(option) or option for option in options}
    takes_collection = bool(kinds & {list, tuple, dict}) or any(map(is_section, options))
    if isinstance(value, Written) and takes_collection:
        value = collection(value)
    if isinstance(value, Written):
        return _scalar(value, options)
    if isinstance(value, dict):
        return _fit_mapping(value, options)
    if isinstance(value, list | tuple):
        return _fit_sequence(list(value), options)
    if (type(value) is int and abs(value) > LARGEST) or (type(value) is float and abs(value) > LARGEST_FLOAT):
        return Written(str(value), "plain")
    return value


def _fit_mapping(value: dict[str, Any], options: Sequence[Any]) -> dict[str, Any]:
    for option in options:
        if is_section(option):
            return fit(option, value)
        if typing.get_origin(option) is dict:
            wanted = options_of(typing.get_args(option)[1])
            return {key: _fit(part, wanted) for key, part in value.items()}
    return value


def _fit_sequence(value: list[Any], options: Sequence[Any]) -> list[Any]:
    for option in options:
        if typing.get_origin(option) in (list, tuple):
            items = [item for item in typing.get_args(option) if item is not Ellipsis]
            wanted = [options_of(items[min(place, len(items) - 1)]) for place in range(len(value))]
            return [_fit(part, of) for part, of in zip(value, wanted, strict=True)]
    return value


def collection(written: Written) -> Any:
    """The list or mapping that is typed behind an override, as `[a, b]` or `{a: b}`; any other text as it is."""
    try:
        return written if not is_collection(written) else _read(written)
    except Fault:
        return written


def is_collection(written: Written) -> bool:
    """Whether it is typed as a list or a mapping, be it a broken one."""
    return written.style == "typed" and written.strip()[:1] in ("[", "{")


def fault_of(written: Written) -> str:
    """What is wrong with a list or a mapping that is typed; empty where nothing is."""
    try:
        _read(written)
    except Fault as fault:
        return str(fault)
    return ""


def _read(written: Written) -> Any:
    node = compose(str(written).strip())
    return written if node is None else values_of(node, "plain")


def _scalar(written: Written, options: Sequence[Any]) -> Any:
    takes_text = any(option in (str, Path) or typing.get_origin(option) is typing.Literal for option in options)
    if written.style != "quoted" and _is_null(written, may_be=types.NoneType in options, takes_text=takes_text):
        return None
    if Path in options and (not written or "\0" in written):  # pathlib takes an empty path for the current folder
        return [str(written)]  # which no path is, so that it is refused
    is_text = any(option in (str, Path) or written in typing.get_args(option) for option in options)
    if not is_text and written.style != "quoted":  # `auto` or a number may be a number
        for option in options:
            found = READERS[option](written.strip()) if option in READERS else None
            if found is not None:
                return found
    return str(written) if takes_text else written


def _is_null(written: Written, *, may_be: bool, takes_text: bool) -> bool:
    """Whether a scalar without quotes stands for no value.

    Of an override only where the key may have none, and for a text key only `null`: `run_dir=~` is a name.
    """
    if written.style == "plain":
        return written in NULLS or (may_be and not takes_text and written.lower() == "none")
    if takes_text:
        return may_be and written == "null"
    return may_be and written.lower() in TYPED_NULLS
