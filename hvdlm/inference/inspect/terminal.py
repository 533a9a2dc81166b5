"""An inspection in a terminal: text with a number under each piece, coloured where there are colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hvdlm.inference.inspect.attention import AttentionMap, habits
from hvdlm.inference.inspect.colours import as_hex, background, foreground
from hvdlm.inference.inspect.inspection import Inspection
from hvdlm.inference.inspect.neighbours import Neighbours
from hvdlm.inference.inspect.passages import Cell, Passage, Scale
from hvdlm.tables import shortened, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH = 80
CELL_WIDTH = 24  # columns of a piece; a longer one is cut
MOST_TOLD = 8  # cells that are told of in words
NAME_WIDTH, LABEL_WIDTH = 16, 14
BLANK, LINE_END, WINDOW = "·", "↵", "▏"  # a window begins
MOST_KEYS = 3
DIGITS = {"itself": 2, "before": 2, "first": 2, "entropy": 1}  # after the point, of a head's habits


def show(found: Inspection, console: Console) -> None:
    """Print it, at most 80 columns wide."""
    console.width = min(console.width, WIDTH)
    _say(console, found.headline)
    if found.passage is not None:
        _show_passage(found.passage, console)
    for one in found.attention:
        console.print()
        _say(console, one.title, style="bold")
        console.print(_keys_of(one) if len(one.heads) == 1 else _habits_of(one), markup=False, highlight=False)
    for near in found.neighbours:
        console.print()
        _show_neighbours(near, console)


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False)


def _show_passage(passage: Passage, console: Console) -> None:
    console.print()
    _say(console, passage.title, style="bold")
    for fact in (*passage.facts, *passage.notes):
        _say(console, fact)
    console.print(_legend(passage.scale))
    if any(cell.begins for cell in passage.cells):
        _say(console, f"{WINDOW} a window begins, before which the model saw nothing else (--stride: a past)")
    console.print()
    for line in lines_of(passage.cells, console.width):
        for row in _rows(line, passage.scale):
            console.print(row, soft_wrap=True)
    if told := _told(passage):
        console.print()
        _say(console, told)


def _legend(scale: Scale) -> Text:
    from rich.text import Text

    legend = Text()
    for tick, name in scale.ticks:
        back = background(tick, scale)
        legend.append(f"  {name}  ", style=f"{as_hex(foreground(back))} on {as_hex(back)}")
    return legend.append(f"  {scale.unit}")


def lines_of(cells: Sequence[Cell], width: int) -> Iterator[list[tuple[Cell, str, int]]]:
    """Cells with what is written of each and its width, as many as a line takes; a line's end ends a line."""
    from rich.cells import cell_len

    line: list[tuple[Cell, str, int]] = []
    used = 0
    for cell in cells:
        text = written(cell)
        size = max(cell_len(text), len(cell.label)) + 1
        if line and used + size > width:
            yield line
            line, used = [], 0
        line.append((cell, text, size))
        used += size
        if "\n" in cell.text:
            yield line
            line, used = [], 0
    if line:
        yield line


def written(cell: Cell) -> str:
    """A cell's text on one line: blanks and line ends can be seen, and no control character reaches the terminal.

    >>> written(Cell(" a b\\n")), written(Cell("\\x1b[2J"))
    ('·a·b↵', '\\\\x1b[2J')
    """
    text = cell.text.replace("\r\n", "\n").replace("\n", LINE_END).replace(" ", BLANK)
    return (WINDOW if cell.begins else "") + (shortened(text, CELL_WIDTH) or "∅")


def _rows(line: Sequence[tuple[Cell, str, int]], scale: Scale) -> Iterator[Text]:
    """What is written, then the labels under it."""
    from rich.cells import cell_len
    from rich.text import Text

    above, below = Text(), Text()
    for cell, text, size in line:
        back = None if cell.value is None else background(cell.value, scale)
        above.append(text, style="" if back is None else f"{as_hex(foreground(back))} on {as_hex(back)}")
        above.append(" " * (size - cell_len(text)))
        below.append(cell.label.ljust(size), style="dim")
    yield above
    yield below


def _told(passage: Passage) -> str:
    """The cells that say more of themselves, most surprising or least sure first."""
    told = [cell for cell in passage.cells if cell.value is not None and any(one.choices for one in cell.details)]
    order = sorted(told, key=lambda cell: (cell.value or 0.0) * (1 if passage.labelled else -1))
    rows = []
    for cell in order[:MOST_TOLD]:
        first = max(cell.details, key=lambda one: len(one.choices))
        shares = "  ".join(f"{_plain(one.text)} {one.probability:.2f}" for one in first.choices[:3])
        rows.append([_plain(cell.text), cell.label, shortened(shares, WIDTH - NAME_WIDTH - LABEL_WIDTH)])
    heads = ["least sure", "label", "likeliest"] if passage.labelled else ["highest", passage.scale.unit, "likeliest"]
    return table(heads, rows, num_left=3) if rows else ""


def _plain(text: str) -> str:
    return shortened(written(Cell(text)), NAME_WIDTH)


def _habits_of(shown: AttentionMap) -> str:
    """A row a head."""
    names = {"itself": "itself", "before": "one before", "first": "the first", "entropy": "entropy, bits"}
    rows = habits(shown)
    kept = [name for name in names if name in rows[0]]
    cells = [[f"head {int(row['head'])}", *(f"{row[name]:.{DIGITS[name]}f}" for name in kept)] for row in rows]
    told = table(["mean weight on", *(names[name] for name in kept)], cells)
    return f"{told}\n--head H lists what each token of one sees; --out FILE.html draws all"


def _keys_of(shown: AttentionMap) -> str:
    """A row a query: the keys that it takes most of."""
    rows = []
    for query, weights in zip(shown.queries, shown.weights[0], strict=True):
        best = sorted(range(len(weights)), key=lambda place: -weights[place])[:MOST_KEYS]
        cells = [f"{_plain(shown.keys[place])} {weights[place]:.2f}" for place in best]
        rows.append([_plain(query), *cells, *[""] * (MOST_KEYS - len(cells))])
    return table(["token", "sees most", "then", "then"], rows, num_left=4)


def _show_neighbours(near: Neighbours, console: Console) -> None:
    spelled = "" if len(near.tokens) == 1 else f", the mean of {' '.join(map(_plain, near.tokens))}"
    _say(console, f"Nearest to {_plain(near.word)}{spelled}", style="bold")
    rows = [[_plain(one.text), f"{one.cosine:.3f}", str(one.id)] for one in near.near]
    _say(console, table(["token", "cosine", "id"], rows))
