"""How surprising each token of a text is to a model: -log2 p, in bits, by the very protocol of `hvdlm eval`.

Of masked models it is each token's share of the pseudo-log-likelihood, for which it alone is hidden (Salazar et al.
2020, "Masked language model scoring").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from hvdlm.data.stream import TokenStream
from hvdlm.inference.inspect.passages import Cell, Choice, Detail, Passage, Scale
from hvdlm.inference.inspect.pieces import Piece, name_of, pieces_of
from hvdlm.models import LanguageModel
from hvdlm.tables import counted, figure
from hvdlm.tokenizer import Tokenizer

AT_ONCE = 256  # places whose logits over the whole vocabulary are held together
MOST_BITS = 16.0  # the end of the scale of colours
LN2 = math.log(2)
HOW = "bits = -log2 p(token | what the model saw before it): 1 bit is a fair coin, 0 no surprise at all"


class OneText:
    """A split of one document, in memory: what the readers of a split ask of a TokenStream."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids.astype(np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, length: int) -> np.ndarray:
        return self._ids[start : start + length]

    def document_starts(self) -> np.ndarray:
        return np.array([0, len(self._ids)])

    def as_stream(self) -> TokenStream:
        """Itself, for readers whose streams are files."""
        return cast(TokenStream, self)


class Judged(NamedTuple):
    """What a distribution says of the token that was there, of n places."""

    nats: np.ndarray  # float64 (n,): -log p
    entropy: np.ndarray  # float64 (n,): nats to be expected
    rank: np.ndarray  # int64 (n,): 1 is the likeliest
    likeliest: np.ndarray  # int64 (n, K)
    probabilities: np.ndarray  # float64 (n, K)


@dataclass
class Surprisal:
    """Of the tokens of one text, in order."""

    ids: list[int] = field(default_factory=list)
    parts: list[Judged] = field(default_factory=list)
    begins: set[int] = field(default_factory=set)  # places before which the model saw nothing
    protocol: str = ""
    how: str = ""  # it was read, in words
    title: str = "Surprisal"
    notes: tuple[str, ...] = (HOW,)
    unasked: frozenset[int] = frozenset()  # places that are not predicted
    latent_nats: float | None = None  # KL(q(z | x) || p(z)) of a text with a latent vector
    text_bytes: int | None = None  # where each token of a text is predicted

    @property
    def judged(self) -> Judged:
        return Judged(*(np.concatenate(parts) for parts in zip(*self.parts, strict=True)))

    @property
    def nats(self) -> float:
        """Of the whole text, what its latent vector costs with it."""
        return float(self.judged.nats.sum()) + (self.latent_nats or 0.0)


def judged(model: LanguageModel, hidden: Tensor, targets: Tensor, *, most: int, vocab_size: int) -> Iterator[Judged]:
    """Of hidden vectors (N, …) what the head says of targets (N,), some places at a time.

    The likeliest are of the tokenizer's ids: a task's own have no text.
    """
    for some, wanted in zip(hidden.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
        log_probs = model.head(some.unsqueeze(0))[0].float().log_softmax(-1)  # (n, V)
        own = log_probs.gather(1, wanted.unsqueeze(1))  # (n, 1)
        exact = model.target_log_probs(some.unsqueeze(0), wanted.unsqueeze(0))  # as evaluation counts it
        best = log_probs[:, :vocab_size].topk(min(most, vocab_size))
        entropy = -torch.xlogy(log_probs.exp(), log_probs.exp()).double().sum(1)
        nats = -(own.squeeze(1) if exact is None else exact[0]).double()
        rank = 1 + (log_probs > own).sum(1)
        found = (nats, entropy, rank, best.indices, best.values.double().exp())
        yield Judged(*(part.cpu().numpy() for part in found))


def passage_of(found: Surprisal, tokenizer: Tokenizer) -> Passage:
    """Cells of whole characters: one that several tokens spell has the sum of their bits, by the chain rule."""
    told = found.judged
    asked = [place for place in range(len(found.ids)) if place not in found.unasked]
    number_of = {place: number for number, place in enumerate(asked)}
    cells, pieces = [], pieces_of(tokenizer, found.ids)
    for piece in pieces:
        numbers = [number_of[place] for place in range(piece.first, piece.stop) if place in number_of]
        bits = sum(float(told.nats[number]) for number in numbers) / LN2
        details = tuple(_details(found, told, tokenizer, piece, number_of))
        label, value = (f"{bits:.1f}", bits) if numbers else ("", None)
        cells.append(Cell(piece.text, label, value, details, begins=piece.first in found.begins))
    return Passage(
        found.title,
        _facts(found, told),
        tuple(cells),
        Scale(0.0, MOST_BITS, "bits"),
        found.notes,
        numbers=_numbers(found, told, tokenizer, pieces, number_of),
    )


def _facts(found: Surprisal, told: Judged) -> tuple[str, ...]:
    num, nats = len(told.nats), found.nats
    facts = [
        f"{counted(num, 'token')}, {figure(nats / LN2, 4)} bits: {figure(nats / max(1, num), 4)} nats a token,"
        f" perplexity {figure(math.exp(min(nats / max(1, num), 700.0)), 4)}"
    ]
    if found.text_bytes:
        facts[0] += f", {figure(nats / LN2 / found.text_bytes, 4)} bits a byte"
    if found.latent_nats is not None:
        facts.append(f"of which {figure(found.latent_nats / LN2)} bits are the latent vector's, KL(q(z | x) || p(z))")
    return (*facts, found.how)


def _details(
    found: Surprisal, told: Judged, tokenizer: Tokenizer, piece: Piece, number_of: dict[int, int]
) -> Iterator[Detail]:
    for place in range(piece.first, piece.stop):
        before = found.ids[piece.first : place]  # of the same character
        name = name_of(tokenizer, found.ids[place], before)
        if place not in number_of:
            yield Detail(name, "not predicted")
            continue
        number = number_of[place]
        bits, entropy = (float(values[number]) / LN2 for values in (told.nats, told.entropy))
        said = f"{bits:.2f} bits, rank {told.rank[number]}; {entropy:.2f} bits were to be expected"
        choices = zip(told.likeliest[number].tolist(), told.probabilities[number].tolist(), strict=True)
        yield Detail(name, said, tuple(Choice(name_of(tokenizer, one, before), share) for one, share in choices))


def _numbers(
    found: Surprisal, told: Judged, tokenizer: Tokenizer, pieces: Sequence[Piece], number_of: dict[int, int]
) -> dict[str, Any]:
    """Each token for programs; `text` is that of its piece, which the first token of a piece has alone."""
    texts = {piece.first: piece.text for piece in pieces}
    tokens: list[dict[str, Any]] = []
    for place, id_ in enumerate(found.ids):
        tokens.append({"id": id_, "text": texts.get(place, "")})
        if place in number_of:
            number = number_of[place]
            best = zip(told.likeliest[number].tolist(), told.probabilities[number].tolist(), strict=True)
            tokens[-1] |= {
                "bits": float(told.nats[number]) / LN2,
                "rank": int(told.rank[number]),
                "entropy": float(told.entropy[number]) / LN2,
                "likeliest": [{"id": one, "text": name_of(tokenizer, one), "probability": p} for one, p in best],
            }
    whole = {"nats": found.nats, "num_tokens": len(told.nats), "protocol": found.protocol}
    latent = {} if found.latent_nats is None else {"latent_nats": found.latent_nats}
    return {**whole, **latent, "loss": found.nats / max(1, len(told.nats)), "tokens": tokens}
