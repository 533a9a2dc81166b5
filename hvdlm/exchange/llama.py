"""The layout of Llama, and of Mistral: gated MLP, RMSNorm, rotated halves of queries and keys, no biases."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from hvdlm.errors import UserError
from hvdlm.exchange.layout import PLAIN_BODY, PLAIN_HEAD, HeadPlace, Layout, dropouts, unsaid, wrong_positions
from hvdlm.exchange.settings import Settings
from hvdlm.exchange.weights import Weight, stacked
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.transformer.positions import LinearScaling, Llama3Scaling, NoScaling, RotaryConfig

SCALINGS = {  # of rope_scaling: our kind, and our keys beside theirs
    "default": ("none", {}),
    "linear": ("linear", {"factor": "factor"}),
    "llama3": (
        "llama3",
        {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_len": "original_max_position_embeddings",
        },
    ),
}
MAX_LEN = 2048  # told of a model that has no longest sequence, where nobody says how long its own were


def read_rotary(settings: Settings, *, turned: float = 1.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, or both in `rope_parameters`, as transformers 5 has them.

    `turned` is the part of a head that is turned where nothing is said of it.
    """
    base = settings.number("rope_theta", 10_000.0)
    turned = settings.number("partial_rotary_factor", turned)
    newer, older = settings.get("rope_parameters", {}), settings.get("rope_scaling", {})
    key = "rope_scaling" if older else "rope_parameters"  # transformers too takes the older where both are there
    if not isinstance(older or newer, dict):
        raise settings.fault(key, "a mapping")
    scaling = dict(older or newer)
    base, turned = scaling.pop("rope_theta", base), scaling.pop("partial_rotary_factor", turned)
    if type(base) not in (int, float):
        raise settings.fault("rope_theta", "a number")
    if turned != 1.0:
        raise UserError(
            f"{settings.path}: rotary positions turn the part {turned} of each head (partial_rotary_factor or"
            " rotary_pct); our model turns all of it"
        )
    old_name = scaling.pop("type", "default")
    kind = scaling.pop("rope_type", old_name)
    if kind not in SCALINGS:
        raise UserError(f"{settings.path}: {key}: {kind} is none that our model has, only {', '.join(SCALINGS)}")
    ours, keys = SCALINGS[kind]
    if odd := sorted(scaling.keys() ^ set(keys.values())):
        raise UserError(f"{settings.path}: {key}: {kind} with or without {', '.join(odd)} is not known here")
    return {
        "kind": "rotary",
        "base": float(base),
        "scaling": {"kind": ours, **{own: _number(scaling[theirs], own) for own, theirs in keys.items()}},
    }


def _number(value: Any, own: str) -> Any:
    return float(value) if type(value) is int and own != "original_len" else value


def write_rotary(positions: Any) -> dict[str, Any]:
    assert isinstance(positions, RotaryConfig)
    found: dict[str, Any] = {"rope_theta": positions.base, "rope_scaling": None}
    for theirs, (ours, keys) in SCALINGS.items():
        if ours == positions.scaling.kind != "none":
            values = {name: getattr(positions.scaling, own) for own, name in keys.items()}
            found["rope_scaling"] = {"rope_type": theirs, **values}
    return found


def odd_scaling(options: TransformerConfig) -> list[str]:
    positions = options.positions
    if not isinstance(positions, RotaryConfig) or isinstance(
        positions.scaling, NoScaling | LinearScaling | Llama3Scaling
    ):
        return []
    return [f"model.positions.scaling: {positions.scaling.kind}"]


def _read(settings: Settings) -> dict[str, Any]:
    for key in ("attention_bias", "mlp_bias"):
        settings.only(key, False)
    return {
        "layers": settings.whole("num_hidden_layers"),
        "heads": settings.whole("num_attention_heads"),
        "kv_heads": settings.whole_or_none("num_key_value_heads"),
        "head_width": settings.whole_or_none("head_dim"),
        "width": settings.whole("hidden_size"),
        "mlp_width": settings.whole("intermediate_size"),
        "positions": read_rotary(settings),
        "norm": "rmsnorm",
        "norm_eps": settings.number("rms_norm_eps"),
        "norm_position": "pre",
        "bias": False,
        "activation": settings.named("hidden_act", {"silu": "swiglu", "swish": "swiglu"}),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **dropouts(0.0, 0.0, settings.number("attention_dropout", 0.0)),
    }


