"""What labelled records hold, field by field, for people who look into a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.data.manifest import Manifest
from hvdlm.data.records import Records

MOST_LABELS = 12  # that a line names


def field_facts(folder: Path, split: str, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """By field its type, and how often each label is there, the range of a number, or how many values a record has."""
    records = Records(folder, split, manifest)
    found: dict[str, dict[str, Any]] = {}
    for name, field in manifest.fields.items():
        facts: dict[str, Any] = {"type": field.type}
        if field.type in ("label", "labels"):
            counts = np.bincount(records.all_values(name), minlength=len(field.labels))
            facts["labels"] = dict(zip(field.labels, counts.tolist(), strict=True))
        elif field.type == "number":
            values = records.all_values(name)
            facts |= {"least": float(values.min()), "mean": float(values.mean()), "most": float(values.max())}
        elif field.type in ("pair", "span"):
            width = 2 if field.type == "span" else 1
            facts["mean_values"] = float(records.num_values(name).mean()) / width
        found[name] = facts
    return found


def in_words(facts: dict[str, dict[str, Any]]) -> list[str]:
    """A line a field."""
    lines = []
    for name, field in facts.items():
        told = ""
        if "labels" in field:
            labels = list(field["labels"].items())
            more = f", … {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
            told = ": " + ", ".join(f"{label} {count:,}" for label, count in labels[:MOST_LABELS]) + more
        elif "least" in field:
            told = f": {field['least']:g} to {field['most']:g}, mean {field['mean']:.4g}"
        elif "mean_values" in field:
            what = "answers" if field["type"] == "span" else "tokens"
            told = f": {field['mean_values']:.1f} {what} a record"
        lines.append(f"  {name} ({field['type']}){told}")
    return lines
