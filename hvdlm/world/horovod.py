"""The world over Horovod: its MPI or Gloo controller on hosts, NCCL where it was built with it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdlm.errors import UserError
from hvdlm.launch.environment import met_over_gloo
from hvdlm.launch.installation import horovod_remedy
from hvdlm.world.interface import Pending, World
from hvdlm.world.mpi import YIELD, library_version, load_mpi

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


class HorovodWorld(World):
    """All collectives by Horovod, each with a fixed name, so that ranks can never pair up wrongly."""

    kind = "horovod"
    overlaps = True

    def __init__(self) -> None:
        # A dead or absent rank ends the job with its name instead of a silent wait.
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "300")
        self._hvd = load_horovod()
        self.takes_gpu_tensors = bool(self._hvd.cuda_built() or self._hvd.rocm_built())
        self.needs_own_gpu = bool(self._hvd.nccl_built())
        # Under Gloo's own rendezvous (horovodrun --gloo) ranks are no MPI processes.
        if not met_over_gloo():
            reduce_large_buffers_in_segments()
        self._mpi = None if met_over_gloo() else load_mpi()
        self._hvd.init()
        self.rank = self._hvd.rank()
        self.size = self._hvd.size()
        if self._mpi is not None:
            check_same_place(self._mpi, self.rank, self.size)
        self._under_way = 0

    def sum_(self, buffer: Any) -> None:
        tensor = torch.as_tensor(buffer)
        name = f"hvdlm.sum.{tensor.dtype}.{tensor.numel()}"
        self._synchronize(self._hvd.allreduce_async_(tensor, op=self._hvd.Sum, name=name))

    def broadcast_(self, buffer: Any) -> None:
        tensor = torch.as_tensor(buffer).detach()
        if not tensor.numel():  # of numpy's empty arrays torch cannot see the bytes
            return
        data = tensor.view(-1).view(torch.uint8)  # any dtype, bfloat16 and bool too
        for start in range(0, data.numel(), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            self._hvd.broadcast_(piece, root_rank=0, name=f"hvdlm.broadcast.{piece.numel()}")

    def start_sum(self, buffer: Any) -> Pending:
        name = f"hvdlm.start_sum.{self._under_way}"  # the same names at each step: Horovod knows them again
        self._under_way += 1
        handle = self._hvd.allreduce_async_(buffer, op=self._hvd.Sum, name=name)
        return Pending(lambda: self._finish(handle))

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
        received, _ = self._hvd.alltoall(data, splits, name=f"hvdlm.exchange.{data.numel()}")
        return received.view(rows.dtype).view(rows.shape)

    def gather_rows(self, row: Any) -> Any:
        data = row.detach().view(-1).view(torch.uint8)
        gathered = self._hvd.allgather(data, name=f"hvdlm.rows.{data.numel()}")
        return gathered.view(row.dtype).view(self.size, *row.shape)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.sum_(sizes)
        mine = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))
        joined = self._hvd.allgather(mine, name=f"hvdlm.gather.{int(sizes.sum())}").numpy().tobytes()
        ends = np.cumsum(sizes.numpy())
        return [joined[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]

    def exchange_bytes(self, parts: list[bytes]) -> list[bytes]:
        splits = torch.tensor([len(part) for part in parts], dtype=torch.int32)
        total = splits.sum(dtype=torch.int64).reshape(1)
        self.sum_(total)
        data = torch.from_numpy(np.frombuffer(bytearray(b"".join(parts)), dtype=np.uint8))
        received, sizes = self._hvd.alltoall(data, splits, name=f"hvdlm.parts.{int(total)}")
        return [part.numpy().tobytes() for part in received.split(sizes.tolist())]

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
        self._hvd.shutdown()
