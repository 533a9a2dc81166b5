"""Layers in fixed blocks, so that any number of tensor ranks comes to the same bits (`parallel.tensor_blocks`).

A product's bits depend on its shape, for libraries cut it in their own ways, and so do those of a kernel that works on
vectors and a rest. Here each block has its own products, of shapes that no number of ranks changes, and sums over
blocks are one tree (`added`). It is slow, and there to verify that ranks compute what one process does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from hvdlm.checkpoint.boxes import Cut
from hvdlm.compute.draws import Draws
from hvdlm.models.interface import State
from hvdlm.models.transformer.attention import Attention, Shelf, View
from hvdlm.parallel.blocks import Blocks
from hvdlm.parallel.exchange import enter_each, leave_all
from hvdlm.parallel.tensor_layers import kept


class Held(nn.Module):
    """The parameters of a layer that others compute with."""

    def __init__(self, layer: nn.Module, name: str, cuts: Mapping[str, Cut]) -> None:
        super().__init__()
        for own, parameter in layer.named_parameters():
            cut = cuts.get(f"{name}.{own}")
            self.register_parameter(own, parameter if cut is None else kept(parameter, cut))


class InBlocks(nn.Module):
    """Linear layers of which the first is cut by outputs and the last by inputs; all blocks share what else there is.

    `cuts` are those of their parameters. The last one's bias is added once behind the sum.
    """

    def __init__(self, whole: nn.Module, last: str, cuts: Mapping[str, Cut], blocks: Blocks) -> None:
        super().__init__()
        one = copy.deepcopy(whole).to("meta")
        one.get_submodule(last).bias = None  # type: ignore[assignment]
        self._one = (one,)  # one block, which computes with what it is given; as a tuple no part of this module
        self._last, self._cuts, self._blocks = last, dict(cuts), blocks
        for name, layer in whole.named_children():
            if any(True for _ in layer.parameters()):
                self.add_module(name, Held(layer, name, cuts))

    @property
    def num(self) -> int:
        """Blocks on this rank."""
        return len(self._blocks.mine)

    def _inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        return enter_each(x, self._blocks.world, self.num)

    def _weights(self) -> list[dict[str, Tensor]]:
        """Of each block."""
        found: list[dict[str, Tensor]] = [{} for _ in range(self.num)]
        for name, parameter in self.named_parameters():
            if name == f"{self._last}.bias":
                continue
            cut = self._cuts.get(name)
            parts = self._inputs(parameter) if cut is None else self._blocks.parts(parameter, cut)
            for weights, part in zip(found, parts, strict=True):
                weights[name] = part.contiguous()
        return found

    def _outputs(self, parts: list[Tensor]) -> Tensor:
        found = leave_all(parts, self._blocks.world)
        bias = dict(self.named_parameters()).get(f"{self._last}.bias")
        return found if bias is None else found + bias


class MlpInBlocks(InBlocks):
    def __init__(self, mlp: nn.Sequential, cuts: Mapping[str, Cut], blocks: Blocks) -> None:
        super().__init__(mlp, "2", cuts, blocks)

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self._weights(), self._inputs(x), strict=True)
        return self._outputs([functional_call(self._one[0], weights, (part,)) for weights, part in parts])


class AttentionInBlocks(InBlocks):
    """Some heads in each block; it remembers nothing."""

    def __init__(self, attention: Attention, cuts: Mapping[str, Cut], blocks: Blocks) -> None:
        super().__init__(attention, "out", cuts, blocks)
        one = self._one[0]
        assert isinstance(one, Attention)
        one.heads, one.kv_heads = one.heads // blocks.num, one.kv_heads // blocks.num

    def forward(self, x: Tensor, view: View, draws: Draws | None, past: State | Shelf | None) -> tuple[Tensor, State]:
        assert past is None, "layers in blocks do not write texts"
        one, found = self._one[0], []
        assert isinstance(one, Attention)
        parts = zip(self._blocks.mine, self._weights(), self._inputs(x), self._views(view), strict=True)
        for number, weights, part, of_block in parts:
            one.first_head = number * one.heads
            found.append(functional_call(one, weights, (part, of_block, draws, None))[0])
        return self._outputs(found), ()

    def _views(self, view: View) -> list[View]:
        """Of each block; a mask may say something else to each head."""
        mask = view.sight.mask
        if mask is None or mask.dim() < 3 or mask.shape[-3] == 1:
            return [view] * self.num
        return [view._replace(sight=view.sight._replace(mask=part)) for part in mask.chunk(self.num, dim=-3)]
