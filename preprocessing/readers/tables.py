"""What all kinds of tables share: their columns are named by the config, and a cell may be too large."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hvdlm.errors import UserError

from ..documents import Part, ReadOptions, record_limit


def larger_than_limit(num_bytes: int | None = None) -> str:
    """Why a row, page or record is refused that would have to be held as a whole, or followed further than this."""
    return f"larger than {(num_bytes or record_limit()) / 2**20:g} MiB"


def wanted_columns(
    names: Sequence[str], part: Part, options: ReadOptions, found: Sequence[str | None] = ()
) -> list[str | None]:
    """The columns that the options ask for, each in the table exactly once, but for those `found` already."""
    keys = options.keys
    for key, name in keys.items():
        if name is None or name in found:
            continue
        if name not in names:
            hint = " or table.delimiter" if len(names) == 1 and re.search(r"[,;|\t]", names[0]) else ""
            raise UserError(f"{part.path}: no column {name!r} (it has: {listed(names)}); set {key}{hint}")
        if names.count(name) > 1:
            raise UserError(f"{part.path}: column {name!r} is there {names.count(name)} times; rename the others")
    return list(keys.values())


def listed(names: Iterable[str]) -> str:
    """The first names of a table, on one line even where binary content was taken for a header."""
    shown = [name[:40] if name.isprintable() and name == name.strip() else repr(name[:40]) for name in names]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")
