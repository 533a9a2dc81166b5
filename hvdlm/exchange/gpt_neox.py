"""GPT-NeoX's layout, one layer after the other: LayerNorm with rotary positions, as our own default model has them."""

from __future__ import annotations

import re
from typing import Any

from hvdlm.errors import UserError
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
from hvdlm.exchange.llama import MAX_LEN, odd_scaling, read_rotary, write_rotary
from hvdlm.exchange.settings import Settings
from hvdlm.exchange.weights import Weight, by_head, pairs
from hvdlm.models.transformer import TransformerConfig


def _read(settings: Settings) -> dict[str, Any]:
    if settings.flag("use_parallel_residual", True):
        raise UserError(f"{settings.path}: use_parallel_residual: true: our blocks come one after the other")
    settings.only("attention_bias", True)
    found, hidden = settings.get("rotary_emb_base"), settings.number("hidden_dropout", 0.0)
    positions = read_rotary(settings, turned=settings.number("rotary_pct", 0.25))
    return {
        "layers": settings.whole("num_hidden_layers"),
        "heads": settings.whole("num_attention_heads"),
        "width": settings.whole("hidden_size"),
        "mlp_width": settings.whole("intermediate_size"),
        "positions": positions if found is None else {**positions, "base": settings.number("rotary_emb_base")},
        "norm": "layernorm",
        "norm_eps": settings.number("layer_norm_eps"),
        "norm_position": "pre",
        "bias": True,
        "activation": settings.named("hidden_act", ACTIVATIONS),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **dropouts(hidden, hidden, settings.number("attention_dropout", 0.0)),
    }


def _write(options: TransformerConfig) -> dict[str, Any]:
    rotary = write_rotary(options.positions)
    return {
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "hidden_size": options.width,
        "intermediate_size": options.width_of_mlp,
        "max_position_embeddings": MAX_LEN,
        **rotary,
        "rotary_emb_base": rotary["rope_theta"],  # its name up to transformers 4
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "attention_bias": True,
        "layer_norm_eps": options.norm_eps,
        "hidden_act": activation_name(options),
        "tie_word_embeddings": options.tie_embeddings,
        "hidden_dropout": options.dropout_of(options.residual_dropout),
        "attention_dropout": options.dropout_of(options.attention_dropout),
    }


def _body(options: TransformerConfig) -> list[Weight]:
    table = [Weight("embed.weight", ("embed_in.weight",)), *pairs("norm", "final_layer_norm")]
    for number in range(options.layers):
        ours, theirs = f"blocks.{number}", f"layers.{number}"
        for part in ("weight", "bias"):
            qkv = f"{theirs}.attention.query_key_value.{part}"
            table.append(by_head(f"{ours}.attention.qkv.{part}", qkv, options.heads))
        for own, name in (
            ("norm1", "input_layernorm"),
            ("attention.out", "attention.dense"),
            ("norm2", "post_attention_layernorm"),
            ("mlp.0", "mlp.dense_h_to_4h"),
            ("mlp.2", "mlp.dense_4h_to_h"),
        ):
            table += pairs(f"{ours}.{own}", f"{theirs}.{name}")
    return table


def _head(options: TransformerConfig) -> list[Weight]:
    return [] if options.tie_embeddings else [Weight("head.weight", ("embed_out.weight",))]


def _lacks(options: TransformerConfig) -> list[str]:
    said = {**PLAIN_BODY, "causal": True, "norm": "layernorm", "norm_position": "pre", "embed_norm": False}
    said |= {"token_types": 0, "window": None}
    lacking = wrong_positions(options, "rotary") + unsaid(options, said)
    return lacking + odd_heads(options) + gated(options) + odd_scaling(options)


GPT_NEOX = Layout(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    read=_read,
    write=_write,
    body=_body,
    head=_head,
    lacks=_lacks,
    lacks_head=lambda options: unsaid(options, PLAIN_HEAD),
    places={
        "classify": HeadPlace("GPTNeoXForSequenceClassification", "score", has_bias=False, pooling="last"),
        "tag": HeadPlace("GPTNeoXForTokenClassification", "classifier"),
        "span": HeadPlace("GPTNeoXForQuestionAnswering", "qa_outputs"),
    },
    tied_name="embed_out.weight",
    ignored_settings=frozenset(["max_position_embeddings"]),
    ignored_weights=re.compile(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"),
)
