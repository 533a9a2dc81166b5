"""A model of ours as a folder that `transformers` loads: the layout that can say it, its config.json, its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvdlm.errors import UserError
from hvdlm.exchange.heads import TaskHead, before_norm, label_settings, placed_head
from hvdlm.exchange.layout import Layout
from hvdlm.exchange.layouts import LAYOUTS
from hvdlm.exchange.weights import to_theirs
from hvdlm.models import Vocabulary
from hvdlm.models.transformer import TransformerConfig


@dataclass(frozen=True)
class Exported:
    """Contents of config.json, generation_config.json (None: it writes no text), and of model.safetensors."""

    model_type: str
    config: dict[str, Any]
    generation: dict[str, Any] | None
    tensors: dict[str, Tensor]


def layout_for(options: TransformerConfig, *, with_text_head: bool = True) -> Layout:
    """The first layout that can say the model; UserError that names what the nearest one cannot."""
    lacking = {}
    for name, layout in LAYOUTS.items():
        lacking[name] = layout.lacks(options) + (layout.lacks_head(options) if with_text_head else [])
        if not lacking[name]:
            return layout
    nearest = min(lacking, key=lambda name: (len(lacking[name]), lacking[name][0].startswith("model.positions: ")))
    raise UserError(
        f"{', '.join(lacking[nearest])}: no layout of transformers that we write can say it (the nearest is {nearest})"
    )


def exported(
    options: TransformerConfig,
    state: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    *,
    head: TaskHead | None = None,
    seq_len: int | None = None,
    pad_id: int | None = None,
) -> Exported:
    """The model as transformers has it, with its head for text, or that of a task.

    `state` has the tensors by the names of ours, a tied matrix once, without those of a task's head. `seq_len`: tokens
    of the sequences it was trained on, told where it has no longest. `pad_id` is what a classifier takes for padding;
    it must not stand in a text.
    """
    layout, place = layout_for(options, with_text_head=head is None), None
    of_head: dict[str, Tensor] = {}
    body = {name: tensor.detach().float().cpu() for name, tensor in state.items()}
    if head is not None:
        place, of_head = placed_head(layout, head)
        moved = before_norm(head, place)
        if moved is not None:
            if all(entry.ours != "norm.bias" for entry in layout.body(options)):
                raise UserError(
                    f"task: {head.kind}: {place.architecture} has no bias in its head; train it without one"
                )
            body["norm.bias"] = moved + body.get("norm.bias", 0.0)
    _check_all_have_a_place(layout, options, body, vocabulary.size, with_text_head=head is None)
    prefix = layout.prefix if place is None or place.prefix is None else place.prefix
    tensors = {f"{prefix}{name}": tensor for name, tensor in to_theirs(layout.body(options), body).items()}
    tensors |= to_theirs(layout.head(options), body) if head is None else {}
    tensors |= {
        f"{prefix}{name}" if name.startswith("pooler.") else name: tensor.detach().float().cpu().contiguous()
        for name, tensor in of_head.items()
    }
    ends = {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id}
    config = {
        "architectures": [layout.architecture if place is None else place.architecture],
        "model_type": layout.model_type,
        "torch_dtype": "float32",
        "vocab_size": vocabulary.size,
        **ends,
        "pad_token_id": pad_id,
        **layout.write(options),
        **({} if head is None else label_settings(head)),
    }
    if seq_len is not None and options.positions.is_relative:
        config["max_position_embeddings"] = seq_len
    generation = None
    if head is None and options.causal:
        pads = {"pad_token_id": vocabulary.eos_id if pad_id is None else pad_id}  # what is padded is masked
        generation = {"_from_model_config": True, **ends, **pads}
    return Exported(layout.model_type, config, generation, tensors)


def _check_all_have_a_place(
    layout: Layout, options: TransformerConfig, state: Mapping[str, Tensor], size: int, *, with_text_head: bool
) -> None:
    """UserError for a tensor of ours that would be left behind, as that of a head which is not for text."""
    table = layout.body(options) + (layout.head(options) if with_text_head else [])
    if rest := sorted(state.keys() - {entry.ours for entry in table}):
        raise UserError(f"{', '.join(rest[:3])}: a {layout.model_type} of transformers has no place for it")
    for name in ("embed.weight", "head.weight", "head.bias"):
        if name in state and len(state[name]) != size:
            raise UserError(f"{name} has {len(state[name])} rows, and the vocabulary {size} ids")
