"""The result of an evaluation of labelled records as people read it: tables as wide as a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.scoring.confusion import as_table, draw
from hvdlm.tables import figure, shortened, table

INTERVAL = "_interval"
MOST_NAMES, NAME_WIDTH = 40, 30  # of classes or types in a table, and columns of each
NAMELESS = "(no name)"  # the type of spans that are tagged B and I alone, as of words
HIDDEN = {"step", "num_records", "seq_len"}  # said in words
# Averages that say the same as another figure that is shown, or that few ask for.
FOLDED = tuple(f"{name}_{kind}" for name in ("precision", "recall") for kind in ("micro", "macro", "weighted"))


def as_text(found: Mapping[str, Any]) -> str:
    """Figures with their 95 % intervals, those of classes or types, and the confusion matrix."""
    parts = [_figures(found)]
    for name, head in (("by_class", "class"), ("by_type", "type")):
        if by_name := found.get(name):
            parts.append(_by_name(by_name, head))
    if "confusion" in found:
        parts.append(as_table(np.array(found["confusion"]), found["labels"]))
    what = f"{found['num_records']:,} {found['protocol']}{settings_in_words(found)}"
    return "\n\n".join([*parts, f"{found['split']} of {found['data']}: {what}; step {found['step']}"])


def settings_in_words(found: Mapping[str, Any]) -> str:
    """Settings that are no part of the protocol but of the task, and what is not as in training."""
    words = []
    for name, value in found.get("settings", {}).items():
        if value is not None and value is not False:
            told = " ".join(value) if isinstance(value, list) else "" if value is True else f"{value}"
            words.append(f"{name.replace('_', ' ')} {told}".strip())
    return "".join(f"; {part}" for part in (", ".join(words), *found.get("model_changes", ())) if part)


def draw_confusion(found: Mapping[str, Any], path: Path) -> None:
    """The confusion matrix as a picture."""
    draw(np.array(found["confusion"]), found["labels"], path)


def _figures(found: Mapping[str, Any]) -> str:
    rows = []
    for name, value in found.items():
        if not isinstance(value, int | float) or name in HIDDEN or name in FOLDED:
            continue
        ends = [figure(end, 4) for end in found.get(f"{name}{INTERVAL}") or () if end is not None]
        told = figure(value, 4) if isinstance(value, float) else f"{value:,}"
        if math.isnan(value):  # as where all records are of one class
            told, ends = "undefined", []
        rows.append([name.replace("_", " "), told, " to ".join(ends)])
    return table(["figure", "value", "95 % interval"], rows)


def _by_name(by_name: Mapping[str, Mapping[str, float]], head: str) -> str:
    names = ("precision", "recall", "f1")
    by_support = sorted(by_name, key=lambda label: -by_name[label]["support"])
    shown = set(by_support[:MOST_NAMES])
    rows = [
        [
            shortened(label or NAMELESS, NAME_WIDTH),
            *(f"{values[name]:.4f}" for name in names),
            f"{round(values['support']):,}",
        ]
        for label, values in by_name.items()
        if label in shown
    ]
    left = f"\n… {len(by_name) - len(rows):,} more, with fewer; --json has all" if len(by_name) > len(rows) else ""
    return table([head, *names, "records" if head == "class" else "spans"], rows) + left
