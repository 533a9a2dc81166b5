"""Names that are nearly others: misspelt options and variables. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def edits(one: str, other: str) -> int:
    """Letters put in, left out, exchanged or swapped that make one of the other (optimal string alignment).

    >>> edits("SLRUM", "SLURM"), edits("TASK", "TASKS"), edits("a", "xyz")
    (1, 1, 3)
    """
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        now = [row]
        for column, wanted in enumerate(other, 1):
            least = min(last[column] + 1, now[-1] + 1, last[column - 1] + (letter != wanted))
            if row > 1 and column > 1 and letter == other[column - 2] and one[row - 2] == wanted:
                least = min(least, before[column - 2] + 1)
            now.append(least)
        before, last = last, now
    return last[-1]


def nearest(name: str, names: Iterable[str], *, long: int = 6) -> str | None:
    """The one that `name` was meant to be, if it is but a slip away: one edit, or two from `long` letters on."""
    allowed = 1 if len(name) < long else 2
    close = ((edits(name, each), each) for each in sorted(names) if abs(len(name) - len(each)) <= allowed)
    return min((found for found in close if found[0] <= allowed), default=(0, None))[1]
