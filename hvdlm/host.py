"""What one process takes from its node: cores, threads, and how it keeps freed memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal


def affinity() -> frozenset[int]:
    """Numbers of the cores this process may run on."""
    return frozenset(os.sched_getaffinity(0))


def physical_cores(cpus: Iterable[int] | None = None) -> int:
    """Cores behind `cpus`, or behind this process's affinity; two hardware threads of one core count once."""
    cores = set()
    for cpu in affinity() if cpus is None else cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return len(cores)


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bf16 numbers itself; True where that cannot be told."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return True
    knows = bool(words & {"flags", "Features"})  # as x86 and ARM name them
    return not knows or bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of returning them to the kernel.

    Activations of a few MB are allocated and freed in every layer; mapping and zeroing their pages again
    each time cost 13-17 % of a bf16 training step on CPU. Elsewhere than on glibc this does nothing.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 2**31 - 1)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return


def free_bytes() -> int:
    """Memory that programs of this machine may still take without swapping; as good as endless where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), 1 << 62)


def memory_bytes(kind: Literal["VmRSS", "VmHWM"]) -> int:
    """Memory of this process now or at its peak; 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(kind)), 0)
