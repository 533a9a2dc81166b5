"""A curve in characters of a terminal: Braille has 2 x 4 dots in each."""

from __future__ import annotations

import numpy as np

from hvdlm.tables import figure

from .thinning import Curve, range_in_view, thinned

EMPTY = 0x2800  # Braille without a dot
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a character, by row and column
POINT = "o"  # of the few values of the second curve


def plot(curve: Curve, points: Curve, width: int, height: int, *, is_plain: bool = False) -> list[str]:
    """Rows of `width` characters: `height` of the curve with its scale at the left, an axis and its steps.

    Dots that follow each other are joined. `is_plain` is for a terminal that has no more than ASCII.

    >>> for row in plot(Curve(np.arange(9.0), np.arange(9.0)), Curve(*np.empty((2, 0))), 14, 3, is_plain=True):
    ...     print(row)
     8 |      ....
     4 |   ....
     0 |....
       +----------
        0        8
    """
    low, high = _range(np.concatenate([curve.finite, points.finite]))
    labels = [_label(high, high - low), _label((low + high) / 2, high - low), _label(low, high - low)]
    margin = max(map(len, labels)) + 2
    columns = width - margin - 1
    first, last = _steps(curve, points)
    cells = np.full((height, columns), EMPTY)
    _draw(cells, curve, (first, last), (low, high))
    rows = [[_character(cell, is_plain) for cell in row] for row in cells]
    for step, value in zip(*points, strict=True):
        if np.isfinite(value):
            x = round((step - first) / max(last - first, 1) * (columns - 1))
            rows[round((1 - _share(value, low, high)) * (height - 1))][x] = POINT
    told = {0: labels[0], height // 2: labels[1], height - 1: labels[2]}
    side, corner, line = ("|", "+", "-") if is_plain else ("│", "└", "─")
    drawn = [f"{told.get(y, ''):>{margin - 1}} {side}{''.join(row)}".rstrip() for y, row in enumerate(rows)]
    steps = f"{first:,.0f}", f"{last:,.0f}"
    gap = " " * max(1, columns - len(steps[0]) - len(steps[1]))
    return [*drawn, " " * margin + corner + line * columns, " " * (margin + 1) + steps[0] + gap + steps[1]]


def _range(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = range_in_view(values) or (float(values.min()), float(values.max()))
    least = 1e-9 * max(abs(low), abs(high), 1e-30)  # less is rounding
    return (low, high) if high - low > least else (low - 0.5 - abs(low) / 2, high + 0.5 + abs(high) / 2)


def _label(value: float, spread: float) -> str:
    """With as many digits as tell the ends of the scale apart.

    >>> _label(4.06312, 0.02), _label(8.34, 4.2), _label(12345.6, 5000.0)
    ('4.063', '8.34', '12,346')
    """
    decimals = int(np.clip(2 - np.floor(np.log10(spread)), 0, 6)) if spread < 100 else 0
    text = f"{value:,.{min(decimals, 3 if spread < 1 else 2)}f}" if abs(value) < 1e9 else figure(value)
    return text.rstrip("0").rstrip(".") if "." in text and set(text.partition(".")[2]) == {"0"} else text


def _steps(*curves: Curve) -> tuple[float, float]:
    steps = np.concatenate([curve.steps for curve in curves])
    return (float(steps.min()), float(steps.max())) if len(steps) else (0.0, 0.0)


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _draw(cells: np.ndarray, curve: Curve, steps: tuple[float, float], values: tuple[float, float]) -> None:
    """Set the dots of a curve: one in each column of dots from its first value to its last, joined upright."""
    height, columns = cells.shape
    band = thinned(curve, most=2 * columns)
    is_known = np.isfinite(band.mean)
    if not is_known.any():
        return
    places = (band.steps[is_known] - steps[0]) / max(steps[1] - steps[0], 1) * (2 * columns - 1)
    before = None
    for x in range(round(places[0]), round(places[-1]) + 1):
        value = float(np.interp(x, places, band.mean[is_known]))
        y = round((1 - _share(value, *values)) * (4 * height - 1))
        for dot in _joined(before, y):
            cells[dot // 4, x // 2] |= DOTS[dot % 4][x % 2]
        before = y


def _joined(before: int | None, y: int) -> range:
    """The rows of dots from beside `before` to `y`.

    >>> list(_joined(2, 5)), list(_joined(5, 2)), list(_joined(2, 2)), list(_joined(None, 2))
    ([3, 4, 5], [2, 3, 4], [2], [2])
    """
    if before is None or before == y:
        return range(y, y + 1)
    return range(before + 1, y + 1) if y > before else range(y, before)


def _character(cell: int, is_plain: bool) -> str:
    if cell == EMPTY:
        return " "
    return "." if is_plain else chr(cell)
