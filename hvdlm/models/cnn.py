"""`model: {family: cnn, …}`: parallel convolutions over a sentence (Kim 2014, "Convolutional neural networks for
sentence classification").

Of several widths, each a number of feature maps with a ReLU; the largest value of each map over the sentence, which
`pooling: max` of a task takes, is what it says of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.errors import UserError
from hvdlm.models.interface import BODY_TASKS, FamilyConfig, LanguageModel, OfTraining, State, Vocabulary
from hvdlm.models.padding import known_of, only
from hvdlm.models.stack import Dropout, embedded

Kernel = Annotated[int, Field(ge=1, le=1024, strict=True)]
EMBED_RANGE = 0.25  # the embedding begins uniform in +- this, as Kim's random vectors


class CnnConfig(FamilyConfig):
    """`model: {family: cnn, …}`: convolutions of several widths side by side, which see both sides of a token."""

    family: Literal["cnn"] = "cnn"
    embed_width: int = Field(300, ge=1, le=1_000_000, description="size of the embedding")
    kernels: tuple[Kernel, ...] = Field(
        (3, 4, 5), min_length=1, strict=False, description="inputs that each convolution sees"
    )
    maps: int = Field(100, ge=1, le=1_000_000, description="features of each; hidden vectors have those of all")
    dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="of the two kinds below where they say nothing else; Kim: 0.5 of the output alone"
    )
    embed_dropout: OfTraining[float | None] = Field(None, ge=0, lt=1, description="after the embedding")
    output_dropout: OfTraining[float | None] = Field(
        None, ge=0, lt=1, description="of features, each in all of a sentence, as if it was behind the pooling"
    )
    embed_word_dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="of whole words, rows of the embedding: the same ones in all of a step"
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        return BODY_TASKS

    @property
    def predicts_tokens(self) -> bool:
        return False

    @property
    def task_remedy(self) -> str:
        return "; model.family: conv is one for lm"

    @property
    def state_remedy(self) -> str:
        return ", or take model.family: conv"

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Cnn(self, vocabulary.size)


class Cnn(LanguageModel):
    """Embedding and convolutions; no head of its own. Dropout of the embedding has site 0, that of features 1."""

    def __init__(self, config: CnnConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, config.embed_width)
        nn.init.uniform_(self.embed.weight, -EMBED_RANGE, EMBED_RANGE)
        self.convolutions = nn.ModuleList(nn.Conv1d(config.embed_width, config.maps, size) for size in config.kernels)
        self.hidden_width = config.maps * len(config.kernels)
        self.head = nn.Identity()
        kinds = (config.dropout if kind is None else kind for kind in (config.embed_dropout, config.output_dropout))
        embed_dropout, output_dropout = kinds
        self.word_dropout = Dropout(config.embed_word_dropout, 0, of_step=True)
        self.embed_dropout = Dropout(embed_dropout, 0)
        self.output_dropout = Dropout(output_dropout, 1, shared_dims=(1,))  # over time: it is that of the largest value
        self.takes_draws = any(module.p > 0 for module in self.modules() if isinstance(module, Dropout))

    def initial_state(self, num: int) -> State:
        raise UserError("model.family: cnn sees both sides of a token: such a model cannot continue a text")

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """As any family's. A window stands around each token, zeros around the sentence, as many as it takes."""
        assert state is None, "what sees both sides has no past"
        known = known_of(lengths, ids.shape[1])
        x = self.embed_dropout(embedded(self.embed, self.word_dropout, ids, draws), draws)
        x = only(x, known).transpose(1, 2)  # (B, E, T)
        maps = torch.cat([around(x, convolution) for convolution in self.convolutions], dim=1)
        return only(self.output_dropout(maps.relu().transpose(1, 2), draws), known), None

    def flops_per_token(self, seq_len: int) -> int:
        """6 for each weight of a convolution."""
        return 6 * sum(weight.numel() for weight in self.convolutions.parameters() if weight.dim() > 1)


def around(x: Tensor, convolution: nn.Module) -> Tensor:
    """x (B, E, T) -> (B, maps, T): windows with their middle at each place, of even ones the left of the two."""
    assert isinstance(convolution, nn.Conv1d)
    (size,) = convolution.kernel_size
    return convolution(F.pad(x, ((size - 1) // 2, size // 2)))
