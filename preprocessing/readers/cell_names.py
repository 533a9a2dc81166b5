"""Ids and labels out of typed columns: cells of any type as text, without loss."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np

# What pyarrow raises where Python has no value for a cell: nanoseconds, years beyond 9999, zones that are not there.
NO_VALUE = (ValueError, ArithmeticError, LookupError, ImportError, NotImplementedError)
SHORT_FLOATS = {"halffloat": np.float16, "float": np.float32}  # by pyarrow's names


def name_of(cell: Any) -> str | None:
    """An id or a label: JSON for what is nested, hexadecimal for bytes that are no text.

    UnicodeDecodeError for a string that is none, one of NO_VALUE for what cannot be shown in any way.
    """
    value = None if cell is None else _value(cell)
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return None if value is None else str(value)


def _value(cell: Any) -> Any:
    """A cell as JSON has it: text for all that JSON has no type for."""
    import pyarrow  # type: ignore[import-untyped]

    if not cell.is_valid:
        return None
    if isinstance(cell, pyarrow.DictionaryScalar | pyarrow.RunEndEncodedScalar | pyarrow.UnionScalar):
        return _value(cell.value)
    if isinstance(cell, pyarrow.ListScalar):  # maps too, which are lists of pairs
        items = [] if cell.values is None else cell.values
        is_map = isinstance(cell, pyarrow.MapScalar)
        return [[_value(item[0]), _value(item[1])] if is_map else _value(item) for item in items]
    if isinstance(cell, pyarrow.StructScalar):
        names = [field.name for field in cell.type]
        fields = [(name, _value(cell[index])) for index, name in enumerate(names)]
        return dict(fields) if len(set(names)) == len(names) else [list(pair) for pair in fields]
    return _plain(cell)


def _plain(cell: Any) -> Any:
    """The value of a cell that is not nested."""
    try:
        value = cell.as_py()
    except UnicodeDecodeError:
        raise
    except NO_VALUE:
        unit = f" {cell.type.unit}" if str(cell.type).startswith("duration") else ""  # else not told by the text
        return f"{cell.cast('string').as_py()}{unit}"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if short := SHORT_FLOATS.get(str(cell.type)):
        return float(str(short(value)))  # not the nearest double, which has other digits
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, tuple):  # an interval
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str) else _nested(value)


def _nested(value: Any) -> Any:
    """What an extension type gave: JSON where it can be, else text."""
    if isinstance(value, list | dict):
        return json.loads(json.dumps(value, ensure_ascii=False, default=str))
    return str(value)
