"""Maps of attention as a picture: a panel a head, of one head with its tokens on the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.inference.inspect.attention import AttentionMap
from hvdlm.inference.inspect.terminal import BLANK, LINE_END
from hvdlm.scoring.confusion import can_write, check_drawing, font_families
from hvdlm.tables import shortened

COLUMNS = 4  # panels side by side
PANEL = 2.2  # inches
MOST_LABELLED = 48  # tokens on an axis
LABEL_WIDTH = 14

check_maps = check_drawing


def draw_maps(maps: Sequence[AttentionMap], path: Path) -> None:
    """PNG, PDF or SVG by suffix; UserError where there is no attention to draw."""
    if not maps:
        raise UserError("--picture: is of attention, which this model has not; leave it out")
    import matplotlib
    from matplotlib.figure import Figure

    families = font_families()
    with matplotlib.rc_context({"font.family": families, "text.parse_math": False, "svg.hashsalt": "hvdlm"}):
        sizes = [_size(one) for one in maps]
        figure = Figure(figsize=(max(width for width, _ in sizes), sum(h for _, h in sizes)), layout="constrained")
        frames = figure.subfigures(len(maps), 1, squeeze=False, height_ratios=[height for _, height in sizes])
        for one, frame in zip(maps, frames[:, 0], strict=True):
            _draw(one.cut(), frame, families)
        figure.savefig(path, dpi=150)


def _size(one: AttentionMap) -> tuple[float, float]:
    """Width and height in inches."""
    if len(one.heads) == 1:
        side = max(4.0, 0.2 * min(MOST_LABELLED, max(len(one.queries), len(one.keys))) + 1.6)
        return side, side
    columns = min(COLUMNS, len(one.heads))
    return max(4.4, PANEL * columns), PANEL * 1.15 * math.ceil(len(one.heads) / columns) + 0.4


def _draw(one: AttentionMap, frame, families: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    frame.suptitle(one.title, fontsize=10)
    columns = min(COLUMNS, len(one.heads))
    axes = frame.subplots(math.ceil(len(one.heads) / columns), columns, squeeze=False).flat
    for panel, head, weights in zip(axes, one.heads, one.weights, strict=False):
        # The root shows small weights too, as in the page.
        panel.imshow(weights**0.5, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        panel.set_xticks([])
        panel.set_yticks([])
        if len(one.heads) > 1:
            panel.set_title(f"head {head}", fontsize=8)
        elif max(len(one.queries), len(one.keys)) <= MOST_LABELLED:
            panel.set_xticks(range(len(one.keys)), _names(one.keys, families), rotation=90, fontsize=7)
            panel.set_yticks(range(len(one.queries)), _names(one.queries, families), fontsize=7)
    for panel in list(axes)[len(one.heads) :]:
        panel.set_axis_off()


def _names(tokens: Sequence[str], families: Sequence[str]) -> list[str]:
    """As they can be written here: a token with a letter that no font has by its place."""
    seen = [shortened(token.replace(" ", BLANK).replace("\n", LINE_END), LABEL_WIDTH) for token in tokens]
    return [name if can_write(name, families) else str(place) for place, name in enumerate(seen)]
