"""Heads of tasks: where transformers' classes for classification, tagging and spans keep theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvdlm.errors import UserError
from hvdlm.exchange.layout import HeadPlace, Layout

POOLER = "pooler.dense"
SPAN_LABELS = ("start", "end")  # of qa_outputs, in this order


@dataclass(frozen=True)
class TaskHead:
    """A linear layer on hidden vectors, (labels, C); of a classifier that has one, a layer and tanh before it.

    `state` has weight, bias, pooler.weight and pooler.bias, as far as they are there. `labels` are the names of the
    outputs in order. `kind` is that of the task: classify, tag or span. `pooling` is which hidden vector of an example
    it reads, last or cls; None: every one.
    """

    kind: str
    state: Mapping[str, Tensor]
    labels: tuple[str, ...]
    pooling: str | None = None


def found_head(
    layout: Layout,
    architectures: Sequence[str],
    names: Mapping[str, str] | None,
    tensors: dict[str, Tensor],
    folder: Path,
) -> TaskHead | None:
    """The head of a folder's class, which is taken out of `tensors`; a pooler that nothing reads goes, too."""
    pooler = {part: tensors.pop(f"{POOLER}.{part}", None) for part in ("weight", "bias")}
    found = next(((kind, place) for kind, place in layout.places.items() if place.architecture in architectures), None)
    if found is None:
        return None
    kind, place = found
    state = {
        part: tensors.pop(f"{place.name}.{part}") for part in ("weight", "bias") if f"{place.name}.{part}" in tensors
    }
    if "weight" not in state or (place.has_bias and "bias" not in state):
        raise UserError(f"{folder}: is a {place.architecture}, and its weights lack {place.name}.weight or .bias")
    if place.has_pooler:
        state |= {f"pooler.{part}": tensor for part, tensor in pooler.items() if tensor is not None}
    count = len(state["weight"])
    labels = SPAN_LABELS if kind == "span" else tuple((names or {}).get(str(n), f"LABEL_{n}") for n in range(count))
    return TaskHead(kind, state, labels, place.pooling)


def placed_head(layout: Layout, head: TaskHead) -> tuple[HeadPlace, dict[str, Tensor]]:
    """Where the head goes, and its tensors by their names there; UserError for what transformers has no class for."""
    place = layout.places.get(head.kind)
    if place is None:
        raise UserError(f"task: {head.kind}: transformers has no class of {layout.model_type} for it")
    if head.pooling != place.pooling:
        raise UserError(
            f"task: {head.kind}: {place.architecture} has pooling: {place.pooling}, and this head {head.pooling}"
        )
    has_pooler = "pooler.weight" in head.state
    if has_pooler != place.has_pooler:
        has = "a layer and tanh before its classifier" if place.has_pooler else "no layer before its classifier"
        raise UserError(f"task: {head.kind}: {place.architecture} has {has}, and this head is another one")
    weight, bias = head.state["weight"], head.state.get("bias")
    found = {f"{place.name}.weight": weight}
    if place.has_bias:
        found[f"{place.name}.bias"] = torch.zeros(len(weight)) if bias is None else bias
    if has_pooler:
        found |= {f"{POOLER}.{part}": head.state[f"pooler.{part}"] for part in ("weight", "bias")}
    return place, found


def before_norm(head: TaskHead, place: HeadPlace) -> Tensor | None:
    """What the last norm's bias must have more for a class whose head has none: W (h + x) = W h + bias.

    Nothing but the head reads what that norm gives. UserError where there is no such x.
    """
    bias = head.state.get("bias")
    if place.has_bias or bias is None or not bool(bias.any()):
        return None
    wide = head.state["weight"].double()
    moved = torch.linalg.pinv(wide) @ bias.double()
    if not torch.allclose(wide @ moved, bias.double(), atol=1e-6):
        raise UserError(f"task: {head.kind}: {place.architecture} has no bias in its head; train it without one")
    return moved.float()


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a config.json."""
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
