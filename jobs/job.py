"""A batch job as a value: what runs, on how much of a site, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hvdlm.launch.words import import_words
from hvdlm.tables import counted

from .budget import Budget
from .lint import UNKNOWN, Facts
from .site import Site


@dataclass(frozen=True)
class JobKind:
    """What a stage is to the batch system."""

    # Shell that prints how far a run is, as one word of any kind: the same word after a job as before it means that
    # it got nowhere. Stages that have one save and exit 75 when they are asked to stop.
    progress: str = ""
    is_alone: bool = False  # one process, no ranks
    starts_ranks_itself: bool = False


NUM_FILES = "find \"$run_dir\" -type f ! -name '.*' ! -name 'STOP*' 2>/dev/null | wc -l"
JOB_KINDS = {
    "preprocess": JobKind(NUM_FILES),
    "train": JobKind('readlink "$run_dir/checkpoints/latest"'),
    "eval": JobKind(),
    "infer": JobKind(NUM_FILES),
    "generate": JobKind(is_alone=True),
    "measure": JobKind(),
    "scale": JobKind(starts_ranks_itself=True),
    "report": JobKind(is_alone=True),
}


class ShellText(str):
    """A word that the shell of the job shall expand; all others are quoted."""

    __slots__ = ()


@dataclass(frozen=True)
class Job:
    """One script: what runs, on how much of a site, and where its text goes."""

    stage: str  # of JOB_KINDS
    words: tuple[str, ...]  # hvdlm's own, without `hvdlm`
    nodes: int
    ranks_per_node: int
    threads: int  # cores of a rank
    minutes: int
    cwd: Path | None = None  # None: where the script is submitted
    activate: str = ""  # a shell line for sites that say nothing of their own
    run_dir: Path | None = None  # what the job fills; of a resumable one: where STOP is looked for
    config: Path | None = None  # the second of the words, copied into the job's folder
    extensions: tuple[Path, ...] = ()  # files of --import, copied there too; behind the words
    folder: Path | None = None  # where logs go; None: where the script is submitted
    array: int = 0  # tasks of a job array
    options: tuple[tuple[str, str], ...] = ()  # more directives
    stage_in: Path | None = None  # shards that are copied to a disk of each node before the job's work
    facts: Facts = UNKNOWN
    cost: Budget | None = None  # of the whole run, where a step was measured
    after: tuple[int, ...] = ()  # earlier jobs of the same submission that must have ended well, by number
    after_any: tuple[int, ...] = ()  # and those that must have ended, well or not
    remarks: tuple[str, ...] = ()  # what the one who submits should know, and what speaks against nothing
    prepare: Callable[[], None] = lambda: None  # writes what it reads, once nothing speaks against it any more

    @property
    def kind(self) -> JobKind:
        return JOB_KINDS[self.stage]

    @property
    def is_resumable(self) -> bool:
        return bool(self.kind.progress)

    @property
    def name(self) -> str:
        return f"hvdlm-{self.stage}"

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def cores_per_node(self) -> int:
        return self.ranks_per_node * self.threads

    @property
    def title(self) -> str:
        if self.kind.is_alone:
            return f"hvdlm {self.stage}, one process"
        nodes, ranks = counted(self.nodes, "node"), counted(self.ranks_per_node, "rank")
        return f"hvdlm {self.stage} on {nodes} x {ranks}, {counted(self.threads, 'core')} each"

    def ceiling_hours(self, site: Site) -> float:
        """Node-hours if all its starts take all their time."""
        starts = 1 + site.max_requeues if self.is_resumable else 1
        nodes = 1 if self.kind.is_alone else self.nodes
        return nodes * self.minutes / 60 * max(1, self.array) * starts

    def placed(self, folder: Path) -> Job:
        """The job with its logs in a folder, and what it reads of the user's too: later edits do not change it."""
        words = self.words if self.config is None else (self.words[0], str(folder / self.config_name), *self.words[2:])
        copies = map(str, self.copies_of_extensions(folder))
        return replace(self, folder=folder, words=(*words, *import_words(copies)))

    def copies_of_extensions(self, folder: Path) -> list[Path]:
        """Each in a folder of its own, for it keeps its name, by which a checkpoint knows it."""
        return [folder / "imports" / str(number) / file.name for number, file in enumerate(self.extensions)]

    @property
    def config_name(self) -> str:
        """Of the copy in the job's folder, where other files have names of their own: job.json, history, 12.log …"""
        name = self.config.name if self.config else ""
        return name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
