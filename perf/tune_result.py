"""What `hvdlm tune` found: a config with its measurements in the header, all runs as JSON, a table for the screen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hvdlm.config import to_yaml
from hvdlm.files import to_json, write_text_durably
from hvdlm.tables import counted, figure, table
from hvdlm.train.config import RunConfig

from .confidence import ConfidenceInterval, bracketed
from .record import RunRecord, step_times
from .scaling import estimate
from .search import CONFIRMATION, MESHES, Candidate, Race, Search, Trial

FAR = 100  # a ratio above says no more than that nobody knows

Runs = Sequence[tuple[Trial, RunRecord]]


def summarise(search: Search, runs: Runs) -> dict[str, Any]:
    """Verdict, the two rates and the stages, as JSON has them."""
    chosen, gain, sentence = search.verdict()
    return {
        "verdict": sentence + _rounding(search.space.base, chosen),
        "gain": _plain(gain) if gain else None,
        "config": {"settings": str(search.space.base), "tokens_per_s": _last_rate(runs, search.space.base)},
        "winner": {"settings": str(chosen), "tokens_per_s": _last_rate(runs, chosen)},
        "stages": [_stage(race, runs, search.space.predicted_s) for race in search.races],
    }


def _rounding(base: Candidate, chosen: Candidate) -> str:
    """What another number of tensor ranks does to the numbers."""
    if base.mesh is None or chosen.mesh is None or base.mesh.tensor == chosen.mesh.tensor:
        return ""
    return "; tensor ranks add products up in another order, so its weights differ from the config's by rounding"


def write(out: Path, settings: RunConfig, summary: dict[str, Any], runs: Runs) -> None:
    """The config with its header into `out`, and everything into the JSON beside it."""
    raw = [
        {"stage": trial.stage, "round": trial.round, "settings": asdict(trial.candidate), "record": record.model_dump()}
        for trial, record in runs
    ]
    write_text_durably(Path(summary["measurements"]), to_json({**summary, "runs": raw}, indent=1) + "\n")
    write_text_durably(out, _header(summary, runs[0][1]) + to_yaml(settings))


def _plain(interval: ConfidenceInterval) -> dict[str, float | None]:
    return {"value": interval.value, **interval.bounds}


def _last_rate(runs: Runs, candidate: Candidate) -> dict[str, Any] | None:
    """Tokens/s over the last stage in which a candidate ran; None if it never did."""
    stages = [trial.stage for trial, _ in runs if trial.candidate == candidate]
    return _rate(runs, stages[-1], candidate) if stages else None


def _rate(runs: Runs, stage: str, candidate: Candidate) -> dict[str, Any]:
    records = [record for trial, record in runs if (trial.stage, trial.candidate) == (stage, candidate)]
    step = estimate(step_times(records)).interval()
    return {**_plain(step.rate_of(records[0].tokens_per_step)), "runs": len(records)}


def _stage(race: Race, runs: Runs, predicted_s: Mapping[Candidate, float]) -> dict[str, Any]:
    """A stage's table: tokens/s of each candidate, its time against the fastest's, and what became of it.

    Of meshes also the seconds of a step, measured and predicted.
    """
    comparison = race.comparison() if race.seconds else None
    rows = []
    for candidate in race.candidates:
        row: dict[str, Any] = {"settings": str(candidate), "tokens_per_s": None, "to_fastest": None}
        if comparison and candidate in race.seconds:
            row["tokens_per_s"] = _rate(runs, race.stage, candidate)
            row["to_fastest"] = _plain(comparison.ratio(candidate, comparison.fastest))
        if race.stage == MESHES:
            row |= {"step_s": _step_s(race, candidate), "predicted_s": predicted_s.get(candidate)}
        rows.append({**row, "outcome": _outcome(race, candidate)})
    return {"stage": race.stage, "candidates": rows}


def _step_s(race: Race, candidate: Candidate) -> float | None:
    """The geometric mean of its runs, as its tokens/s."""
    found = race.seconds.get(candidate)
    return statistics.geometric_mean(found.values()) if found else None


def _outcome(race: Race, candidate: Candidate) -> str:
    if candidate in race.failed:
        return race.failed[candidate]
    if candidate not in race.seconds:
        return "no time"
    if candidate in race.slower:
        return "slower"
    if race.stage == CONFIRMATION:
        return ""
    return "kept" if candidate == race.preferred() else "not distinguishable"


def _header(summary: dict[str, Any], record: RunRecord) -> str:
    where = record.environment
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    lines = [
        f"{summary['command']}",
        f"{where.started[:10]}, {counted(summary['ranks'], 'rank')} on {', '.join(sorted(set(where.hosts)))}: "
        f"{where.cpu}, {counted(where.cores, 'core')}; {where.mpi}, {versions}",
        f"the config: {_line(summary['config'])}",
        f"this file: {_line(summary['winner'])}",
        summary["verdict"],
        f"all runs: {Path(summary['measurements']).name}",
    ]
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)


def _line(part: dict[str, Any]) -> str:
    rate = part["tokens_per_s"]
    if rate is None:
        return f"{part['settings']}: not measured"
    speed = bracketed(rate["value"], rate["low"], rate["high"], form="{:,.0f}")
    return f"{part['settings']}: {speed} tokens/s ({counted(rate['runs'], 'run')})"


def to_text(summary: dict[str, Any]) -> str:
    """A table a stage, below it who did not run and why, then the verdict and where it was written."""
    lines = []
    for stage in summary["stages"]:
        heads = [stage["stage"], "", "tokens/s", "time, fastest = 1"]
        ran = [row for row in stage["candidates"] if row["tokens_per_s"]]
        if stage["stage"] == MESHES:
            heads += ["step s", "predicted s"]
        lines.append(table(heads, [_cells(row) for row in ran], num_left=2))
        lines += [f"{row['settings']}: {row['outcome']}" for row in stage["candidates"] if row not in ran]
    return "\n".join([*lines, "", f"{summary['winner']['settings']}: {summary['verdict']}", summary["out"]])


def _cells(row: dict[str, Any]) -> list[str]:
    ratio = row["to_fastest"]
    high = ratio["high"] and (f"{ratio['high']:.2f}" if ratio["high"] < FAR else f"over {FAR}")
    spread = f" [{ratio['low']:.2f}, {high}]" if high else ""
    speed = f"{row['tokens_per_s']['value']:,.0f}"
    seconds = [figure(row[key]) if row[key] else "" for key in ("step_s", "predicted_s") if key in row]
    return [row["settings"], row["outcome"], speed, f"{ratio['value']:.3f}{spread}", *seconds]
