"""A confusion matrix as people read it: a table as wide as a terminal, and a picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hvdlm.errors import UserError
from hvdlm.scoring.intervals import ratio
from hvdlm.tables import shortened, table

log = logging.getLogger("hvdlm")

WIDTH = 80  # columns of a terminal
NAME_WIDTH = 16  # of a label; a longer one is cut
MOST_CLASSES = 12  # of which a table that has no cell for each pair tells
MOST_COUNTED = 20  # classes of a picture that says each cell's number
MOST_PIXELS = 6000  # of a picture's side: a gigabyte is soon full
# Fonts with Chinese, Japanese and Korean letters, where the machine has one.
CJK_FONTS = (
    *(f"{family} {region}" for family in ("Noto Sans CJK", "Noto Serif CJK") for region in ("SC", "JP", "TC")),
    *("Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "PingFang SC", "Heiti SC", "AR PL UMing CN"),
)


def as_table(matrix: np.ndarray, labels: Sequence[str], *, width: int = WIDTH) -> str:
    """Of int (K, K): gold classes are rows, predicted ones columns.

    Where that would be wider than `width`, a row a class instead: its records, how many of them were found, and what
    the others were taken for, commonest first; of many classes those with the most mistakes.
    """
    names = [shortened(label, NAME_WIDTH) for label in labels]
    whole = table(
        ["gold \\ predicted", *names], [[name, *map(str, row)] for name, row in zip(names, matrix, strict=True)]
    )
    if _width(whole) <= width:
        return whole
    counts = matrix.tolist()
    mistakes = matrix.sum(1) - matrix.diagonal()
    shown = np.argsort(-mistakes, kind="stable")[:MOST_CLASSES] if len(names) > MOST_CLASSES else np.arange(len(names))
    heads, rows = ["class", "records", "found"], []
    for place in shown.tolist():
        num, digits = sum(counts[place]), len(str(len(names)))
        rows.append(
            [f"{place + 1:>{digits}} {names[place]}", f"{num:,}", f"{100 * ratio(counts[place][place], num):.1f} %"]
        )
    columns = table(heads, rows).splitlines()
    filler = max(map(_width, columns))
    taken = ["taken for", *(_mistakes(counts[place], place, names, width - filler - 2) for place in shown.tolist())]
    lines = [f"{line}{' ' * (filler - _width(line))}  {end}".rstrip() for line, end in zip(columns, taken, strict=True)]
    if left := len(names) - len(shown):
        lines.append(f"… {left:,} more with fewer mistakes, or as many; --json and --picture have all")
    return "\n".join(lines)


def _mistakes(row: list[int], own: int, names: Sequence[str], room: int) -> str:
    """`names` with how often, as many as there is room for."""
    order = sorted((place for place, times in enumerate(row) if times and place != own), key=lambda place: -row[place])
    told = ""
    for place in order:
        longer = f"{told}, {names[place]} {row[place]}" if told else f"{names[place]} {row[place]}"
        if _width(longer) > room - (3 if place != order[-1] else 0):
            return f"{told}, …" if told else "…"
        told = longer
    return told


def _width(text: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, text.splitlines()), default=0)


def check_drawing() -> None:
    """UserError where there is nothing to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"no picture can be drawn: {error}; pip install matplotlib") from None


def draw(matrix: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """As a picture (PNG, PDF or SVG by suffix): shares of each gold class, and counts where there is room.

    Where no font here can write the labels, their numbers from 1 stand for them.
    """
    import matplotlib
    from matplotlib.figure import Figure

    families = font_families()
    names = [shortened(label, 2 * NAME_WIDTH) for label in labels]
    if not can_write("".join(names), families):
        told = ", ".join(f"{place} {name}" for place, name in enumerate(names[:MOST_CLASSES], 1))
        more = ", …" if len(names) > MOST_CLASSES else ""
        log.warning("%s: no font here can write these labels; numbers stand for them: %s%s", path, told, more)
        names = [str(place) for place in range(1, len(names) + 1)]
    has_counts, longest = len(names) <= MOST_COUNTED, max(map(_width, names), default=0)
    size = max(3.5, (0.42 if has_counts else 0.22) * len(names) + 0.09 * longest + 0.8)  # inches
    with matplotlib.rc_context({"font.family": families, "text.parse_math": False, "svg.hashsalt": "hvdlm"}):
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.add_subplot()
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) * longest > 30 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(labelsize=10 if has_counts else 8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("gold")
        if has_counts:
            for (row, column), times in np.ndenumerate(matrix):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(times) if times else "", ha="center", va="center", color=color, fontsize=7)
        else:
            figure.colorbar(image, label="share of the gold class", shrink=0.6)
        try:
            figure.savefig(path, dpi=min(150, MOST_PIXELS / size))
        except ValueError as error:  # a suffix that matplotlib does not know
            raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def font_families() -> list[str]:
    """Fonts to look a letter up in, one after the other, of those there are."""
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(family for family in CJK_FONTS if family in there)]  # the first comes with matplotlib


def can_write(text: str, families: Sequence[str]) -> bool:
    from matplotlib import font_manager

    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    return all(any(font.get_char_index(ord(letter)) for font in fonts) for letter in set(text))
