"""One rank of a job of `hvdlm bench train`: it builds its program, then runs steps whenever it is told to."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.host import memory_bytes

from .job import end_with_parent

if TYPE_CHECKING:  # a rank says hello before it imports torch
    from hvdlm.data.orders import Batches
    from hvdlm.train.config import RunConfig
    from hvdlm.world.interface import World

WARM_STEPS = 1  # of a block, before it is timed: the caches were another job's


@dataclass(frozen=True)
class CellSpec:
    """What a job is: `program` is `alone` (a world of one in each process), a world, or a peer of `peers`."""

    program: str
    config: dict  # a RunConfig as plain values
    socket: str  # where the parent listens
    warmup: int


def read_spec(path: Path) -> CellSpec:
    """What `hvdlm bench train` wrote for its ranks; UserError if it is not that."""
    try:
        return CellSpec(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: no job of `hvdlm bench train`: {error}; run that instead") from None


class EngineProgram:
    """The real training step."""

    def __init__(self, config: RunConfig, world: World) -> None:
        from hvdlm.train.setup import build_learner
        from hvdlm.train.step import GradientLearner

        learner, _ = build_learner(config, world)
        assert isinstance(learner, GradientLearner), "what is counted has no step to time"
        self.learner = learner
        self.num_parameters = self.learner.num_parameters
        self._real = self.learner.examples.batches
        self._tokens_per_micro_batch = config.train.micro_batch * config.data.seq_len

    def run(self, first: int, end: int) -> dict[str, Any]:
        """Run steps [first, end); this rank's tokens, and the seconds of each step."""
        results = self.learner.run(first, end)
        tokens = self._tokens_per_micro_batch if self.learner.axes.speaks else 0  # of a replica's ranks one counts
        return {
            "tokens": sum(result.micro_batches for result in results) * tokens,
            "step_s": [result.step_s for result in results],
            "data_wait_s": [result.data_wait_s for result in results],
            "comm_s": [result.comm_s for result in results],
        }

    def use(self, data: str) -> None:
        """`constant` repeats one batch from memory from now on, `real` reads windows as always."""
        self.learner.examples.batches = Constant(self._real) if data == "constant" else self._real

    def loader_windows_per_s(self, seconds: float) -> float:
        """How many windows a second the loader gives to this rank while nobody trains."""
        num = self.learner.config.train.global_batch // self.learner.axes.data.size
        step, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            self._real.windows(np.arange(step * num, (step + 1) * num, dtype=np.int64), step)
            step += 1
        return step * num / spent


class Constant:
    """The same windows for every step."""

    pads = False

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._windows: np.ndarray | None = None

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        return self._batches.lengths(positions)

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        if self._windows is None:
            self._windows = self._batches.windows(positions, step)
        return self._windows


@contextlib.contextmanager
def opened(spec: CellSpec, rank: int, size: int) -> Iterator[Any]:
    """The program of this rank, and its world around it."""
    from hvdlm.train.config import RunConfig

    from .peers import PEERS

    config = validate(RunConfig, spec.config, Path("bench"))
    if spec.program == "alone":
        from hvdlm.world.serial import SerialWorld

        yield EngineProgram(config, SerialWorld())
    elif spec.program in PEERS:
        with PEERS[spec.program](config, rank, size) as peer:
            yield peer
    else:
        from hvdlm.world.connect import connected

        kind: Any = spec.program
        groups = config.parallel.data_groups
        with connected(kind, environment=config.sync.environment, data_groups=groups) as world:
            yield EngineProgram(config, world)


def serve(spec: CellSpec, rank: int, size: int) -> None:
    """Say hello, build, warm up, and follow orders until told to quit or nobody is there to give any."""
    end_with_parent(signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(spec.socket)
        _say(link, rank=rank, pid=os.getpid())
        with opened(spec, rank, size) as program, link.makefile("r", encoding="utf-8") as orders:
            program.run(0, 1)  # allocates, so it says nothing of the steps to come
            times = program.run(1, 1 + spec.warmup)
            _give_back_memory()
            num_parameters = getattr(program, "num_parameters", None)
            _say(link, step_s=times["step_s"], memory_bytes=memory_bytes("VmRSS"), num_parameters=num_parameters)
            step = 1 + spec.warmup
            for line in orders:
                order = json.loads(line)
                if order["do"] == "quit":
                    break
                if order["do"] == "load":
                    _say(link, windows_per_s=program.loader_windows_per_s(order["seconds"]))
                    continue
                if "data" in order:
                    program.use(order["data"])
                program.run(step, step + WARM_STEPS)
                step += WARM_STEPS
                block = _timed(program, step, step + order["steps"])
                step += order["steps"]
                _give_back_memory()
                _say(link, **block)


def _timed(program: Any, first: int, end: int) -> dict:
    """The fields of a `paired.RankBlock`."""
    start, cpu_before = time.monotonic(), time.process_time()
    times = program.run(first, end)
    return {"start": start, "end": time.monotonic(), "cpu_s": time.process_time() - cpu_before, **times}


def _give_back_memory() -> None:
    """Leave freed memory to the jobs that run while this one is stopped; its next warm step takes it again."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _say(link: socket.socket, **words: object) -> None:
    link.sendall((json.dumps(words) + "\n").encode())
