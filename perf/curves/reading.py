"""What a training run's folder tells of it: settings, curves, events. Nothing here needs the run to have ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from pydantic import ValidationError

from hvdlm.errors import UserError
from hvdlm.files import read_json, read_text
from hvdlm.parallel.config import ParallelConfig
from hvdlm.session.metrics import ENDED, LAST_EVENTS, METRICS, RESUMED, STARTED, read_run

from .objects import MOST_STEPS, sound
from .thinning import Curve

PLACE = ("split", "step")
PARALLEL = "parallel."  # before a setting's name
CONFIG, OWNER, CHECKPOINTS = "config.yaml", "owner", "checkpoints"


class Span(NamedTuple):
    """Steps that the ranks of one start have made, or of several alike: those behind `before`, up to `end`."""

    before: int
    end: int
    ranks: int | None
    mesh: str  # how they share a model, in words; empty where each has a whole one, or none is told


@dataclass(frozen=True)
class TrainingRun:
    """A run as its files tell of it."""

    name: str  # as short as tells it from the others beside it
    folder: Path
    settings: Mapping[str, Any]  # by dotted key
    curves: Mapping[tuple[str, str], Curve]  # by split and name
    events: Sequence[Mapping[str, Any]]
    state: Mapping[str, Any]  # of the newest checkpoint

    @cached_property
    def step(self) -> int:
        """The last that has a row."""
        return int(max(curve.steps[-1] for curve in self.curves.values()))

    @cached_property
    def start(self) -> Mapping[str, Any]:
        """The newest start."""
        return next((event for event in reversed(self.events) if event["event"] in (STARTED, RESUMED)), {})

    @cached_property
    def spans(self) -> list[Span]:
        """The steps by the ranks that made them; steps that a resume made again are the resume's."""
        starts = [event for event in self.events if event["event"] in (STARTED, RESUMED)]
        found: list[Span] = []
        for start in starts:
            found = [span for span in found if span.before < start["step"]]
            if found:
                found[-1] = found[-1]._replace(end=start["step"])
            mesh = start.get("mesh", "")
            if start is starts[-1] and not mesh:  # the config is that of the newest start
                mesh = _mesh_in(self.settings, start.get("ranks"))
            found.append(Span(start["step"], self.step, start.get("ranks"), mesh))
        return _joined([span for span in found if span.before < span.end])

    def median(self, split: str, name: str, span: Span | None = None) -> float:
        """Of the finite values of a curve, within a span if one is given; NaN where there is none."""
        curve = self.curves.get((split, name))
        if curve is None:
            return math.nan
        kept = np.isfinite(curve.values)
        if span is not None:
            kept &= (curve.steps > span.before) & (curve.steps <= span.end)
        return float(np.median(curve.values[kept])) if kept.any() else math.nan

    @cached_property
    def total_steps(self) -> int | None:
        return self.start.get("total_steps") or total_steps_in(self.folder)

    @cached_property
    def last_event(self) -> str:
        """How the newest start ended; "" while it has not, or where it was killed."""
        kind = self.events[-1]["event"] if self.events else ""
        if not self.events and self.total_steps and self.step >= self.total_steps:
            return ENDED  # of a version that told no events
        return kind if kind in LAST_EVENTS else ""

    @property
    def seconds(self) -> float | None:
        """Of training, over all starts."""
        told = [event["seconds"] for event in self.events if "seconds" in event]
        return told[-1] if told else self.state.get("seconds")

    def last(self, split: str, name: str) -> float:
        """The newest finite value of a curve; NaN where there is none."""
        curve = self.curves.get((split, name))
        return float(curve.finite[-1]) if curve is not None and len(curve.finite) else math.nan


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a training run's."""
    return (folder / METRICS).exists() or ((folder / CONFIG).exists() and (folder / CHECKPOINTS).is_dir())


def read_runs(folders: Sequence[Path]) -> list[TrainingRun]:
    """The runs in their order, with names that tell them apart. UserError for a folder that holds none."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; name the run_dir of a training")
        if not is_run(folder):
            raise UserError(f"{folder}: is no training run, it lacks {METRICS}; name the run_dir of a training")
    return [_read(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def _read(folder: Path, name: str) -> TrainingRun:
    rows, events = ([one for one in map(sound, found) if one] for found in read_run(folder / METRICS))
    curves = curves_of(rows)
    if not curves:
        raise UserError(f"{folder / METRICS}: has no row of a step yet; `hvdlm watch {folder}` waits for the first")
    return TrainingRun(name, folder, _settings(folder / CONFIG), curves, events, _newest_state(folder))


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Curve]:
    """Every column of sound rows, by split and name, in the order of their first rows."""
    found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for row in rows:
        for name in (name for name in row if name not in PLACE):
            steps, values = found.setdefault((row["split"], name), ([], []))
            steps.append(row["step"])
            values.append(row[name])
    return {key: Curve(np.array(steps, float), np.array(values, float)) for key, (steps, values) in found.items()}


def names_of(folders: Sequence[Path]) -> list[str]:
    """The parts of paths in which they differ; of one, and of equal ones, the path.

    >>> names_of([Path("runs/a/train"), Path("runs/b/train")]), names_of([Path("runs/a/train")])
    (['a', 'b'], ['runs/a/train'])
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(parts) == 1 or len(set(parts)) < len(parts):
        return [str(folder) for folder in folders]
    most = min(map(len, parts)) - 1  # something is left of the shortest
    head = next((n for n in range(most) if len({part[n] for part in parts}) > 1), most)
    tail = next((n for n in range(most - head) if len({part[-1 - n] for part in parts}) > 1), most - head)
    return ["/".join(part[head : len(part) - tail]) for part in parts]


def flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Settings by dotted key.

    >>> flat({"seed": 0, "data": {"path": "x"}})
    {'seed': 0, 'data.path': 'x'}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{at}{key}.") if isinstance(value, dict) and value else {f"{at}{key}": value}
    return found


def _settings(path: Path) -> dict[str, Any]:
    """Of RUN/config.yaml, which is for people: what cannot be read is not there."""
    try:
        values = yaml.safe_load(read_text(path))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return flat(values) if isinstance(values, dict) else {}


def _mesh_in(settings: Mapping[str, Any], ranks: int | None) -> str:
    """How ranks share a model by the settings of their start; earlier versions told it nowhere else."""
    told = {key.removeprefix(PARALLEL): value for key, value in settings.items() if key.startswith(PARALLEL)}
    try:
        return ParallelConfig(**told).in_words(ranks) if ranks and told else ""
    except (UserError, ValidationError):
        return ""


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Those that follow one another on the same ranks as one."""
    found: list[Span] = []
    for span in spans:
        if found and (found[-1].ranks, found[-1].mesh) == (span.ranks, span.mesh):
            span = found.pop()._replace(end=span.end)
        found.append(span)
    return found


def total_steps_in(folder: Path) -> int | None:
    """As RUN/owner has them: older versions told no events."""
    try:
        found = read_json(folder / OWNER)["total_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if type(found) is int and 0 < found < MOST_STEPS else None


def _newest_state(folder: Path) -> Mapping[str, Any]:
    """The newest checkpoint's own words, without a look at its weights; nothing where there is none."""
    from hvdlm import checkpoint

    try:
        steps = checkpoint.complete_steps(folder)
        return checkpoint.read_state(checkpoint.path_of(folder, steps[-1])) if steps else {}
    except (UserError, OSError):
        return {}
