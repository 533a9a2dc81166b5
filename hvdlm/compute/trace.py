"""What happens inside some steps, as a timeline for Perfetto (https://ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function


class Timed:
    """A part of a step: its `seconds` once it is over, and its name in a trace."""

    def __init__(self, name: str) -> None:
        self._mark = record_function(f"hvdlm: {name}")
        self.seconds = 0.0

    def __enter__(self) -> Timed:
        self._mark.__enter__()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._mark.__exit__(*exc)


class Trace:
    """Records every operator of steps [first, end) of one rank and writes them to `path`."""

    def __init__(self, steps: tuple[int, int] | None, path: Path) -> None:
        self._steps, self._path = steps, path
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """To be called before each step."""
        if self._steps is None:
            return
        first, end = self._steps
        if step >= end:
            self.close()
        elif step >= first and self._profile is None:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profile = profile(activities=kinds)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what would be lost between cycles, of which there is one
                self._profile.start()

    def close(self) -> None:
        """Write what was recorded, once."""
        if self._profile is None:
            return
        self._profile.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._path))
        self._steps = self._profile = None
