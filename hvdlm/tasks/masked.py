"""Masked tokens from both sides (`task: {kind: mlm}`; Devlin et al. 2019, "BERT").

Which tokens are masked is a hash of the seed, the step and the place of a sequence in the data's order: the same on
any rank, in any micro-batch. How many is exact, so that every rank knows the number of a global batch from its ids.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from hvdlm.compute.draws import Draws, threshold
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, State
from hvdlm.tasks.interface import (
    Batch,
    Measured,
    Sums,
    Task,
    TaskConfig,
    TaskContext,
    less,
    more,
    unseen,
    without_padding,
)
from hvdlm.tasks.language_model import NoiseConfig, ObjectiveConfig, judged_at

_ORDER_SITE, _KIND_SITE, _RANDOM_SITE = -1, -2, -3
_LAST = torch.iinfo(torch.int64).max


class MlmConfig(TaskConfig):
    """`task: {kind: mlm}`: hidden tokens from all others, for a transformer with `causal: false`."""

    kind: Literal["mlm"] = "mlm"
    rate: Measured[float] = Field(0.15, gt=0, le=1, description="part of a sequence's tokens that is to be predicted")
    masked: Measured[float] = Field(0.8, ge=0, le=1, description="part of those that the model sees as the mask")
    random: Measured[float] = Field(
        0.1, ge=0, le=1, description="part of those that it sees as any token; the rest as they are"
    )
    whole_words: Measured[bool] = Field(False, description="hide all tokens of a word together")

    extra_ids: ClassVar[int] = 1  # the mask, behind the vocabulary

    @model_validator(mode="after")
    def _check(self) -> MlmConfig:
        if self.masked + self.random > 1:
            raise ValueError(f"masked {self.masked} and random {self.random} are more than 1 together")
        return self

    @property
    def needs_word_starts(self) -> bool:
        return self.whole_words

    def build(self, context: TaskContext) -> Task:
        return MaskedTokens(self, context)


class MaskedTokens(Task):
    """Of each sequence's n tokens, ends of text aside, the nearest whole number to rate x n are targets, 1 at least."""

    sums = ("loss", "targets", "correct")
    better = less("loss") | more("accuracy")
    takes_draws = True
    evaluation_takes_draws = True
    predicts_text = False

    def __init__(self, config: MlmConfig, context: TaskContext) -> None:
        vocabulary = context.vocabulary
        self._config, self._vocab_size, self.mask_id = config, vocabulary.size, vocabulary.size
        self._eos_id = vocabulary.eos_id
        self._special = [number for number in (vocabulary.eos_id, vocabulary.bos_id) if number is not None]
        assert isinstance(context.objective, ObjectiveConfig) and isinstance(context.noise, NoiseConfig)
        context.objective.refuse_hidden(config.kind)
        if context.noise.is_on:
            raise UserError("noise: is for task: lm; mlm hides tokens as task.rate says: leave noise out")
        self._objective = context.objective
        self._starts_word: Tensor | None = None
        if config.whole_words:
            if context.starts_word is None:
                raise UserError("task.whole_words: this tokenizer does not tell where words begin; set it to false")
            self._starts_word = torch.from_numpy(context.starts_word)

    def count(self, ids: np.ndarray) -> int:
        return int(self._num_chosen(torch.from_numpy(self._maskable_of(ids[:, 1:])).sum(1)).sum())

    def _maskable_of(self, tokens: np.ndarray) -> np.ndarray:
        return (tokens != IGNORED) & ~np.isin(tokens, self._special)

    def _num_chosen(self, num_maskable: Tensor) -> Tensor:
        """How many of so many tokens, each int64 (B,)."""
        chosen = torch.floor(num_maskable.double() * self._config.rate + 0.5).long()
        return torch.where(num_maskable > 0, chosen.clamp(min=1), 0)

    def flops_per_token(self, model: LanguageModel, seq_len: int) -> int:
        """The head is asked at the targets alone."""
        of_head = 6 * sum(matrix.numel() for matrix in model.head.parameters() if matrix.dim() == 2)
        return model.flops_per_token(seq_len) - round((1 - self._config.rate) * of_head)

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        assert draws is not None, "masks are drawn"
        tokens = ids[:, 1:]
        chosen = self._chosen(tokens, draws)
        kind = draws.uniform_bits(_KIND_SITE, tokens.shape[1:])
        as_mask = chosen & (kind < threshold(self._config.masked))
        as_random = chosen & ~as_mask & (kind < threshold(self._config.masked + self._config.random))
        anything = draws.uniform_bits(_RANDOM_SITE, tokens.shape[1:]).long() % self._vocab_size
        seen = torch.where(as_random, anything, tokens.masked_fill(as_mask, self.mask_id))
        targets = unseen(tokens.masked_fill(~chosen, IGNORED), context)
        lengths = (tokens != IGNORED).sum(1)
        return Batch(without_padding(seen, self._eos_id), targets, lengths)

    def _chosen(self, tokens: Tensor, draws: Draws) -> Tensor:
        """Which tokens (B, T) are targets: those that come first by their draws."""
        maskable = tokens != IGNORED
        for special in self._special:
            maskable &= tokens != special
        order = draws.uniform_bits(_ORDER_SITE, tokens.shape[1:]).long()
        if self._starts_word is not None:  # all tokens of a word have the draw of its first; the last word may be cut
            order = order.gather(1, _word_starts(tokens, self._starts_word.to(tokens.device)))
        rank = order.masked_fill(~maskable, _LAST).argsort(dim=1, stable=True).argsort(dim=1)
        return maskable & (rank < self._num_chosen(maskable.sum(1)).unsqueeze(1))

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        hidden, _ = model(batch.inputs, None, draws, lengths=batch.lengths)
        is_target = batch.targets != IGNORED
        targets = batch.targets[is_target]  # (M,)
        aim, nll, correct = judged_at(model, hidden[is_target], targets, self._objective)  # at the targets alone
        num = is_target.sum()
        return Sums(aim, torch.stack((nll.double(), num.double(), correct.double()))), None

    def figures(self, sums: dict[str, float]) -> dict[str, float]:  # type: ignore[override]
        return {**super().figures(sums), "accuracy": sums["correct"] / max(1.0, sums["targets"])}


def _word_starts(tokens: Tensor, starts_word: Tensor) -> Tensor:
    """Where the word of each token (B, T) begins; what precedes the first beginning belongs to a word from 0 on."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = starts_word[tokens.clamp(min=0)] & (tokens != IGNORED)
    return torch.where(begins, places, 0).cummax(dim=1).values
