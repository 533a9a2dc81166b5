"""The numbers of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hvdlm.files import write_text_durably
from hvdlm.session.logs import LogConfig
from hvdlm.world.interface import World


def read_metrics(path: Path, split: str | None = None) -> list[dict]:
    """The rows of a metrics.jsonl, in order; a last line torn by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if split is None or row["split"] == split:
            rows.append(row)
    return rows


class RunLog:
    """metrics.jsonl and TensorBoard of a run; on ranks other than 0 it writes nothing.

    Rows after `step` are dropped when it opens: a resumed run repeats those steps, each stands once.
    """

    def __init__(self, config: LogConfig, run_dir: Path, world: World, *, step: int) -> None:
        self._file: Any = None
        self._board: Any = None
        if world.rank:
            return
        self._config, self._run_dir = config, run_dir
        self._open(step)

    def _open(self, step: int) -> None:
        path = self._run_dir / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_text_durably(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        if self._config.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`: those steps will be made again."""
        if self._file is not None:
            self.__exit__()
            self._open(step)

    def write(self, step: int, split: str, **values: float) -> None:
        if self._file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        for part in (self._file, self._board):
            if part is not None:
                part.close()
