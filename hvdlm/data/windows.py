"""What of a split is read to evaluate on it: windows that stand alone, or streams that a recurrent state runs through.

Either reads every token as a target exactly once, the first from an end of text, as each document's first is. Or, for
an estimate, `max_tokens` of them spread over the whole split: a folder of text is often sorted, so that its
beginning is not like the rest. What is read depends on the split and the settings alone, never on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hvdlm.data.stream import TokenStream
from hvdlm.partition import slice_of, spread

IGNORED = -100  # target of a padded position; cross_entropy's ignore_index
RUN_WINDOWS = 16  # of seq_len: what an estimate reads of a stream at least, so that most tokens have a past


@dataclass(frozen=True)
class Examples:
    """Rows that a task makes a batch of."""

    ids: np.ndarray  # int64 (n, T + 1): what stands before, then the tokens; behind their end IGNORED
    places: np.ndarray  # int64 (n,): where a row stands in the split, for draws that depend on it
    context: np.ndarray  # int64 (n,): so many of the first tokens are there to be seen, and were predicted before

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class EvaluationWindows:
    """A split cut into windows of `seq_len`, of which each is predicted from its own beginning.

    With a `stride` (0 is seq_len) the next window begins so many tokens after the last, and what both have is predicted
    in the first of them alone: all but the first have seq_len - stride tokens of context at least (Baevski and Auli
    2019). With `max_tokens` (0 is all) the split is cut into equal parts, as many as windows of that many tokens, and
    a window of each part is read: a fixed one, drawn so that no period of the text meets it.
    """

    stream: TokenStream
    seq_len: int
    eos_id: int
    max_tokens: int = 0
    stride: int = 0

    @property
    def _step(self) -> int:
        return self.stride or self.seq_len

    @property
    def _in_all(self) -> int:
        return 1 + -(-max(0, len(self.stream) - self.seq_len) // self._step)

    @property
    def _chosen(self) -> int:
        return min(self._in_all, -(-self.max_tokens // self.seq_len)) if self.max_tokens else self._in_all

    @property
    def num_tokens(self) -> int:
        """Targets that are read."""
        if self._chosen == self._in_all:
            return len(self.stream)
        last = int(spread(np.array([self._chosen - 1]), self._chosen, self._in_all)[0])
        return (self._chosen - 1) * self.seq_len + min(self.seq_len, len(self.stream) - last * self.seq_len)

    @property
    def num_examples(self) -> int:
        """Rows over all ranks."""
        return self._chosen

    def __str__(self) -> str:
        if self.stride:
            least = self.seq_len - self.stride
            return f"windows of {self.seq_len} tokens, a stride of {self.stride}: {least:,} tokens of context or more"
        return f"windows of {self.seq_len} tokens, each from its own beginning"

    def batches(self, batch: int, *, rank: int, size: int) -> Iterator[Examples]:
        """The rank's windows, at most `batch` at once, as rows of seq_len + 1."""
        mine = slice_of(rank, size, self._chosen)
        for first in range(mine.start, mine.stop, batch):
            places = np.arange(first, min(first + batch, mine.stop))
            numbers = spread(places, self._chosen, self._in_all)
            spans = [(int(number) * self._step, len(self.stream)) for number in numbers]
            ids = _stacked(self.stream, spans, self.seq_len, self.eos_id)
            yield Examples(ids, numbers, np.where(numbers > 0, self.seq_len - self._step, 0))


