"""What the rest asks of a model family: a config that says what it can, and the model it builds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.config import Section
from hvdlm.models.slots import Slots, State, StateSlots
from hvdlm.optim.roles import Role, roles_of

BODY_TASKS = ("classify", "tag", "span")  # those that any body will do for: they bring their own head

T = TypeVar("T")
OF_TRAINING = "of training"
OfTraining = Annotated[T, OF_TRAINING]  # a setting that changes how a model is trained, and not what its weights mean


@dataclass(frozen=True)
class Vocabulary:
    """The ids that a model is built for: range(size). An end of text stands before each document's first token."""

    size: int
    eos_id: int
    bos_id: int | None = None

    @property
    def num_begins(self) -> int:
        """Ids before a text's first token: the beginning of a text, where there is one."""
        return 0 if self.bos_id is None else 1

    @property
    def first_id(self) -> int:
        """What stands before a text's own first token: the beginning of a text, or the end of another one."""
        return self.eos_id if self.bos_id is None else self.bos_id


class FamilyConfig(Section, ABC):
    """`model: {family: …, …}`; each family is a subclass in a file of its own, and a line in MODELS."""

    family: str

    # Shapes of published models by name, where it has a key `preset` for them.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Its state has a fixed size, so that windows may go on from where others ended, for ever.
    carries_state: ClassVar[bool] = False
    # Whether nothing reaches across an end of text, also in a stream.
    forgets: ClassVar[bool] = False
    # Whether torch.compile can make a graph of it.
    compiles: ClassVar[bool] = True
    # As a message names it, where torch has no float16 of it on CPUs.
    without_cpu_fp16: ClassVar[str] = ""

    @abstractmethod
    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        """A model of this config, initialized by torch's generator."""

    @property
    def learner(self) -> str:
        """How it is estimated: a key of LEARNERS."""
        return "gradient"

    @property
    def reads_streams(self) -> bool:
        """Whether it is evaluated in one stream where nobody says otherwise: what is counted knows no windows."""
        return self.carries_state and self.learner != "gradient"

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can be trained for, keys of TASKS: the first where nobody says otherwise."""
        return ("lm",)

    @property
    def can_be_cut(self) -> bool:
        """Whether ranks can share one model of it, by the layer or within layers."""
        return False

    @property
    def predicts_tokens(self) -> bool:
        """Whether it has a head over the vocabulary; what has none is a body, for tasks with a head of their own."""
        return True

    @property
    def task_remedy(self) -> str:
        """How it would be one for other tasks, to end a message with."""
        return ""

    @property
    def state_remedy(self) -> str:
        """How it would carry a state of fixed size, to end a message with."""
        return ""

    @property
    def own_terms(self) -> str:
        """Settings by which the model adds terms of its own to a plain objective, and to no other; or nothing."""
        return ""

    @property
    def facts(self) -> str:
        """What to say of it at the start, beside its size; or nothing."""
        return ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is told when a run starts: settings that mean something else than they seem to, a line each."""
        return ()

    def for_sequences(self, seq_len: int) -> FamilyConfig:
        """Itself for a run whose sequences have that length, which fills what follows from it.

        ValueError where such a model cannot read them.
        """
        return self

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that weights depend on: those of one such model fit another one whose are equal."""
        fields = type(self).model_fields.items()
        return self.model_dump(include={name for name, field in fields if OF_TRAINING not in field.metadata})


class Part(NamedTuple):
    """What a pass goes through of a model whose layers several ranks have one behind the other."""

    layers: range
    received: Tensor | None  # (B, T, C) of the layers before them; None: it begins with ids
    is_last: bool  # what stands behind the last layer follows


class HeadTerms(NamedTuple):
    """What losses ask of the logits at each token, where nobody holds all of these; float32 at least."""

    log_z: Tensor  # log of the sum of exp of them
    chosen: Tensor  # that of the target
    mean: Tensor
    likeliest: Tensor  # the first id of those with the highest, int64


@runtime_checkable
class SharedHead(Protocol):
    """A head whose outputs several ranks share."""

    def terms(self, hidden: Tensor, targets: Tensor) -> HeadTerms:
        """Of hidden (…, C), at targets (…) that are ids. Collective."""


class LanguageModel(nn.Module, ABC):
    """A body, `model(ids, state, draws)`, and a head, `model.head(hidden)`.

    The head gives logits (B, T, V), or whatever a task has put in its place; a body that gives log-probabilities
    itself has `nn.Identity` for one.
    """

    head: nn.Module

    # What the body gives and the head takes, C; asked for by tasks that bring a head of their own.
    hidden_width: int

    # Kinds of text in one example that it tells apart by vectors of their own: `forward` then takes `types`.
    num_token_types = 0

    # Tokens that it has a learned position for; None: it takes texts of any length.
    most_positions: int | None = None

    # Training gives it the draws that dropout is made from. Without draws it has none, whatever mode it is in.
    takes_draws = False

    # Whether it has an encoder, and goes on from what `encode` makes of a source, never from nothing.
    reads_source = False

    # Whether two texts that begin alike have different states: a latent variable is drawn for each.
    draws_state = False

    # Whether `forward(…, segments=)` reads several texts in one row, each for itself.
    takes_segments = False

    @abstractmethod
    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """(B, T) ids -> hidden (B, T, C), and the state after them.

        Position t has seen the ids up to t, and what `state` remembers. Without a state the windows begin anew, and
        none is returned.

        What stands behind `lengths` (B,) is padding. A model that sees both sides of a token sees none of it, and its
        hidden vectors are 0 there. One that looks only back may ignore lengths: no token sees the padding behind it,
        and what is there of hidden vectors and state means nothing.
        """

    def layer_costs(self, seq_len: int) -> list[float]:
        """Of each layer what a token costs in it, for parts of about equal work; nothing where it can't be cut."""
        return []

    @property
    def layers_to_cut(self) -> nn.Module:
        """What holds the layers that can be cut, and no more."""
        return nn.ModuleList()

    def keep(self, parts: Sequence[range], *, is_first: bool, is_last: bool) -> None:
        """Drop all but some of its layers, and what stands before the first and behind the last where it has not these.

        From then on `forward(…, part=)` is asked for. Names of parameters stay; where embedding and head are tied, the
        last keeps `head.weight` as a tensor that is no parameter.
        """
        raise NotImplementedError

    def initial_state(self, num: int) -> State:
        """Of `num` samples that have no past, on the model's device."""
        raise NotImplementedError

    def sampled_state(self, num: int, random: torch.Generator) -> State:
        """Of `num` texts that are to be written: a model with a latent variable draws it from its prior."""
        return self.initial_state(num)

    def slots(self, num: int) -> Slots:
        """Room for `num` texts that are written side by side."""
        return StateSlots(self, self.sampled_state, num)

    def prompted(self, ids: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """How texts are continued that ids (B, T) begin, of which those behind `lengths` (B,) are padding.

        What is to be read, how many of it, and the state before it: here the ids themselves, where nothing was.
        """
        if lengths is None:
            lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
        return ids, lengths, self.initial_state(len(ids))

    def logits(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """What the head makes of the body: (B, T, V), without draws; and the state after it."""
        hidden, state = self(ids, state)
        return self.head(hidden), state

    def target_log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor | None:
        """Log-probabilities (B, T) of targets (B, T), where these alone cost less than the head; None where not."""
        return None

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of one token's forward and backward pass in sequences of `seq_len`, by the usual convention.

        6 for each weight of a matrix that the token is multiplied with: the head counts though it may be tied, the
        embedding is a look-up. What activation checkpointing computes again does not count.
        """
        matrices = {id(parameter): parameter.numel() for parameter in self.parameters() if parameter.dim() == 2}
        used_twice = {id(parameter) for parameter in self.head.parameters()}
        for module in self.modules():
            if isinstance(module, nn.Embedding) and id(module.weight) not in used_twice:
                matrices.pop(id(module.weight), None)
        return 6 * sum(matrices.values())

    def parameter_roles(self) -> dict[str, Role]:
        """What each parameter is, by name: optimizers treat embeddings, head, matrices and vectors apart."""
        return roles_of(self)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
