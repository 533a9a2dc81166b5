"""PRESETS: shapes of published models; a config says what differs."""

from __future__ import annotations

from typing import Any


def _gpt2(layers: int, heads: int, width: int) -> dict[str, Any]:
    """Radford et al. 2019."""
    return {
        "layers": layers,
        "heads": heads,
        "width": width,
        "positions": {"kind": "learned", "max_seq_len": 1024},
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "norm_position": "pre",
        "bias": True,
        "activation": "gelu_tanh",
        "tie_embeddings": True,
    }


def _llama(  # noqa: PLR0913 - the shape
    layers: int, heads: int, kv_heads: int, width: int, mlp_width: int, positions: dict[str, Any], *, tied: bool = False
) -> dict[str, Any]:
    """Touvron et al. 2023, Dubey et al. 2024, and models of the same kind."""
    return {
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "width": width,
        "mlp_width": mlp_width,
        "positions": positions,
        "norm": "rmsnorm",
        "norm_eps": 1e-5,
        "norm_position": "pre",
        "bias": False,
        "activation": "swiglu",
        "tie_embeddings": tied,
    }


def _bert(layers: int, heads: int, width: int) -> dict[str, Any]:
    """Devlin et al. 2019, without token types: there is one kind of text; Turc et al. 2019 for the small ones."""
    return {
        "layers": layers,
        "heads": heads,
        "width": width,
        "causal": False,
        "positions": {"kind": "learned", "max_seq_len": 512},
        "norm": "layernorm",
        "norm_eps": 1e-12,
        "norm_position": "post",
        "bias": True,
        "activation": "gelu",
        "embed_norm": True,
        "head_transform": True,
        "head_bias": True,
        "tie_embeddings": True,
    }


def _rotary(base: float, factor: float | None = None) -> dict[str, Any]:
    if factor is None:
        return {"kind": "rotary", "base": base}
    return {"kind": "rotary", "base": base, "scaling": {"kind": "llama3", "factor": factor}}


PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "llama-2-7b": _llama(32, 32, 32, 4096, 11_008, _rotary(1e4)),
    "llama-2-13b": _llama(40, 40, 40, 5120, 13_824, _rotary(1e4)),
    "llama-3-8b": _llama(32, 32, 8, 4096, 14_336, _rotary(5e5)),
    "llama-3.1-8b": _llama(32, 32, 8, 4096, 14_336, _rotary(5e5, 8.0)),
    "llama-3.2-1b": _llama(16, 32, 8, 2048, 8192, _rotary(5e5, 32.0), tied=True),
    "llama-3.2-3b": _llama(28, 24, 8, 3072, 8192, _rotary(5e5, 32.0), tied=True),
    "tinyllama-1.1b": _llama(22, 32, 4, 2048, 5632, _rotary(1e4)),
    "smollm-135m": _llama(30, 9, 3, 576, 1536, _rotary(1e4), tied=True),
    "bert-tiny": _bert(2, 2, 128),
    "bert-mini": _bert(4, 4, 256),
    "bert-small": _bert(4, 8, 512),
    "bert-base": _bert(12, 12, 768),
    "bert-large": _bert(24, 16, 1024),
}
