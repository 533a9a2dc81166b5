"""What each place of a text takes from which others: the weights of attention, as the model itself computes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hvdlm.errors import UserError
from hvdlm.inference.inspect.asked import Asked, Looked, Subject
from hvdlm.inference.inspect.pieces import pieces_of
from hvdlm.models import LanguageModel
from hvdlm.models.transformer.attention import Attending, CrossAttention
from hvdlm.tokenizer import Tokenizer

MOST_SHOWN = 256  # places of a map: a screen has not many more points
KINDS = {"self": "self-attention", "encoder": "the encoder's self-attention", "cross": "attention to the source"}
PARTS = "¹²³⁴"
LAYER = re.compile(r"(.*?)blocks\.(\d+)\.")


@dataclass(frozen=True)
class AttentionMap:
    """Of one layer: a row a query, which adds up to 1, a column a key."""

    kind: str  # self, encoder, or cross
    layer: int
    heads: tuple[int, ...]
    weights: np.ndarray  # float32 (heads, T, S)
    queries: tuple[str, ...]  # the token at each place
    keys: tuple[str, ...]

    @property
    def title(self) -> str:
        heads = f"head {self.heads[0]}" if len(self.heads) == 1 else f"{len(self.heads)} heads"
        return f"Layer {self.layer}, {heads}: {KINDS[self.kind]}"

    def cut(self) -> AttentionMap:
        """Of its first places alone."""
        most = slice(MOST_SHOWN)
        weights = self.weights[:, most, most]
        return AttentionMap(self.kind, self.layer, self.heads, weights, self.queries[most], self.keys[most])

    def numbers(self) -> dict[str, Any]:
        weights = [[[round(weight, 5) for weight in row] for row in head] for head in self.weights.tolist()]
        places = {"queries": list(self.queries), "keys": list(self.keys)}
        return {"kind": self.kind, "layer": self.layer, "heads": list(self.heads), **places, "weights": weights}


def sites_of(model: LanguageModel) -> dict[tuple[str, int], str]:
    """(kind, layer) -> name of the module, of all attention that a model has."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Attending) and (match := LAYER.match(name)):
            is_encoder = match[1].startswith("encoder.")
            kind = "cross" if isinstance(module, CrossAttention) else "encoder" if is_encoder else "self"
            found[kind, int(match[2])] = name
    return found


@contextmanager
def watched(module: Attending, look: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """While it lasts `look` is given the weights (B, H, T, S) of each pass."""
    module.watcher = look
    try:
        yield
    finally:
        module.watcher = None


def maps_of(subject: Subject, looked: Looked, asked: Asked) -> list[AttentionMap]:
    """Those of one layer, of each kind of attention it has; UserError for a layer or head that there is not."""
    model, sites = subject.loaded.model, sites_of(subject.loaded.model)
    if not sites:
        family = subject.loaded.config.model.family
        raise UserError(f"--layer, --head, --picture: model.family: {family} has no attention; leave them out")
    last = max(layer for _, layer in sites)
    layer = last if asked.layer is None else asked.layer
    chosen = {kind: name for (kind, number), name in sites.items() if number == layer}
    if not chosen:
        raise UserError(f"--layer: {layer} is none of the model's, which are 0 to {last}")
    own, source = (_labels(subject.tokenizer, ids) for ids in (looked.inputs, looked.source))
    labels = {"self": (own, own), "encoder": (source, source), "cross": (own, source)}
    found = []
    for kind in (kind for kind in labels if kind in chosen):
        heads, weights = _weights(model, chosen[kind], looked.read, asked.head)
        queries, keys = labels[kind]
        weights = weights[:, : len(queries), : len(keys)]  # what is behind them is padding, which nobody sees
        found.append(AttentionMap(kind, layer, heads, weights, queries, keys))
    return found


def _weights(
    model: LanguageModel, name: str, read: Callable[[], object], head: int | None
) -> tuple[tuple[int, ...], np.ndarray]:
    module = model.get_submodule(name)
    assert isinstance(module, Attending)
    if head is not None and head >= module.heads:
        raise UserError(f"--head: {head} is none of the layer's, which are 0 to {module.heads - 1}")
    seen: list[torch.Tensor] = []
    with watched(module, lambda weights: seen.append(weights[0].float().cpu())):
        read()
    heads = tuple(range(module.heads)) if head is None else (head,)
    return heads, seen[0].numpy()[list(heads)]


def _labels(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """The text at each place; of a character of several tokens each says which part it is."""
    found = []
    for piece in pieces_of(tokenizer, ids):
        parts = piece.stop - piece.first
        found += [piece.text if parts == 1 else f"{piece.text}{PARTS[part % len(PARTS)]}" for part in range(parts)]
    return tuple(found)


def habits(shown: AttentionMap) -> list[dict[str, float]]:
    """Of each head the mean weight on a place itself, on the one before and on the first; and the entropy in bits.

    The first query is left out, which sees nothing else where all look back.
    """
    rows = []
    for number, weights in zip(shown.heads, shown.weights, strict=True):
        entropy = -(weights * np.log2(np.maximum(weights, 1e-30))).sum(1)
        found = {"head": number, "entropy": float(entropy[1:].mean()) if len(weights) > 1 else float(entropy.mean())}
        if shown.kind != "cross" and len(weights) > 1:
            found |= {
                "itself": float(np.diagonal(weights)[1:].mean()),
                "before": float(np.diagonal(weights, -1).mean()),
                "first": float(weights[1:, 0].mean()),
            }
        rows.append(found)
    return rows
