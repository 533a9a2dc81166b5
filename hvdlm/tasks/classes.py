"""What a text is given: one class, several classes or a number; how each is kept, learnt from and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hvdlm.data.fields import FieldEntry
from hvdlm.data.records import Records
from hvdlm.scoring import classification as scoring
from hvdlm.tasks.interface import Better, less, more
from hvdlm.tasks.records import Judged, rounded

AVERAGES = [f"{name}_{kind}" for name in ("f1", "precision", "recall") for kind in ("macro", "micro", "weighted")]


class Goal(ABC):
    """Of a field of the data; `outputs` logits say it."""

    better: ClassVar[Mapping[str, Better]]  # of `judged`
    problem: ClassVar[str]  # what transformers calls it
    columns: int = 1  # of an example, which hold it

    def __init__(self, name: str, field: FieldEntry) -> None:
        self.name, self.labels = name, list(field.labels)
        self.outputs = len(self.labels)

    @abstractmethod
    def goals(self, records: Records, chosen: np.ndarray) -> np.ndarray:
        """Of the chosen records (n,), as columns of the examples: int64 (n, columns)."""

    @abstractmethod
    def losses(self, logits: Tensor, goals: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        """Of each record (B,), of logits float32 (B, outputs); `weights` are of classes, (outputs,)."""

    @abstractmethod
    def judged(self, records: Records, logits: np.ndarray, *, lines: bool) -> Judged:
        """Of logits float32 (n, outputs) of all records."""

    @abstractmethod
    def shares(self, logits: Tensor) -> Tensor:
        """Probabilities of the labels (B, outputs); a number as it is."""

    def evidence(self, logits: Tensor) -> Tensor:
        """What speaks for each output (B, outputs): log-odds of a label, log p / (1 - p); a number itself."""
        return logits

    @abstractmethod
    def said(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """The same without the truth: a line a record."""

    def _single(self, records: Records, chosen: np.ndarray) -> np.ndarray:
        """The one value of each chosen record (n,)."""
        return np.concatenate([np.empty(0), *(records.values(self.name, record) for record in chosen.tolist())])


class OneClass(Goal):
    """Cross-entropy."""

    better = more("accuracy", *AVERAGES, "roc_auc") | less("calibration_error")
    problem = "single_label_classification"

    def goals(self, records: Records, chosen: np.ndarray) -> np.ndarray:
        return self._single(records, chosen).astype(np.int64).reshape(-1, 1)

    def losses(self, logits: Tensor, goals: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        return F.cross_entropy(logits, goals.squeeze(1), weights, label_smoothing=smoothing, reduction="none")

    def shares(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def evidence(self, logits: Tensor) -> Tensor:
        others = logits.unsqueeze(1).expand(-1, self.outputs, -1)  # (B, outputs, outputs)
        itself = torch.eye(self.outputs, dtype=torch.bool, device=logits.device)
        return logits - others.masked_fill(itself, -torch.inf).logsumexp(-1)

    def judged(self, records: Records, logits: np.ndarray, *, lines: bool) -> Judged:
        gold, labels, shares = records.all_values(self.name).astype(np.int64), self.labels, _softmax(logits)
        found = logits.argmax(1)
        confidence = shares[np.arange(len(found)), found]
        matrix = scoring.confusion(gold, found, len(labels))
        figures = {
            **scoring.class_figures(matrix, labels),
            **scoring.roc_auc(gold, shares[:, 1] if len(labels) == 2 else shares),
            **scoring.calibration_figures(confidence, found == gold),
            "confusion": matrix.tolist(),
            "labels": labels,
        }
        told: list[dict[str, Any]] = []
        for truth, label, share in zip(gold.tolist(), found.tolist(), confidence, strict=True) if lines else ():
            told.append({"label": labels[truth], "predicted": labels[label], "probability": round(float(share), 6)})
        return Judged(figures, told)

    def said(self, logits: np.ndarray) -> list[dict[str, Any]]:
        lines = []
        for row in _softmax(logits):
            best = int(row.argmax())
            told = {label: rounded(share) for label, share in zip(self.labels, row, strict=True)}
            lines.append({"label": self.labels[best], "probability": rounded(row[best]), "probabilities": told})
        return lines


class SeveralClasses(Goal):
    """Each class by itself: the sum of their binary cross-entropies."""

    better = more("accuracy", *AVERAGES, "roc_auc")
    problem = "multi_label_classification"

    def __init__(self, name: str, field: FieldEntry) -> None:
        super().__init__(name, field)
        self.columns = self.outputs

    def goals(self, records: Records, chosen: np.ndarray) -> np.ndarray:
        found = np.zeros((len(chosen), self.outputs), dtype=np.int64)
        for row, record in zip(found, chosen.tolist(), strict=True):
            row[records.values(self.name, record)] = 1
        return found

    def losses(self, logits: Tensor, goals: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits, goals.float(), reduction="none")
        return (each if weights is None else each * weights).sum(1)

    def shares(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def judged(self, records: Records, logits: np.ndarray, *, lines: bool) -> Judged:
        gold = self.goals(records, np.arange(len(records))).astype(bool)
        found = logits > 0  # of log-odds: a share above one half
        figures = {
            **scoring.label_figures(scoring.label_rows(gold, found), self.labels),
            **scoring.roc_auc(gold, logits),
            "labels": self.labels,
        }
        names = np.array(self.labels, dtype=object)
        told = [
            {"labels": names[truth].tolist(), "predicted": names[row].tolist()}
            for truth, row in (zip(gold, found, strict=True) if lines else ())
        ]
        return Judged(figures, told)

    def said(self, logits: np.ndarray) -> list[dict[str, Any]]:
        lines = []
        for row in logits.astype(np.float64):
            found = [label for label, value in zip(self.labels, row, strict=True) if value > 0]
            shares = {label: rounded(share) for label, share in zip(self.labels, 1 / (1 + np.exp(-row)), strict=True)}
            lines.append({"labels": found, "probabilities": shares})
        return lines


class Number(Goal):
    """The squared error; a column holds the bits of a float64."""

    better = more("pearson", "spearman") | less("mse")
    problem = "regression"

    def __init__(self, name: str, field: FieldEntry) -> None:
        super().__init__(name, field)
        self.outputs = 1

    def goals(self, records: Records, chosen: np.ndarray) -> np.ndarray:
        return self._single(records, chosen).astype("<f8").view("<i8").reshape(-1, 1)

    def losses(self, logits: Tensor, goals: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        return (logits.squeeze(1) - goals.squeeze(1).contiguous().view(torch.float64).float()).square()

    def shares(self, logits: Tensor) -> Tensor:
        return logits

    def judged(self, records: Records, logits: np.ndarray, *, lines: bool) -> Judged:
        gold, predicted = records.all_values(self.name), logits[:, 0]
        pairs = zip(gold.tolist(), predicted.tolist(), strict=True) if lines else ()
        told = [{"number": truth, "predicted": found} for truth, found in pairs]
        return Judged(scoring.number_figures(gold, predicted), told)

    def said(self, logits: np.ndarray) -> list[dict[str, Any]]:
        return [{"number": rounded(value)} for value in logits[:, 0]]


def goal_of(name: str, field: FieldEntry) -> Goal:
    """What a field of type label or number makes of the task."""
    if field.type == "number":
        return Number(name, field)
    return SeveralClasses(name, field) if field.several else OneClass(name, field)


def balanced_weights(records: Records, goal: Goal) -> np.ndarray:
    """A weight a class, by which all count alike: n / (classes x its records) (King and Zeng 2001); float64 (K,)."""
    counts = np.bincount(records.all_values(goal.name), minlength=goal.outputs)
    return len(records) / (goal.outputs * np.maximum(counts, 1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
