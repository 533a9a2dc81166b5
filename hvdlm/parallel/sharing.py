"""A model that was built whole becomes the part that one rank holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hvdlm.checkpoint import Cut, model_state
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, num_parameters
from hvdlm.models.unmade import Unmade
from hvdlm.optim.norm import square
from hvdlm.optim.roles import Role
from hvdlm.parallel.axes import Axes
from hvdlm.parallel.blocks import Blocks
from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.exchange import added
from hvdlm.parallel.mesh import cut_by_cost
from hvdlm.parallel.pipeline import Layout
from hvdlm.parallel.tensor import cut_tensor


@dataclass(frozen=True)
class Whole:
    """What is to be known of the whole model, once ranks share it."""

    names: tuple[str, ...]  # of its parameters, in its order
    roles: dict[str, Role]
    trained: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]  # of all tensors that a checkpoint keeps of it
    num_parameters: int

    @staticmethod
    def of(model: LanguageModel) -> Whole:
        named = dict(model.named_parameters())
        trained = tuple(name for name, parameter in named.items() if parameter.requires_grad)
        shapes = {name: tuple(tensor.shape) for name, tensor in model_state(model).items()}
        return Whole(tuple(named), model.parameter_roles(), trained, shapes, num_parameters(model))


@dataclass(frozen=True)
class Shared:
    """How the part of a rank lies in the whole."""

    cuts: dict[str, Cut]  # of each of its parameters
    layout: Layout
    partial: tuple[str, ...] = ()  # of those that tensor ranks hold alike, whose gradients are to be added up over them
    of_tied: Cut = Cut(())  # noqa: RUF009 - frozen; of the weight that first and last stage share
    blocks: Blocks | None = None  # in which parameters that are cut lie, where sums are over fixed ones

    def square(self, name: str, gradient: Tensor) -> Tensor:
        """Sum of the squares of what this rank holds of a parameter's gradient, a float64 scalar."""
        if self.blocks is None or self.cuts[name].is_whole:
            return square(gradient)
        return added([square(part) for part in self.blocks.parts(gradient, self.cuts[name])])


def share(
    model: LanguageModel, axes: Axes, parallel: ParallelConfig, layer_costs: list[float], unmade: Unmade | None = None
) -> Shared:
    """Cut the model down to this rank's part, in place; it talks to no other rank. UserError for too few layers.

    What is `unmade` of it is made then, weight by weight, and no more than this rank holds is kept.
    """
    sources = {} if unmade is None else unmade.sources(model)
    shared = _cut(model, axes, parallel, layer_costs)
    if unmade is not None:
        _fill(model, shared, sources, unmade)
    return shared


def _fill(model: LanguageModel, shared: Shared, sources: dict[str, Any], unmade: Unmade) -> None:
    """Put weights in place of what is not made yet."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made: dict[int, nn.Parameter] = {}

    def weight_of(name: str, like: Tensor, cut: Cut) -> Tensor:
        whole = unmade.made(sources[name], cut.shape, like.dtype)
        return whole if cut.is_whole else cut.of(whole)

    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    name = names[id(parameter)]
                    weight = weight_of(name, parameter, shared.cuts[name])
                    made[id(parameter)] = nn.Parameter(weight, requires_grad=parameter.requires_grad)
                module._parameters[key] = made[id(parameter)]
    tied = model.tied_weight
    if tied is not None and tied.is_meta:  # the last stage's, which is no parameter
        weight = weight_of("embed.weight", tied, shared.of_tied)
        model.head.weight = weight.requires_grad_(tied.requires_grad)


def _cut(model: LanguageModel, axes: Axes, parallel: ParallelConfig, layer_costs: list[float]) -> Shared:
    cuts = {name: Cut(tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    of_tensor = cut_tensor(model, axes.tensor, shares_time=parallel.sequence, num_blocks=parallel.tensor_blocks)
    cuts |= of_tensor.cuts
    blocks = Blocks(parallel.tensor_blocks, axes.tensor) if parallel.tensor_blocks else None
    mesh, num = axes.mesh, axes.mesh.pipeline * parallel.chunks
    if num == 1:
        return Shared(cuts, Layout(), tuple(of_tensor.partial), blocks=blocks)
    if num > len(layer_costs):
        of_each = f" of {parallel.chunks} chunks each" if parallel.chunks > 1 else ""
        raise UserError(
            f"parallel.pipeline: {mesh.pipeline} stages{of_each} want {num} layers at least, and the model has"
            f" {len(layer_costs)}; take fewer"
        )
    layout = Layout(cut_by_cost(layer_costs, num), parallel.chunks)
    rank = axes.place.pipeline
    is_first, is_last = rank == 0, rank == mesh.pipeline - 1
    model.keep(layout.of_rank(rank), is_first=is_first, is_last=is_last)
    here = [name for name, _ in model.named_parameters()]
    partial = tuple(name for name in of_tensor.partial if name in here)
    of_tied = cuts.get("embed.weight", Cut(()))
    return Shared({name: cuts[name] for name in here}, layout, partial, of_tied, blocks)
