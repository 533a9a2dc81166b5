"""N-grams with interpolated modified Kneser-Ney smoothing: counted, not trained (Chen and Goodman 1999)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.models.interface import FamilyConfig, LanguageModel, State, Vocabulary
from hvdlm.models.kneser_ney import BackoffTable, estimate, nothing_counted
from hvdlm.models.ngram_counts import NgramTable, count_ngrams

BLOCK = 1 << 23  # elements of (rows, V) that are filled at a time


class NgramConfig(FamilyConfig):
    """`model: {family: ngram, …}`."""

    family: Literal["ngram"] = "ngram"
    order: int = Field(5, ge=1, le=9, description="words of the longest n-gram, the predicted one included")
    across_documents: bool = Field(False, description="n-grams may reach into the document before")

    learner = "counting"
    carries_state = True

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Ngram(self, vocabulary)


class Ngrams(nn.Module):
    """Those of one order: a `BackoffTable` whose size is that of the text it was counted in."""

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


class Ngram(LanguageModel):
    """The body gives log-probabilities (B, T, V) float32. The state is the last order - 1 ids, -1 where there are none.

    As it is built, before anything was counted, all ids are equally likely.
    """

    def __init__(self, config: NgramConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.head = nn.Identity()
        self.orders = nn.ModuleList()
        self.set_tables(nothing_counted(config.order, vocabulary.size))

    def count(self, ids: np.ndarray, history: np.ndarray) -> NgramTable:
        """`count_ngrams` by this model's conventions; `merge` adds up what is counted in parts of a text."""
        order, eos_id = self.config.order, self.vocabulary.eos_id
        return count_ngrams(ids, history, order=order, eos_id=eos_id, across_documents=self.config.across_documents)

    def update(self, levels: Sequence[NgramTable]) -> None:
        """Become the estimate from the `adjusted_counts` of the whole text."""
        self.set_tables(estimate(levels, self.vocabulary.size))

    def set_tables(self, tables: Sequence[BackoffTable]) -> None:
        device = self.orders[0].keys.device if len(self.orders) else None
        self.orders = nn.ModuleList(map(Ngrams, tables)).to(device)

    def take_shapes(self, shapes: Mapping[str, torch.Size]) -> None:
        """Make room for the tensors of a checkpoint: how many n-grams there are only the text knows."""
        for number, order in enumerate(self.orders):
            shape = shapes.get(f"orders.{number}.keys", ())
            if number and len(shape) == 1:  # of single words there are as many as ids
                order.take_size(shape[0])

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.take_shapes({name: tensor.shape for name, tensor in state_dict.items()})
        return super().load_state_dict(state_dict, *args, **kwargs)

    def initial_state(self, num: int) -> State:
        return (torch.full((num, self.config.order - 1), -1, device=self.device),)

    @torch.no_grad()
    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, State | None]:
        contexts, after = self._contexts(ids, state)
        out = torch.empty(ids.numel(), self.vocabulary.size, device=ids.device)
        for rows in torch.arange(len(out), device=ids.device).split(max(1, BLOCK // self.vocabulary.size)):
            self._fill(out[rows[0] : rows[-1] + 1], [context.flatten()[rows] for context in contexts])
        return out.view(*ids.shape, -1), after

    @torch.no_grad()
    def log_prob(self, ids: Tensor, targets: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Of targets (B, T), each after the ids up to it: float64 (B, T), without the other V - 1; the state after."""
        contexts, after = self._contexts(ids, state)
        found = self.orders[0].log_probs[targets]
        for size, (context, backoff) in enumerate(zip(contexts, self._backoffs(contexts), strict=True), 1):
            order = self.orders[size]
            place = order.find(context, targets, self.vocabulary.size)
            longer = order.log_probs[place] if len(order.keys) else found
            found = torch.where(place >= 0, longer, found + backoff)
        return found, after

    def _contexts(self, ids: Tensor, state: State | None) -> tuple[list[Tensor], State | None]:
        """Where the last 1, 2, … order - 1 ids stand among the n-grams of their order, each (B, T), -1 for nowhere."""
        before = (self.initial_state(len(ids)) if state is None else state)[0]
        seen = torch.cat((before, ids), 1)  # (B, order - 1 + T)
        length = before.shape[1]
        contexts = []
        places = seen
        for size in range(1, self.config.order):
            if size > 1:
                places = self.orders[size - 1].find(places[:, :-1], seen[:, size - 1 :], self.vocabulary.size)
            contexts.append(places[:, length - size + 1 :])
        return contexts, None if state is None else (seen[:, seen.shape[1] - length :],)

    def _backoffs(self, contexts: list[Tensor]) -> Iterator[Tensor]:
        """Logarithms for words that do not follow each of the contexts."""
        for order, context in zip(self.orders, contexts, strict=False):
            if len(order.keys):
                yield torch.where(context >= 0, order.log_backoffs[context.clamp(min=0)], 0.0)
            else:
                yield torch.zeros_like(context, dtype=torch.float64)

    def _fill(self, out: Tensor, contexts: list[Tensor]) -> None:
        """Log-probabilities (n, V) after contexts, each (n,): those of single words, then of ever longer n-grams."""
        vocab_size = self.vocabulary.size
        backoffs = [*self._backoffs(contexts), torch.zeros(len(out), dtype=torch.float64, device=out.device)]
        backoffs = list(torch.stack(backoffs).flip(0).cumsum(0).flip(0))  # of each order and all above it
        torch.add(backoffs[0].unsqueeze(1), self.orders[0].log_probs, out=out)
        for order, context, backoff in zip(self.orders[1:], contexts, backoffs[1:], strict=True):
            first = torch.searchsorted(order.keys, context * vocab_size)
            num = torch.searchsorted(order.keys, (context + 1) * vocab_size) - first
            row = torch.repeat_interleave(num)
            place = torch.arange(len(row), device=out.device) + (first - num.cumsum(0) + num)[row]
            words = order.keys[place] - context[row] * vocab_size
            out[row, words] = (order.log_probs[place] + backoff[row]).float()
