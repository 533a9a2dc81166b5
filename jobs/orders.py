"""What each stage asks for as a job: the words of its command, its folder, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.tables import counted

from .budget import Budget
from .job import Job, ShellText
from .lint import UNKNOWN, Facts
from .render import quote
from .request import Request


def preprocess(request: Request, config: Path, overrides: Sequence[str], output: Path) -> Job:
    return request.job("preprocess", ("preprocess", str(config), *overrides), output, config=config)


def train(
    request: Request,
    config: Path,
    overrides: Sequence[str],
    run_dir: Path,
    *,
    facts: Facts = UNKNOWN,
    cost: Budget | None = None,
) -> Job:
    return request.job("train", ("train", str(config), *overrides), run_dir, config=config, facts=facts, cost=cost)


def with_local_copy(job: Job, request: Request, data: Path) -> Job:
    """A training with its shards on each node's own disk; UserError if the site names none."""
    if not request.site.node_local:
        raise UserError("--stage-in: this site names no node_local disk; set node_local in its file")
    return replace(job, stage_in=data)


def chain(job: Job, links: int) -> list[Job]:
    """The same job so many times, each after the one before: for sites that do not requeue.

    A link that finds the run finished ends at once and well, so the last link's end is the run's.
    """
    return [replace(job, after_any=(number - 1,) if number else ()) for number in range(links)]


def follow(*groups: Sequence[Job]) -> list[Job]:
    """Groups one after the other: what waits for nothing in its own group waits for the last job of the one before.

    >>> one = Job("report", ("report", "a"), nodes=1, ranks_per_node=1, threads=1, minutes=10)
    >>> [job.after for job in follow([one], [one, one])]
    [(), (0,), (0,)]
    """
    joined: list[Job] = []
    for group in groups:
        first = len(joined)
        before = (first - 1,) if joined else ()
        for job in group:
            well, ended = (tuple(first + number for number in numbers) for numbers in (job.after, job.after_any))
            joined.append(replace(job, after=well or before, after_any=ended))
    return joined


def evaluate(request: Request, run: Path, overrides: Sequence[str], split: str) -> Job:
    others = [word.partition("=")[2] for word in overrides if word.startswith("data.path=")]
    of_data = f"-{Path(others[-1]).name}" if others else ""  # beside the result on the run's own data
    out = run / f"eval-{split}{of_data}.json"
    return request.job("eval", ("eval", str(run), *overrides, "--split", split, "--out", str(out)), run)


def generate(request: Request, run: Path, words: Sequence[str]) -> Job:
    return request.job("generate", ("generate", str(run), *words), run)


def infer(request: Request, run: Path, source: Path, out: Path, parts: Path, words: Sequence[str]) -> Job:
    """`parts` is the folder that it fills until the output is complete."""
    return request.job("infer", ("infer", str(run), str(source), "--out", str(out), *words), parts)


def request_of_point(request: Request, ranks: int) -> Request:
    """Nodes for so many ranks, as full as the largest point's, and ranks as large as its ranks."""
    if ranks > request.ranks_per_node and ranks % request.ranks_per_node:
        raise UserError(
            f"--ranks {ranks} does not fill nodes of {counted(request.ranks_per_node, 'rank')}; use multiples of that"
        )
    per_node = min(ranks, request.ranks_per_node)
    return replace(request, nodes=ranks // per_node, ranks_per_node=per_node, cores_per_rank=request.threads)


def measurement(request: Request, specs: Sequence[Path], out: Path, prepare: Callable[[], None] = lambda: None) -> Job:
    """One point of a scaling study as a job array whose tasks are its repeats.

    `specs` end in -0.json, -1.json …: a task's number is its repeat's. `prepare` writes them.
    """
    prefix = str(specs[0]).removesuffix("-0.json")
    words = ("measure", ShellText(f'{quote(prefix)}-"$SLURM_ARRAY_TASK_ID".json'))
    exclusive = (("exclusive", ""),)  # neighbours on a node would be measured too
    return request.job("measure", words, out, array=len(specs), options=exclusive, prepare=prepare)


def report(request: Request, out: Path) -> Job:
    return request.job("report", ("report", str(out)), out)
