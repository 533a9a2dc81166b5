"""L-BFGS over a whole split: each look at the objective is a pass over the text, whose gradient all ranks add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from hvdlm import checkpoint
from hvdlm.data.manifest import Manifest
from hvdlm.optim.lbfgs import Pair, Point, iterate, remembered
from hvdlm.parallel.axes import Axes
from hvdlm.train.config import RunConfig
from hvdlm.train.counting import SumsLearner
from hvdlm.train.learner import Source
from hvdlm.world.place import Place

MOST_PAIRS = 6  # of steps that are remembered: each takes the room of the weights twice


class Penalized(Protocol):
    """A `Summing` model whose sums are the gradient of the log-likelihood by each parameter, and that itself."""

    penalties: tuple[float, float]  # l1 and l2, a token


class LbfgsLearner(SumsLearner):
    """A step is one iteration: the objective is lower after it, or it has converged and stays where it is.

    The objective is that of a token: its loss, l1 |weights| and l2 / 2 weights^2.
    """

    def __init__(self, config: RunConfig, source: Source, manifest: Manifest, axes: Axes, place: Place) -> None:
        super().__init__(config, source, manifest, axes, place)
        self._penalties = cast(Penalized, self.model).penalties
        self._pairs: list[Pair] = []
        self._point: Point | None = None  # where the weights are; after a restart it is found again, bit for bit
        self._waited_s = 0.0

    @property
    def step_in_words(self) -> str:
        return "a step is an iteration of L-BFGS over the train split: optim, sync and batches have no part in it"

    def _pass(self) -> tuple[float, float, float]:
        self._waited_s = 0.0
        parameters = list(self.model.parameters())
        if self._point is None:
            self._point = self._look(parameters_to_vector(parameters).detach())
        before, found = self._point, iterate(self._point, self._pairs, self._look, self._penalties[0])
        if found is not None:
            self._pairs = remembered(self._pairs, before, found, MOST_PAIRS)
            self._point = found
        _set(parameters, self._point.x)
        self._figures = {"objective": self._point.value, "has_converged": float(found is None)}
        num_tokens = len(self.text) if self.world.rank == 0 else 0  # it speaks for all
        return self._point.loss * num_tokens, float(num_tokens), self._waited_s

    def _look(self, x: Tensor) -> Point:
        """The objective and its gradient at weights x; collective."""
        _set(list(self.model.parameters()), x)
        (*gradients, log_likelihood, num_tokens), waited_s = self._sums()
        self._waited_s += waited_s
        self.world.beats += 1
        l1, l2 = self._penalties
        loss = -float(log_likelihood) / float(num_tokens)
        gradient = l2 * x - torch.cat([part.flatten() for part in gradients]).to(x.device) / float(num_tokens)
        return Point(x, loss + l1 * float(x.abs().sum()) + l2 / 2 * float(x.dot(x)), loss, gradient)

    def collect(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, scalars = super().collect()
        pairs = {
            f"lbfgs/{n}/{name}": vector for n, pair in enumerate(self._pairs) for name, vector in pair._asdict().items()
        }
        return {**tensors, **pairs}, scalars

    def restore(self, path: Path) -> int:
        tensors = checkpoint.load_tensors(path)
        vectors = [[tensors[f"lbfgs/{n}/{name}"] for name in Pair._fields] for n in range(len(tensors) // 2)]
        # Cloned: in a file they lie at any address, and products of vectors round by how these are aligned.
        self._pairs = [Pair(*(vector.to(self.device).clone() for vector in pair)) for pair in vectors]
        self._point = None
        return super().restore(path)


def _set(parameters: list[torch.nn.Parameter], x: Tensor) -> None:
    with torch.no_grad():
        start = 0
        for parameter in parameters:
            parameter.copy_(x[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
