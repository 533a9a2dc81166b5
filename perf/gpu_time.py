"""What a GPU does during some work: how much of the time it is busy, and with which kinds of kernels."""

from __future__ import annotations

import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first kind whose pattern is in a kernel's name counts; libraries name theirs in many ways.
KINDS = {
    "attention": r"flash|fmha|attention|sdpa",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|wgmma",
    "optimizer": r"adam|multi_tensor_apply",
    "loss": r"softmax|nll_loss|cross_entropy",
    "copies": r"memcpy|memset",
    "communication": r"nccl",
    "other": "",
}
NUM_TOP = 25


def kind_of(kernel: str) -> str:
    """
    >>> kind_of("nvjet_tst_128x256_64x4"), kind_of("void at::native::vectorized_elementwise_kernel<4, ...>")
    ('matrix products', 'other')
    """
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end).

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total


def where_time_goes(work: Callable[[], object], device: torch.device) -> dict:
    """`busy`: the share of `work`'s time in which the GPU does something; `kinds` share that; `top` kernels in ms.

    Nothing on a CPU.
    """
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what would be lost between cycles, of which there is one
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            start = time.perf_counter()
            work()
            torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
    kernels = [
        event
        for event in found.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, float] = defaultdict(float)
    for event in kernels:
        by_kind[kind_of(event.name)] += event.time_range.elapsed_us()
        by_name[event.name[:120]] += event.time_range.elapsed_us()
    total = sum(by_kind.values()) or 1.0
    busy_us = covered((event.time_range.start, event.time_range.end) for event in kernels)
    shares = sorted(by_kind.items(), key=lambda item: -item[1])
    top = sorted(by_name.items(), key=lambda item: -item[1])[:NUM_TOP]
    return {
        "busy": round(busy_us / 1e6 / seconds, 4),
        "ms": round(1000 * seconds, 2),
        "kernels": len(kernels),
        "kinds": {kind: round(us / total, 4) for kind, us in shares},
        "top_ms": {name: round(us / 1000, 3) for name, us in top},
    }
