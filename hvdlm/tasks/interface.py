"""What a model is trained for: examples to a batch, a loss as sums, metrics as sums that are divided once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from hvdlm.compute.draws import Draws
from hvdlm.config import Section
from hvdlm.data.fields import FieldEntry
from hvdlm.data.windows import IGNORED
from hvdlm.exchange.heads import TaskHead
from hvdlm.models import LanguageModel, State, Vocabulary
from hvdlm.tables import figure

Better = Literal["more", "less"]  # of a figure: which way it grows where a model learns


class Batch(NamedTuple):
    """What a task gives a model at once."""

    inputs: Tensor  # ids, int64 (B, T)
    targets: Tensor  # int64 (B, T); IGNORED, which is outside every vocabulary, where nothing is to be predicted
    lengths: Tensor | None = None  # int64 (B,): tokens without padding, for models that look ahead
    draws: Draws | None = None  # for what a task itself draws
    term_weights: Tensor | None = None  # in this step, of terms beside those of the targets; None in evaluation
    segments: Tensor | None = None  # int64 (B, T): where several examples share a row, the number of each one's


class Sums(NamedTuple):
    """What targets add up to. Of micro-batches, ranks and steps they are added, and divided once, at the end."""

    aim: Tensor  # of what is to be made small, with its graph: a scalar
    values: Tensor  # by the names of `Task.sums`: float64 (len(sums),)
    rows: Tensor | None = None  # in evaluation, of each example what `Task.figures_of_rows` takes: (B, K)


T = TypeVar("T")
MEASURED = "of measuring"
Measured = Annotated[T, MEASURED]  # a setting of how a trained model is measured, and of nothing that it computes


class TaskConfig(Section, ABC):
    """`task: {kind: …, …}`; each kind is a subclass in a file of its own, beside the task that it builds."""

    kind: str

    # A task that it is like: what can be trained for that can be trained for this.
    like: ClassVar[str] = ""
    # An example is a text as a whole, and a window is but a makeshift for one.
    reads_documents: ClassVar[bool] = False
    # Its examples are labelled records (a RecordTask), not windows of text.
    reads_records: ClassVar[bool] = False
    # Ids that the model must know behind those of the vocabulary.
    extra_ids: ClassVar[int] = 0

    @property
    def needs_word_starts(self) -> bool:
        """Whether it must be told which ids begin a word."""
        return False

    @property
    def meets_before_backward(self) -> bool:
        """Whether it must know sums over the whole global batch before a step's first backward (`Task.survey`)."""
        return False

    @property
    def measuring(self) -> dict[str, Any]:
        """The settings by which a trained model is measured, which `hvdlm eval` takes beside those of a run."""
        fields = type(self).model_fields.items()
        return self.model_dump(mode="json", include={name for name, field in fields if MEASURED in field.metadata})

    def remarks(self, total_steps: int) -> list[str]:
        """A line for each setting that has no effect, or another than it seems, in a run of so many steps."""
        return []

    @abstractmethod
    def build(self, context: TaskContext) -> Task: ...


class TaskContext(NamedTuple):
    """What a task is built with, beside its own section."""

    vocabulary: Vocabulary
    objective: Section
    noise: Section
    starts_word: np.ndarray | None = None  # bool (V,): which ids begin a word, where the tokenizer tells
    fields: Mapping[str, FieldEntry] = {}  # of labelled records