@dataclass(frozen=True)
class EvaluationStreams:
    """A split cut into `streams` equal parts, each read from its beginning to its end without a break.

    One stream is how the literature tests a language model (Mikolov et al. 2010, Zaremba et al. 2014); every other
    one begins without a past once more. With `max_tokens` (0 is all) the beginnings of the parts are read, and
    the parts are as many as let each be long.
    """

    stream: TokenStream
    seq_len: int
    eos_id: int
    streams: int = 1
    max_tokens: int = 0
    forgets: bool = False  # whether the model's own state begins anew at each document

    @property
    def num_streams(self) -> int:
        """At most as many as the split has windows, and more than `streams` where little of a long split is read."""
        windows = -(-(min(self.max_tokens, len(self.stream)) or len(self.stream)) // self.seq_len)
        spread_over = windows // RUN_WINDOWS if self.max_tokens else 0
        return min(windows, max(self.streams, spread_over))

    @property
    def num_tokens(self) -> int:
        """Targets that are read."""
        return sum(stop - start for start, stop in self._spans(range(self.num_streams)))

    def __str__(self) -> str:
        streams = "1 stream" if self.num_streams == 1 else f"{self.num_streams:,} streams"
        reset = "which begins anew at each document" if self.forgets else "not reset between documents"
        return f"{streams} with carried state, {reset}"

    def groups(self, batch: int, *, rank: int, size: int) -> Iterator[range]:
        """The rank's streams, at most `batch` at once."""
        mine = slice_of(rank, size, self.num_streams)
        return (mine[first : first + batch] for first in range(0, len(mine), batch))

    def chunks(self, group: range, length: int) -> Iterator[Examples]:
        """These streams side by side, piece after piece, as rows of length + 1.

        The state goes from each piece to the next. Ends that are shorter than the others' are padded.
        """
        spans = self._spans(group)
        for done in range(0, max(stop - start for start, stop in spans), length):
            places = [(min(start + done, stop), stop) for start, stop in spans]
            ids = _stacked(self.stream, places, length, self.eos_id)
            yield Examples(ids, np.arange(group.start, group.stop), np.zeros(len(group), dtype=np.int64))

    def _spans(self, group: range) -> list[tuple[int, int]]:
        parts = [slice_of(number, self.num_streams, len(self.stream)) for number in group]
        limit = -(-self.max_tokens // self.num_streams) if self.max_tokens else len(self.stream)
        return [(part.start, min(part.stop, part.start + limit)) for part in parts]


class Documents:
    """The documents of a split, each a row; one of more than `seq_len` tokens is as many rows as it needs.

    Every token is in exactly one row. What stands before a document's first is the end of the one before, or `eos_id`.
    """

    def __init__(self, stream: TokenStream, seq_len: int, eos_id: int) -> None:
        starts = stream.document_starts()
        lengths = np.diff(starts)
        pieces = -(-lengths // seq_len)
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # number in its document
        self._starts = np.repeat(starts[:-1], pieces) + within * seq_len
        self._ends = np.minimum(self._starts + seq_len, np.repeat(starts[1:], pieces))
        self.num_documents, self.num_tokens = len(lengths), len(stream)
        self._stream, self._seq_len, self._eos_id = stream, seq_len, eos_id

    def __len__(self) -> int:
        return len(self._starts)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of rows, both int64 (n,)."""
        return self._ends[rows] - self._starts[rows]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """int64 (n, seq_len + 1): what stands before, the tokens, and behind their end IGNORED."""
        spans = list(zip(self._starts[rows].tolist(), self._ends[rows].tolist(), strict=True))
        return _stacked(self._stream, spans, self._seq_len, self._eos_id)


class EvaluationDocuments:
    """Each document of a split from its own beginning, at most `seq_len` tokens at once.

    With `max_tokens` (0 is all) about so many are read, in documents from everywhere.
    """

    def __init__(self, stream: TokenStream, seq_len: int, eos_id: int, max_tokens: int = 0) -> None:
        self.seq_len, self._documents = seq_len, Documents(stream, seq_len, eos_id)
        rows = len(self._documents)
        chosen = min(rows, -(-max_tokens * rows // len(stream))) if max_tokens else rows
        self._rows = spread(np.arange(chosen), chosen, rows)

    @property
    def num_tokens(self) -> int:
        """Targets that are read."""
        return int(self._documents.lengths(self._rows).sum())

    @property
    def num_examples(self) -> int:
        """Rows over all ranks."""
        return len(self._rows)

    def __str__(self) -> str:
        return f"documents, each from its own beginning, in pieces of at most {self.seq_len} tokens"

    def batches(self, batch: int, *, rank: int, size: int) -> Iterator[Examples]:
        """The rank's documents, at most `batch` at once."""
        mine = slice_of(rank, size, len(self._rows))
        for first in range(mine.start, mine.stop, batch):
            rows = self._rows[first : min(first + batch, mine.stop)]
            ids = self._documents.read(rows)
            width = 1 + int(self._documents.lengths(rows).max())
            yield Examples(ids[:, :width], rows, np.zeros(len(rows), dtype=np.int64))


def _stacked(stream: TokenStream, places: list[tuple[int, int]], length: int, eos_id: int) -> np.ndarray:
    """For each (start, stop) the token before and those from `start` on, at most `length` and none from `stop` on."""
    rows = np.full((len(places), 1 + length), IGNORED, dtype=np.int64)
    for row, (start, stop) in zip(rows, places, strict=True):
        count = min(length, stop - start)
        if count <= 0:
            continue
        row[1 : 1 + count] = stream.read(start, count)
        row[0] = stream.read(start - 1, 1)[0] if start else eos_id
    return rows
