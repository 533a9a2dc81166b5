"""Values as people read them in terminals, logs and reports: tables of plain text, times, counts."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int = 1) -> str:
    """Cells in columns as wide as their widest cell, two blanks apart; no lines are drawn and none is wrapped.

    The first `num_left` columns stand to the left (names), the others to the right (numbers). Without `heads`
    there is no head line. Wide characters count as two, as in a terminal.

    >>> print(table(["kind", "tokens/s"], [["tree", "900"], ["树", "1,200"]]))
    kind  tokens/s
    tree       900
    树       1,200
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    grid = Table(box=None, pad_edge=False, padding=(0, 1), show_header=bool(heads), header_style="")
    for column in range(len(heads) or max(map(len, cells), default=0)):
        head = Text(heads[column]) if heads else ""
        grid.add_column(head, justify="left" if column < num_left else "right", no_wrap=True)
    for row in cells:
        grid.add_row(*map(Text, row))
    file = io.StringIO()
    Console(file=file, width=10_000, color_system=None).print(grid)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def shortened(text: str, width: int) -> str:
    """At most so many columns of a terminal, in which wide characters take two; a line's end is written as in Python.

    >>> shortened("positive", 5), shortened("中文类别", 5), shortened("a\\nb", 5)
    ('posi…', '中文…', 'a\\\\nb')
    """
    from rich.cells import cell_len, set_cell_size

    text = text if text.isprintable() else repr(text)[1:-1]
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def count(value: float) -> str:
    """A number of things in all its digits, in groups where there are more than four.

    >>> count(1500), count(1234567)
    ('1500', '1,234,567')
    """
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"


def figure(value: float, digits: int = 3) -> str:
    """A measured number with so many digits that count, and without an exponent as long as a person can read it.

    >>> figure(3.14159), figure(0.5), figure(12345.6), figure(999.7), figure(1e-7)
    ('3.14', '0.5', '12,346', '1,000', '1e-07')
    """
    is_long = math.isfinite(value) and 10**digits <= round(abs(value)) < 10**15
    return f"{value:,.0f}" if is_long else f"{value:.{digits}g}"


def clock(seconds: float) -> str:
    """A time as people read it.

    >>> clock(125), clock(3725)
    ('2:05', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "rank"), counted(12345, "rank"), counted(2, "process", "processes")
    ('1 rank', '12,345 ranks', '2 processes')
    """
    return f"{count(number)} {noun if number == 1 else plural or noun + 's'}"
