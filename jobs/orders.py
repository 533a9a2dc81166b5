"""What each stage asks for as a job: the words of its command, its folder, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hvdlm.errors import UserError

from .lint import Facts
from .render import Job, Shell, StageIn, quote
from .site import Site
from .submit import Order, Size


def preprocess(config: Path, overrides: Sequence[str], size: Size, output: Path) -> Order:
    return Order(
        "preprocess", lambda folder: ("preprocess", str(folder / config.name), *overrides), size, output, config
    )


def train(
    config: Path, overrides: Sequence[str], size: Size, run_dir: Path, *, facts: Facts, stage_in: StageIn | None = None
) -> Order:
    moved = (Shell(f"data.path={stage_in.to}"),) if stage_in else ()
    return Order(
        "train", lambda folder: ("train", str(folder / config.name), *overrides, *moved), size, run_dir, config, facts,
        template=lambda job: replace(job, stage_in=stage_in),
    )  # fmt: skip


def chain(order: Order, links: int) -> list[Order]:
    """The same job so many times, each after the one before: for sites that do not requeue.

    A link that finds the run finished ends at once and well, so the last link's end is the run's.
    """
    return [replace(order, after_any=(number - 1,) if number else ()) for number in range(links)]


def follow(*groups: Sequence[Order]) -> list[Order]:
    """Groups one after the other: what waits for nothing in its own group waits for the last order of the one before.

    >>> size = Size(1, 1, 10)
    >>> jobs = follow([report(Path("a"), size)], [report(Path("b"), size), report(Path("c"), size)])
    >>> [job.after for job in jobs]
    [(), (0,), (0,)]
    """
    joined: list[Order] = []
    for group in groups:
        first = len(joined)
        before = (first - 1,) if joined else ()
        joined += [
            replace(
                order, after=tuple(first + number for number in order.after) or before,
                after_any=tuple(first + number for number in order.after_any),
            )
            for order in group
        ]  # fmt: skip
    return joined


def local_copy(site: Site, data: Path) -> StageIn:
    """Shards on each node's own disk; UserError if the site names none."""
    if not site.node_local:
        raise UserError("--stage-in: this site names no node_local disk; set node_local in its file")
    return StageIn(data, Shell(f'"{site.node_local}/hvdlm-data"'))


def evaluate(run: Path, overrides: Sequence[str], size: Size, split: str) -> Order:
    out = run / f"eval-{split}.json"
    words = ("eval", str(run), *overrides, "--split", split, "--out", str(out))
    return Order("eval", lambda folder: words, size, run)


def generate(run: Path, words: Sequence[str], size: Size) -> Order:
    return Order("generate", lambda folder: ("generate", str(run), *words), size, run)


def size_of_point(ranks: int, size: Size, site: Site) -> Size:
    """Nodes for so many ranks, as full as the largest point's, and ranks as large as its ranks."""
    if ranks > size.ranks_per_node and ranks % size.ranks_per_node:
        raise UserError(f"--ranks {ranks} does not fill nodes of {size.ranks_per_node} ranks; use multiples of that")
    per_node = min(ranks, size.ranks_per_node)
    return replace(size, nodes=ranks // per_node, ranks_per_node=per_node, cores_per_rank=size.threads(site))


def measurement(size: Size, specs: Sequence[Path], out: Path, prepare: Callable[[], None] = lambda: None) -> Order:
    """One point of a scaling study as a job array whose tasks are its repeats.

    `specs` end in -0.json, -1.json …: a task's number is its repeat's. `prepare` writes them.
    """
    prefix = str(specs[0]).removesuffix("-0.json")
    words = ("measure", Shell(f'{quote(prefix)}-"$SLURM_ARRAY_TASK_ID".json'))

    def as_array(job: Job) -> Job:  # neighbours on a node would be measured too
        return replace(job, array=len(specs), options=(("exclusive", ""),))

    return Order("measure", lambda folder: words, size, out, template=as_array, tasks=len(specs), prepare=prepare)


def report(out: Path, size: Size) -> Order:
    return Order("report", lambda folder: ("report", str(out)), size, out)
