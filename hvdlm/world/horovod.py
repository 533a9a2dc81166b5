"""The world over Horovod: its MPI or Gloo controller on hosts, NCCL where it was built with it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as, met_over_gloo
from hvdlm.launch.installation import horovod_remedy
from hvdlm.world.interface import Pending, World, group_of
from hvdlm.world.mpi import YIELD, library_version, load_mpi, split_world
from hvdlm.world.serial import SerialWorld

TUNED = "OMPI_MCA_coll_tuned_"  # Open MPI's settings of its own choice of algorithms
PIECE_BYTES = 256 << 20
POLL_S = 1e-4  # nothing against a step, and little work for the core


def load_horovod() -> Any:
    """Import horovod.torch; UserError with the remedy where it is missing or was not built."""
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise UserError(f"Horovod cannot be imported ({error}); {horovod_remedy()}, or train with world=mpi") from None
    if not hasattr(hvd, "init"):  # its __init__ swallows a failed load of the extension
        remedy = f"{horovod_remedy()}, or train with world=mpi"
        raise UserError(f"Horovod's torch extension does not load (built for another torch?); {remedy}")
    return hvd


def reduce_large_buffers_in_segments() -> None:
    """Tell Open MPI to reduce what is above 4 MiB as a ring of 1 MiB segments, unless the user has his own rules.

    Horovod reduces a whole fused buffer in one call. In segments that stay in cache 80 MB took 10 ms instead of
    36 at 2 ranks on one host, 27 instead of 104 at 3. Another MPI does not read these variables.
    """
    if not any(name.startswith(TUNED) for name in os.environ):
        rules = Path(__file__).parent / "allreduce.rules"
        os.environ |= {TUNED + "use_dynamic_rules": "1", TUNED + "dynamic_rules_filename": str(rules)}


def wait_for(hvd: Any, handle: int) -> None:
    """Until an operation is done, so that other threads can run: Horovod's own wait keeps Python's lock.

    A thread that reads ahead would stand still, and one that watches for a rank that does not answer.
    """
    while not hvd.poll(handle):
        time.sleep(POLL_S)


def check_same_place(mpi: Any, rank: int, size: int) -> None:
    """UserError if Horovod counts its ranks otherwise than MPI: it was built with another MPI, or met over Gloo."""
    comm = mpi.COMM_WORLD
    if (comm.Get_rank(), comm.Get_size()) != (rank, size):
        raise UserError(
            f"this process is rank {comm.Get_rank()} of {comm.Get_size()} for MPI but {rank} of {size} for Horovod;"
            " unset HOROVOD_CONTROLLER, and build both with one MPI (see `hvdlm doctor`)"
        )


Groups = Sequence[Sequence[int]]


def sets_of(groups: Groups, size: int) -> list[tuple[int, ...]]:
    """The groups of ranks that Horovod has to know before it starts, each once.

    It has a set of all ranks anyway and refuses another one, and a rank that is alone needs none.

    >>> sets_of([[0, 2], [1, 3]], 4), sets_of([[0], [1]], 2), sets_of([[0, 1, 2]], 3)
    ([(0, 2), (1, 3)], [], [])
    """
    return [group for group in dict.fromkeys(tuple(group) for group in groups) if 1 < len(group) < size]


def start_horovod(data_groups: Callable[[int], Groups] | None = None) -> HorovodWorld:
    """Join Horovod's job. `data_groups(size)` are the groups of ranks whose gradients it will add up; None: all in one.

    They have to be known here: a set that is made later costs every cycle a message to all ranks.
    """
    # A dead or absent rank ends the job with its name instead of a silent wait.
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "300")
    hvd = load_horovod()
    # Under Gloo's own rendezvous (horovodrun --gloo) ranks are no MPI processes.
    if not met_over_gloo():
        reduce_large_buffers_in_segments()
    mpi = None if met_over_gloo() else load_mpi()
    started = (launched_as() or (0, 1))[1]
    size = started if mpi is None else mpi.COMM_WORLD.Get_size()
    is_whole = started in (1, size)  # otherwise these ranks are not the job, which `connect` finds
    groups = [tuple(group) for group in data_groups(size)] if data_groups is not None and is_whole else []
    if mpi is None and len(groups) > 1:
        raise needs_mpi()
    made = {group: hvd.ProcessSet(group) for group in sets_of(groups, size)}
    hvd.init(process_sets=list(made.values()))
    if mpi is not None:
        check_same_place(mpi, hvd.rank(), hvd.size())
    return HorovodWorld(hvd, mpi, {group: made.get(group) for group in groups}, range(hvd.size()))


def needs_mpi() -> UserError:
    return UserError.shared(
        "parallel.pipeline, parallel.tensor: their ranks meet over MPI, and horovodrun --gloo starts none; start with"
        " mpirun, or leave them at 1"
    )


class _Alone(SerialWorld):
    """Of a rank that shares its part of a model with no other, in a job of Horovod's."""

    kind = "horovod"


