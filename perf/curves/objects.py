"""Rows and events of a metrics.jsonl as they can be drawn: others may have written there, and disks err."""

from __future__ import annotations

import math
from typing import Any

from hvdlm.session.metrics import is_event, is_row

MOST_STEPS = 1 << 53  # a float tells two steps apart
LARGEST = 1e100  # beyond is no measurement, and no picture has room for it
KINDS: dict[str, tuple[type, ...]] = {  # of an event's facts
    **dict.fromkeys(("time", "reason", "host", "job", "mesh"), (str,)),
    **dict.fromkeys(("ranks", "total_steps", "before"), (int,)),
    "seconds": (int, float),
}


def sound(found: dict[str, Any]) -> dict[str, Any] | None:
    """A row with its numbers alone, NaN for null and for what is no measurement; or an event with facts of their kinds.

    None for what is neither.

    >>> sound({"step": 1, "split": "train", "loss": 10**400, "note": "x"}), sound({"step": 1, "loss": 2.0})
    ({'step': 1, 'split': 'train', 'loss': nan}, None)
    """
    if is_row(found) and 0 <= found["step"] < MOST_STEPS:
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float | None)}
        place = {"step": found["step"], "split": found["split"]}
        return place | {name: _number(value) for name, value in numbers.items() if name != "step"}
    if is_event(found) and 0 <= found["step"] < MOST_STEPS:
        return {name: value for name, value in found.items() if _is_sound(name, value)}
    return None


def _is_sound(name: str, value: Any) -> bool:
    """Whether a fact of an event is of its kind, and within what numbers can be."""
    kinds = KINDS.get(name)
    return kinds is None or (type(value) in kinds and (str in kinds or 0 <= value < MOST_STEPS))


def _number(value: float | None) -> float:
    return value if value is not None and -LARGEST <= value <= LARGEST else math.nan
