"""Places in a training order to tensors. A sample is a window of seq_len + 1 tokens of a split's stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.mixture import Mixture
from hvdlm.partition import permute_each, samples_at, slice_of
from hvdlm.shards import TokenStream

IGNORED = -100  # target of a padded position; cross_entropy's ignore_index


class CorpusConfig(Section):
    """One corpus of a mixture."""

    path: Path = Field(strict=False, description="folder with manifest.json, written by `hvdlm preprocess`")
    weight: float = Field(gt=0, description="its share of the training samples, relative to the other weights")


class DataConfig(Section):
    """The `data` section: which shards, and how long a sequence is. Either `path` or `mixture`."""

    mixture: tuple[CorpusConfig, ...] = Field((), strict=False, description="several corpora, each path with a weight")
    path: Path | None = Field(
        None, strict=False, validate_default=True, description="folder with manifest.json: the only corpus"
    )
    seq_len: int = Field(256, ge=1, description="tokens a sequence, T")
    order: Literal["random", "contiguous"] = Field(
        "random", description="contiguous: each sequence of a batch goes on where the one of the last step ended"
    )

    @field_validator("mixture")
    @classmethod
    def _check_mixture(cls, mixture: tuple[CorpusConfig, ...]) -> tuple[CorpusConfig, ...]:
        paths = [corpus.path for corpus in mixture]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is given twice; add up its weights")
        if mixture:
            Mixture([corpus.weight for corpus in mixture], seed=0)
        return mixture

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        mixture = info.data.get("mixture")
        if path is None and mixture == ():
            raise PydanticKnownError("missing")
        if path is not None and mixture:
            raise ValueError("path and mixture exclude each other; set data.path=null or data.mixture=[]")
        return path

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: str, info: ValidationInfo) -> str:
        if order == "contiguous" and info.data.get("mixture"):
            raise ValueError("contiguous is an order of one corpus; set data.path, or data.order=random")
        return order

    @property
    def corpora(self) -> tuple[CorpusConfig, ...]:
        """The mixture, or the only corpus as a mixture of one."""
        return self.mixture or (CorpusConfig(path=self.path, weight=1),)

    @property
    def names(self) -> list[str]:
        """What the corpora are called: their folders' names, or the whole paths where two have the same."""
        paths = [corpus.path for corpus in self.corpora]
        distinct = len({path.name for path in paths}) == len(paths)
        return [path.name if distinct and path.name else str(path) for path in paths]


class Batches(Protocol):
    """An infinite training order, a pure function of (seed, place)."""

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        """The windows at ascending places (int64 (n,)) of the order, all of one step: int64 (n, seq_len + 1)."""

    @property
    def epoch_samples(self) -> list[float]:
        """In how many samples of the order each corpus is seen once."""


class TrainBatches:
    """The order of one corpus: windows at multiples of seq_len, permuted anew each epoch, for ever."""

    def __init__(self, stream: TokenStream, *, seq_len: int, seed: int) -> None:
        self.num_samples = _num_windows(stream, seq_len, "the train split")
        self._stream, self._seq_len, self._seed = stream, seq_len, seed

    @property
    def epoch_samples(self) -> list[float]:
        return [float(self.num_samples)]

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        samples = samples_at(positions, num_samples=self.num_samples, seed=self._seed)
        return self._stream.read_windows(samples * self._seq_len, self._seq_len + 1)


class ContiguousBatches:
    """One corpus cut into `global_batch` streams that are read side by side, window after window, for ever.

    Sequence b of step s + 1 goes on where sequence b of step s ended, so a recurrent state can be carried over
    (Zaremba et al. 2014, Merity et al. 2018). An epoch has the same order as the last and leaves out the end of the
    corpus, less than global_batch x seq_len tokens that fill no window in every stream.
    """

    def __init__(self, stream: TokenStream, *, seq_len: int, global_batch: int) -> None:
        self.epoch_steps = (len(stream) - 1) // (seq_len * global_batch)
        if self.epoch_steps < 1:
            raise UserError(
                f"the train split has {len(stream)} tokens, fewer than one sequence of {seq_len} in each of"
                f" {global_batch} streams; lower train.global_batch or data.seq_len, or set data.order=random"
            )
        self._stream, self._seq_len, self._global_batch = stream, seq_len, global_batch

    @property
    def epoch_samples(self) -> list[float]:
        return [float(self.epoch_steps * self._global_batch)]

    def starts_anew(self, step: int) -> bool:
        """Whether all streams are at their beginnings, where a carried state must be zero."""
        return step % self.epoch_steps == 0

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        streams = positions - step * self._global_batch
        if streams.min() < 0 or streams.max() >= self._global_batch:
            raise ValueError(f"places {positions.min()} to {positions.max()} are not in step {step}")
        samples = streams * self.epoch_steps + step % self.epoch_steps
        return self._stream.read_windows(samples * self._seq_len, self._seq_len + 1)


