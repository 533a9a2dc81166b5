"""What every world can do: five primitives that differ, and what is built on them."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from hvdlm.errors import UserError, line_of

T = TypeVar("T")
SIGN_S = 1.0  # between two signs of life


class Counters(Protocol):
    """Integers (int64, from 0) that any rank adds to at any time, without the others' taking part."""

    def add(self, index: int, amount: int) -> int:
        """Add to one counter; returns what it was before, so that no two ranks are given the same number."""

    def read(self) -> list[int]:
        """What all counters are now."""

    def close(self) -> None:
        """Collective."""


@dataclass(frozen=True)
class Pending:
    """A sum or a message under way; its buffer may be touched again after `wait`, which returns what was received."""

    wait: Callable[[], Any]
    is_done: Callable[[], bool] = lambda: False  # whether `wait` would return at once, as far as is known


class Window(Protocol):
    """float32 memory of this rank that every rank reads and adds to without this rank's taking part."""

    local: np.ndarray  # this rank's own part, float32 (n,)

    def get(self, rank: int, out: np.ndarray) -> None:
        """Read rank's whole part into `out`, float32 (n,)."""

    def add(self, rank: int, amount: np.ndarray) -> None:
        """Add to rank's part, element by element atomically; done when it returns."""

    def close(self) -> None:
        """Collective."""


