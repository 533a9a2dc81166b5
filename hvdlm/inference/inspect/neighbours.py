"""Which tokens a model's embedding has near a word: those whose vectors point the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from hvdlm.errors import UserError
from hvdlm.inference.inspect.asked import Subject
from hvdlm.inference.inspect.pieces import name_of


class Near(NamedTuple):
    id: int
    text: str
    cosine: float


@dataclass(frozen=True)
class Neighbours:
    """Of a word, by the cosine of the input embedding's vectors; of several tokens their mean is taken."""

    word: str
    tokens: tuple[str, ...]
    near: tuple[Near, ...]

    def numbers(self) -> dict[str, Any]:
        return {
            "word": self.word,
            "tokens": list(self.tokens),
            "neighbours": [dict(one._asdict()) for one in self.near],
        }


@torch.no_grad()
def neighbours_of(subject: Subject, word: str, num: int) -> Neighbours:
    """The `num` nearest, without the word itself; UserError where there is no embedding, or no such token."""
    tokenizer, family = subject.tokenizer, subject.loaded.config.model.family
    embedding = getattr(subject.loaded.model, "embed", None)
    if not isinstance(embedding, nn.Embedding):
        raise UserError(f"--neighbours: model.family: {family} has no embedding; leave it out")
    ids = tokenizer.encode(word).tolist()
    if not ids or (tokenizer.unk_id is not None and tokenizer.unk_id in ids):
        raise UserError(f"--neighbours: {word!r} is not in the vocabulary; give another word")
    vectors = embedding.weight[: tokenizer.vocab_size].float()
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    sought = vectors[ids].mean(0)
    cosines = vectors @ (sought / sought.norm().clamp(min=1e-12))
    cosines[ids] = -torch.inf
    best = cosines.topk(min(num, tokenizer.vocab_size - len(set(ids))))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    near = tuple(Near(id_, name_of(tokenizer, id_), round(cosine, 4)) for id_, cosine in pairs)
    return Neighbours(word, tuple(name_of(tokenizer, id_) for id_ in ids), near)
