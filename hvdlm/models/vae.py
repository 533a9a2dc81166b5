"""Sentences from a latent vector: a variational autoencoder (Bowman et al. 2016, "Generating sentences from a
continuous space").

The encoder reads a sentence and its last hidden state gives q(z | x); the decoder is a language model that is given z:
added to each input embedding, and, where it is an LSTM, as its first state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hvdlm.compute.draws import Draws, dropout
from hvdlm.models.interface import FamilyConfig, OfTraining, State, Vocabulary
from hvdlm.models.latent import LatentModel, Posterior
from hvdlm.models.slots import Slots
from hvdlm.models.stack import InitRange, begin_within
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.transformer.blocks import Block, initialize
from hvdlm.models.transformer.slots import KeyValueSlots
from hvdlm.models.transformer.stack import Entrance, last_norm_of, through, view_of

Kind = Literal["lstm", "transformer"]


class VaeConfig(FamilyConfig):
    """`model: {family: vae, …}`."""

    family: Literal["vae"] = "vae"
    encoder: Kind = Field("lstm", description="what reads a sentence")
    decoder: Kind = Field("lstm", description="what writes it")
    layers: int = Field(1, ge=1, le=10_000, description="of encoder and decoder each")
    width: int = Field(256, ge=2, le=1_000_000, description="size of embedding and hidden state, C")
    heads: int = Field(4, ge=1, description="of attention, where there is a transformer")
    latent: int = Field(32, ge=1, le=1_000_000, description="size of z, Z")
    dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="in the decoder: after the embedding and each layer, or as in a transformer"
    )
    encoder_dropout: OfTraining[float] = Field(0.0, ge=0, lt=1, description="likewise in the encoder")
    init_range: InitRange = None
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")

    @model_validator(mode="after")
    def _check(self) -> VaeConfig:
        if "transformer" in (self.encoder, self.decoder):
            self.transformer(0.0)
        return self

    def transformer(self, dropout: float) -> TransformerConfig:
        """One of this size."""
        return TransformerConfig(layers=self.layers, heads=self.heads, width=self.width, dropout=dropout)

    @property
    def without_cpu_fp16(self) -> str:  # type: ignore[override]
        return "an LSTM" if "lstm" in (self.encoder, self.decoder) else ""

    @property
    def remarks(self) -> tuple[str, ...]:
        if self.heads != type(self).model_fields["heads"].default and "transformer" not in (self.encoder, self.decoder):
            return (f"model.heads: {self.heads} are of a transformer, and encoder and decoder are each an lstm",)
        return ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return ("elbo",)

    def build(self, vocabulary: Vocabulary) -> Vae:
        return Vae(self, vocabulary.size)


class Vae(LatentModel):
    """Encoder and decoder read one embedding. The state is z (B, Z), then the decoder's."""

    def __init__(self, config: VaeConfig, vocab_size: int) -> None:
        super().__init__()
        self.latent, self.hidden_width = config.latent, config.width
        self.takes_draws = config.dropout > 0 or config.encoder_dropout > 0
        self.embed = nn.Embedding(vocab_size, config.width)
        self.encoder = STACKS[config.encoder](config, config.encoder_dropout, first_site=0)
        self.posterior = nn.Linear(config.width, 2 * config.latent)  # mean, then log variance
        self.decoder = STACKS[config.decoder](config, config.dropout, first_site=self.encoder.num_sites)
        self.to_input = nn.Linear(config.latent, config.width, bias=False)
        self.to_state = nn.Linear(config.latent, self.decoder.state_width) if self.decoder.state_width else None
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        for weight in (self.embed.weight, self.head.weight):
            nn.init.normal_(weight, std=self.decoder.embedding_std)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        if config.init_range is not None:
            begin_within(self, config.init_range)

    def encode(self, ids: Tensor, lengths: Tensor, draws: Draws | None = None) -> Posterior:
        hidden, _ = self.encoder(self.embed(ids), self.encoder.begin(len(ids), None, ids.device), draws)
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]  # (B, C)
        with torch.autocast(ids.device.type, enabled=False):  # half precision would round away a small KL
            return Posterior(*self.posterior(last.float()).chunk(2, dim=1))

    def decode(
        self, ids: Tensor, z: Tensor, state: State | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, State]:
        state = self.begin(z) if state is None else state
        return self.decoder(self.embed(ids) + self.to_input(z).unsqueeze(1), state, draws)

    def begin(self, z: Tensor) -> State:
        start = None if self.to_state is None else self.to_state(z)
        return self.decoder.begin(len(z), start, z.device)

    def slots(self, num: int) -> Slots:
        return super().slots(num) if isinstance(self.decoder, LstmStack) else LatentSlots(self, self.decoder, num)

    def flops_per_token(self, seq_len: int) -> int:
        """Encoder and decoder each read a token; what is made of z, or it of, is once a sentence."""
        once = [self.posterior, self.to_input, *([] if self.to_state is None else [self.to_state])]
        rare = 6 * sum(layer.weight.numel() for layer in once)
        attention = self.encoder.flops_per_token(seq_len) + self.decoder.flops_per_token(seq_len)
        return super().flops_per_token(seq_len) - rare + rare // seq_len + attention