class World(ABC):
    """The ranks of a job and how bytes travel between them.

    Every method but `abort` is collective: all ranks call it, in the same order. A `buffer` is a
    contiguous numpy array or torch tensor and is changed in place.
    """

    kind: str
    rank: int
    size: int
    takes_gpu_tensors = True  # a Horovod that was built for CPU tensors does not
    needs_own_gpu = False  # two ranks on one GPU cannot meet
    overlaps = False  # a sum that was started goes on by itself while this rank computes
    mesh_place = ""  # where ranks share a model, for messages: "stage 1, data 0, tensor 1"
    exchange_s = 0.0  # that ranks which share layers have spent on what they exchange inside these
    exchanged_bytes = 0  # that this rank has handed to the network for it, and for other stages
    _parent: World | None = None  # that this one was split off
    _beats = 0

    @property
    def beats(self) -> int:
        """Pieces of work that this rank has done, in whichever of its worlds: a watchdog looks whether it grows."""
        return self._beats if self._parent is None else self._parent.beats

    @beats.setter
    def beats(self, count: int) -> None:
        if self._parent is None:
            self._beats = count
        else:
            self._parent.beats = count

    def __str__(self) -> str:
        """This rank, for messages."""
        place = f" ({self.mesh_place})" if self.mesh_place else ""
        return f"rank {self.rank} of {self.size}{place}"

    @abstractmethod
    def sum_(self, buffer: Any) -> None:
        """Replace `buffer` (float32, float64, int32 or int64) by its sum over the ranks, equal on all."""

    @abstractmethod
    def broadcast_(self, buffer: Any) -> None:
        """Replace `buffer` (any dtype) on every rank by rank 0's, bit for bit."""

    @abstractmethod
    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Everybody's bytes, in rank order, on all ranks."""

    @abstractmethod
    def abort(self, code: int) -> None:
        """End the whole job now, from any one rank; does not return."""

    def close(self) -> None:
        """Leave; no other method may be called after it."""

    def exchange_bytes(self, parts: list[bytes]) -> list[bytes]:
        """`parts[r]` goes to rank r; returns what each rank sent to this one, in rank order."""
        everybody: list[list[bytes]] = [pickle.loads(part) for part in self.gather_bytes(pickle.dumps(parts))]  # noqa: S301
        return [theirs[self.rank] for theirs in everybody]

    def start_sum(self, buffer: Any) -> Pending:
        """`sum_`, possibly in the background; all ranks start the same sums in the same order.

        No other method may be called before every started sum was waited for.
        """
        self.sum_(buffer)
        return Pending(lambda: None)

    @abstractmethod
    def exchange_rows(self, rows: Any) -> Any:
        """Row r of a contiguous (size, n) tensor goes to rank r; returns (size, n), row r from rank r. Any dtype."""

    @abstractmethod
    def gather_rows(self, row: Any) -> Any:
        """Everybody's contiguous tensor (n,) of one length as (size, n), in rank order, on all ranks."""

    def split(self, groups: Sequence[Sequence[int]], name: str) -> World:
        """The world of the one group that this rank is in; groups hold each rank once, ascending.

        Its ranks count from 0 in that order. `name` tells such worlds apart where a library shows it. `abort` and
        `beats` of such a world are those of the whole. It is closed before its parent.
        """
        assert sorted(rank for group in groups for rank in group) == list(range(self.size)), groups
        assert all(list(group) == sorted(group) for group in groups), groups
        part = self._part(groups, name)
        part._parent = self
        return part

    @abstractmethod
    def _part(self, groups: Sequence[Sequence[int]], name: str) -> World:
        """What `split` gives."""

    def post_send(self, tensor: Any, to: int, tag: int) -> Pending:
        """Start to send a contiguous tensor of any type to one rank; not collective.

        It returns at once, whether anybody receives or not. The tensor is kept until it is over, and must not be
        changed before.
        """
        raise NotImplementedError(f"ranks of a {self.kind} world send no messages; those of its groups do")

    def post_receive(self, like: Any, source: int, tag: int) -> Pending:
        """Start to receive a tensor of the type, shape and device of `like`; not collective.

        Messages are told apart by source and tag; of one pair they come in the order in which they were sent.
        """
        raise NotImplementedError(f"ranks of a {self.kind} world send no messages; those of its groups do")

    def window(self, length: int) -> Window | None:
        """New float32 memory of `length` on this rank (each rank may ask for another), or None where there is none."""
        return None

    def counters(self, length: int) -> Counters | None:
        """New shared counters, or None in a world whose ranks cannot reach each other's memory."""
        return None

    def settings(self) -> list[str]:
        """What was set for speed, a line each, for the log."""
        return []

    def mpi_library(self) -> str:
        """Name and version of the MPI that these ranks meet over; `none` where they do without."""
        return "none"

    def mpi_communicator(self) -> Any:
        """The mpi4py communicator of these ranks, for a library that talks MPI itself; None where there is none."""
        return None

    def gather(self, value: Any) -> list:
        """Everybody's (small) value, in rank order, on all ranks."""
        return [pickle.loads(part) for part in self.gather_bytes(pickle.dumps(value))]  # noqa: S301

    def gather_on_root(self, value: Any) -> list:
        """Everybody's value, in rank order, on rank 0; nothing on the others."""
        received = self.exchange_bytes([pickle.dumps(value), *[b""] * (self.size - 1)])
        return [pickle.loads(part) for part in received] if self.rank == 0 else []  # noqa: S301

    def broadcast(self, value: Any) -> Any:
        """Rank 0's (small) value on every rank; the others' argument is ignored."""
        data = pickle.dumps(value) if self.rank == 0 else b""
        length = np.array([len(data)], dtype=np.int64)
        self.broadcast_(length)
        buffer = np.frombuffer(bytearray(data.ljust(int(length[0]), b"\0")), dtype=np.uint8)
        self.broadcast_(buffer)
        return pickle.loads(buffer.tobytes())  # noqa: S301 - bytes of our own rank 0

    def barrier(self) -> None:
        self.sum_(np.zeros(1, dtype=np.int32))

    def on_root(self, work: Callable[[], Any]) -> Any:
        """What `work()` returns on rank 0, on every rank; its errors reach all ranks too."""
        with self.together():
            value = work() if self.rank == 0 else None
        return self.broadcast(value)

    def patiently(self, work: Callable[[], T]) -> T:
        """What `work()` returns, done in a thread on all ranks; collective.

        While it lasts anywhere, all ranks tell every SIGN_S that they live: a slow disk is no rank that hangs. The work
        itself must not talk to other ranks; its errors are those of `together`.
        """
        with ThreadPoolExecutor(1, "hvdlm-patient") as thread:
            done = thread.submit(work)
            while True:
                wait([done], SIGN_S)
                self.beats += 1
                if all(self.gather(done.done())):
                    break
            with self.together():
                return done.result()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the body on all ranks; what a user must mend on any rank is raised on all of them.

        UserError and OSError (a full disk, a missing permission) count as such. The error of the lowest
        rank wins. Without this the other ranks would wait for the failed one in their next collective; for the
        same reason the body itself must not talk to other ranks.
        """
        mine: str | None = None
        try:
            yield
        except UserError as error:
            if error.on_all_ranks:
                raise
            mine = str(error)
        except OSError as error:
            mine = line_of(error, error.filename or "input/output")
        messages = [message for message in self.gather(mine) if message is not None]
        if messages:
            raise UserError.shared(messages[0]) from None


def group_of(rank: int, groups: Sequence[Sequence[int]]) -> list[int]:
    """The group that a rank is in."""
    return next(list(group) for group in groups if rank in group)
