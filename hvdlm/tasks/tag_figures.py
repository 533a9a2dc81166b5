"""What predicted labels of words are worth: accuracy, and where they spell spans the F1 of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hvdlm.scoring import classification, spans
from hvdlm.scoring.intervals import bootstrap, ratio
from hvdlm.tasks.interface import more
from hvdlm.tasks.records import Judged

OUTSIDE = "O"
PARTS = ("", "_interval")  # of a figure's name
OF_SPANS = more("f1", "accuracy", "precision", "recall", *(f"{name}_conlleval" for name in spans.FIGURES))
OF_LABELS = more("accuracy", "f1_macro", "f1_weighted")


class Tagging(NamedTuple):
    """What labels stand for."""

    labels: Sequence[str]
    scheme: str | None
    is_srl: bool  # spans are arguments of a predicate


def judged(task: Tagging, gold: Sequence[np.ndarray], predictions: Sequence[np.ndarray], *, lines: bool) -> Judged:
    """`gold` has the labels of each sentence's words, `predictions` those of its first: the others were cut off.

    What was cut counts: its words are predicted to be outside of all spans.
    """
    names = np.array([*task.labels, OUTSIDE], dtype=object)
    filler = len(task.labels)
    full = [
        np.concatenate([found, np.full(len(truth) - len(found), filler)]).astype(np.int64)
        for truth, found in zip(gold, predictions, strict=True)
    ]
    tags = [(names[truth].tolist(), names[found].tolist()) for truth, found in zip(gold, full, strict=True)]
    words = np.array([[sum(a == b for a, b in zip(*pair, strict=True)), len(pair[0])] for pair in tags])
    figures: dict[str, Any] = {"num_words": int(words[:, 1].sum())}
    if cut := sum(len(truth) - len(found) for truth, found in zip(gold, predictions, strict=True)):
        figures["cut_words"] = cut
    if task.scheme:
        figures |= _of_spans(task, tags)
    else:
        figures |= _of_labels(task, gold, full)
    figures["accuracy"] = ratio(*words.sum(0))
    figures["accuracy_interval"] = bootstrap(words, lambda sums: ratio(*sums))
    told = [{"labels": truth, "predicted": found} for truth, found in tags] if lines else []
    return Judged(figures, told)


def _of_spans(task: Tagging, tags: Sequence[tuple[list[str], list[str]]]) -> dict[str, Any]:
    """F1 by the scheme to the letter, and by conlleval's reading, beside it under names of its own."""
    assert task.scheme is not None
    types = spans.types_of(task.labels, task.scheme)
    kinds = spans.argument_types(types) if task.is_srl else types
    told: dict[str, Any] = {"scheme": task.scheme}
    readings: tuple[tuple[spans.Reading, str], ...] = (("strict", ""), ("conlleval", "_conlleval"))
    for reading, ending in readings:
        items = [[_items(part, task.scheme, reading, is_srl=task.is_srl) for part in pair] for pair in tags]
        counts = [spans.count(truth, found, kinds) for truth, found in items]
        figures = spans.figures(np.stack(counts), kinds)
        if ending:  # in all, not by type
            figures = {f"{name}{ending}{part}": figures[name + part] for name in spans.FIGURES for part in PARTS}
        told |= figures
    return told


def _items(tags: list[str], scheme: str, reading: spans.Reading, *, is_srl: bool) -> list[Any]:
    entities = spans.entities(tags, scheme, reading=reading)
    return spans.arguments(entities) if is_srl else list(entities)


def _of_labels(task: Tagging, gold: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, Any]:
    """Of labels that spell no spans, such as parts of speech: each word is a case of its own."""
    num = len(task.labels)
    truth, predicted = np.concatenate([*gold]), np.concatenate([*found])
    figures = classification.class_figures(classification.confusion(truth, predicted, num + 1), task.labels)
    return {name + part: figures[name + part] for name in ("f1_macro", "f1_weighted", "majority") for part in PARTS}
