"""The transformer: a decoder, an encoder alone, or a decoder behind an encoder.

Sources: Vaswani et al. 2017; Radford et al. 2019 (GPT-2: layout and initialization), Press and Wolf 2017 (tied
embeddings), Devlin et al. 2019 (BERT: the encoder alone). Those of the options stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.models.interface import LanguageModel, Part, State, Vocabulary
from hvdlm.models.padding import known_of, only
from hvdlm.models.slots import Slots
from hvdlm.models.transformer.attention import source_sight
from hvdlm.models.transformer.blocks import Block, Head, initialize
from hvdlm.models.transformer.options import Options
from hvdlm.models.transformer.positions import LearnedConfig
from hvdlm.models.transformer.slots import KeyValueSlots
from hvdlm.models.transformer.stack import (
    Encoder,
    Entrance,
    Source,
    last_norm_of,
    places_within,
    through,
    view_of,
)
from hvdlm.partition import slice_of


class Held(NamedTuple):
    """A state, part by part."""

    pasts: list[State] | None = None  # of each block its keys and values so far
    num_read: Tensor | None = None  # int64 (B,): tokens so far, of a state of fixed size
    of_source: State = ()  # of each block the keys and values of the source; which there are

    @property
    def length(self) -> int:
        return self.pasts[0][0].shape[2] if self.pasts else 0


@runtime_checkable
class TakesTime(Protocol):
    """A layer on parts of sequences that is told how long these are."""

    time: int


def _part(of_token: Tensor | None, here: range) -> Tensor | None:
    """The columns of (B, T) that are here."""
    return None if of_token is None else of_token[:, here.start : here.stop]


class Transformer(LanguageModel):
    """Embedding, blocks, head.

    The state is each block's keys, then values, (B, kv heads, T so far, D). Where the window bounds them and positions
    are relative they are the last window - 1, and the number of tokens so far, int64 (B,), stands behind them. Of a
    model with an encoder the keys and values of the source follow, and which of its tokens there are, bool (B, S).
    """

    time_shared = 0, 1  # which part this is of how many, that ranks have of each sequence between layers
    gather_time: Callable[[Tensor, int], Tensor] = staticmethod(lambda x, time: x)
    _ties_ends = False  # after `keep`: the first stage's embedding and the last one's head are one

    def __init__(self, options: Options, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.options, self.hidden_width = options, options.width
        self.num_token_types = options.token_types
        self.most_positions = options.positions.max_seq_len if isinstance(options.positions, LearnedConfig) else None
        self.start_id = vocabulary.eos_id if options.decoder_start is None else options.decoder_start
        self._pad_id = vocabulary.eos_id
        if self.start_id >= vocabulary.size:
            raise UserError(f"model.decoder_start: {self.start_id} is no id of a vocabulary of {vocabulary.size}")
        kinds = options.embed_dropout, options.residual_dropout, options.attention_dropout
        self.takes_draws = any(map(options.dropout_of, kinds))
        self.reads_source = crosses = options.encoder_layers > 0
        self.takes_segments = not crosses
        sites = Block.num_sites(crosses=crosses)
        self.embed = nn.Embedding(vocabulary.size, options.width)
        self.entrance = Entrance(options, site=0)
        self.blocks = nn.ModuleList(
            Block(options, first_site=1 + sites * layer, crosses=crosses) for layer in range(options.layers)
        )
        self.norm = last_norm_of(options)
        self.encoder = Encoder(options, first_site=1 + sites * options.layers) if crosses else None
        self.head = Head(options, vocabulary.size)
        if options.tie_embeddings:
            self.head.weight = self.embed.weight
        initialize(self)

    def initial_state(self, num: int) -> State:
        if not self.options.causal:
            raise UserError("model.causal: false sees both sides of a token: such a model cannot continue a text")
        if self.encoder is not None:
            raise UserError("model.encoder_layers: such a model begins with a source, it does not continue a text")
        return self._no_past(num)

    def _no_past(self, num: int) -> State:
        options, like = self.options, self.embed.weight
        shape = num, options.num_kv_heads, options.keep or 0, options.width_of_head
        count = () if options.keep is None else (torch.zeros(num, dtype=torch.int64, device=like.device),)
        return (like.new_zeros(shape),) * (2 * options.layers) + count

    def forward(  # noqa: PLR0913 - what a pass may be told
        self,
        ids: Tensor,
        state: State | None = None,
        draws: Draws | None = None,
        *,
        lengths: Tensor | None = None,
        types: Tensor | None = None,
        segments: Tensor | None = None,
        part: Part | None = None,
    ) -> tuple[Tensor, State | None]:
        """As any family's; a model with an encoder begins with the state that `encode` gives.

        `lengths` (B,) of a model that sees both sides: what stands behind them is padding, of which nobody sees
        anything, and whose hidden vectors are 0. `types` (B, T) int64 below `token_types`: which kind of text a token
        is of; None: all of kind 0.

        `segments` (B, T) of a model without an encoder, and without a state: each run of one number is a text for
        itself, as if it stood in a row of its own, but for rounding.

        With a `part`, and without a state, it is what those layers make of the stream.
        """
        assert segments is None or (state is None and self.encoder is None)
        options, time, held = self.options, ids.shape[1], self._held(state)
        padding = None if options.causal else known_of(lengths, time)
        known = self._known(held, time) if options.causal else padding
        x = self.embed(ids) if part is None or part.received is None else part.received  # (B, T, C)
        seen = held.length + time
        view = view_of(
            self.entrance, options, time, seen, known, device=x.device, causal=options.causal, segments=segments
        )
        # What is relative needs no places: distances within a segment stay.
        places = None if segments is None else places_within(segments)
        here = slice_of(*self.time_shared, time)  # the tokens of the stream
        if self.time_shared[1] > 1:
            view = view._replace(first=here.start)
            padding, types, places = (_part(of_token, here) for of_token in (padding, types, places))
            self._tell_time(time)
        if part is None or part.received is None:
            first = held.length + here.start
            x = self.entrance(x, draws, first=first, types=types, places=places, start=here.start)
            x = only(x, padding)
        source, frugal = self._source(held), options.activation_checkpointing
        blocks = self.blocks if part is None else [self.blocks.get_submodule(str(n)) for n in part.layers]
        x, after = through(blocks, x, view, draws, frugal=frugal, pasts=held.pasts, source=source)
        if part is None or part.is_last:
            x = self.gather_time(only(self.norm(x), padding), time)
        if state is None:
            return x, None
        return x, (*after, *(() if held.num_read is None else (held.num_read + time,)), *held.of_source)

    @property
    def layers_to_cut(self) -> nn.Module:
        return self.blocks

    def share_time(self, rank: int, size: int, gather: Callable[[Tensor, int], Tensor]) -> None:
        """Between its layers this model has part `rank` of `size` of each sequence; `gather` makes them whole."""
        self.time_shared, self.gather_time = (rank, size), gather

    def _tell_time(self, time: int) -> None:
        """To layers that gather what others have of the sequences."""
        for module in self.modules():
            if isinstance(module, TakesTime):
                module.time = time

    def layer_costs(self, seq_len: int) -> list[float]:
        """As in `flops_per_token`; that of the head is part of the last layer's."""
        options = self.options
        matrices = [sum(p.numel() for p in block.parameters() if p.dim() == 2) for block in self.blocks]
        seen = options.num_seen(seq_len, causal=options.causal)
        costs = [6.0 * numel + 12 * options.heads * options.width_of_head * seen for numel in matrices]
        costs[-1] += 6 * sum(p.numel() for p in self.head.parameters() if p.dim() == 2)
        return costs

    def keep(self, parts: Sequence[range], *, is_first: bool, is_last: bool) -> None:
        kept = nn.ModuleList()
        for number in (number for layers in parts for number in layers):
            kept.add_module(str(number), self.blocks.get_submodule(str(number)))
        self.blocks = kept
        shared, head = self.embed.weight, self.head
        self._ties_ends = getattr(head, "weight", None) is shared
        if is_last and not is_first and self._ties_ends:
            del head.weight
            head.weight = shared.detach().clone().requires_grad_(shared.requires_grad)  # a tensor, no parameter
        if not is_first:
            self.entrance.drop_parameters()
            self.embed = nn.Identity()  # type: ignore[assignment]
        if not is_last:
            self.norm = nn.Identity()
            self.head = nn.Identity()

    @property
    def tied_weight(self) -> Tensor | None:
        ends = (getattr(end, "weight", None) for end in (self.embed, self.head))
        return next((weight for weight in ends if weight is not None), None) if self._ties_ends else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        """What `to` and its like call; a head's weight that is no parameter (see `keep`) goes where the others go."""
        super()._apply(fn, recurse)
        weight = self.tied_weight
        if weight is not None and not isinstance(weight, nn.Parameter):
            self.head.weight = fn(weight.detach()).requires_grad_(weight.requires_grad)
        return self

    def encode(self, source: Tensor, lengths: Tensor | None = None, draws: Draws | None = None) -> State:
        """Ids (B, S), of which those behind `lengths` (B,) are padding -> the state that the decoder begins with."""
        assert self.encoder is not None, "model.encoder_layers is 0"
        known = known_of(lengths, source.shape[1])
        parts = self._source_parts(self.encoder(self.embed(source), known, draws))
        everything = torch.ones_like(source, dtype=torch.bool) if known is None else known
        return (*self._no_past(len(source)), *parts, everything)

    def _source_parts(self, hidden: Tensor) -> State:
        """Of each block keys and values of what the encoder gives, (B, S, C)."""
        crosses = [block.cross for block in self.blocks if isinstance(block, Block) and block.cross is not None]
        return tuple(part for cross in crosses for part in cross.keys_values(hidden))

    def slots(self, num: int) -> Slots:
        """Where a window bounds its state, the plain ones, for that state is small."""
        encoder = self.encoder
        if self.options.keep is not None:
            return super().slots(num)
        return KeyValueSlots(
            self.options,
            self.entrance,
            list(self.blocks),
            num,
            embed=lambda first, ids: self.embed(ids),
            finish=self.norm,
            encode=None if encoder is None else lambda ids: self._source_parts(encoder(self.embed(ids), None, None)),
            start_id=self.start_id,
        )

    def prompted(self, ids: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """With an encoder ids are its source, and the start id is what the decoder reads first."""
        if self.encoder is None:
            return super().prompted(ids, lengths)
        ones = torch.ones_like(ids[:, 0])
        return torch.full_like(ids[:, :1], self.start_id), ones, self.encode(ids, lengths)

    def decoder_inputs(self, targets: Tensor) -> Tensor:
        """Targets (B, T) one place to the right, behind the start id; an id, too, where they are IGNORED."""
        start = targets.new_full((len(targets), 1), self.start_id)
        inputs = torch.cat((start, targets[:, :-1]), dim=1)
        return inputs.masked_fill(inputs == IGNORED, self._pad_id)

    def _held(self, state: State | None) -> Held:
        num = 2 * self.options.layers
        if state is None:
            if self.encoder is not None:
                raise ValueError("a model with an encoder goes on from the state that encode(source) gives")
            return Held()
        pasts = [state[first : first + 2] for first in range(0, num, 2)]
        rest = state[num:]
        return Held(pasts, of_source=rest) if self.options.keep is None else Held(pasts, rest[0], rest[1:])

    def _known(self, held: Held, time: int) -> Tensor | None:
        """Which keys a state of fixed size holds in truth, and the `time` new ones, bool (B, S)."""
        if held.num_read is None:
            return None
        missing = held.length - held.num_read.unsqueeze(1)  # places that nothing has come to yet
        return torch.arange(held.length + time, device=missing.device) >= missing

    def _source(self, held: Held) -> Source | None:
        if self.encoder is None:
            return None
        *parts, known = held.of_source
        pairs = [tuple(parts[first : first + 2]) for first in range(0, len(parts), 2)]
        return pairs, source_sight(known)

    def flops_per_token(self, seq_len: int) -> int:
        """Attention adds 12 x heads x D for each layer and key that is seen, the causal half not taken off.

        Source: Chowdhery et al. 2022, "PaLM", appendix B. Of a model with an encoder it is those of a token of the
        source and one of the target, in sequences of `seq_len` both.
        """
        options = self.options
        crossed = seq_len * options.layers if options.encoder_layers else 0
        keys = options.layers * options.num_seen(seq_len, causal=options.causal) + crossed
        keys += options.encoder_layers * options.num_seen(seq_len, causal=False)
        return super().flops_per_token(seq_len) + 12 * options.heads * options.width_of_head * keys
