"""Time limits as people of SLURM, PBS and LSF write them. Pure."""

from __future__ import annotations

import math
import re

from .lint.values import is_odd_time, parse_minutes

SCHEDULERS = ("slurm", "pbs", "lsf")  # each has its templates/NAME.sh.j2

MAX_MINUTES = (2**31 - 1) // 60  # SLURM counts seconds in 32 bits
FORMS = "minutes, hours:minutes:seconds or days-hours:minutes:seconds"


def minutes_of(text: str, scheduler: str = "slurm") -> int:
    """Whole minutes of a time limit, rounded up; ValueError for none, and for what is no time.

    A plain number counts minutes everywhere. Of two parts SLURM and PBS make minutes:seconds, LSF hours:minutes.

    >>> [minutes_of(text) for text in ("45", "45:30", "02:00:00", "1-12", "1-12:30")]
    [45, 46, 120, 2160, 2190]
    >>> minutes_of("2:00", "lsf")
    120
    """
    text = text.strip()
    if scheduler == "lsf" and re.fullmatch(r"\d+:\d+", text):
        text += ":00"
    try:
        minutes = parse_minutes(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write {FORMS}") from None
    if math.isinf(minutes):
        raise ValueError(f"{text} is no limit, and a job needs one: its budget and its last save hang on it")
    if minutes > MAX_MINUTES:
        raise ValueError(f"{text} is longer than SLURM can count")
    if minutes < 1:
        raise ValueError(f"{text} is no time to work in; write {FORMS}")
    return int(minutes)


def remark_on(text: str, minutes: int) -> str:
    """A word on a time whose parts are larger than people write them; schedulers add them up.

    >>> remark_on("1-12:99", 2259), remark_on("36:00:00", 2160)
    ('1-12:99 is taken for 37:39:00', '')
    """
    return f"{text} is taken for {minutes // 60}:{minutes % 60:02d}:00" if is_odd_time(text.strip()) else ""
