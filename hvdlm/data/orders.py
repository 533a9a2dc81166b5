"""Places in a training order to windows of tokens. A sample is a window of seq_len + 1 tokens of a split's stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hvdlm.data.mixture import Mixture
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import Documents
from hvdlm.errors import UserError
from hvdlm.partition import permute_each, samples_at


class Batches(Protocol):
    """An infinite training order, a pure function of (seed, place)."""

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        """The windows at ascending places (int64 (n,)) of the order, all of one step: int64 (n, seq_len + 1)."""

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        """Tokens to predict at ascending places, both int64 (n,), without reading them."""

    @property
    def epoch_samples(self) -> list[float]:
        """In how many samples of the order each corpus is seen once."""

    @property
    def tokens_per_sample(self) -> float:
        """Tokens to predict in a sample; where that differs, the mean over an epoch."""

    pads: bool  # some samples are shorter, with IGNORED behind their end


class TrainBatches:
    """The order of one corpus: windows at multiples of seq_len, permuted anew each epoch, for ever."""

    pads = False

    def __init__(self, stream: TokenStream, *, seq_len: int, seed: int) -> None:
        self.num_samples = _num_windows(stream, seq_len, "the train split")
        self._stream, self._seq_len, self._seed = stream, seq_len, seed

    @property
    def tokens_per_sample(self) -> float:
        return float(self._seq_len)

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        return np.full(len(positions), self._seq_len)

    @property
    def epoch_samples(self) -> list[float]:
        return [float(self.num_samples)]

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        samples = samples_at(positions, num_samples=self.num_samples, seed=self._seed)
        return self._stream.read_windows(samples * self._seq_len, self._seq_len + 1)


class DocumentBatches:
    """One corpus document by document, permuted anew each epoch; one longer than seq_len is several samples."""

    pads = True

    def __init__(self, stream: TokenStream, *, seq_len: int, seed: int, eos_id: int) -> None:
        self.documents = Documents(stream, seq_len, eos_id)
        self._seed = seed

    @property
    def epoch_samples(self) -> list[float]:
        return [float(len(self.documents))]

    @property
    def tokens_per_sample(self) -> float:
        return self.documents.num_tokens / len(self.documents)

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        return self.documents.lengths(self._rows(positions))

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        return self.documents.read(self._rows(positions))

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        return samples_at(positions, num_samples=len(self.documents), seed=self._seed)


class ContiguousBatches:
    """One corpus cut into `global_batch` streams that are read side by side, window after window, for ever.

    Sequence b of step s + 1 goes on where sequence b of step s ended, so a recurrent state can be carried over
    (Zaremba et al. 2014, Merity et al. 2018). An epoch has the same order as the last and leaves out the end of the
    corpus, less than global_batch x seq_len tokens that fill no window in every stream.
    """

    pads = False

    def __init__(self, stream: TokenStream, *, seq_len: int, global_batch: int) -> None:
        self.epoch_steps = (len(stream) - 1) // (seq_len * global_batch)
        if self.epoch_steps < 1:
            raise UserError(
                f"the train split has {len(stream)} tokens, fewer than one sequence of {seq_len} in each of"
                f" {global_batch} streams; lower train.global_batch or data.seq_len, or set data.order=random"
            )
        self._stream, self._seq_len, self._global_batch = stream, seq_len, global_batch

    @property
    def tokens_per_sample(self) -> float:
        return float(self._seq_len)

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        return np.full(len(positions), self._seq_len)

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

    pads = False

    def __init__(self, sources: MixedStreams, *, seq_len: int, seed: int) -> None:
        self.num_samples = [
            _num_windows(stream, seq_len, f"the train split of {name}")
            for name, stream in zip(sources.names, sources.streams, strict=True)
        ]
        self.mixture = Mixture(sources.weights, seed=seed)
        self._streams, self._seq_len, self._seed = sources.streams, seq_len, seed

    @property
    def tokens_per_sample(self) -> float:
        return float(self._seq_len)

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        return np.full(len(positions), self._seq_len)

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
class OrderSettings:
    """What an order may depend on besides the tokens."""

    seq_len: int
    global_batch: int
    seed: int
    eos_id: int


@dataclass(frozen=True)
class MixedStreams:
    """The train splits of several corpora, and how much of each."""

    streams: tuple[TokenStream, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]


# Over one corpus: a function of (stream, settings).
ORDERS: dict[str, Callable[[TokenStream, OrderSettings], Batches]] = {
    "random": lambda stream, by: TrainBatches(stream, seq_len=by.seq_len, seed=by.seed),
    "contiguous": lambda stream, by: ContiguousBatches(stream, seq_len=by.seq_len, global_batch=by.global_batch),
    "documents": lambda stream, by: DocumentBatches(stream, seq_len=by.seq_len, seed=by.seed, eos_id=by.eos_id),
}


def order_over(source: TokenStream | MixedStreams, settings: OrderSettings, order: str = "random") -> Batches:
    """The training order over one corpus or several; only the contiguous one depends on the global batch."""
    if not isinstance(source, TokenStream):
        return MixedBatches(source, seq_len=settings.seq_len, seed=settings.seed)
    return ORDERS[order](source, settings)


def _num_windows(stream: TokenStream, seq_len: int, name: str) -> int:
    num_samples = (len(stream) - 1) // seq_len
    if num_samples < 1:
        raise UserError(f"{name} has {len(stream)} tokens, fewer than one sequence of {seq_len} + 1")
    return num_samples
