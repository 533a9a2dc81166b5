"""Maximum entropy: log-linear in the n-grams of the history, over classes of words (Rosenfeld 1996; Goodman 2001).

    P(w | h) = P(class of w | h) P(w | its class, h)

Each factor is a softmax over sums of weights, one for each n from 0 to order - 1. A weight belongs to the last n words
and what is predicted from them. There are far more of such pairs than room: a hash of the words chooses a row of
weights, and different words may share one (Mikolov et al. 2011). A word costs about 2 sqrt(V) sums in place of V. The
objective is convex.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws, mix64, signed64
from hvdlm.models.interface import FamilyConfig, LanguageModel, OfTraining, State, Vocabulary

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_NO_SIGN = (1 << 63) - 1
AT_ONCE = 1 << 13  # tokens


class MaxentConfig(FamilyConfig):
    """`model: {family: maxent, …}`."""

    family: Literal["maxent"] = "maxent"
    order: int = Field(4, ge=1, le=9, description="words of the longest n-gram, the predicted one included")
    buckets: int = Field(22, ge=1, le=40, description="2^buckets weights for classes, and as many for words")
    classes: int | None = Field(
        None,
        ge=1,
        description="runs of ids, which vocabularies list by frequency; null: about sqrt(V); 1: no classes",
    )
    training: OfTraining[Literal["gradient", "lbfgs"]] = Field(
        "gradient", description="by an optimizer, as other families; lbfgs: a step is an iteration over the whole text"
    )
    l1: OfTraining[float] = Field(0.0, ge=0, description="a token's penalty: l1 times the sum of |weight|")
    l2: OfTraining[float] = Field(0.0, ge=0, description="a token's penalty: l2 / 2 times the sum of weight^2")

    carries_state, forgets = True, True

    @property
    def learner(self) -> str:
        return self.training

    @property
    def own_terms(self) -> str:
        return "model.l1 and l2" if self.l1 or self.l2 else ""

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Maxent(self, vocabulary)


class Penalized(torch.autograd.Function):
    """Log-probabilities as they are; with their gradient comes that of the penalty of as many tokens as are summed.

    So a step's penalty is that of one token, whatever the loss is divided by and however the batch is split.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, l1: float, l2: float, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        ctx.strengths = l1, l2
        return log_probs.view_as(log_probs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        l1, l2 = ctx.strengths
        num = -gradient.sum()  # a loss adds up -log p
        return gradient, None, None, *(num * (l1 * weight.sign() + l2 * weight) for weight in ctx.saved_tensors)


class ClassedSoftmax(nn.Module):
    """The head: hashes of the last 0, 1, … words (B, T, order) -> log-probabilities (B, T, V).

    Classes are runs of ids, as equally large as can be, of S ids at most.
    """

    def __init__(self, config: MaxentConfig, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        num_classes = math.ceil(math.sqrt(vocab_size)) if config.classes is None else min(config.classes, vocab_size)
        self.num_classes, self.class_size = num_classes, math.ceil(vocab_size / num_classes)
        self.of_class, self.of_word = (
            nn.Embedding(max(1, 2**config.buckets // width), width) for width in (self.num_classes, self.class_size)
        )
        for table in (self.of_class, self.of_word):
            nn.init.zeros_(table.weight)  # the model that knows nothing, from which a convex descent may begin

    def class_log_probs(self, hashes: Tensor) -> Tensor:
        """(n, order) -> (n, classes)."""
        return _sums(self.of_class, hashes).log_softmax(-1)

    def word_log_probs(self, hashes: Tensor, classes: Tensor) -> Tensor:
        """Within classes (n,), after (n, order) -> (n, S); -inf for places beyond a class's last word."""
        key = (classes + 1) * signed64(_GOLDEN)
        sums = _sums(self.of_word, mix64(hashes ^ key.unsqueeze(-1)) & _NO_SIGN)
        sizes = self._first_of(classes + 1) - self._first_of(classes)
        is_beyond = torch.arange(self.class_size, device=sums.device) >= sizes.unsqueeze(-1)
        return sums.masked_fill(is_beyond, -math.inf).log_softmax(-1)

    def log_probs(self, hashes: Tensor, targets: Tensor) -> Tensor:
        """Of targets (B, T) alone."""
        flat = hashes.flatten(0, 1)
        classes, places = self._places(targets.flatten())
        of_class = self.class_log_probs(flat).gather(1, classes.unsqueeze(1))
        of_word = self.word_log_probs(flat, classes).gather(1, places.unsqueeze(1))
        return (of_class + of_word).view(targets.shape)

    def forward(self, hashes: Tensor) -> Tensor:
        flat = hashes.flatten(0, 1)
        every = torch.arange(self.num_classes, device=flat.device).repeat(len(flat))
        words = self.word_log_probs(flat.repeat_interleave(self.num_classes, 0), every)
        both = self.class_log_probs(flat).unsqueeze(2) + words.view(len(flat), self.num_classes, -1)
        classes, places = self._places(torch.arange(self.vocab_size, device=flat.device))
        return both[:, classes, places].view(*hashes.shape[:2], -1)

    def _places(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Classes of words, and their places in them."""
        classes = ((words + 1) * self.num_classes - 1) // self.vocab_size
        return classes, words - self._first_of(classes)

    def _first_of(self, classes: Tensor) -> Tensor:
        """The first id of each class."""
        return classes * self.vocab_size // self.num_classes


def _sums(table: nn.Embedding, hashes: Tensor) -> Tensor:
    """The sum of the rows that hashes (n, order) name."""
    return F.embedding_bag(hashes % table.num_embeddings, table.weight, mode="sum")


class Maxent(LanguageModel):
    """The body hashes histories. The state is the last order - 2 ids, -1 for none.

    A history reaches back to the end of text before its document, and not across.
    """

    head: ClassedSoftmax

    def __init__(self, config: MaxentConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.eos_id = config, vocabulary.eos_id
        self.head = ClassedSoftmax(config, vocabulary.size)
        self.penalties = config.l1, config.l2
        if config.training == "lbfgs":  # a line search compares sums over the whole text
            self.double()

    def initial_state(self, num: int) -> State:
        return (torch.full((num, max(0, self.config.order - 2)), -1, device=self.device),)

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        (before,) = self.initial_state(len(ids)) if state is None else state
        seen = torch.cat((before, ids), 1)
        return _hashes(seen, ids.shape[1], self.config.order, self.eos_id), (
            None if state is None else (seen[:, ids.shape[1] :],)
        )

    def target_log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        found = self.head.log_probs(hidden, targets)
        return Penalized.apply(found, *self.penalties, *self.parameters()) if any(self.penalties) else found

    def accumulate(self, ids: np.ndarray, *, is_beginning: bool) -> list[Tensor]:
        """What a part of the text adds: gradient of its log-likelihood by each table, that itself, number of tokens."""
        targets = torch.from_numpy(ids)[None].to(self.device)
        before = torch.full_like(targets[:, :1], self.eos_id if is_beginning else -1)
        state, nats = self.initial_state(1), torch.zeros((), dtype=torch.float64)
        self.zero_grad()
        for part in targets.split(AT_ONCE, 1):
            hidden, after = self(torch.cat((before, part[:, :-1]), 1), state)
            log_likelihood = self.head.log_probs(hidden, part).sum()
            log_likelihood.backward()
            nats += log_likelihood.detach().cpu()
            before, state = part[:, -1:], after
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.zero_grad()
        return [*gradients, nats, torch.tensor(len(ids), dtype=torch.float64)]

    def flops_per_token(self, seq_len: int) -> int:
        """An addition and its gradient for each weight that a token is scored with."""
        return 6 * self.config.order * (self.head.num_classes + self.head.class_size)


def _hashes(seen: Tensor, time: int, order: int, eos_id: int) -> Tensor:
    """Of the last 0, 1, … order - 1 ids at the last `time` places of `seen`: int64 (B, time, order), from 0 on."""
    found = torch.full((len(seen), time), _GOLDEN & _NO_SIGN, device=seen.device)
    hashes = [found]
    is_cut = torch.zeros_like(found, dtype=torch.bool)
    for back in range(order - 1):
        word = seen[:, seen.shape[1] - time - back : seen.shape[1] - back]
        word = word.masked_fill(is_cut, -1)
        is_cut = is_cut | (word == eos_id)
        found = mix64(found + (word + 2) * signed64(_GOLDEN))
        hashes.append(found & _NO_SIGN)
    return torch.stack(hashes, -1)
