"""Which pictures a page has: every column of the runs' rows finds its place, those of one kind together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hvdlm.partition import slice_of

from .reading import TrainingRun
from .thinning import Curve

MOST_CHARTS = 24  # a page holds; further columns are named on it
ALIKE = 1.02  # steps of labelled records are of about equally many tokens
MOST_LINES = 6  # of one run in one chart
HIDDEN = re.compile(r"num_\w+|tokens|split_tokens|seq_len|streams|stride|perplexity")  # counts; the loss again


@dataclass(frozen=True)
class Quantity:
    """How a column is told to people."""

    title: str
    unit: str = ""
    scale: str = "linear"  # or "log", or from 0 on: "amount", "percent"
    group: str = ""  # columns of one run that share a chart, by its title


QUANTITIES: Mapping[str, Quantity] = {
    "loss": Quantity("Loss", "nats a target"),
    "lr": Quantity("Learning rate"),
    "grad_norm": Quantity("Gradient norm before clipping", "norm", "log"),
    "tokens_per_s": Quantity("Speed", "tokens/s, all ranks", "amount"),
    "data_wait": Quantity("Waiting for data", "of the ranks' time", "percent", "Waiting"),
    "exposed_comm": Quantity("Waiting for other ranks", "of the ranks' time", "percent", "Waiting"),
    "straggler_spread": Quantity("Slowest rank beyond the mean", "of the mean", "percent", "Waiting"),
    "memory_gb": Quantity("Peak memory of a rank", "GB", "amount"),
    "mfu": Quantity("Model FLOPs utilization", "of the peak", "percent"),
    "noise_scale": Quantity("Gradient noise scale", "sequences", "log"),
    "padding": Quantity("Padding", "of the positions", "percent"),
    "bits_per_byte": Quantity("Bits per byte", "bits"),
    "staleness_mean": Quantity("Staleness, mean", "updates", group="Staleness"),
    "staleness_max": Quantity("Staleness, largest", "updates", group="Staleness"),
    "reconstruction": Quantity("Reconstruction", "nats a text", group="Evidence lower bound"),
    "kl": Quantity("KL", "nats a text", group="Evidence lower bound"),
    "elbo": Quantity("ELBO, negative", "nats a text", group="Evidence lower bound"),
}
SPLITS = {"train": "training", "val": "validation"}
OF_CORPUS = "loss/"  # val rows: the loss on one corpus of several
FIGURES = "Figures of validations"


@dataclass(frozen=True)
class Line:
    """One curve in a chart."""

    label: str
    color: int  # its place among colours
    curve: Curve
    is_validation: bool = False  # drawn as points, for there are few
    is_labelled: bool = True


@dataclass(frozen=True)
class Chart:
    """A picture before it is drawn."""

    title: str
    unit: str
    scale: str
    lines: Sequence[Line]
    marks: Mapping[str, Sequence[int]] = field(default_factory=dict)  # steps of events, by what happened
    by: str = "step"  # what is counted to the right

    @property
    def num_runs(self) -> int:
        return sum(line.is_labelled for line in self.lines)

    @property
    def has_both(self) -> bool:
        """Whether lines of several runs are of training and of validation, which the legend has to say."""
        return not all(line.is_labelled for line in self.lines)

    @property
    def file(self) -> str:
        """The stem of its file's name: of letters, digits and hyphens alone, whatever a column is called."""
        return re.sub(r"\W+", "-", self.title.lower(), flags=re.ASCII).strip("-") or "chart"


def quantity_of(name: str, curves: Sequence[Curve]) -> Quantity:
    """How a column is told: as QUANTITIES has it, else by its name; shares of validations stand together."""
    if known := QUANTITIES.get(name):
        return known
    if name.startswith(OF_CORPUS):
        return Quantity(f"Loss on {name.removeprefix(OF_CORPUS)}", "nats a target", group="Validation loss by corpus")
    values = np.concatenate([curve.finite for curve in curves])
    is_share = len(values) > 0 and values.min() >= 0 and values.max() <= 1
    title = name.replace("_", " ")
    return Quantity(title[:1].upper() + title[1:], group=FIGURES if is_share else "")


