"""Data parallelism that sends less than float32: compressed gradients with error feedback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.config import Section, choice_of
from hvdlm.sync.codecs import Bf16, Compressor, Int8, Uncompressed
from hvdlm.sync.flat import FlatLayout
from hvdlm.sync.interface import Sync
from hvdlm.sync.powersgd import PowerSgd
from hvdlm.sync.topk import TopK
from hvdlm.sync.traffic import Traffic
from hvdlm.world.interface import World

COMPRESSORS: dict[str, Callable[[CompressConfig, FlatLayout], Compressor]] = {
    "bf16": lambda config, layout: Bf16(),
    "int8": lambda config, layout: Int8(),
    "topk": lambda config, layout: TopK(layout.numel, config.density),
    "powersgd": lambda config, layout: PowerSgd(layout, config.rank),
}


class CompressConfig(Section):
    """The `sync.compress` section."""

    name: Annotated[str, choice_of(COMPRESSORS)] = Field(description="how a gradient is made smaller")
    density: float = Field(0.01, gt=0, le=1, description="topk: the part of the elements that is sent")
    rank: int = Field(4, ge=1, description="powersgd: columns of the thin matrices")
    error_feedback: bool = Field(True, description="add to the next gradient what this one lost")


def build_compressor(config: CompressConfig, layout: FlatLayout) -> Compressor:
    """The compressor of a config; in a world of one there is nothing to compress for."""
    return Uncompressed() if layout.size == 1 else COMPRESSORS[config.name](config, layout)


class CompressedSync(Sync):
    """Sums the ranks' gradients as a compressor leaves them, and sends what it took off with the next step's.

    This error feedback (Seide et al. 2014, "1-bit SGD"; Karimireddy et al. 2019, "EF-SGD") is what makes biased
    compression converge. A step whose total is infinite or NaN, which all ranks see alike, changes no error:
    it will be left out, and its own error would never be finite again.
    """

    def __init__(
        self, config: CompressConfig, model: nn.Module, optimizer: torch.optim.Optimizer, world: World
    ) -> None:
        super().__init__(model, optimizer, world)
        self._layout = FlatLayout(self.parameters, world.size)
        self._traffic = Traffic(world)
        self._compressor = build_compressor(config, self._layout)
        self._gradient = self._layout.zeros()
        self._error = self._layout.zeros() if config.error_feedback else None  # of this rank, not yet sent

    def reduce(self) -> None:
        gradient = self._gradient
        self._layout.collect(gradient)
        if self._error is not None:
            gradient.add_(self._error)
        total, sent = self._compressor.reduce(gradient, self._traffic)
        if self._error is not None and torch.isfinite(total.sum()):
            self._gradient, self._error = self._error, gradient.sub_(sent)
        self._layout.spread(total)
        self.bytes_sent = self._traffic.bytes_sent

    def rescale(self, factor: float) -> None:
        """The loss, and with it every coming gradient, is now `factor` times as large: so must the errors be."""
        if self._error is not None:
            self._error.mul_(factor)

    def settle(self) -> None:
        """Give all ranks the mean of their errors: the sum of them, which is what counts, stays."""
        if self._error is not None and self.world.size > 1:
            self._traffic.sum_(self._error)
            self._error.div_(self.world.size)
            self.bytes_sent = self._traffic.bytes_sent

    def state(self) -> dict[str, Tensor]:
        state = {}
        if self._error is not None:
            state = {"error": self._error[: self._layout.numel], "ranks": torch.tensor(self.world.size)}
        if self._compressor.learnt is not None:
            state["learnt"] = self._compressor.learnt
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore, as far as it fits.

        Another number of ranks shares the same sum of errors; a run that kept none begins with zeros. What a
        compressor of other settings learnt would only have been a better beginning, and is left out.
        """
        learnt = self._compressor.learnt
        if learnt is not None and "learnt" in state and state["learnt"].shape == learnt.shape:
            learnt.copy_(state["learnt"])
        if self._error is not None and "error" in state:
            error = self._error[: self._layout.numel]
            error.copy_(state["error"])
            if int(state["ranks"]) != self.world.size:
                error.mul_(int(state["ranks"]) / self.world.size)
