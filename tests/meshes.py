"""Training on a mesh of threads, and what its ranks hold, put together."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hvdlm.checkpoint import Cut
from hvdlm.data.corpora import open_corpora
from hvdlm.parallel.axes import axes_of
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import begin_with
from hvdlm.train.step import GradientLearner
from hvdlm.world.interface import World
from hvdlm.world.place import Place
from hvdlm.world.threads import run_on_threads

BUILDING = threading.Lock()  # weights come from torch's one generator


class Held(NamedTuple):
    """What a rank has of tensors by name, and by which cuts."""

    tensors: dict[str, Tensor]
    cuts: Mapping[str, Cut]


class Trained(NamedTuple):
    """Of one rank."""

    before: Held
    after: Held
    norms: list[float]
    sums: Tensor


def trained(config: RunConfig, size: int, steps: int, begin: Path | None = None) -> list[Trained]:
    """Of so many ranks, each a thread, that begin with a checkpoint or a folder."""
    corpora = open_corpora(config.data)
    source = corpora.records("train") if config.task.reads_records else corpora.train_source()

    def on_rank(world: World) -> Trained:
        axes = axes_of(world, config.parallel)
        with BUILDING:
            learner = GradientLearner(config, source, corpora.manifest, axes, Place(0, 1, 1))
        with world.together():
            if begin is not None:
                begin_with(begin, learner, corpora.manifest.tokenizer_digest)
        learner.agree()
        before = held_by(learner)
        results = learner.run(0, steps)
        after = held_by(learner)
        learner.close()
        return Trained(before, after, [float(r.grad_norm) for r in results], torch.stack([r.sums for r in results]))

    return run_on_threads(size, on_rank)


def held_by(learner: GradientLearner) -> Held:
    return Held({name: p.detach().clone() for name, p in learner.model.named_parameters()}, learner.cuts)


def whole(parts: Sequence[Held]) -> dict[str, Tensor]:
    """The model's weights, put together of what the ranks hold."""
    weights: dict[str, Tensor] = {}
    for held, cuts in parts:
        for name, part in held.items():
            full = weights.setdefault(name, torch.full(cuts[name].shape, torch.nan))
            for tensor, box in cuts[name].parts(part):
                full[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))] = tensor
    return weights