def charts_of(runs: Sequence[TrainingRun]) -> tuple[list[Chart], list[str]]:
    """The charts in the order of a page, and the titles of those for which it has no room.

    Of one run a chart holds all columns of its group, of several runs one column of all runs.
    """
    charts = list(_one_run(runs[0]) if len(runs) == 1 else _several(runs))
    seen: dict[str, int] = {}
    for number, chart in enumerate(charts):  # two columns may be called alike: each has a file of its own
        seen[chart.file] = seen.get(chart.file, 0) + 1
        if seen[chart.file] > 1:
            charts[number] = replace(chart, title=f"{chart.title} {seen[chart.file]}")
    first = sorted(range(len(charts)), key=lambda place: -charts[place].num_runs)  # what most runs have; stable
    kept = set(first[:MOST_CHARTS])
    return (
        [chart for place, chart in enumerate(charts) if place in kept],
        [chart.title for place, chart in enumerate(charts) if place not in kept],
    )


def columns_of(runs: Sequence[TrainingRun]) -> dict[str, Quantity]:
    """Every column that is drawn, in the order of QUANTITIES, then of its first row; once for both splits."""
    curves: dict[str, list[Curve]] = {}
    for run in runs:
        for (_, name), curve in run.curves.items():
            if not HIDDEN.fullmatch(name) and curve.finite.any():  # zeros alone say nothing
                curves.setdefault(name, []).append(curve)
    own = [name for name in curves if name not in QUANTITIES]
    figures = [name for name in own if quantity_of(name, curves[name]).group]
    rest = [name for name in own if name not in figures]
    ordered = ["loss", *figures, *rest, *QUANTITIES]  # what it is worth, then how it went, then how fast
    return {name: quantity_of(name, curves[name]) for name in dict.fromkeys(ordered) if name in curves}


def _one_run(run: TrainingRun) -> Iterator[Chart]:
    columns = columns_of([run])
    groups: dict[str, list[str]] = {}
    for name, quantity in columns.items():
        groups.setdefault(quantity.group or name, []).append(name)
    for group, members in groups.items():
        first = columns[members[0]]
        title = first.title if len(members) == 1 else group
        num_parts = -(-len(members) // MOST_LINES)
        for number in range(num_parts):
            lines: list[Line] = []
            for name in (members[place] for place in slice_of(number, num_parts, len(members))):
                lines += _lines(run, name, "" if len(members) == 1 else columns[name].title, len(lines))
            yield Chart(title, first.unit, first.scale, lines, _marks(run) if group == "loss" else {})


def _lines(run: TrainingRun, name: str, title: str, color: int) -> Iterator[Line]:
    """The curves of a column of one run, one a split; `title` where other columns stand beside them."""
    splits = dict.fromkeys((*SPLITS, *(split for split, _ in run.curves)))
    found = [(split, run.curves[split, name]) for split in splits if (split, name) in run.curves]
    drawn = [(split, curve) for split, curve in found if len(curve.finite)]
    for place, (split, curve) in enumerate(drawn):
        told = SPLITS.get(split, split)
        label = title if title and len(drawn) == 1 else ", ".join(filter(None, (title, told)))
        yield Line(label, color + place, curve, is_validation=split != "train")


def _several(runs: Sequence[TrainingRun]) -> Iterator[Chart]:
    for name, quantity in columns_of(runs).items():
        lines = []
        for number, run in enumerate(runs):
            for place, line in enumerate(_lines(run, name, "", number)):
                lines.append(replace(line, label=run.name, color=number, is_labelled=not place))
        yield Chart(quantity.title, quantity.unit, quantity.scale, lines)
        if name == "loss" and unequal_steps(runs):
            told = [replace(line, curve=_by_tokens(runs[line.color], line.curve)) for line in lines]
            yield Chart("Loss by tokens", quantity.unit, quantity.scale, told, by="tokens")


def unequal_steps(runs: Sequence[TrainingRun]) -> list[int]:
    """Tokens of a step of each run on average, where they are not much the same: then steps are no common measure."""
    totals = [(run.last("train", "tokens"), run.step) for run in runs]
    found = sorted({round(tokens / step) for tokens, step in totals if tokens > 0 and step})
    return found if found and found[-1] > ALIKE * found[0] else []


def _by_tokens(run: TrainingRun, curve: Curve) -> Curve:
    tokens = run.curves.get(("train", "tokens"))
    if tokens is None:  # somebody else's rows
        return Curve(curve.steps[:0], curve.values[:0])
    return Curve(np.interp(curve.steps, tokens.steps, tokens.values), curve.values)


def _marks(run: TrainingRun) -> dict[str, list[int]]:
    """Steps at which something other than the first start and a good end happened."""
    found: dict[str, list[int]] = {}
    for event in run.events:
        if event["event"] not in ("started", "ended"):
            found.setdefault(event["event"], []).append(event["step"])
    return found
