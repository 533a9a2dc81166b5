"""What predicted classes or numbers are worth, and the line that each record's prediction is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdlm.scoring import classification as scoring
from hvdlm.tasks.records import Judged

SHARE = 0.5  # above which a label of several is said to be there


def of_classes(gold: np.ndarray, logits: np.ndarray, labels: Sequence[str], *, lines: bool) -> Judged:
    """Of one class each: `gold` int64 (n,), `logits` float32 (n, K)."""
    shares = _softmax(logits)
    found = logits.argmax(1)
    matrix = scoring.confusion(gold, found, len(labels))
    confidence = shares[np.arange(len(found)), found]
    figures = {
        **scoring.class_figures(matrix, labels),
        **scoring.roc_auc(gold, shares[:, 1] if len(labels) == 2 else shares),
        **scoring.calibration_figures(confidence, found == gold),
        "confusion": matrix.tolist(),
        "labels": list(labels),
    }
    told: list[dict[str, Any]] = []
    for truth, label, row in zip(gold.tolist(), found.tolist(), shares, strict=True) if lines else ():
        told.append({"label": labels[truth], "predicted": labels[label], "probability": round(float(row[label]), 6)})
    return Judged(figures, told)


def of_several(gold: np.ndarray, logits: np.ndarray, labels: Sequence[str], *, lines: bool) -> Judged:
    """Of any number of labels each: `gold` bool (n, K), `logits` float32 (n, K)."""
    found = logits > 0
    areas = [scoring.roc_auc(gold[:, k].astype(np.int64), logits[:, k])["roc_auc"] for k in range(len(labels))]
    known = [area for area in areas if np.isfinite(area)]
    figures = {**scoring.label_figures(scoring.label_rows(gold, found), labels), "labels": list(labels)}
    if known:
        figures["roc_auc"] = sum(known) / len(known)
    names = np.array(labels, dtype=object)
    told = [
        {"labels": names[truth].tolist(), "predicted": names[row].tolist()}
        for truth, row in (zip(gold, found, strict=True) if lines else ())
    ]
    return Judged(figures, told)


def of_numbers(gold: np.ndarray, predicted: np.ndarray, *, lines: bool) -> Judged:
    """Of numbers (n,) each."""
    pairs = zip(gold.tolist(), predicted.tolist(), strict=True) if lines else ()
    told = [{"number": truth, "predicted": found} for truth, found in pairs]
    return Judged(scoring.number_figures(gold, predicted), told)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
