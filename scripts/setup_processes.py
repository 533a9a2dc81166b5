"""Steps that leave nothing behind, however they end; one set-up at a time; how many compilers this machine bears.

As a program (`python3 setup_processes.py COMMAND …`) it is the guard of one step: it runs the command in a session and
with a TMPDIR of its own, and ends the whole of it, compilers included, when told to or when the set-up is gone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

COMPILER_BYTES = 1_500 << 20  # what g++ took for one of Horovod's torch sources, at most
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_S = 5


def run_guarded(command: list[str], log: IO[str] | None, environment: dict[str, str]) -> int:
    """The exit code of a command; nothing that it started outlives this call, nor this process."""
    guard = [sys.executable, "-S", str(Path(__file__).resolve()), str(os.getpid()), *command]
    streams = {} if log is None else {"stdout": log, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(  # type: ignore[call-overload]
        guard, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, **streams
    )
    try:
        code: int = process.wait()
        return code
    except BaseException:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(2 * GRACE_S)
        raise
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _guard(parent: int, command: list[str]) -> int:
    with suppress(OSError, AttributeError):  # told even when the set-up is killed by SIGKILL
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    folder, child = tempfile.mkdtemp(prefix="hvdlm-setup-"), None
    try:
        if os.getppid() != parent:  # gone before it could be watched
            return 1
        child = subprocess.Popen(command, env={**os.environ, "TMPDIR": folder})
        return child.wait()
    except OSError as error:
        print(f"ERROR: {error}", flush=True)
        return 127
    except SystemExit:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        if child is not None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def end_by_signals() -> None:
    """SIGTERM and a closed terminal end the set-up as Ctrl-C does: what it started goes first."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)


@contextmanager
def alone(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of this path; yields False where the file system has no locks. It falls with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield _lock(file, on_wait)


def _lock(file: IO[str], on_wait: Callable[[], None]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def compiler_jobs() -> int:
    """Compilers at a time: cores of this process, its cgroup's share of them and the memory at hand are the limits.

    MAX_JOBS, which torch's own extensions know too, overrides it.
    """
    if os.environ.get("MAX_JOBS", "").isdigit():
        return max(1, int(os.environ["MAX_JOBS"]))
    cores, memory = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    limits = [float(len(os.sched_getaffinity(0))), cores, min(memory, _available_bytes()) / COMPILER_BYTES]
    return max(1, int(min(limits)))


def cgroup_limits(own: Path, mount: Path) -> tuple[float, float]:
    """Cores and bytes of memory that the cgroups (v2) of this process leave it; inf where there is no limit."""
    cores = memory = float("inf")
    try:
        name = next(line.split("::", 1)[1].strip() for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return cores, memory
    folder = mount / name.lstrip("/")
    for place in [folder, *folder.parents]:
        if not place.is_relative_to(mount):
            break
        quota = re.match(r"(\d+) (\d+)", _read(place / "cpu.max"))
        if quota:
            cores = min(cores, int(quota[1]) / int(quota[2]))
        limit = _read(place / "memory.max").strip()
        if limit.isdigit():
            memory = min(memory, int(limit))
    return cores, memory


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _available_bytes() -> float:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) * 1024 if found else float("inf")


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2:]))
