"""What happens inside some steps, as a timeline for Perfetto (https://ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


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
            self._profile.start()

    def close(self) -> None:
        """Write what was recorded, once."""
        if self._profile is None:
            return
        self._profile.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._path))
        self._steps = self._profile = None
