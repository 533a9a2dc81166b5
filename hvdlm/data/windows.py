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

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class EvaluationWindows:
    """A split cut into windows of `seq_len`, of which each is predicted from its own beginning.

    With `max_tokens` (0 is all) the split is cut into equal parts, as many as windows of that many tokens, and a window
    of each part is read: a fixed one, drawn so that no period of the text meets it.
    """

    stream: TokenStream
    seq_len: int
    eos_id: int
    max_tokens: int = 0

    @property
    def _in_all(self) -> int:
        return -(-len(self.stream) // self.seq_len)

    @property
    def _chosen(self) -> int:
        return min(self._in_all, -(-self.max_tokens // self.seq_len)) if self.max_tokens else self._in_all

    @property
    def num_tokens(self) -> int:
        """Targets that are read."""
        last = int(spread(np.array([self._chosen - 1]), self._chosen, self._in_all)[0])
        return (self._chosen - 1) * self.seq_len + min(self.seq_len, len(self.stream) - last * self.seq_len)

    def __str__(self) -> str:
        return f"windows of {self.seq_len} tokens, each from its own beginning"

    def batches(self, batch: int, *, rank: int, size: int) -> Iterator[Pair]:
        """The rank's windows as (inputs, targets), both int64 (<= batch, seq_len); padding is IGNORED."""
        mine = slice_of(rank, size, self._chosen)
        for first in range(mine.start, mine.stop, batch):
            places = np.arange(first, min(first + batch, mine.stop))
            starts = spread(places, self._chosen, self._in_all) * self.seq_len
            yield _stacked(self.stream, [(int(at), len(self.stream)) for at in starts], self.seq_len, self.eos_id)


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
        return f"{streams} with carried state, not reset between documents"

    def groups(self, batch: int, *, rank: int, size: int) -> Iterator[range]:
        """The rank's streams, at most `batch` at once."""
        mine = slice_of(rank, size, self.num_streams)
        return (mine[first : first + batch] for first in range(0, len(mine), batch))

    def chunks(self, group: range, length: int) -> Iterator[Pair]:
        """These streams side by side, piece after piece: (inputs, targets), both int64 (len(group), length).

        The state goes from each piece to the next. Ends that are shorter than the others' are padded with IGNORED.
        """
        spans = self._spans(group)
        for done in range(0, max(stop - start for start, stop in spans), length):
            places = [(min(start + done, stop), stop) for start, stop in spans]
            yield _stacked(self.stream, places, length, self.eos_id)

    def _spans(self, group: range) -> list[tuple[int, int]]:
        parts = [slice_of(number, self.num_streams, len(self.stream)) for number in group]
        limit = -(-self.max_tokens // self.num_streams) if self.max_tokens else len(self.stream)
        return [(part.start, min(part.stop, part.start + limit)) for part in parts]


def _stacked(stream: TokenStream, places: list[tuple[int, int]], length: int, eos_id: int) -> Pair:
    """For each (start, stop) the tokens from `start` on, at most `length` and none from `stop` on, as a row."""
    inputs = np.full((len(places), length), eos_id, dtype=np.int64)
    targets = np.full((len(places), length), IGNORED, dtype=np.int64)
    for row, (start, stop) in enumerate(places):
        count = min(length, stop - start)
        if count <= 0:
            continue
        targets[row, :count] = stream.read(start, count)
        inputs[row, 1:count] = targets[row, : count - 1]
        if start:
            inputs[row, 0] = stream.read(start - 1, 1)[0]
    return inputs, targets