class Task(ABC):
    """One denominator: the loss of a step is the sum over all targets of its global batch by their number.

    That number is known to each rank without a message, for examples are a function of the step.
    """

    # Names of what is added up. `loss` is in nats, without the terms that only training minimizes; `targets` is what
    # it is divided by.
    sums: tuple[str, ...] = ("loss", "targets")
    # Which of the sums `count` tells ahead: what a step is divided by.
    denominator: ClassVar[str] = "targets"
    # By which of its figures a checkpoint may be chosen, the main one first.
    better: Mapping[str, Better] = {"loss": "less"}
    # Whether training takes draws for it, or evaluation.
    takes_draws: bool = False
    evaluation_takes_draws: bool = False
    # Whether each token is predicted once, so that the loss is one of the text: in bits per byte, or by the word.
    predicts_text: ClassVar[bool] = True
    # Whether its loss is one of tokens, so that exp of it says among how many it wavers.
    predicts_tokens: ClassVar[bool] = True
    # Whether what is continued is a text as a whole, with its end: the source of what is written.
    continues_whole: ClassVar[bool] = False
    # Whether some first targets of an example may be there to be seen alone.
    takes_context: ClassVar[bool] = True
    # Of how many examples, spread over a split, `figures_of_rows` wants to know.
    num_rows: ClassVar[int] = 0
    # Columns of an example that belong to one token: a batch is as wide as its longest example, a multiple of them.
    columns: int = 1
    # What the outputs of the task's own head are called, in order; empty where they are the vocabulary.
    outputs: tuple[str, ...] = ()

    def fit(self, model: LanguageModel) -> None:
        """Give a model that was just built the head of this task; the vocabulary's stays where that is it."""

    @abstractmethod
    def count(self, ids: np.ndarray) -> int:
        """The denominator that examples, int64 (n, T + 1), bring in."""

    def count_of(self, lengths: np.ndarray) -> int | None:
        """The same from their numbers of tokens alone, int64 (n,); None where it takes the ids.

        With it no rank has to read the examples of others.
        """
        return None

    def flops_per_token(self, model: LanguageModel, seq_len: int) -> int:
        """FLOPs of one token's forward and backward pass, where the head is asked at each token."""
        return model.flops_per_token(seq_len)

    def begin(self, step: int) -> None:
        """Before the batches of a step: what follows a schedule follows from the step's number alone."""

    def survey(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> Tensor:
        """Where its config `meets_before_backward`: what a micro-batch adds up to, without a graph: float64 (n,)."""
        raise NotImplementedError

    def surveyed(self, sums: Tensor, denominator: int) -> None:
        """Then, before the first backward: the sums over the global batch, and its denominator."""

    @abstractmethod
    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        """A batch of examples (B, T + 1), of which the first `context` (B,) targets are there to be seen alone."""

    @abstractmethod
    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        """The sums over the batch's targets; an aim of 0 with a graph where there are none. And the state after it."""

    def head_for_exchange(self, model: LanguageModel) -> TaskHead | None:
        """The head that the task has put in the model's place, for `hvdlm export`; None: it is the model's own.

        UserError where other libraries have no such head.
        """
        return None

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What sums over any number of batches say, `loss` first; a loss of 0 where there was no target."""
        return {"loss": sums["loss"] / max(1.0, sums["targets"])}

    def figures_of_rows(self, rows: np.ndarray) -> dict[str, float]:
        """What `Sums.rows` (n, K) of examples from all over a split say beside the sums."""
        return {}

    def named(self, values: Sequence[float] | np.ndarray) -> dict[str, float]:
        """Sums by name; further numbers behind them are left out."""
        return dict(zip(self.sums, map(float, values), strict=False))


def in_words(figures: Mapping[str, float], before: str) -> str:
    """A task's own figures for a person, `before` each; the loss stands elsewhere."""
    own = {name: value for name, value in figures.items() if name != "loss"}
    return "".join(f"{before}{name.replace('_', ' ')} {figure(value)}" for name, value in own.items())


def more(*names: str) -> dict[str, Better]:
    """Figures of which more is better."""
    return dict.fromkeys(names, "more")


def less(*names: str) -> dict[str, Better]:
    """Figures of which less is better."""
    return dict.fromkeys(names, "less")


def without_padding(ids: Tensor, filler: int) -> Tensor:
    """Ids for a model, with `filler` where there is padding."""
    return torch.where(ids == IGNORED, filler, ids)


def unseen(targets: Tensor, context: Tensor | None) -> Tensor:
    """Targets (B, T), of which the first `context` (B,) of each row are IGNORED."""
    if context is None:
        return targets
    places = torch.arange(targets.shape[1], device=targets.device)
    return targets.masked_fill(places < context.unsqueeze(1), IGNORED)
