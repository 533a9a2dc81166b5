"""Sentences from a latent vector (`task: {kind: elbo}`): the evidence lower bound (Kingma and Welling 2014).

A row is a sentence: a document with `data.order: documents`, else a window. Its reconstruction -log p(x | z), z drawn
from q(z | x), and KL(q(z | x) || p(z)) are both sums over the sentence, and what is minimized is their mean over the
sentences of the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hvdlm.compute.draws import Draws
from hvdlm.config import Free
from hvdlm.data.windows import IGNORED
from hvdlm.models import State
from hvdlm.models.interface import LanguageModel
from hvdlm.models.latent import LatentModel, Posterior
from hvdlm.tables import count
from hvdlm.tasks.interface import Batch, Measured, Sums, Task, TaskConfig, TaskContext, less, unseen, without_padding
from hvdlm.tasks.language_model import NoiseConfig, ObjectiveConfig, noisy_inputs, objective
from hvdlm.tasks.posteriors import active_units, mutual_information

_LATENT_SITE = -4  # behind those of noise on the inputs
POSTERIORS = 4096  # of how many sentences, spread over a split, active units and mutual information are


class ElboConfig(TaskConfig):
    """`task: {kind: elbo}`: a text by way of a latent vector, for model.family: vae."""

    kind: Literal["elbo"] = "elbo"
    reads_documents = True
    kl_weight: float = Field(1.0, ge=0, description="weight of the KL term, once it is annealed (Higgins et al. 2017)")
    anneal_steps: int = Field(
        0, ge=0, description="first steps, in which it rises from anneal_start (Bowman et al. 2016); 0: none"
    )
    anneal_start: float = Field(0.0, ge=0, description="weight of the KL term in the first step")
    free_bits: float = Field(
        0.0,
        ge=0,
        description="nats of KL a sentence that cost the same as fewer, in equal parts for each dimension of z, on the"
        " mean over the global batch (Kingma et al. 2016)",
    )
    samples: Free[Measured[int]] = Field(
        0, ge=0, description="in evaluation: importance samples of a tighter bound (Burda et al. 2016)"
    )

    @property
    def meets_before_backward(self) -> bool:
        return self.free_bits > 0

    def weight_at(self, step: int) -> float:
        """Of the KL term."""
        part = min(1.0, step / self.anneal_steps) if self.anneal_steps else 1.0
        return self.anneal_start + (self.kl_weight - self.anneal_start) * part

    def remarks(self, total_steps: int) -> list[str]:
        found = []
        if self.anneal_steps >= total_steps:
            found.append(
                f"task.anneal_steps: {count(self.anneal_steps)} is not below this run's {count(total_steps)} steps:"
                f" task.kl_weight: {self.kl_weight} is never reached, the last step has"
                f" {self.weight_at(total_steps - 1):.3g}"
            )
        if self.anneal_start and not self.anneal_steps:
            found.append(f"task.anneal_start: {self.anneal_start} is of task.anneal_steps, which are 0: nothing rises")
        if self.free_bits and not self.kl_weight:
            found.append(f"task.free_bits: {self.free_bits} frees nothing: task.kl_weight is 0")
        return found

    def build(self, context: TaskContext) -> Task:
        return Elbo(self, context)


class Elbo(Task):
    """The denominator is the number of sentences. Figures are a token (`loss`), and a sentence (the others)."""

    denominator = "sentences"
    takes_draws = True
    evaluation_takes_draws = True
    takes_context = False
    num_rows = POSTERIORS

    def __init__(self, config: ElboConfig, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig) and isinstance(context.noise, NoiseConfig)
        context.objective.refuse_hidden(config.kind)
        self.config, self.objective, self.noise = config, context.objective, context.noise
        self.eos_id = context.vocabulary.eos_id
        self.sums = ("loss", "targets", "sentences", "kl", *(("importance",) if config.samples else ()))
        self.better = less("loss", "elbo", "reconstruction", *(("iw_loss", "iw_elbo") if config.samples else ()))
        self._kl_weights = torch.ones(())  # of each dimension, or of all

    def count(self, ids: np.ndarray) -> int:
        return int((ids[:, 1:] != IGNORED).any(1).sum())

    def count_of(self, lengths: np.ndarray) -> int | None:
        return int((lengths > 0).sum())

    def begin(self, step: int) -> None:
        self._kl_weights = torch.tensor(self.config.weight_at(step))

    def survey(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> Tensor:
        """The KL of each dimension, summed over sentences: float64 (Z,)."""
        return kl_of(*_encoded(model, batch, self.eos_id, draws)).double().sum(0)

    def surveyed(self, sums: Tensor, denominator: int) -> None:
        """The KL of a dimension counts where its mean is above its share of the free bits, and else has no gradient."""
        is_above = sums / max(1, denominator) > self.config.free_bits / len(sums)
        self._kl_weights = self._kl_weights.to(sums.device) * is_above

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        inputs, targets = without_padding(ids[:, :-1], self.eos_id), unseen(ids[:, 1:], context)
        noisy = noisy_inputs(inputs, self.noise, self.eos_id, draws) if training else inputs
        weights = self._kl_weights.to(ids.device) if training else None
        return Batch(noisy, targets, (targets != IGNORED).sum(1), draws, weights)

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        latent, trains = cast(LatentModel, model), batch.term_weights is not None
        assert batch.lengths is not None
        posterior, is_there, z = self.drawn(model, batch, draws)
        hidden, _ = latent.decode(batch.inputs, z, None, draws)
        is_target = batch.targets != IGNORED  # sentences are of all lengths: logits of padding are never made
        logits, targets = latent.head(hidden[is_target]), batch.targets[is_target]  # (M, V), (M,)
        aim, nats = objective(logits.unsqueeze(0), targets.unsqueeze(0), self.objective)
        kl = kl_of(posterior, is_there)  # (B, Z)
        if batch.term_weights is not None:
            aim = aim + (kl.sum(0) * batch.term_weights).sum()
        total_kl = kl.detach().double().sum()
        parts = [nats.double() + total_kl, batch.lengths.sum(), is_there.sum(), total_kl]
        if self.config.samples:
            parts.append(kl.new_zeros(()) if trains else self._importance_weighted(latent, batch, posterior).sum())
        rows = None if trains else torch.cat((posterior.mean, posterior.log_variance, z), dim=1)
        return Sums(aim, torch.stack([part.double() for part in parts]), rows), None

    def drawn(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> tuple[Posterior, Tensor, Tensor]:
        """What is guessed from the texts, which rows (B,) have one, and a z (B, Z) of each by the batch's own draws."""
        assert batch.draws is not None, "z is drawn"
        posterior, is_there = _encoded(model, batch, self.eos_id, draws)
        return posterior, is_there, posterior.sample(batch.draws.normal(_LATENT_SITE, posterior.mean.shape[1:]))

    @torch.no_grad()
    def _importance_weighted(self, model: LatentModel, batch: Batch, posterior: Posterior) -> Tensor:
        """-log of the mean of p(x | z) p(z) / q(z | x) over samples of z: nats, float64 (B,)."""
        assert batch.draws is not None
        noise = batch.draws.normal(_LATENT_SITE, (self.config.samples, model.latent))
        is_target = batch.targets != IGNORED
        rows = is_target.nonzero()[:, 0]  # of each target
        total = torch.full((len(noise),), -math.inf, dtype=torch.float64, device=noise.device)
        for sample in noise.unbind(1):
            hidden, _ = model.decode(batch.inputs, posterior.sample(sample))
            nats = F.cross_entropy(model.head(hidden[is_target]).float(), batch.targets[is_target], reduction="none")
            nats_by_row = torch.zeros_like(total).index_add(0, rows, nats.double())
            total = torch.logaddexp(total, posterior.log_weight(sample).double() - nats_by_row)
        return torch.where(is_target.any(1), math.log(self.config.samples) - total, 0.0)

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        sentences, targets = max(1.0, sums["sentences"]), max(1.0, sums["targets"])
        figures = {
            **super().figures(sums),
            "reconstruction": (sums["loss"] - sums["kl"]) / sentences,
            "kl": sums["kl"] / sentences,
            "elbo": sums["loss"] / sentences,
        }
        if importance := sums.get("importance"):
            figures |= {
                "iw_loss": importance / targets,
                "iw_perplexity": math.exp(min(importance / targets, 700.0)),
                "iw_elbo": importance / sentences,
            }
        return figures

    def figures_of_rows(self, rows: np.ndarray) -> dict[str, float]:
        mean, log_variance, z = np.split(rows, 3, axis=1)
        return {
            "active_units": float(active_units(mean)),
            "mutual_information": mutual_information(mean, log_variance, z),
        }


def _encoded(model: LanguageModel, batch: Batch, eos_id: int, draws: Draws | None) -> tuple[Posterior, Tensor]:
    """What is guessed from the targets, and which rows (B,) have some: those that are all padding are no sentences."""
    assert batch.lengths is not None
    sentences = without_padding(batch.targets, eos_id)
    return cast(LatentModel, model).encode(sentences, batch.lengths.clamp(min=1), draws), batch.lengths > 0


def kl_of(posterior: Posterior, is_there: Tensor) -> Tensor:
    """(B, Z), 0 for rows that are no sentences."""
    return torch.where(is_there.unsqueeze(1), posterior.kl(), 0.0)
