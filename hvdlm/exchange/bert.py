"""BERT's layout: queries, keys and values apart, norms behind each sum, kinds of text, a layer in the head."""

from __future__ import annotations

import re
from typing import Any

from hvdlm.exchange.layout import (
    ACTIVATIONS,
    PLAIN_BODY,
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
from hvdlm.exchange.weights import TYPES, Weight, pairs, stacked
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.transformer.positions import LearnedConfig


def _read(settings: Settings) -> dict[str, Any]:
    settings.only("position_embedding_type", "absolute")
    settings.only("tie_word_embeddings", True)
    hidden = settings.number("hidden_dropout_prob")
    return {
        "layers": settings.whole("num_hidden_layers"),
        "heads": settings.whole("num_attention_heads"),
        "width": settings.whole("hidden_size"),
        "mlp_width": settings.whole("intermediate_size"),
        "causal": False,
        "positions": {"kind": "learned", "max_seq_len": settings.whole("max_position_embeddings")},
        "norm": "layernorm",
        "norm_eps": settings.number("layer_norm_eps"),
        "norm_position": "post",
        "bias": True,
        "activation": settings.named("hidden_act", ACTIVATIONS),
        "embed_norm": True,
        "token_types": settings.whole("type_vocab_size"),
        "head_transform": True,
        "head_bias": True,
        "tie_embeddings": True,
        **dropouts(hidden, hidden, settings.number("attention_probs_dropout_prob")),
    }


def _write(options: TransformerConfig) -> dict[str, Any]:
    assert isinstance(options.positions, LearnedConfig)
    return {
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "hidden_size": options.width,
        "intermediate_size": options.width_of_mlp,
        "max_position_embeddings": options.positions.max_seq_len,
        "type_vocab_size": max(1, options.token_types),
        "layer_norm_eps": options.norm_eps,
        "hidden_act": activation_name(options),
        "tie_word_embeddings": True,
        "hidden_dropout_prob": options.dropout_of(options.residual_dropout),
        "attention_probs_dropout_prob": options.dropout_of(options.attention_dropout),
    }


def _body(options: TransformerConfig) -> list[Weight]:
    table = [
        Weight("embed.weight", ("embeddings.word_embeddings.weight",)),
        Weight("entrance.positions.table.weight", ("embeddings.position_embeddings.weight",)),
        *pairs("entrance.norm", "embeddings.LayerNorm"),
    ]
    table.append(Weight(TYPES, ("embeddings.token_type_embeddings.weight",)))
    for number in range(options.layers):
        ours, theirs = f"blocks.{number}", f"encoder.layer.{number}"
        for part in ("weight", "bias"):
            qkv = tuple(f"{theirs}.attention.self.{name}.{part}" for name in ("query", "key", "value"))
            table.append(stacked(f"{ours}.attention.qkv.{part}", qkv, (options.width,) * 3))
        for own, name in (
            ("attention.out", "attention.output.dense"),
            ("norm1", "attention.output.LayerNorm"),
            ("mlp.0", "intermediate.dense"),
            ("mlp.2", "output.dense"),
            ("norm2", "output.LayerNorm"),
        ):
            table += pairs(f"{ours}.{own}", f"{theirs}.{name}")
    return table


def _head(options: TransformerConfig) -> list[Weight]:
    table = pairs("head.transform.0", "cls.predictions.transform.dense")
    table += pairs("head.transform.2", "cls.predictions.transform.LayerNorm")
    return [*table, Weight("head.bias", ("cls.predictions.bias",))]


def _lacks_head(options: TransformerConfig) -> list[str]:
    return unsaid(options, {"logit_softcap": None, "head_transform": True, "head_bias": True, "tie_embeddings": True})


def _lacks(options: TransformerConfig) -> list[str]:
    said = {**PLAIN_BODY, "causal": False, "norm": "layernorm", "norm_position": "post", "embed_norm": True}
    said["window"] = None
    return wrong_positions(options, "learned") + unsaid(options, said) + odd_heads(options) + gated(options)


BERT = Layout(
    model_type="bert",
    architecture="BertForMaskedLM",
    prefix="bert.",
    read=_read,
    write=_write,
    body=_body,
    head=_head,
    lacks=_lacks,
    lacks_head=_lacks_head,
    places={
        "classify": HeadPlace("BertForSequenceClassification", "classifier", pooling="cls", has_pooler=True),
        "tag": HeadPlace("BertForTokenClassification", "classifier"),
        "span": HeadPlace("BertForQuestionAnswering", "qa_outputs"),
    },
    tied_name="cls.predictions.decoder.weight",
    ignored_settings=frozenset(
        [
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        ]
    ),
    # The head's bias stands there twice; that of next sentences has no place in our model.
    ignored_weights=re.compile(
        r"^embeddings\.position_ids$|^cls\.predictions\.decoder\.bias$|^cls\.seq_relationship\."
    ),
)
