"""What is told of a finished output: a file beside it, and a line for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvdlm.inference.infer.parts import Plan
from hvdlm.tables import count, counted, figure

FINISH = "finish_"
SHOWN = 8  # keys in a line


class Share(NamedTuple):
    """What one rank has done since this start; amounts in the order of `Work.counted`, seconds by the same names."""

    amounts: Sequence[int]
    seconds: Mapping[str, float]
    phases: Mapping[str, float]


def summary_of(
    plan: Plan, names: Sequence[str], shares: Sequence[Share], counts: Counter[str], sha256: str
) -> dict[str, Any]:
    """`num_…` are of the whole output, speeds of what was done since this start, ranks together."""
    units = plan.source.units
    return {
        "out": str(plan.out),
        "num_records": plan.source.num_records,
        "num_blank_lines": plan.source.num_blank,
        **_told(counts),
        **({"unread_keys": dict(plan.unread)} if plan.unread else {}),
        "num_ranks": len(shares),
        "num_units": len(units),
        "num_units_resumed": len(units) - len(plan.todo),
        **{
            f"{name.replace(' ', '_')}_per_s": round(_speed(place, name, shares), 1) for place, name in enumerate(names)
        },
        "seconds": _by_rank([share.phases for share in shares]),
        "sha256": sha256,
        "made_by": dict(plan.settings),
    }


def unread_in_words(unread: Mapping[str, int], num_records: int) -> str:
    """One line, of the commonest.

    >>> unread_in_words({"completoin": 1}, 3)
    'keys that mean nothing here: completoin (1 of 3 records)'
    """
    told = [f"{key} ({count(num)} of {counted(num_records, 'record')})" for key, num in [*unread.items()][:SHOWN]]
    return f"keys that mean nothing here: {', '.join(told)}{', …' if len(unread) > SHOWN else ''}"


def _told(counts: Counter[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reasons = {name.removeprefix(FINISH): num for name, num in sorted(counts.items()) if name.startswith(FINISH)}
    if reasons:
        found["finish_reasons"] = reasons
    return found | {name: num for name, num in sorted(counts.items()) if not name.startswith(FINISH)}


def _speed(place: int, name: str, shares: Sequence[Share]) -> float:
    """Of all ranks together: each by the time that it spent with this."""
    total = 0.0
    for share in shares:
        seconds = share.seconds.get(name, 0.0) or share.phases.get("infer", 0.0)
        total += share.amounts[place] / seconds if seconds else 0.0
    return round(total, 1)


def _by_rank(phases: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for rank in phases for name in rank)
    return {name: [round(rank.get(name, 0.0), 3) for rank in phases] for name in names}


def in_words(summary: Mapping[str, Any]) -> str:
    """One line."""
    told = [counted(summary["num_records"], "record")]
    if reasons := summary.get("finish_reasons"):
        told.append("texts ended by " + ", ".join(f"{reason} {count(num)}" for reason, num in reasons.items()))
    if summary.get("truncated"):
        told.append(f"{count(summary['truncated'])} cut to the model's context")
    told += [
        f"{figure(value)} {name.removesuffix('_per_s').replace('_', ' ')}/s"
        for name, value in summary.items()
        if name.endswith("_per_s") and value
    ]
    return f"{Path(summary['out'])}: {'; '.join(told)}"
