"""The next token (`task: {kind: lm}`): what training minimizes, and the noise it puts on its inputs."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hvdlm.compute.draws import Draws, threshold
from hvdlm.config import Section
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.models import HeadTerms, LanguageModel, SharedHead, State
from hvdlm.tasks.interface import Batch, Sums, Task, TaskConfig, TaskContext, unseen, without_padding

_WORD_SITE, _RATIO_SITE, _MASKING_SITE = -1, -2, -3


class ObjectiveConfig(Section):
    """The `objective` section: terms beside the cross-entropy."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="weight of a uniform target (Szegedy et al. 2016)")
    z_loss: float = Field(0.0, ge=0, description="weight of log(sum(exp(logits)))^2 (Chowdhery et al. 2022)")
    activation: float = Field(
        0.0, ge=0, description="weight of the mean square of what the head sees (AR: Merity et al. 2017)"
    )
    temporal: float = Field(
        0.0, ge=0, description="weight of the mean square of its change from token to token (TAR: the same)"
    )

    @property
    def is_on(self) -> bool:
        """Whether there are terms of the logits."""
        return self.label_smoothing > 0 or self.z_loss > 0

    @property
    def is_of_hidden(self) -> bool:
        """Whether there are terms of what the head sees, which only `task: lm` knows."""
        return self.activation > 0 or self.temporal > 0

    def refuse_all_but(self, allowed: tuple[str, ...], kind: str) -> None:
        """UserError for a term that a task of this kind would pass over."""
        odd = [name for name, value in self if value and name not in allowed]
        if odd:
            raise UserError(f"objective.{odd[0]}: task: {kind} knows no such term; leave it out")

    def refuse_hidden(self, kind: str) -> None:
        """UserError where a task of this kind would pass over a term."""
        if self.is_of_hidden:
            raise UserError(f"objective.activation, temporal: are for task: lm, not {kind}; leave them out")


class NoiseConfig(Section):
    """The `noise` section: input ids replaced by the end-of-text id in training; targets stay."""

    word_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability of each id (Bowman et al. 2016; blank noising, Xie et al. 2017)"
    )
    token_masking: float = Field(
        0.0, ge=0, lt=1, description="largest probability, drawn anew for each sequence (Liu et al. 2022)"
    )

    @property
    def is_on(self) -> bool:
        return self.word_dropout > 0 or self.token_masking > 0


class LmConfig(TaskConfig):
    """`task: {kind: lm}`: each token from those before it."""

    kind: Literal["lm"] = "lm"

    def build(self, context: TaskContext) -> Task:
        return LanguageModelling(context)


class LanguageModelling(Task):
    """Every token of an example but the first is a target."""

    def __init__(self, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig) and isinstance(context.noise, NoiseConfig)
        self.objective, self.noise, self.eos_id = context.objective, context.noise, context.vocabulary.eos_id
        self.takes_draws = self.noise.is_on

    def count(self, ids: np.ndarray) -> int:
        return int((ids[:, 1:] != IGNORED).sum())

    def count_of(self, lengths: np.ndarray) -> int | None:
        return int(lengths.sum())

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        inputs = without_padding(ids[:, :-1], self.eos_id)
        return Batch(noisy_inputs(inputs, self.noise, self.eos_id, draws), unseen(ids[:, 1:], context))

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        hidden, state = model(batch.inputs, state, draws)
        is_target = batch.targets != IGNORED
        chosen = None if self.objective.is_on else model.target_log_probs(hidden, batch.targets.clamp(min=0))
        if chosen is None:
            aim, nll = objective_at(model, hidden, batch.targets, self.objective)
        else:
            losses = -torch.where(is_target, chosen, 0.0)
            aim, nll = losses.sum(), losses.detach().double().sum()
        if self.objective.is_of_hidden:
            aim = aim + activity(hidden, batch.targets, self.objective)
        return Sums(aim, torch.stack((nll.double(), is_target.sum().double()))), state


