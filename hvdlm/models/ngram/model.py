"""N-grams with interpolated modified Kneser-Ney smoothing: counted, not trained (Chen and Goodman 1999)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.models.interface import FamilyConfig, LanguageModel, State, Vocabulary
from hvdlm.models.ngram.counts import NgramTable, count_ngrams
from hvdlm.models.ngram.kneser_ney import BackoffTable, estimate, nothing_counted

BLOCK = 1 << 23  # elements of (rows, V) that are filled at a time


class NgramConfig(FamilyConfig):
    """`model: {family: ngram, …}`."""

    family: Literal["ngram"] = "ngram"
    order: int = Field(5, ge=1, le=9, description="words of the longest n-gram, the predicted one included")
    across_documents: bool = Field(False, description="n-grams may reach into the document before")

    carries_state = True

    @property
    def forgets(self) -> bool:  # type: ignore[override]
        return not self.across_documents

    @property
    def learner(self) -> str:
        return "ngrams"

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Ngram(self, vocabulary)


class Ngrams(nn.Module):
    """Those of one order: a `BackoffTable` whose size is that of the text it was counted in."""

    keys: Tensor

    def __init__(self, table: BackoffTable) -> None:
        super().__init__()
        self.register_buffer("keys", torch.from_numpy(table.keys))
        self.log_probs = nn.Parameter(torch.from_numpy(table.log_probs), requires_grad=False)
        self.log_backoffs = nn.Parameter(torch.from_numpy(table.log_backoffs), requires_grad=False)

    def take_size(self, num: int) -> None:
        """Become `num` n-grams that are still to be filled in."""
        self.keys = self.keys.new_empty(num)
        self.log_probs.data, self.log_backoffs.data = (self.log_probs.data.new_empty(num) for _ in range(2))

    def table(self) -> BackoffTable:
        tensors = self.keys, self.log_probs.data, self.log_backoffs.data
        return BackoffTable(*(tensor.cpu().numpy() for tensor in tensors))

    def find(self, places: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
        """Where the n-grams stand whose beginnings stand at `places` in the order below; -1 where there is none."""
        if not len(self.keys):
            return torch.full_like(ids, -1)
        wanted = places * vocab_size + ids
        found = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        return torch.where((self.keys[found] == wanted) & (places >= 0) & (ids >= 0), found, -1)


class BackoffTrie(nn.Module):
    """The head: places of contexts (B, T, order - 1) -> log-probabilities (B, T, V) float32.

    A place is where the last 1, 2, … ids stand among the n-grams of their order, -1 where they do not.
    """

    def __init__(self, tables: Sequence[BackoffTable]) -> None:
        super().__init__()
        self.ngrams = nn.ModuleList(map(Ngrams, tables))
        self.vocab_size = len(tables[0].keys)

    @property
    def orders(self) -> list[Ngrams]:
        return cast(list[Ngrams], list(self.ngrams))

    @torch.no_grad()
    def places(self, seen: Tensor) -> Tensor:
        """Of each of the last T ids in (B, order - 1 + T) with those before it; an id of -1 is none."""
        length = len(self.orders) - 1
        places = [seen]
        for size, order in enumerate(self.orders[1:length], 2):
            places.append(order.find(places[-1][:, :-1], seen[:, size - 1 :], self.vocab_size))
        columns = [place[:, length - number :] for number, place in enumerate(places[:length])]
        return torch.stack(columns, -1) if columns else seen.new_empty(*seen.shape, 0)

    @torch.no_grad()
    def log_probs(self, places: Tensor, targets: Tensor) -> Tensor:
        """Of targets (B, T) alone, float64."""
        found = self.orders[0].log_probs[targets]
        for order, place, backoff in zip(self.orders[1:], places.unbind(-1), self._backoffs(places), strict=True):
            child = order.find(place, targets, self.vocab_size)
            is_there = child >= 0
            found = found + backoff
            found[is_there] = order.log_probs[child[is_there]]
        return found

    @torch.no_grad()
    def forward(self, places: Tensor) -> Tensor:
        flat = places.flatten(0, 1)
        out = torch.empty(len(flat), self.vocab_size, device=places.device)
        rows = max(1, BLOCK // self.vocab_size)
        for part, block in zip(flat.split(rows), out.split(rows), strict=True):
            self._fill(block, part)
        return out.view(*places.shape[:2], -1)

    def _backoffs(self, places: Tensor) -> Iterator[Tensor]:
        """Of each column of places, float64: what words cost that do not follow there."""
        for order, place in zip(self.orders, places.unbind(-1), strict=False):
            backoffs = torch.zeros(place.shape, dtype=torch.float64, device=place.device)
            is_there = place >= 0
            backoffs[is_there] = order.log_backoffs[place[is_there]]
            yield backoffs

    def _fill(self, out: Tensor, places: Tensor) -> None:
        """Log-probabilities (n, V) after (n, order - 1): those of single words, then of ever longer n-grams."""
        backoffs = [*self._backoffs(places), torch.zeros(len(out), dtype=torch.float64, device=out.device)]
        backoffs = list(torch.stack(backoffs).flip(0).cumsum(0).flip(0))  # of each order and all above it
        torch.add(backoffs[0].unsqueeze(1), self.orders[0].log_probs, out=out)
        for order, place, backoff in zip(self.orders[1:], places.unbind(-1), backoffs[1:], strict=True):
            first = torch.searchsorted(order.keys, place * self.vocab_size)
            num = torch.searchsorted(order.keys, (place + 1) * self.vocab_size) - first
            row = torch.repeat_interleave(num)
            child = torch.arange(len(row), device=out.device) + (first - num.cumsum(0) + num)[row]
            words = order.keys[child] - place[row] * self.vocab_size
            out[row, words] = (order.log_probs[child] + backoff[row]).float()


class Ngram(LanguageModel):
    """The body finds what the head is asked for; it is all look-ups. The state is the last order - 1 ids, -1 for none.

    As it is built, before anything was counted, all ids are equally likely.
    """

    head: BackoffTrie

    def __init__(self, config: NgramConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.head = BackoffTrie(nothing_counted(config.order, vocabulary.size))

    def count(self, ids: np.ndarray, history: np.ndarray) -> NgramTable:
        """`count_ngrams` by this model's conventions; `merge` adds up what is counted in parts of a text."""
        order, eos_id = self.config.order, self.vocabulary.eos_id
        return count_ngrams(ids, history, order=order, eos_id=eos_id, across_documents=self.config.across_documents)

    def update(self, levels: Sequence[NgramTable]) -> None:
        """Become the estimate from the `adjusted_counts` of the whole text."""
        self.set_tables(estimate(levels, self.vocabulary.size))

    def set_tables(self, tables: Sequence[BackoffTable]) -> None:
        self.head = BackoffTrie(tables).to(self.device)

    def tables(self) -> list[BackoffTable]:
        return [order.table() for order in self.head.orders]

    def take_shapes(self, shapes: Mapping[str, torch.Size]) -> None:
        """Make room for the tensors of a checkpoint: how many n-grams there are only the text knows."""
        for number, order in enumerate(self.head.orders):
            shape = shapes.get(f"head.ngrams.{number}.keys", ())
            if number and len(shape) == 1:  # of single words there are as many as ids
                order.take_size(shape[0])

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.take_shapes({name: tensor.shape for name, tensor in state_dict.items()})
        return super().load_state_dict(state_dict, *args, **kwargs)

    def initial_state(self, num: int) -> State:
        return (torch.full((num, self.config.order - 1), -1, device=self.device),)

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        (before,) = self.initial_state(len(ids)) if state is None else state
        seen = torch.cat((before, ids), 1)  # (B, order - 1 + T)
        return self.head.places(seen), None if state is None else (seen[:, ids.shape[1] :],)

    def target_log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return self.head.log_probs(hidden, targets)
