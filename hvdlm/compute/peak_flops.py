"""What the processor could do at most: the denominator of model FLOPs utilization."""

from __future__ import annotations

import math
import time

import torch

# Dense tensor-core peaks from the makers' data sheets, FLOP/s: (bf16 and fp16, fp32 or TF32 where torch uses it).
DEVICE_FLOPS = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "V100": (125e12, 15.7e12),
}
GEMM_WIDTH, TRIALS = 512, 5


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of one rank: from the table for a known GPU, measured by a matrix product on its CPU threads."""
    if device.type == "cpu":
        # fp16 counts as fp32: most CPUs only convert it, and its product would take half a second to measure.
        return measured_gemm_flops(torch.bfloat16 if precision == "bf16" else torch.float32)
    name = torch.cuda.get_device_name(device)
    known = next((flops for part, flops in DEVICE_FLOPS.items() if part in name), None)
    return known and known[precision == "fp32"]


def measured_gemm_flops(dtype: torch.dtype) -> float:
    """The best of a few square products, large enough for the threads there are: about 0.02 s on a core."""
    width = GEMM_WIDTH * math.ceil(math.sqrt(torch.get_num_threads()))
    a, b = (torch.randn(width, width).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(TRIALS):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best