class MixedBatches:
    """The order of several corpora: exact shares, and each corpus epoch after epoch in its own permuted order."""

    def __init__(self, sources: MixedStreams, *, seq_len: int, seed: int) -> None:
        self.num_samples = [
            _num_windows(stream, seq_len, f"the train split of {name}")
            for name, stream in zip(sources.names, sources.streams, strict=True)
        ]
        self.mixture = Mixture(sources.weights, seed=seed)
        self._streams, self._seq_len, self._seed = sources.streams, seq_len, seed

    @property
    def epoch_samples(self) -> list[float]:
        return [num / float(share) for num, share in zip(self.num_samples, self.mixture.shares, strict=True)]

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        corpora, samples = self.samples_at(positions)
        windows = np.empty((len(positions), self._seq_len + 1), dtype=np.int64)
        for corpus, stream in enumerate(self._streams):
            rows = np.flatnonzero(corpora == corpus)
            if rows.size:
                windows[rows] = stream.read_windows(samples[rows] * self._seq_len, self._seq_len + 1)
        return windows

    def samples_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(corpus, its sample) at ascending positions of the order, both int64 (n,)."""
        num_corpora = len(self.num_samples)
        corpora, numbers = self.mixture.locate(positions)
        epochs, within = np.divmod(numbers, np.array(self.num_samples)[corpora])
        found, group = np.unique(epochs * num_corpora + corpora, return_inverse=True)
        totals, keys = [], []
        for epoch, corpus in (divmod(number, num_corpora) for number in found.tolist()):
            totals.append(self.num_samples[corpus])
            keys.append(f"epoch {self._seed} {epoch} of corpus {corpus}")  # its own: equal sizes, different orders
        return corpora, permute_each(within, group, totals, keys)


@dataclass(frozen=True)
class MixedStreams:
    """The train splits of several corpora, and how much of each."""

    streams: tuple[TokenStream, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]


def order_over(
    source: TokenStream | MixedStreams,
    *,
    seq_len: int,
    global_batch: int,
    seed: int,
    order: Literal["random", "contiguous"] = "random",
) -> Batches:
    """The training order over one corpus or several; only the contiguous one depends on the global batch."""
    if not isinstance(source, TokenStream):
        return MixedBatches(source, seq_len=seq_len, seed=seed)
    if order == "contiguous":
        return ContiguousBatches(source, seq_len=seq_len, global_batch=global_batch)
    return TrainBatches(source, seq_len=seq_len, seed=seed)


def _num_windows(stream: TokenStream, seq_len: int, name: str) -> int:
    num_samples = (len(stream) - 1) // seq_len
    if num_samples < 1:
        raise UserError(f"{name} has {len(stream)} tokens, fewer than one sequence of {seq_len} + 1")
    return num_samples


@dataclass(frozen=True)
class EvaluationWindows:
    """A split cut into windows in which every token is a target exactly once.

    The first token is predicted from an eos id, as each document's first is. `max_tokens` keeps the
    beginning of the split, 0 all of it.
    """

    stream: TokenStream
    seq_len: int
    eos_id: int
    max_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return min(len(self.stream), self.max_tokens) if self.max_tokens else len(self.stream)

    def batches(self, batch: int, *, rank: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rank's windows as (inputs, targets), both int64 (<= batch, seq_len); padding is IGNORED."""
        mine = slice_of(rank, size, -(-self.num_tokens // self.seq_len))
        for first in range(mine.start, mine.stop, batch):
            pairs = [self._window(window) for window in range(first, min(first + batch, mine.stop))]
            yield np.stack([inputs for inputs, _ in pairs]), np.stack([targets for _, targets in pairs])

    def _window(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = window * self.seq_len, min((window + 1) * self.seq_len, self.num_tokens)
        inputs = np.full(self.seq_len, self.eos_id, dtype=np.int64)
        targets = np.full(self.seq_len, IGNORED, dtype=np.int64)
        targets[: end - start] = self.stream.read(start, end - start)
        inputs[1 : end - start] = targets[: end - start - 1]
        if start:
            inputs[0] = self.stream.read(start - 1, 1)[0]
        return inputs, targets
