"""What predicted classes, labels and numbers are worth, with intervals.

What is counted are integers that add up over records and ranks: a confusion matrix, found and missed labels, bins of
confidence. Areas under curves and correlations are made of all records at once. A figure NAME stands beside
NAME_interval, which holds its truth with 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdlm.scoring.intervals import Interval, Z, middle, ratio, resampled, resampled_kinds, wilson

NUM_BINS = 15  # of confidence, of equal width (Guo et al. 2017)
UNIT = 1 << 32  # confidences are added up in integers of 1 / UNIT, so that no order of ranks can matter


def confusion(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often a class (row) was taken for another (column): int64 (K, K) of classes (n,) each; it adds up.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = gold.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_figures(matrix: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Of a confusion matrix (K, K): accuracy, `majority` (that of always saying the commonest class), averages.

    `f1_micro` is the accuracy, for each record has one class.
    """
    right, total, commonest = int(np.trace(matrix)), int(matrix.sum()), int(matrix.sum(1).max(initial=0))
    gold, predicted = np.nonzero(matrix)
    draws = resampled_kinds(matrix[gold, predicted])
    again = np.array([_found_wrong_missed(gold, predicted, counts, len(matrix)) for counts in draws])
    sums = _found_wrong_missed(gold, predicted, matrix[gold, predicted], len(matrix))
    return {
        **_proportion("accuracy", right, total),
        **_proportion("majority", commonest, total),
        **_averages(sums, again, labels),
    }


