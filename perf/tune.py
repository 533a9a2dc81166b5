"""`hvdlm tune`: the fastest settings of a config on this machine, at the same global batch, precision and model.

What is tried and who wins is decided in search.py; here each run is an mpirun of its own, time is kept, and
the winner becomes a config with its measurements beside it. The gain that is stated comes from runs made after
the search, config and winner in turn: the fastest of many looks faster than it is.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvdlm.config import validate
from hvdlm.data.corpora import open_corpora
from hvdlm.errors import UserError
from hvdlm.files import make_ready
from hvdlm.host import affinity, physical_cores
from hvdlm.sync import SYNCS
from hvdlm.tables import counted
from hvdlm.train.config import RunConfig, check_batch
from hvdlm.train.mesh_plan import config_on
from hvdlm.train.parts import extensions_of

from .job import JobFailed, run_job
from .measure import MeasurementSpec
from .mesh_search import with_meshes
from .record import RunRecord
from .search import (
    CONFIRMATION,
    Candidate,
    Failed,
    OutOfTime,
    Search,
    SearchSpace,
    Trial,
    micro_batch_choices,
    thread_choices,
)
from .tune_result import summarise, write

log = logging.getLogger("hvdlm")

CONFIRMATIONS = 5  # pairs of runs
CONFIRMING_SHARE = 0.4  # of the time at most is kept for them


@dataclass(frozen=True)
class TuneOptions:
    """How the search is done; `kinds` empty: all that give the plain mean, where that changes no number."""

    ranks: int
    minutes: float
    steps: int
    warmup: int
    repeats: int
    kinds: tuple[str, ...]
    out: Path
    command: str  # as it was typed, for the header
    meshes: bool = False  # whether they are searched, too


def space_of(config: RunConfig, ranks: int, kinds: tuple[str, ...]) -> SearchSpace:
    """What may be changed about this config on this machine; UserError if the batch cannot be shared."""
    batch, mesh = config.train.global_batch, config.parallel.mesh(ranks)
    if batch % mesh.data:
        raise UserError(f"global_batch {batch} is not a multiple of {mesh.holders}; change it or --ranks")
    sync = config.sync.model_dump(exclude_defaults=True)
    if not config.sync.steps_together:
        raise UserError(f"{config.sync.label} has no steps that all ranks share, so there is no time of one to tune")
    kind = _resolved_kind(config)
    tuned = SYNCS[kind].knobs
    others = sorted(sync.keys() - tuned.keys() - {"kind"})
    if kinds and others:
        raise UserError(f"--kinds: the config sets sync.{others[0]}, which another sync has not; leave --kinds out")
    if not kinds:
        is_plain = config.sync.gives_plain_mean and not others
        kinds = tuple(name for name, sync in SYNCS.items() if sync.gives_plain_mean) if is_plain else (kind,)
    chosen = tuple(sorted((name, value) for name, value in sync.items() if name in tuned))
    base = Candidate(config.train.micro_batch, config.train.threads, kind, chosen)
    knobs = {name: SYNCS[name].knobs for name in kinds}
    choices = {base.mesh: micro_batch_choices(batch // mesh.data)}
    return SearchSpace(base, choices, _threads(base.threads, ranks), knobs)


def _threads(configured: int, ranks: int) -> tuple[int, ...]:
    """The choices on this machine; 0 is none where it means what is configured."""
    cpus = len(affinity())
    found = thread_choices(physical_cores(), cpus, ranks)
    return found[1:] if configured == max(1, cpus // ranks) else found


def _resolved_kind(config: RunConfig) -> str:
    """What `auto` will be under mpirun."""
    can_be_horovod = config.world in ("auto", "horovod") and importlib.util.find_spec("horovod") is not None
    return config.sync.resolved("horovod" if can_be_horovod else "mpi").kind


def settings_of(config: RunConfig, base: Candidate, candidate: Candidate) -> RunConfig:
    """The config with a candidate's settings; a section that needs no change stays as it was written."""
    if candidate.mesh is not None and candidate.mesh != base.mesh:
        config = config_on(config, candidate.mesh)
    values = config.model_dump(mode="json")
    values["train"].update(micro_batch=candidate.micro_batch, threads=candidate.threads)
    if (candidate.kind, candidate.knobs) != (base.kind, base.knobs):
        own = values["sync"] if values["sync"]["kind"] == candidate.kind else {}
        kept = {name: value for name, value in own.items() if name not in SYNCS[candidate.kind].knobs}
        values["sync"] = {**kept, "kind": candidate.kind, **dict(candidate.knobs)}
    return validate(RunConfig, values, Path("tune"))


