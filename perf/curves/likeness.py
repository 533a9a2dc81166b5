"""Which losses of several runs may be compared: those of one task, vocabulary, data, and way to validate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .reading import TrainingRun


def unlike(runs: Sequence[TrainingRun]) -> list[str]:
    """A remark for each reason why losses cannot be compared, as far as the folders tell.

    A run that does not tell, as one without a checkpoint, is taken to be like the others.
    """
    found = []
    if tasks := _groups(runs, lambda run: run.settings.get("task.kind")):
        found.append(f"losses are of different tasks ({_named(tasks)}): they are not to be compared")
    vocabularies = _groups(runs, lambda run: run.state.get("tokenizer_digest"))
    if vocabularies:
        told = _apart(vocabularies)
        found.append(f"losses a token are over different vocabularies ({told}): compare bits a byte, by `hvdlm eval`")
    data = _groups(runs, lambda run: run.state.get("data_digest"))
    if data and list(data.values()) != list(vocabularies.values()):  # which makes other data of the same text
        found.append(f"training data are not the same ({_apart(data)}): training losses are not to be compared")
    if protocols := _groups(runs, lambda run: _figures(run).get("val_protocol")):
        found.append(f"validations are not of one kind ({_named(protocols)}): their losses are not to be compared")
    if sizes := _groups(runs, _validated):
        found.append(f"validations are not of the same targets ({_named(sizes)}): compare their losses with care")
    return found


def _figures(run: TrainingRun) -> dict[str, Any]:
    figures = run.state.get("figures")
    return figures if isinstance(figures, dict) else {}


def _validated(run: TrainingRun) -> str | None:
    """How many targets a validation counts, and of how many."""
    part, whole = (run.last("val", name) for name in ("num_tokens", "split_tokens"))
    if math.isnan(part):
        return None
    return f"{part:,.0f} targets" + ("" if math.isnan(whole) else f" of a split of {whole:,.0f}")


def _groups(runs: Sequence[TrainingRun], of: Callable[[TrainingRun], Any]) -> dict[str, list[str]]:
    """Names of the runs by what they have; nothing where all that tell of it have the same."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if (value := of(run)) is not None:
            found.setdefault(str(value), []).append(run.name)
    return found if len(found) > 1 else {}


def _named(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in groups.items())


def _apart(groups: dict[str, list[str]]) -> str:
    """Of values that say nothing to people."""
    return " | ".join(map(", ".join, groups.values()))
