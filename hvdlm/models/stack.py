"""What recurrent and convolutional models share: an embedding, layers one above the other, a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws, dropout
from hvdlm.models.interface import BODY_TASKS, FamilyConfig, LanguageModel, OfTraining, State


class StackConfig(FamilyConfig):
    """The settings of ends and dropout; each family adds those of its layers."""

    # Layers have the dropout of `layer_dropout` in them, and none between them.
    drops_within_layers: ClassVar[bool] = False

    layers: int = Field(2, ge=1, le=10_000, description="one above the other")
    width: int = Field(256, ge=1, le=1_000_000, description="size of embedding and hidden state, C")
    embed_width: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="of the embedding, and of the last layer where they are tied; null: as width",
    )
    dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="of the three kinds below where they say nothing else"
    )
    embed_dropout: OfTraining[float | None] = Field(None, ge=0, lt=1, description="after the embedding")
    layer_dropout: OfTraining[float | None] = Field(None, ge=0, lt=1, description="between layers")
    output_dropout: OfTraining[float | None] = Field(None, ge=0, lt=1, description="after the last layer")
    embed_word_dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="of whole words, rows of the input embedding: the same ones in all of a step"
    )
    variational: OfTraining[bool] = Field(False, description="one dropout mask for all time steps of a window")
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")
    head_bias: bool = Field(False, description="the output layer has a bias")

    @property
    def tasks(self) -> tuple[str, ...]:
        return ("lm", "seq2seq", *BODY_TASKS)

    @property
    def widths(self) -> list[int]:
        """Of the embedding, and of what each layer gives."""
        embed_width = self.width if self.embed_width is None else self.embed_width
        last = embed_width if self.tie_embeddings and self.predicts_tokens else self.width
        return [embed_width, *[self.width] * (self.layers - 1), last]

    @property
    def dropouts(self) -> list[float]:
        """After the embedding, and after each layer, but where that between layers is within them."""
        between = [0.0 if self.drops_within_layers else self.dropout_of(self.layer_dropout)] * (self.layers - 1)
        return [self.dropout_of(self.embed_dropout), *between, self.dropout_of(self.output_dropout)]

    @property
    @abstractmethod
    def state_shapes(self) -> list[list[tuple[int, ...]]]:
        """Of each layer the shapes of one sample's state, of all layers as many."""

    @property
    def remarks(self) -> tuple[str, ...]:
        found = []
        within = self.dropout_of(self.layer_dropout) if self.drops_within_layers else 0.0
        if self.variational and not any((*self.dropouts, within)):
            found.append("model.variational: true is of dropout, and there is none; set model.dropout or its kinds")
        if self.layer_dropout and self.layers == 1 and not self.drops_within_layers:
            found.append(f"model.layer_dropout: {self.layer_dropout} is between layers, and model.layers is 1: none")
        return tuple(found)

    def dropout_of(self, kind: float | None) -> float:
        return self.dropout if kind is None else kind

    @property
    def shared_dims(self) -> tuple[int, ...]:
        """Dimensions of (B, T, C) that have one mask for all."""
        return (1,) if self.variational else ()  # Gal and Ghahramani 2016


class Dropout(nn.Module):
    """Keyed dropout of one site. For torch.compile the integers of a module are constants; a loop's are variables."""

    def __init__(self, p: float, site: int, *, shared_dims: tuple[int, ...] = (), of_step: bool = False) -> None:
        super().__init__()
        self.p, self.site, self.shared_dims, self.of_step = p, site, shared_dims, of_step

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        """`x` (B, …) of the draws' samples; (1, …) where they are those of the step."""
        if draws is None:
            return x
        return dropout(x, self.p, draws.of_step if self.of_step else draws, self.site, shared_dims=self.shared_dims)


InitRange = Annotated[
    OfTraining[float | None],
    Field(gt=0, le=10, description="all weights begin uniform in +- this (Zaremba et al. 2014); null: by their kind"),
]


def begin_within(model: nn.Module, reach: float) -> None:
    """All weights uniform in +- reach, as in Zaremba et al. 2014."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -reach, reach)


def fitted(inputs: int, outputs: int) -> nn.Module:
    """What a residual connection passes through: nothing where the widths are equal, else a matrix."""
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)


def embedded(embed: nn.Embedding, word_dropout: Dropout, ids: Tensor, draws: Draws | None) -> Tensor:
    """Vectors (B, T, C) of ids; a dropped word is 0 wherever it stands, as if its row was (Merity et al. 2018)."""
    x = embed(ids)
    if draws is None or not word_dropout.p:
        return x
    kept = word_dropout(torch.ones(1, embed.num_embeddings, device=x.device), draws)
    return x * kept[0, ids].unsqueeze(-1)  # 0 or 1 / (1 - p)


class Stack(LanguageModel):
    """Embedding, layers, head. A layer takes (x, its state, draws) and gives x and its state; that is float32 between.

    Sites of draws: dropout of the embedding has 0, that after layer n has 1 + n, those within layers begin at
    1 + layers. Of the draws of a step, dropout of words has 0, and layers begin at 1.
    """

    end_std = 0.05  # of the weights that embedding and head begin with

    def __init__(self, config: StackConfig, vocab_size: int, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.state_shapes = config.state_shapes
        self.embed = nn.Embedding(vocab_size, config.widths[0])
        self.layers = nn.ModuleList(layers)
        self.norm: nn.Module = nn.Identity()
        self.hidden_width = config.widths[-1]
        self.head: nn.Module = nn.Identity()
        if config.predicts_tokens:
            self.head = nn.Linear(self.hidden_width, vocab_size, bias=config.head_bias)
        for end in (self.embed, self.head):
            if isinstance(end, nn.Embedding | nn.Linear):
                nn.init.normal_(end.weight, std=self.end_std)
        if config.predicts_tokens and config.tie_embeddings:
            self.head.weight = self.embed.weight
        self.word_dropout = Dropout(config.embed_word_dropout, 0, of_step=True)
        self.dropouts = nn.ModuleList(
            Dropout(p, site, shared_dims=config.shared_dims) for site, p in enumerate(config.dropouts)
        )
        self.takes_draws = any(module.p > 0 for module in self.modules() if isinstance(module, Dropout))

    def initial_state(self, num: int) -> State:
        shapes = (shape for layer in self.state_shapes for shape in layer)
        return tuple(torch.zeros(num, *shape, device=self.device) for shape in shapes)

    def run_layer(self, number: int, x: Tensor, past: State, draws: Draws | None) -> tuple[Tensor, State]:
        """What layer `number` makes of x (B, T, C) after its past; and its state then."""
        return self.layers[number](x, past, draws)

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        x = self._embedded(ids, draws)  # (B, T, C)
        past = self.initial_state(len(ids)) if state is None else state
        num_parts = len(self.state_shapes[0])
        after: list[Tensor] = []
        for number in range(len(self.layers)):
            x = self.dropouts[number](x, draws)
            x, seen = self.run_layer(number, x, past[num_parts * number : num_parts * (number + 1)], draws)
            after += (part.float() for part in seen)
        return self.dropouts[-1](self.norm(x), draws), None if state is None else tuple(after)

    def _embedded(self, ids: Tensor, draws: Draws | None) -> Tensor:
        return embedded(self.embed, self.word_dropout, ids, draws)
