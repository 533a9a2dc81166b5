"""A transformer's block, the head behind the last one, and how their weights begin."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hvdlm.compute.draws import Draws, dropout
from hvdlm.models.interface import State
from hvdlm.models.transformer.attention import Attention, CrossAttention, Shelf, Sight, View
from hvdlm.models.transformer.layers import ACTIVATIONS, GATED, NORMS, softcapped
from hvdlm.models.transformer.options import Options


class Block(nn.Module):
    """Attention, with `crosses` attention to a source, and an MLP, each added to the stream.

    Its draws have the sites from first_site on: dropout within each attention, and behind it, and behind the MLP.
    """

    def __init__(self, options: Options, *, first_site: int, crosses: bool = False) -> None:
        super().__init__()
        self.dropout, self.first_site = options.dropout_of(options.residual_dropout), first_site
        self.is_pre = options.norm_position == "pre"
        self.norm1 = norm_of(options)
        self.attention = Attention(options, site=first_site)
        self.norm2 = norm_of(options)
        self.mlp = mlp_of(options)
        self.cross: CrossAttention | None = None
        if crosses:
            self.norm_cross = norm_of(options)
            self.cross = CrossAttention(options, site=first_site + 3)

    @staticmethod
    def num_sites(*, crosses: bool) -> int:
        return 5 if crosses else 3

    def forward(
        self,
        x: Tensor,
        view: View,
        draws: Draws | None,
        past: State | Shelf | None,
        source: tuple[State, Sight] | None = None,
    ) -> tuple[Tensor, State]:
        """What it makes of the stream, and with a `past` the keys and values that it has seen."""
        seen: State = ()

        def attended(x: Tensor) -> Tensor:
            nonlocal seen
            mixed, seen = self.attention(x, view, draws, past)
            return mixed

        start = view.first * x.shape[2]
        x = self._added(x, self.norm1, attended, draws, 1, start)
        if self.cross is not None:
            assert source is not None, "a model with an encoder goes on from what `encode` gives"
            kept, sight, cross = *source, self.cross
            x = self._added(x, self.norm_cross, lambda x: cross(x, kept, sight, draws), draws, 4, start)
        return self._added(x, self.norm2, self.mlp, draws, 2, start), seen

    def _added(
        self, x: Tensor, norm: nn.Module, layer: Callable[[Tensor], Tensor], draws: Draws | None, site: int, start: int
    ) -> Tensor:
        change = layer(norm(x) if self.is_pre else x)
        change = dropout(change, self.dropout, draws, self.first_site + site, start=start)
        return x + change if self.is_pre else norm(x + change)


class Head(nn.Linear):
    """Hidden (B, T, C) to logits (B, T, V)."""

    def __init__(self, options: Options, vocab_size: int) -> None:
        super().__init__(options.width, vocab_size, bias=options.head_bias)
        self.softcap = options.logit_softcap
        self.product: nn.Module | None = None  # another way to multiply with its matrix, once it is trained
        self.transform: nn.Module | None = None
        if options.head_transform:
            self.transform = nn.Sequential(*activated(options, options.width), norm_of(options))

    def forward(self, hidden: Tensor) -> Tensor:
        if self.transform is not None:
            hidden = self.transform(hidden)
        scores = super().forward(hidden) if self.product is None else self.product(hidden)
        return softcapped(scores, self.softcap)


def norm_of(options: Options) -> nn.Module:
    return NORMS[options.norm](options.width, options.norm_eps, options.bias)


def mlp_of(options: Options) -> nn.Module:
    inner = options.width_of_mlp
    return nn.Sequential(*activated(options, inner), nn.Linear(inner, options.width, bias=options.bias))


def activated(options: Options, width: int) -> tuple[nn.Module, nn.Module]:
    """A layer that gives `width` values of each position, and its activation."""
    wide = 2 * width if options.activation in GATED else width
    return nn.Linear(options.width, wide, bias=options.bias), ACTIVATIONS[options.activation]()


INTO_STREAM = ("attention.out.weight", "cross.out.weight", "mlp.2.weight")


def initialize(model: nn.Module) -> None:
    """N(0, 0.02), biases 0, and layers that write into a residual stream scaled by 1 / sqrt(writers of it).

    Source: Radford et al. 2019.
    """
    parameters = dict(model.named_parameters())
    writers = {name: name.split("blocks.")[0] for name in parameters if name.endswith(INTO_STREAM)}
    streams = list(writers.values())
    for name, parameter in parameters.items():
        if parameter.dim() > 1:
            std = 0.02 / streams.count(writers[name]) ** 0.5 if name in writers else 0.02
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