class HorovodWorld(World):
    """All collectives by Horovod, each with a fixed name, so that ranks can never pair up wrongly.

    `ranks` are all of the job, or one of the groups that Horovod was told of. Names in a group begin with the number of
    its set, so that Horovod's messages on ranks that wait tell one from another.
    """

    kind = "horovod"
    overlaps = True

    def __init__(self, hvd: Any, mpi: Any, sets: Mapping[tuple[int, ...], Any], ranks: Sequence[int]) -> None:
        """`sets`: of each group that Horovod was told of its process set; None where it needs no own one."""
        self._hvd, self._mpi, self._sets, self._first = hvd, mpi, sets, ranks[0]
        self.process_set = sets.get(tuple(ranks)) or hvd.global_process_set
        self.is_whole = self.process_set is hvd.global_process_set
        self.prefix = "" if self.is_whole else f"set{self.process_set.process_set_id}."
        self.rank, self.size = list(ranks).index(hvd.rank()), len(ranks)
        self.takes_gpu_tensors = bool(hvd.cuda_built() or hvd.rocm_built())
        self.needs_own_gpu = bool(hvd.nccl_built())
        self._under_way = 0

    def sum_(self, buffer: Any) -> None:
        tensor = torch.as_tensor(buffer)
        self._synchronize(self._start(tensor, f"hvdlm.sum.{tensor.dtype}.{tensor.numel()}"))

    def broadcast_(self, buffer: Any) -> None:
        tensor = torch.as_tensor(buffer).detach()
        if not tensor.numel():  # of numpy's empty arrays torch cannot see the bytes
            return
        data = tensor.view(-1).view(torch.uint8)  # any dtype, bfloat16 and bool too
        for start in range(0, data.numel(), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            name = f"{self.prefix}hvdlm.broadcast.{piece.numel()}"
            # Horovod counts the root among all ranks, whichever set it is of.
            self._hvd.broadcast_(piece, root_rank=self._first, name=name, process_set=self.process_set)

    def start_sum(self, buffer: Any) -> Pending:
        name = f"hvdlm.start_sum.{self._under_way}"  # the same names at each step: Horovod knows them again
        self._under_way += 1
        handle = self._start(buffer, name)
        return Pending(lambda: self._finish(handle))

    def _start(self, tensor: Any, name: str) -> int:
        named = self.prefix + name
        return self._hvd.allreduce_async_(tensor, op=self._hvd.Sum, name=named, process_set=self.process_set)

    def _synchronize(self, handle: int) -> None:
        wait_for(self._hvd, handle)
        self._hvd.synchronize(handle)

    def _finish(self, handle: int) -> None:
        self._synchronize(handle)
        self._under_way -= 1

    def exchange_rows(self, rows: Any) -> Any:
        # Horovod takes no bfloat16, and an alltoall of bytes is the same for every dtype.
        data = rows.detach().view(-1).view(torch.uint8)
        splits = torch.full((self.size,), data.numel() // self.size, dtype=torch.int32)
        received, _ = self._alltoall(data, splits, f"hvdlm.exchange.{data.numel()}")
        return received.view(rows.dtype).view(rows.shape)

    def gather_rows(self, row: Any) -> Any:
        data = row.detach().view(-1).view(torch.uint8)
        gathered = self._allgather(data, f"hvdlm.rows.{data.numel()}")
        return gathered.view(row.dtype).view(self.size, *row.shape)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.sum_(sizes)
        mine = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))
        joined = self._allgather(mine, f"hvdlm.gather.{int(sizes.sum())}").numpy().tobytes()
        ends = np.cumsum(sizes.numpy())
        return [joined[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]

    def exchange_bytes(self, parts: list[bytes]) -> list[bytes]:
        splits = torch.tensor([len(part) for part in parts], dtype=torch.int32)
        total = splits.sum(dtype=torch.int64).reshape(1)
        self.sum_(total)
        data = torch.from_numpy(np.frombuffer(bytearray(b"".join(parts)), dtype=np.uint8))
        received, sizes = self._alltoall(data, splits, f"hvdlm.parts.{int(total)}")
        return [part.numpy().tobytes() for part in received.split(sizes.tolist())]

    def _allgather(self, data: torch.Tensor, name: str) -> torch.Tensor:
        return self._hvd.allgather(data, name=self.prefix + name, process_set=self.process_set)

    def _alltoall(self, data: torch.Tensor, splits: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._hvd.alltoall(data, splits, name=self.prefix + name, process_set=self.process_set)

    def _part(self, groups: Groups, name: str) -> World:
        """By Horovod where it was told of these groups when it started, else over the same MPI."""
        assert self._parent is None, "a group's ranks form no groups"
        group = group_of(self.rank, groups)
        if all(tuple(each) in self._sets for each in groups):
            return HorovodWorld(self._hvd, self._mpi, self._sets, group) if len(group) > 1 else _Alone()
        if self._mpi is None:
            raise needs_mpi()
        return split_world(self._mpi.COMM_WORLD, groups, name)

    def settings(self) -> list[str]:
        built = "NCCL" if self._hvd.nccl_built() else "MPI" if self._mpi is not None else "Gloo"
        mpi = [library_version(), f"{YIELD}={os.environ[YIELD]}"] if self._mpi is not None else []
        names = ("HOROVOD_FUSION_THRESHOLD", "HOROVOD_CYCLE_TIME")
        knobs = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
        return [", ".join([f"Horovod over {built}", *mpi, *knobs])]

    def mpi_library(self) -> str:
        return "none" if self._mpi is None else library_version()

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._mpi is not None:
            self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        if self._parent is None:
            self._hvd.shutdown()