def label_rows(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Of records with any number of labels, bool (n, K) each: found, wrong, missed, left out: int64 (n, K, 4).

    They add up over records.
    """
    gold, predicted = gold.astype(bool), predicted.astype(bool)
    parts = (gold & predicted, ~gold & predicted, gold & ~predicted, ~gold & ~predicted)
    return np.stack(parts, axis=2).astype(np.int64)


def label_figures(rows: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Of `label_rows` (n, K, 4): averages, and of whole sets of labels `accuracy` and `majority`, as of classes."""
    right = int((rows[:, :, 1:3].sum((1, 2)) == 0).sum())
    sets = np.unique(rows[:, :, 0] + rows[:, :, 2], axis=0, return_counts=True)[1]
    counted = rows[:, :, :3]
    again = resampled(counted.reshape(len(rows), 3 * len(labels))).reshape(-1, len(labels), 3)
    return {
        **_proportion("accuracy", right, len(rows)),
        **_proportion("majority", int(sets.max(initial=0)), len(rows)),
        **_averages(counted.sum(0), again, labels),
    }


def _proportion(name: str, part: int, whole: int) -> dict[str, Any]:
    return {name: ratio(part, whole), f"{name}_interval": wilson(part, whole)}


def _found_wrong_missed(gold: np.ndarray, predicted: np.ndarray, counts: np.ndarray, num_classes: int) -> np.ndarray:
    """Of cells of a confusion matrix, (M,) each: (K, 3)."""
    right = gold == predicted
    found = np.bincount(gold[right], counts[right], num_classes)
    said, there = np.bincount(predicted, counts, num_classes), np.bincount(gold, counts, num_classes)
    return np.stack((found, said - found, there - found), axis=1)


def _averages(sums: np.ndarray, again: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Of found, wrong and missed (K, 3), and of what resamples made of them (R, K, 3)."""
    told: dict[str, Any] = {}
    resamples = averages(again) if len(again) else {}
    for name, value in averages(sums).items():
        told[name] = float(value)
        told[f"{name}_interval"] = middle(resamples.get(name, ()))
    by_class = dict(zip(("precision", "recall", "f1"), _each(sums), strict=True))
    support = (sums[:, 0] + sums[:, 2]).tolist()
    told["by_class"] = {
        label: {name: float(values[place]) for name, values in by_class.items()} | {"support": round(support[place])}
        for place, label in enumerate(labels)
    }
    return told


def averages(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of found, wrong and missed (..., K, 3): (...) each; 0 where 0 is to be divided by 0.

    `macro` is over classes that are there or are said, as scikit-learn's is over what it sees; `weighted` by how often
    they are there; `micro` of the sums over classes.
    """
    is_met, support = sums.sum(-1) > 0, sums[..., 0] + sums[..., 2]
    told = {}
    for kind, each, over_all in zip(("precision", "recall", "f1"), _each(sums), _each(sums.sum(-2)), strict=True):
        told[f"{kind}_micro"] = over_all
        told[f"{kind}_macro"] = _divided((each * is_met).sum(-1), is_met.sum(-1))
        told[f"{kind}_weighted"] = _divided((each * support).sum(-1), support.sum(-1))
    return told


def _each(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of (..., 3)."""
    found, wrong, missed = np.moveaxis(sums, -1, 0)
    return (
        _divided(found, found + wrong),
        _divided(found, found + missed),
        _divided(2 * found, 2 * found + wrong + missed),
    )


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def roc_auc(gold: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Of classes (n,) and scores: (n,) of class 1, or (n, K) of all, which are averaged one against the rest.

    Of labels, bool (n, K), of which a record may have several, each is judged by itself and the mean taken.

    A class that no record has, or that all have, is left out; NaN where none is left. The interval is DeLong's (1988),
    which is a point where the scores part the classes without a mistake.
    """
    by_class = {1: scores} if scores.ndim == 1 else dict(enumerate(scores.T))
    cases = [(gold == number if gold.ndim == 1 else gold[:, number], one) for number, one in by_class.items()]
    parts = [_area(is_there, one) for is_there, one in cases if 0 < is_there.sum() < len(gold)]
    if not parts:
        return {"roc_auc": math.nan, "roc_auc_interval": (math.nan, math.nan)}
    value = sum(area for area, _ in parts) / len(parts)
    error = math.sqrt(float(np.square(np.mean([shift for _, shift in parts], axis=0)).sum()))
    return {"roc_auc": value, "roc_auc_interval": (max(0.0, value - Z * error), min(1.0, value + Z * error))}


def _area(is_there: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of pairs of both kinds that stand in order, and how far each record moves it (n,)."""
    from scipy.stats import rankdata

    num_there, num_else = int(is_there.sum()), int((~is_there).sum())
    within = np.empty(len(scores))
    within[is_there], within[~is_there] = rankdata(scores[is_there]), rankdata(scores[~is_there])
    below = rankdata(scores) - within  # of the other kind; an equal score is half below
    area = float(below[is_there].sum()) / (num_there * num_else)
    share = np.where(is_there, below / num_else, 1 - below / num_there)
    return area, (share - area) / np.where(is_there, num_there, num_else)


def calibration_sums(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Of the probability (n,) of what was predicted and whether it was right (n,): int64 (NUM_BINS, 3), which adds up.

    Of each bin (from, to] records, confidence in 1 / UNIT, and right ones.
    """
    units = _in_units(confidence)
    columns = (np.ones(len(units), dtype=np.int64), units, correct.astype(np.int64))
    sums = np.zeros((NUM_BINS, 3), dtype=np.int64)
    np.add.at(sums, _bins(units), np.stack(columns, axis=1))
    return sums


def calibration_error(sums: np.ndarray) -> float:
    """The mean distance of confidence from accuracy in bins (expected calibration error, Naeini et al. 2015).

    >>> calibration_error(calibration_sums(np.array([0.75, 0.75, 0.75, 1.0]), np.array([1, 1, 0, 1])))
    0.0625
    """
    return ratio(sum(abs(units - right * UNIT) for _, units, right in sums.tolist()), UNIT * int(sums[:, 0].sum()))


def calibration_figures(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The interval is by bootstrap, moved so that the value is its mean: resamples are less calibrated than records."""
    units = _in_units(confidence)
    apart = np.zeros((len(units), NUM_BINS), dtype=np.int64)
    apart[np.arange(len(units)), _bins(units)] = units - correct.astype(np.int64) * UNIT
    value = calibration_error(calibration_sums(confidence, correct))
    again = np.abs(resampled(apart)).sum(1) / (UNIT * max(1, len(units)))
    low, high = middle(again + value - again.mean() if len(again) else again)
    return {"calibration_error": value, "calibration_error_interval": (max(0.0, low), high)}


def _in_units(confidence: np.ndarray) -> np.ndarray:
    return np.rint(confidence.astype(np.float64) * UNIT).astype(np.int64)


def _bins(units: np.ndarray) -> np.ndarray:
    return np.clip(-(-units * NUM_BINS // UNIT) - 1, 0, NUM_BINS - 1)


def number_figures(gold: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Of numbers (n,) each: mean squared error, Pearson's and Spearman's correlation.

    A correlation is NaN where one of the two never varies; its interval is Fisher's (1921), that of ranks after
    Fieller, Hartley and Pearson (1957).
    """
    from scipy.stats import rankdata

    gold, predicted = gold.astype(np.float64), predicted.astype(np.float64)
    errors = np.square(gold - predicted)
    told: dict[str, Any] = {"mse": math.fsum(errors) / max(1, len(errors))}
    told["mse_interval"] = middle(resampled(errors[:, None])[:, 0] / max(1, len(errors)))
    for name, one, other, spread in (
        ("pearson", gold, predicted, 1.0),
        ("spearman", rankdata(gold), rankdata(predicted), 1.06),
    ):
        told[name], told[f"{name}_interval"] = _correlation(one, other, spread)
    return told


def _correlation(one: np.ndarray, other: np.ndarray, spread: float) -> tuple[float, Interval]:
    if len(one) < 2 or not (np.ptp(one) and np.ptp(other)):
        return math.nan, (math.nan, math.nan)
    value = float(np.clip(np.corrcoef(one, other)[0, 1], -1, 1))
    if len(one) < 4 or abs(value) == 1:
        return value, (-1.0, 1.0) if len(one) < 4 else (value, value)
    half = Z * math.sqrt(spread / (len(one) - 3))
    return value, (math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))