class _Runs:
    """Makes the runs, keeps their records, and knows how much time is left."""

    def __init__(self, config: RunConfig, base: Candidate, options: TuneOptions, deadline: float) -> None:
        self._config, self._base, self._options, self._deadline = config, base, options, deadline
        self.done: list[tuple[Trial, RunRecord]] = []
        self._durations: list[float] = []

    def __call__(self, trial: Trial) -> float:
        left_s = self._left_s(trial)
        if left_s <= 0:
            raise OutOfTime
        start = time.monotonic()
        try:
            record = self._run(trial, left_s)
        except Failed as error:
            log.info("%s: %s does not run: %s", trial.stage, trial.candidate, error)
            raise
        self._durations.append(time.monotonic() - start)
        self.done.append((trial, record))
        seconds = statistics.median(record.slowest_s)
        speed = f"{record.tokens_per_step / seconds:,.0f} tokens/s"
        minutes, rest = divmod(max(0, round(self._deadline - time.monotonic())), 60)
        left = f"{counted(trial.left, 'run')} to the end of the round, {minutes}:{rest:02d} to that of the time"
        log.info("%s, round %d: %s: %s | %s", trial.stage, trial.round + 1, trial.candidate, speed, left)
        return seconds

    def _left_s(self, trial: Trial) -> float:
        """Until the deadline, less what the confirmation will need."""
        reserve_s = 0.0
        if trial.stage != CONFIRMATION and self._durations:
            expected_s = 2 * CONFIRMATIONS * statistics.median(self._durations)
            reserve_s = min(expected_s, CONFIRMING_SHARE * 60 * self._options.minutes)
        return self._deadline - reserve_s - time.monotonic()

    def _run(self, trial: Trial, left_s: float) -> RunRecord:
        try:
            settings = settings_of(self._config, self._base, trial.candidate)
            check_batch(settings.train, settings.parallel.mesh(self._options.ranks))
        except UserError as error:
            raise Failed(str(error)) from None
        values = settings.model_dump(mode="json")
        values["train"]["ramp"] = None  # the steps of the full batch are what counts
        with tempfile.TemporaryDirectory(prefix="hvdlm-tune-") as folder:
            counts = self._options.steps, self._options.warmup
            files = extensions_of(settings)
            spec = MeasurementSpec(
                values, folder, trial.round, *counts, is_strong=False, is_weak=False, extensions=files
            )
            path = Path(folder) / "spec"
            path.write_text(json.dumps(asdict(spec)))
            try:
                run_job(self._options.ranks, ["measure", str(path)], timeout_s=left_s)
            except JobFailed as error:
                raise Failed(str(error), for_memory=error.for_memory) from None
            except subprocess.TimeoutExpired:
                raise OutOfTime from None
            (found,) = Path(folder).glob("*.json")
            return RunRecord.model_validate_json(found.read_text(encoding="utf-8"))


def tune(config: RunConfig, options: TuneOptions) -> dict[str, Any]:
    """Search, confirm, and write `options.out` and the JSON beside it; returns what the JSON holds but for the runs.

    Both files are written after each stage, and when interrupted. UserError if nothing runs.
    """
    open_corpora(config.data)
    make_ready("--out", options.out)
    deadline = time.monotonic() + 60 * options.minutes
    space = space_of(config, options.ranks, options.kinds)
    if options.meshes:
        log.info("planning the meshes of %s", counted(options.ranks, "rank"))
        space = with_meshes(space, config, options.ranks)
    runs = _Runs(config, space.base, options, deadline)
    search = Search(space, runs, options.repeats)
    log.info("tuning: the config is %s; at most %g min", space.base, options.minutes)
    try:
        for race in search.stages():
            log.info("%s: best so far: %s", race.stage, search.best)
            if runs.done:
                _write(config, options, search, runs)
        if runs.done:
            search.confirm(CONFIRMATIONS)
    finally:
        if runs.done:
            summary = _write(config, options, search, runs)
    if not runs.done:
        reasons = [why for one, why in search.races[0].failed.items() if one not in space.left_out]
        reasons.append("time was up before the first run was; give more --minutes")
        raise UserError(f"nothing was measured: {reasons[0]}")
    return summary


def _write(config: RunConfig, options: TuneOptions, search: Search, runs: _Runs) -> dict[str, Any]:
    paths = {"out": str(options.out), "measurements": str(options.out.with_suffix(".json"))}
    head = {"schema_version": 1, "command": options.command, "ranks": options.ranks, **paths}
    summary = {**head, **summarise(search, runs.done)}
    write(options.out, settings_of(config, search.space.base, search.verdict()[0]), summary, runs.done)
    return summary
