"""Where a rank computes, and in which precision."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from hvdlm.errors import UserError
from hvdlm.host import keep_freed_memory
from hvdlm.launch.environment import memory_is_tuned, threads_wanted
from hvdlm.launch.installation import horovod_remedy
from hvdlm.world.place import Place

DeviceChoice = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]

log = logging.getLogger("hvdlm")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in bf16 or fp16 over float32 parameters; nothing for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def _without_gpu(wanted: DeviceChoice) -> DeviceChoice:
    lacks = f"Horovod here is built for CPU tensors (GPUs: {horovod_remedy(for_gpus=True)}; world: mpi does without)"
    if wanted == "cuda":
        raise UserError(f"train.device: cuda: {lacks}")
    log.warning(f"this GPU is not used: {lacks}")
    return "cpu"


def prepare_device(wanted: DeviceChoice, place: Place, *, threads: int = 0) -> torch.device:
    """The rank's device, ready: its own GPU where there are enough, the only visible one, or the CPU's threads.

    `threads` is how many the CPU's work shall have; 0 takes OMP_NUM_THREADS, or the rank's fair share of the node.
    """
    if not place.takes_gpu_tensors and torch.cuda.is_available() and wanted != "cpu":
        wanted = _without_gpu(wanted)
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        if not memory_is_tuned():
            keep_freed_memory()
        torch.set_num_threads(threads or threads_wanted() or place.threads)
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    number = 0 if visible == 1 else place.local_rank  # a launcher that binds GPUs shows each rank one
    if 1 != visible < place.local_size:
        raise UserError(
            f"{place.local_size} ranks on this host see {visible} GPUs; start one rank a GPU or set train.device: cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