class LatentSlots(Slots):
    """Of a decoder that keeps keys and values: those, and the z (Z,) of each row."""

    def __init__(self, model: Vae, decoder: TransformerStack, num: int) -> None:
        self._model = model
        self._z = torch.zeros(num, model.latent, device=model.device)
        blocks = list(decoder.blocks)
        self._kept = KeyValueSlots(
            decoder.options, decoder.entrance, blocks, num, embed=self._embedded, finish=decoder.norm
        )

    def _embedded(self, first: int, ids: Tensor) -> Tensor:
        return self._model.embed(ids) + self._model.to_input(self._z[first : first + len(ids)]).unsqueeze(1)

    def begin(self, row: int, prompt: Sequence[int], random: torch.Generator) -> Sequence[int]:
        self._z[row] = self._model.sampled_state(1, random)[0][0]
        return self._kept.begin(row, prompt, random)

    def read(self, first: int, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        return self._kept.read(first, ids, lengths)

    def copy(self, source: int, target: int) -> None:
        self._z[target] = self._z[source]
        self._kept.copy(source, target)

    def swap(self, one: int, other: int) -> None:
        self._z[[one, other]] = self._z[[other, one]]
        self._kept.swap(one, other)


class Stack(nn.Module):
    """Layers over a sequence of vectors, of which each position sees those up to it."""

    num_sites: int  # of its draws
    state_width = 0  # of what its first state is made from; 0: nothing
    embedding_std = 0.02

    @abstractmethod
    def begin(self, num: int, start: Tensor | None, device: torch.device) -> State:
        """The state of `num` sequences that begin, from `start` (B, state_width) or from zeros."""

    @abstractmethod
    def forward(self, x: Tensor, state: State, draws: Draws | None) -> tuple[Tensor, State]:
        """(B, T, C) to hidden (B, T, C), and the state after them."""

    def flops_per_token(self, seq_len: int) -> int:
        """Beside those of its weights."""
        return 0


class LstmStack(Stack):
    """LSTMs; the state is (B, 2 x layers, C) float32: of each layer its output, then its cell."""

    embedding_std = 0.05

    def __init__(self, config: VaeConfig, dropout: float, *, first_site: int) -> None:
        super().__init__()
        self.dropout, self.first_site, self.num_sites = dropout, first_site, 1 + config.layers
        self.state_width = config.layers * config.width
        self.layers = nn.ModuleList(nn.LSTM(config.width, config.width, batch_first=True) for _ in range(config.layers))

    def begin(self, num: int, start: Tensor | None, device: torch.device) -> State:
        cells = torch.zeros(num, self.state_width, device=device) if start is None else start.float()
        cells = cells.view(num, len(self.layers), -1)
        return (torch.stack((cells.tanh(), cells), dim=2).flatten(1, 2),)

    def forward(self, x: Tensor, state: State, draws: Draws | None) -> tuple[Tensor, State]:
        x = dropout(x, self.dropout, draws, self.first_site)
        before = state[0].to(x.dtype).transpose(0, 1).contiguous()  # (2 x layers, B, C)
        after = []
        sites = range(self.first_site + 1, self.first_site + self.num_sites)
        for site, layer, first in zip(sites, self.layers, before.split(2), strict=True):
            x, last = layer(x, tuple(first.split(1)))
            x = dropout(x, self.dropout, draws, site)
            after += last
        return x, (torch.cat(after).transpose(0, 1).float(),)


class TransformerStack(Stack):
    """A transformer's blocks; the state is each block's keys, then values: (B, H, T so far, C / H)."""

    def __init__(self, config: VaeConfig, dropout: float, *, first_site: int) -> None:
        super().__init__()
        self.options, sites = config.transformer(dropout), Block.num_sites(crosses=False)
        self.num_sites = 1 + sites * config.layers
        self.entrance = Entrance(self.options, site=first_site)
        self.blocks = nn.ModuleList(
            Block(self.options, first_site=first_site + 1 + sites * layer) for layer in range(config.layers)
        )
        self.norm = last_norm_of(self.options)
        initialize(self)

    def begin(self, num: int, start: Tensor | None, device: torch.device) -> State:
        like, options = next(self.parameters()), self.options
        return (like.new_zeros(num, options.num_kv_heads, 0, options.width_of_head),) * (2 * options.layers)

    def forward(self, x: Tensor, state: State, draws: Draws | None) -> tuple[Tensor, State]:
        pasts, first = [state[number : number + 2] for number in range(0, len(state), 2)], state[0].shape[2]
        time = x.shape[1]
        view = view_of(self.entrance, self.options, time, first + time, None, device=x.device, causal=True)
        x = self.entrance(x, draws, first=first)
        x, after = through(self.blocks, x, view, draws, frugal=False, pasts=pasts)
        return self.norm(x), after

    def flops_per_token(self, seq_len: int) -> int:
        options = self.options
        return 12 * options.layers * options.heads * options.width_of_head * seq_len


STACKS: dict[str, type[LstmStack] | type[TransformerStack]] = {"lstm": LstmStack, "transformer": TransformerStack}
