"""Where a rank computes, and in which precision."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from hvdlm.errors import UserError
from hvdlm.host import keep_freed_memory
from hvdlm.launch.environment import fix_cublas_workspace, memory_is_tuned, threads_wanted
from hvdlm.launch.installation import horovod_remedy
from hvdlm.world.interface import World
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


def prepare_device(
    wanted: DeviceChoice, place: Place, *, threads: int = 0, deterministic: bool = False
) -> torch.device:
    """The rank's device, ready: its own GPU where there are enough, the only visible one, or the CPU's threads.

    `threads` is how many the CPU's work shall have; 0 takes OMP_NUM_THREADS, or the rank's fair share of the node.
    `deterministic` asks a GPU for the same bits each time; a CPU gives them anyway.
    """
    if not place.takes_gpu_tensors and torch.cuda.is_available() and wanted != "cpu":
        wanted = _without_gpu(wanted)
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        if not memory_is_tuned():
            keep_freed_memory()
        torch.set_num_threads(threads or threads_wanted() or place.threads)
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if not visible:
        raise UserError("train.device: cuda: no GPU is to be seen here (see `hvdlm doctor`); set train.device: cpu")
    number = 0 if visible == 1 else place.local_rank  # a launcher that binds GPUs shows each rank one
    if 1 != visible < place.local_size:
        raise UserError(
            f"{place.local_size} ranks on this host see {visible} GPUs; start one rank a GPU or set train.device: cpu"
        )
    _choose_kernels(deterministic)
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _choose_kernels(deterministic: bool) -> None:
    """Before the first kernel. Torch raises a RuntimeError where it has no kernel that gives the same bits each time.

    If it only warned (warn_only), cuDNN's and the memory-efficient attention would take their other kernels.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, in an LSTM as elsewhere; who wants speed takes bf16
    if deterministic:
        fix_cublas_workspace()
    torch.use_deterministic_algorithms(deterministic)
    # A pass over each new tensor, for programs that read what they have not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_own_gpu(device: torch.device, world: World) -> None:
    """Where ranks share a GPU: UserError on all of them if their world cannot do with that, else a remark. Collective.

    A launcher that binds GPUs shows each rank one, called 0; one that does not, on a host with one, shows all the same.
    """
    found = world.gather(gpu_id(device))
    shared = {gpu: [rank for rank, other in enumerate(found) if other == gpu] for gpu in found if gpu}
    ranks = max(shared.values(), key=len, default=[])
    if len(ranks) < 2:
        return
    names = ", ".join(map(str, ranks[:8])) + ("…" if len(ranks) > 8 else "")
    fault = f"ranks {names} share one GPU"
    remedy = "start one rank a GPU (with srun --gpus-per-node as many as ranks, --gpu-bind=none)"
    if world.needs_own_gpu:
        raise UserError.shared(f"{fault}, which NCCL refuses; {remedy}, or use world: mpi or train.device: cpu")
    if world.rank == 0:
        log.warning("%s, so each has a part of its speed; to scale %s", fault, remedy)


def gpu_id(device: torch.device) -> str:
    """Names a GPU of the world's, whatever number it has for this rank; "" for a CPU, and where torch does not tell."""
    return "" if device.type == "cpu" else str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
