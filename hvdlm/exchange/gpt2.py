"""GPT-2's layout: linear layers as (in, out), queries, keys and values in one, biases everywhere."""

from __future__ import annotations

import re
from typing import Any

from hvdlm.exchange.layout import (
    ACTIVATIONS,
    PLAIN_BODY,
    PLAIN_HEAD,
    HeadPlace,
    Layout,
    activation_name,
    dropouts,
    gated,
    odd_heads,
    unsaid,
    wrong_positions,
)
from hvdlm.exchange.settings import Settings
from hvdlm.exchange.weights import Weight, flipped, pairs
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.transformer.positions import LearnedConfig


def _read(settings: Settings) -> dict[str, Any]:
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    return {
        "layers": settings.whole("n_layer"),
        "heads": settings.whole("n_head"),
        "width": settings.whole("n_embd"),
        "mlp_width": settings.whole_or_none("n_inner"),
        "positions": {"kind": "learned", "max_seq_len": settings.whole("n_positions")},
        "norm": "layernorm",
        "norm_eps": settings.number("layer_norm_epsilon"),
        "norm_position": "pre",
        "bias": True,
        "activation": settings.named("activation_function", ACTIVATIONS),
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        **dropouts(*(settings.number(f"{part}_pdrop") for part in ("embd", "resid", "attn"))),
    }


def _write(options: TransformerConfig) -> dict[str, Any]:
    assert isinstance(options.positions, LearnedConfig)
    return {
        "n_layer": options.layers,
        "n_head": options.heads,
        "n_embd": options.width,
        "n_inner": options.width_of_mlp,
        "n_positions": options.positions.max_seq_len,
        "layer_norm_epsilon": options.norm_eps,
        "activation_function": activation_name(options),
        "tie_word_embeddings": options.tie_embeddings,
        "embd_pdrop": options.dropout_of(options.embed_dropout),
        "resid_pdrop": options.dropout_of(options.residual_dropout),
        "attn_pdrop": options.dropout_of(options.attention_dropout),
    }


def _body(options: TransformerConfig) -> list[Weight]:
    table = [Weight("embed.weight", ("wte.weight",)), Weight("entrance.positions.table.weight", ("wpe.weight",))]
    for number in range(options.layers):
        ours, theirs = f"blocks.{number}", f"h.{number}"
        table += pairs(f"{ours}.norm1", f"{theirs}.ln_1") + pairs(f"{ours}.norm2", f"{theirs}.ln_2")
        for own, name in (
            ("attention.qkv", "attn.c_attn"),
            ("attention.out", "attn.c_proj"),
            ("mlp.0", "mlp.c_fc"),
            ("mlp.2", "mlp.c_proj"),
        ):
            table.append(flipped(f"{ours}.{own}.weight", f"{theirs}.{name}.weight"))
            table.append(Weight(f"{ours}.{own}.bias", (f"{theirs}.{name}.bias",)))
    return table + pairs("norm", "ln_f")


def _head(options: TransformerConfig) -> list[Weight]:
    return [] if options.tie_embeddings else [Weight("head.weight", ("lm_head.weight",))]


def _lacks(options: TransformerConfig) -> list[str]:
    said = {**PLAIN_BODY, "causal": True, "norm": "layernorm", "norm_position": "pre", "embed_norm": False}
    said |= {"token_types": 0, "window": None}
    return wrong_positions(options, "learned") + unsaid(options, said) + odd_heads(options) + gated(options)


GPT2 = Layout(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    read=_read,
    write=_write,
    body=_body,
    head=_head,
    lacks=_lacks,
    lacks_head=lambda options: unsaid(options, PLAIN_HEAD),
    places={
        "classify": HeadPlace("GPT2ForSequenceClassification", "score", has_bias=False, pooling="last"),
        "tag": HeadPlace("GPT2ForTokenClassification", "classifier"),
        "span": HeadPlace("GPT2ForQuestionAnswering", "qa_outputs"),
    },
    tied_name="lm_head.weight",
    ignored_settings=frozenset(
        [
            "n_ctx",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ]
    ),
    ignored_weights=re.compile(r"\.attn\.(bias|masked_bias)$"),
)