def objective(logits: Tensor, targets: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """(what to differentiate, nats without a graph): sums over the targets (B, T) that are not IGNORED.

    `logits` are (B, T, V); float32 from here on, or float64 where they are that.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits, targets = logits.to(wide).flatten(0, 1), targets.flatten()  # (N, V), (N,)
    # torch's own reduction adds up one after another in float32, which loses a digit in some thousand targets.
    losses = F.cross_entropy(
        logits, targets, ignore_index=IGNORED, label_smoothing=config.label_smoothing, reduction="none"
    )
    aim = losses.sum()
    if not config.is_on:
        return aim, losses.detach().double().sum()
    counted = targets != IGNORED
    with torch.set_grad_enabled(config.z_loss > 0 and torch.is_grad_enabled()):
        log_z = logits.logsumexp(-1)  # (N,)
    with torch.no_grad():
        chosen = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
        nll = torch.where(counted, log_z - chosen, 0.0).double().sum()
    if config.z_loss:
        aim = aim + config.z_loss * torch.where(counted, log_z, 0.0).square().sum()
    return aim, nll


def objective_at(
    model: LanguageModel, hidden: Tensor, targets: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """`objective` of what the head makes of hidden (B, T, C)."""
    if not isinstance(model.head, SharedHead):
        return objective(model.head(hidden), targets, config)
    return objective_of_terms(model.head.terms(hidden, targets.clamp(min=0)), targets, config)


def judged_at(
    model: LanguageModel, hidden: Tensor, targets: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """`objective` of hidden (M, C) at targets (M,), and for how many of these their logit is the highest."""
    if isinstance(model.head, SharedHead):
        terms = model.head.terms(hidden, targets)
        return *objective_of_terms(terms, targets, config), (terms.likeliest == targets).sum()
    logits = model.head(hidden)
    found = objective(logits.unsqueeze(0), targets.unsqueeze(0), config)
    return *found, (logits.argmax(-1) == targets).sum()


def objective_of_terms(terms: HeadTerms, targets: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """The same, where nobody holds all logits."""
    counted = targets != IGNORED
    losses = torch.where(counted, terms.log_z - terms.chosen, 0.0)
    nll = losses.detach().double().sum()
    aim = losses.sum()
    if config.label_smoothing:
        even = torch.where(counted, terms.log_z - terms.mean, 0.0).sum()
        aim = (1 - config.label_smoothing) * aim + config.label_smoothing * even
    if config.z_loss:
        aim = aim + config.z_loss * torch.where(counted, terms.log_z, 0.0).square().sum()
    return aim, nll


def activity(hidden: Tensor, targets: Tensor, config: ObjectiveConfig) -> Tensor:
    """Activation and temporal activation regularization of hidden (B, T, C), as sums like those of `objective`.

    Sums over the targets of the mean over units: of the squares, and of those of the difference to the position
    before, where that has a target too.
    """
    hidden, counted = hidden.float(), targets != IGNORED
    size = torch.where(counted, hidden.square().mean(-1), 0.0).sum()
    change = (hidden[:, 1:] - hidden[:, :-1]).square().mean(-1)
    return config.activation * size + config.temporal * torch.where(counted[:, 1:] & counted[:, :-1], change, 0.0).sum()


def noisy_inputs(ids: Tensor, config: NoiseConfig, eos_id: int, draws: Draws | None) -> Tensor:
    """`ids` (B, T) with some replaced by `eos_id`, independently; without noise or draws the tensor itself."""
    if draws is None:
        return ids
    time = ids.shape[1]
    if config.word_dropout:
        is_noise = draws.uniform_bits(_WORD_SITE, (time,)) < threshold(config.word_dropout)
        ids = ids.masked_fill(is_noise, eos_id)
    if config.token_masking:
        # Bits are uniform in [-2^31, 2^31); the ratio is uniform in [0, token_masking), in float64 for its low bits.
        ratio = (draws.uniform_bits(_RATIO_SITE, (1,)).double() + 2**31) * config.token_masking  # x 2^32
        is_noise = draws.uniform_bits(_MASKING_SITE, (time,)) < ratio - 2**31
        ids = ids.masked_fill(is_noise, eos_id)
    return ids
