"""The world over Horovod: its MPI or Gloo controller on hosts, NCCL where it was built with it."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from hvdlm.errors import UserError
from hvdlm.world.interface import World
from hvdlm.world.mpi import load_mpi

PIECE_BYTES = 256 << 20


def load_horovod() -> Any:
    """Import horovod.torch; UserError with the remedy where it is missing or was not built."""
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise UserError(f"Horovod cannot be imported ({error}); `make setup` builds it, or use world=mpi") from None
    if not hasattr(hvd, "init"):  # its __init__ swallows a failed load of the extension
        raise UserError("Horovod's torch extension does not load (built for another torch?); run `make setup`")
    return hvd


class HorovodWorld(World):
    """All collectives by Horovod, each with a fixed name, so that ranks can never pair up wrongly."""

    kind = "horovod"

    def __init__(self) -> None:
        # A dead or absent rank ends the job with its name instead of a silent wait.
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "300")
        self._hvd = load_horovod()
        # Under Gloo's own rendezvous (horovodrun --gloo) ranks are no MPI processes.
        self._mpi = None if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ else load_mpi()
        self._hvd.init()
        self.rank = self._hvd.rank()
        self.size = self._hvd.size()

    def sum_(self, buffer: Any) -> None:
        import torch

        tensor = torch.as_tensor(buffer)
        self._hvd.allreduce_(tensor, op=self._hvd.Sum, name=f"hvdlm.sum.{tensor.dtype}.{tensor.numel()}")

    def broadcast_(self, buffer: Any) -> None:
        import torch

        data = torch.as_tensor(buffer).detach().view(-1).view(torch.uint8)  # any dtype, bfloat16 and bool too
        for start in range(0, data.numel(), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            self._hvd.broadcast_(piece, root_rank=0, name=f"hvdlm.broadcast.{piece.numel()}")

    def gather_bytes(self, data: bytes) -> list[bytes]:
        import torch

        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.sum_(sizes)
        mine = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))
        joined = self._hvd.allgather(mine, name=f"hvdlm.gather.{int(sizes.sum())}").numpy().tobytes()
        ends = np.cumsum(sizes.numpy())
        return [joined[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._mpi is not None:
            self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def close(self) -> None:
        self._hvd.shutdown()
