"""What a classifier's verdict rests on: each token left out in turn (occlusion: Zeiler and Fergus 2014; of words,
Li, Monroe and Jurafsky 2016, "Understanding neural networks through representation erasure").

A token is left out, not masked: any family can read a text that is shorter, and few were trained with a mask. What
counts is the change of the log-odds, log p / (1 - p), of the label: unlike a probability it has no end near which
nothing seems to matter, and unlike a logit it does not change where all of them rise together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from hvdlm.compute.device import autocast
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import EVAL_BATCH_TOKENS
from hvdlm.inference.inspect.asked import Asked, Looked, Subject
from hvdlm.inference.inspect.one_record import cut_note, record_of
from hvdlm.inference.inspect.passages import Cell, Detail, Passage, Scale
from hvdlm.inference.inspect.pieces import Piece, pieces_of
from hvdlm.tables import figure
from hvdlm.tasks.classify import Classify
from hvdlm.tasks.interface import Batch
from hvdlm.tasks.records import hidden_of

MOST_LABELS = 5  # that are named of those a text might have
HOW = "what changes where a token is left out (Zeiler and Fergus 2014; Li et al. 2016): {for_} speaks for it, {against}"


def look_without_each(subject: Subject, asked: Asked) -> Looked:
    """The verdict on a text, and how much of it each token is."""
    loaded, tokenizer = subject.loaded, subject.tokenizer
    task, eos_id = cast(Classify, loaded.task), loaded.state["eos_id"]
    one = record_of(subject, asked)
    batch = one.batch
    assert batch.lengths is not None
    ids = batch.inputs[0, : int(batch.lengths[0])]
    pieces = pieces_of(tokenizer, ids.tolist())
    ends = (tokenizer.eos_id, tokenizer.bos_id)
    shown = [piece for piece in pieces if int(ids[piece.first]) not in ends]
    whole = _logits(subject, [ids])  # (1, K)
    output = _output_of(task, whole, asked.label)
    without = _logits(subject, [torch.cat((ids[: piece.first], ids[piece.stop :])) for piece in shown])
    change = (task.goal.evidence(whole) - task.goal.evidence(without))[:, output].tolist()
    changes = dict(zip(shown, change, strict=True))
    shares = task.goal.shares(whole)[0].tolist()
    return Looked(
        _passage(task, pieces, changes, shares, output, cut_note(one.layout)),
        lambda: hidden_of(loaded.model, Batch(ids.unsqueeze(0), batch.targets, batch.lengths), None, eos_id),
        ids.tolist(),
    )


def _logits(subject: Subject, texts: Sequence[Tensor]) -> Tensor:
    """float32 (n, K) of ids (T,) each."""
    loaded, task = subject.loaded, cast(Classify, subject.loaded.task)
    found, longest = [], max(map(len, texts))
    at_once = max(1, EVAL_BATCH_TOKENS // longest)
    for first in range(0, len(texts), at_once):
        rows = texts[first : first + at_once]
        inputs = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=loaded.state["eos_id"])
        lengths = torch.tensor([len(row) for row in rows], device=inputs.device)
        with autocast(loaded.model.device, loaded.config.train.precision):
            found.append(task.logits(loaded.model, Batch(inputs, inputs[:, :1], lengths), None))
    return torch.cat(found)


def _output_of(task: Classify, logits: Tensor, label: str | None) -> int:
    labels = task.goal.labels
    if label is None:
        return int(logits[0].argmax())
    if label not in labels:
        told = ", ".join(labels[:8]) or "none: it says a number"
        raise UserError(f"--label: {label!r} is none of the model's ({told})")
    return labels.index(label)


def _passage(
    task: Classify,
    pieces: Sequence[Piece],
    changes: dict[Piece, float],
    shares: list[float],
    output: int,
    notes: tuple[str, ...],
) -> Passage:
    labels, goal = task.goal.labels, task.goal
    name = labels[output] if labels else goal.name
    unit = "log-odds" if labels else goal.name
    most = max((abs(change) for change in changes.values()), default=0.0) or 1.0
    digits = max(1, 1 - math.floor(math.log10(most)))  # two that count of the largest
    cells = []
    for piece in pieces:
        if piece not in changes:
            cells.append(Cell(piece.text))
            continue
        told = f"{changes[piece]:+.{digits + 2}f} {unit} of {name}"
        cells.append(Cell(piece.text, f"{changes[piece]:+.{digits}f}", changes[piece], (Detail(piece.text, told),)))
    if labels:
        order = sorted(range(len(labels)), key=lambda place: -shares[place])[:MOST_LABELS]
        fact = "probabilities: " + ", ".join(f"{labels[place]} {shares[place]:.3f}" for place in order)
        numbers: dict[str, Any] = {"label": name, "probabilities": dict(zip(labels, shares, strict=True))}
    else:
        fact, numbers = f"{goal.name} {figure(shares[0], 4)}", {"number": shares[0]}
    said = [{"text": one.text, **({"change": changes[one]} if one in changes else {})} for one in pieces]
    how = HOW.format(for_="+", against="- against it") + f"; in {unit} of {name}"
    return Passage(
        f"What speaks for {name}",
        (fact,),
        tuple(cells),
        Scale(-most, most, f"{unit} of {name}", palette="signed"),
        (how, *notes),
        numbers={**numbers, "unit": unit, "pieces": said},
    )
