"""Heads of tasks: where transformers' classes for classification, tagging and spans keep theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvdlm.errors import UserError
from hvdlm.exchange.layout import HeadPlace, Layout
from hvdlm.exchange.settings import Settings

POOLER = "pooler.dense"
SPAN_LABELS = ("start", "end")  # of qa_outputs, in this order


@dataclass(frozen=True)
class TaskHead:
    """A linear layer on hidden vectors, (labels, C); of a classifier that has one, a layer and tanh before it.

    `state` has weight, bias, pooler.weight and pooler.bias, as far as they are there. `labels` are the names of the
    outputs in order. `kind` is that of the task: classify, tag or span. `pooling` is which hidden vector of an example
    it reads, last or cls; None: every one. `problem` is what transformers calls that which a classifier learns.
    """

    kind: str
    state: Mapping[str, Tensor]
    labels: tuple[str, ...]
    pooling: str | None = None
    problem: str | None = None


def taken_pooler(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of a folder's pooler, which are taken out of `tensors`; empty where it has none."""
    names = {part: f"{POOLER}.{part}" for part in ("weight", "bias")}
    return {part: tensors.pop(name) for part, name in names.items() if name in tensors}


def found_head(
    layout: Layout, settings: Settings, tensors: dict[str, Tensor], pooler: Mapping[str, Tensor]
) -> TaskHead | None:
    """The head of a folder's class, which is taken out of `tensors`; None where that is one for text, or a body."""
    architectures, names = settings.get("architectures", []), settings.get("id2label", {})
    found = next(((kind, place) for kind, place in layout.places.items() if place.architecture in architectures), None)
    if found is None:
        return None
    kind, place = found
    state = {
        part: tensors.pop(f"{place.name}.{part}") for part in ("weight", "bias") if f"{place.name}.{part}" in tensors
    }
    if "weight" not in state or (place.has_bias and "bias" not in state):
        raise UserError(
            f"{settings.path}: is of a {place.architecture}, and the weights lack {place.name}.weight or .bias"
        )
    if place.has_pooler:
        state |= {f"pooler.{part}": tensor for part, tensor in pooler.items()}
    count = len(state["weight"])
    labels = SPAN_LABELS if kind == "span" else tuple(names.get(str(n), f"LABEL_{n}") for n in range(count))
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


def label_settings(head: TaskHead) -> dict[str, Any]:
    """`id2label`, `label2id` and `problem_type` of a config.json."""
    labels = head.labels
    return {
        **({} if head.problem is None else {"problem_type": head.problem}),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
