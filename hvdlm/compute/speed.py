"""How fast this machine multiplies matrices."""

from __future__ import annotations

import time

import torch

from hvdlm.compute.device import autocast


def measured_flops(device: torch.device, precision: str, threads: int, seconds: float = 0.5) -> float:
    """FLOP/s of one rank with so many threads, of products of (1024, 1024): the most that a model can reach."""
    before, size = torch.get_num_threads(), 1024
    torch.set_num_threads(threads)
    try:
        x = torch.randn(size, size, device=device)
        with autocast(device, precision):
            _wait_for(x @ x)
            begin, num = time.perf_counter(), 0
            while (passed := time.perf_counter() - begin) < seconds:
                _wait_for(x @ x)
                num += 1
        return 2 * size**3 * num / passed
    finally:
        torch.set_num_threads(before)


def _wait_for(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