def _write(options: TransformerConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.num_kv_heads,
        "head_dim": options.width_of_head,
        "hidden_size": options.width,
        "intermediate_size": options.width_of_mlp,
        "max_position_embeddings": MAX_LEN,
        **write_rotary(options.positions),
        "rms_norm_eps": options.norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": options.tie_embeddings,
        "attention_dropout": options.dropout_of(options.attention_dropout),
    }


def _body(options: TransformerConfig) -> list[Weight]:
    width = options.width_of_head
    rows = (options.heads * width, options.num_kv_heads * width, options.num_kv_heads * width)
    inner = (options.width_of_mlp,) * 2
    table = [Weight("embed.weight", ("embed_tokens.weight",)), Weight("norm.weight", ("norm.weight",))]
    for number in range(options.layers):
        ours, theirs = f"blocks.{number}", f"layers.{number}"
        qkv = tuple(f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv")
        gate_up = tuple(f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up"))
        table += [
            Weight(f"{ours}.norm1.weight", (f"{theirs}.input_layernorm.weight",)),
            Weight(f"{ours}.norm2.weight", (f"{theirs}.post_attention_layernorm.weight",)),
            stacked(f"{ours}.attention.qkv.weight", qkv, rows),
            Weight(f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",)),
            stacked(f"{ours}.mlp.0.weight", gate_up, inner),
            Weight(f"{ours}.mlp.2.weight", (f"{theirs}.mlp.down_proj.weight",)),
        ]
    return table


def _head(options: TransformerConfig) -> list[Weight]:
    return [] if options.tie_embeddings else [Weight("head.weight", ("lm_head.weight",))]


def _lacks(options: TransformerConfig) -> list[str]:
    said = {**PLAIN_BODY, "causal": True, "norm": "rmsnorm", "norm_position": "pre", "bias": False}
    said |= {"activation": "swiglu", "embed_norm": False, "token_types": 0, "window": None}
    return wrong_positions(options, "rotary") + unsaid(options, said) + odd_scaling(options)


LLAMA = Layout(
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    read=_read,
    write=_write,
    body=_body,
    head=_head,
    lacks=_lacks,
    lacks_head=lambda options: unsaid(options, PLAIN_HEAD),
    places={
        "classify": HeadPlace("LlamaForSequenceClassification", "score", has_bias=False, pooling="last"),
        "tag": HeadPlace("LlamaForTokenClassification", "score"),
        "span": HeadPlace("LlamaForQuestionAnswering", "qa_outputs", prefix="transformer."),
    },
    tied_name="lm_head.weight",
    ignored_settings=frozenset(["max_position_embeddings"]),
    ignored_weights=re.compile(r"rotary_emb\.inv_freq$"),
)


def _read_mistral(settings: Settings) -> dict[str, Any]:
    if not settings.has("sliding_window"):  # transformers would take 4096
        raise settings.fault("sliding_window", "a number of tokens, or null")
    return {
        **_read(settings),
        "kv_heads": settings.whole("num_key_value_heads"),
        "window": settings.whole_or_none("sliding_window"),
    }


def _write_mistral(options: TransformerConfig) -> dict[str, Any]:
    no_biases = ("attention_bias", "mlp_bias")
    found = {key: value for key, value in _write(options).items() if key not in no_biases}
    return {**found, "sliding_window": options.window}


MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=_read_mistral,
    write=_write_mistral,
    lacks=lambda options: [fault for fault in _lacks(options) if not fault.startswith("model.window")],
    places={
        "classify": HeadPlace("MistralForSequenceClassification", "score", has_bias=False, pooling="last"),
        "tag": HeadPlace("MistralForTokenClassification", "score"),
        "span": HeadPlace("MistralForQuestionAnswering", "qa_outputs"),
    },
)
