"""Which settings to try, who is dropped and who wins, for `hvdlm tune`. Pure: a function that measures is an argument.

Stages follow one another: meshes where they are searched, micro-batch and sync together, threads, then the sync's own
knobs one by one. A stage is a race: its candidates run in turn, round by round, and after each round those that are
clearly slower than the fastest leave. Of those that cannot be told from the fastest the first in the list wins, so a
candidate must be clearly faster, at 99 % for all comparisons of a round together, to take the place of what is
configured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hvdlm.parallel.mesh import AXES, Mesh

from .comparison import Comparison, compare
from .confidence import ConfidenceInterval

T = TypeVar("T")
Knob = float | bool | None
Knobs = Mapping[str, tuple[Knob, ...]]  # the values of each that are tried; the first is the default

MESHES = "mesh"
CONFIRMATION = "confirmation"
HOPELESS = 1.5  # times the fastest: leaves after a single run, which says nothing of the noise
CLOSE = 1.03  # a sync within it may win once its knobs are set
ERROR_RATE = 0.01  # of the comparisons of a race; there are several races, and looks at each
SPACING = 1.5  # neighbouring micro-batches differ by this factor at least
FILLING = 4  # micro-batches a stage: 1F1B is then idle for less than a fifth of the time


class Failed(Exception):
    """A candidate that cannot run; the message is the reason. `for_memory`: a larger micro-batch cannot either."""

    def __init__(self, reason: str, *, for_memory: bool = False) -> None:
        super().__init__(reason)
        self.for_memory = for_memory


class OutOfTime(Exception):
    """No time is left for another run."""


@dataclass(frozen=True)
class Candidate:
    """Settings that change the speed, and numbers by rounding alone; `knobs` are those that are not at their default.

    `mesh` is None where meshes are not searched, and the config's own stays.
    """

    micro_batch: int
    threads: int  # a rank; 0 is its fair share
    kind: str
    knobs: tuple[tuple[str, Knob], ...] = ()
    mesh: Mesh | None = None

    def with_knob(self, name: str, value: Knob, *, default: Knob) -> Candidate:
        kept = {key: old for key, old in self.knobs if key != name}
        if value != default:
            kept[name] = value
        return replace(self, knobs=tuple(sorted(kept.items())))

    def __str__(self) -> str:
        threads = f", threads {self.threads}" if self.threads else ""
        settings = f"micro_batch {self.micro_batch}{threads}, {self.kind}" + "".join(f" {k} {v}" for k, v in self.knobs)
        return settings if self.mesh is None else f"{_axes(self.mesh)}, {settings}"


@dataclass(frozen=True)
class Trial:
    """One run to be made. `left` runs of this round come after it."""

    stage: str
    round: int
    candidate: Candidate
    left: int


Measure = Callable[[Trial], float]  # seconds a step; raises Failed, OutOfTime


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, around the settings as they are configured."""

    base: Candidate
    micro_batches: Mapping[Mesh | None, tuple[int, ...]]  # of each mesh
    threads: tuple[int, ...]
    knobs: Mapping[str, Knobs]  # of each kind of sync that is tried
    predicted_s: Mapping[Candidate, float] = field(default_factory=dict)  # of a step on each mesh, the least first
    left_out: Mapping[Candidate, str] = field(default_factory=dict)  # why other meshes are not tried

    def meshes(self) -> list[Candidate]:
        """The configured one first, then what is predicted to be the fastest."""
        return _unique([self.base, *self.predicted_s, *self.left_out])

    def micro_batches_and_syncs(self, start: Candidate) -> list[Candidate]:
        """Every micro-batch of its mesh with every sync, `start` first, then what is nearest to it."""
        kinds = sorted(self.knobs, key=lambda kind: kind != start.kind)
        micros = sorted(self.micro_batches[start.mesh], key=lambda micro: abs(math.log(micro / start.micro_batch)))
        found = [
            replace(start, micro_batch=micro, kind=kind, knobs=start.knobs if kind == start.kind else ())
            for kind in kinds
            for micro in micros
        ]
        return _unique([start, *found])


def micro_batch_choices(per_rank: int) -> tuple[int, ...]:
    """Divisors of a rank's sequences a step, largest first, none much closer than SPACING to the one before.

    >>> micro_batch_choices(12)
    (12, 6, 4, 2, 1)
    """
    found: list[int] = []
    for divisor in range(per_rank, 0, -1):
        if per_rank % divisor == 0 and (not found or found[-1] >= SPACING * divisor):
            found.append(divisor)
    return tuple(found)


def on_mesh(base: Candidate, mesh: Mesh, choices: Sequence[int]) -> list[Candidate]:
    """The settings on another mesh: its micro-batch nearest to theirs, and where stages would wait a smaller one.

    `choices` are the `micro_batch_choices` of a replica.

    >>> [c.micro_batch for c in on_mesh(Candidate(4, 0, "tree"), Mesh(pipeline=2), micro_batch_choices(24))]
    [4, 2]
    """
    per_replica, micro = choices[0], base.micro_batch
    if per_replica % micro:
        micro = min(choices, key=lambda choice: abs(math.log(choice / micro)))
    fills = [choice for choice in choices if per_replica // choice >= FILLING * mesh.pipeline] or [choices[-1]]
    smaller = [min(micro, fills[0])] if mesh.pipeline > 1 else []
    return [replace(base, micro_batch=one, mesh=mesh) for one in dict.fromkeys([micro, *smaller])]


def thread_choices(cores: int, cpus: int, ranks: int) -> tuple[int, ...]:
    """0 (a rank's share of the logical processors), its share of the cores, one less for a waiting thread, half.

    >>> thread_choices(cores=64, cpus=128, ranks=4), thread_choices(cores=2, cpus=2, ranks=2)
    ((0, 16, 15, 8), (0,))
    """
    share = max(1, cores // ranks)
    found = {share, share - 1, share // 2} - {max(1, cpus // ranks)}
    return (0, *sorted((number for number in found if number > 0), reverse=True))


class Race:
    """One stage. `seconds[candidate][round]` is a run's seconds a step; `candidates` are in order of preference.

    `failed` are those that do not run, with the reason; some are known before.
    """

    def __init__(self, stage: str, candidates: list[Candidate], failed: Mapping[Candidate, str] | None = None) -> None:
        self.stage, self.candidates = stage, candidates
        self.seconds: dict[Candidate, dict[int, float]] = {}
        self.failed = dict(failed or {})
        self.slower: set[Candidate] = set()  # clearly

    @property
    def alive(self) -> list[Candidate]:
        return [c for c in self.candidates if c not in self.failed and c not in self.slower]

    def run(self, measure: Measure, rounds: int, *, keep_all: bool = False) -> None:
        """Until one is left, or for so many rounds; with `keep_all` nobody leaves."""
        meshes = _unique(candidate.mesh for candidate in self.candidates)
        for number in range(rounds):  # of a mesh, the first to run out of memory spares the others
            order = sorted(self.alive, key=lambda c: (meshes.index(c.mesh), c.micro_batch))
            for place, candidate in enumerate(order):
                if candidate not in self.failed:
                    self._measure(measure, Trial(self.stage, number, candidate, len(order) - place - 1))
            if keep_all:
                continue
            self._drop()
            if len(self.alive) < 2:
                return

    def _measure(self, measure: Measure, trial: Trial) -> None:
        try:
            self.seconds.setdefault(trial.candidate, {})[trial.round] = measure(trial)
        except Failed as error:
            micro_batch, mesh = trial.candidate.micro_batch, trial.candidate.mesh
            alike = [c for c in self.alive if error.for_memory and c.mesh == mesh]
            larger = [c for c in alike if c.micro_batch > micro_batch]
            reason = f"not tried: micro_batch {micro_batch} ran out of memory"
            self.failed |= {trial.candidate: str(error), **dict.fromkeys(larger, reason)}
            for candidate in (trial.candidate, *larger):
                self.seconds.pop(candidate, None)

    def _drop(self) -> None:
        if not self.seconds:
            return
        found = self.comparison()
        fastest = found.fastest
        for candidate in self.alive:
            ratio = found.ratio(candidate, fastest, error_rate=ERROR_RATE)
            is_hopeless = found.degrees == 0 and ratio.value > HOPELESS and candidate != self.candidates[0]
            if ratio.low > 1 or is_hopeless:
                self.slower.add(candidate)

    def comparison(self) -> Comparison[Candidate]:
        return compare(self.seconds)

    def preferred(self) -> Candidate | None:
        """The first that is not clearly slower than the fastest; None if all have failed."""
        return next((c for c in self.alive if c in self.seconds or c == self.candidates[0]), None)


@dataclass
class Search:
    """The stages, and the best settings so far; valid whenever it is interrupted."""

    space: SearchSpace
    measure: Measure
    rounds: int
    races: list[Race] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best, self.ended_early = self.space.base, False

    def stages(self) -> Iterator[Race]:
        """Run the stages; yields each when it is done. Ends early when time is out."""
        try:
            yield from self._all_stages()
        except OutOfTime:
            self.ended_early = True

    def _all_stages(self) -> Iterator[Race]:
        meshes = self.space.meshes()
        if len(meshes) > 1:
            yield self._race(MESHES, meshes, self.space.left_out)
        first = self._race("micro-batch and sync", self.space.micro_batches_and_syncs(self.best))
        yield first
        if first.preferred() is None:
            return
        threads = [replace(self.best, threads=number) for number in self.space.threads]
        if len(_unique([self.best, *threads])) > 1:
            yield self._race("threads", [self.best, *threads])
        for kind in self.space.knobs:
            yield from self._tune_knobs(kind, first)

    def confirm(self, rounds: int) -> None:
        """Config and winner in turn: the fastest of many looks faster than it is, and here it is one of two."""
        base, best = self.space.base, self.best
        if base == best:
            return
        race = Race(CONFIRMATION, [best] if base in self.races[0].failed else [base, best])
        self.races.append(race)
        with contextlib.suppress(OutOfTime):
            race.run(self.measure, rounds, keep_all=True)

    def verdict(self) -> tuple[Candidate, ConfidenceInterval | None, str]:
        """What to keep, how many times as fast as the config it is, and one sentence that says how sure that is."""
        base, best, last = self.space.base, self.best, self.races[-1]
        if base == best:
            early = "; time was up before all was tried, give more --minutes" if self.ended_early else ""
            return base, None, f"nothing was clearly faster than the config as it is{early}"
        if base in self.races[0].failed:
            return best, None, f"the config as it is does not run: {self.races[0].failed[base]}"
        pairs = min(len(last.seconds.get(candidate, {})) for candidate in (base, best))
        if last.stage != CONFIRMATION or pairs < 2:
            return best, None, "not confirmed: there was no time for runs in turn with the config as it is"
        gain = last.comparison().ratio(base, best)
        times = f"{gain.shown()} times as fast ({pairs} pairs of runs, 95 %)"
        if gain.low > 1:
            return best, gain, times
        return base, gain, f"not distinguishable from the config as it is: {best}: {times}"

    def _tune_knobs(self, kind: str, first: Race) -> Iterator[Race]:
        """The knobs of a sync that is close to the best, one after the other; a rival then meets the best."""
        rival = before = self._rival(kind, first)
        if rival is None:
            return
        for name, values in self.space.knobs[kind].items():
            changed = [rival.with_knob(name, value, default=values[0]) for value in values]
            race = self._race(f"{kind} {name}", [rival, *changed])
            yield race
            rival = race.preferred() or rival
        if rival not in (before, self.best):
            yield self._race(f"{kind} with its knobs set", [self.best, rival])

    def _rival(self, kind: str, first: Race) -> Candidate | None:
        """The best of a sync, unless it was more than CLOSE slower than the fastest of the first stage."""
        if self.best.kind == kind:
            return self.best
        found = first.comparison()
        own = [candidate for candidate in first.seconds if candidate.kind == kind]
        close = [c for c in own if found.ratio(c, found.fastest).value <= CLOSE]
        fastest = min(close, key=lambda c: found.ratio(c, found.fastest).value, default=None)
        return fastest and replace(fastest, threads=self.best.threads)

    def _race(self, stage: str, candidates: list[Candidate], failed: Mapping[Candidate, str] | None = None) -> Race:
        race = Race(stage, _unique(candidates), failed)
        self.races.append(race)
        try:
            race.run(self.measure, self.rounds)
        finally:
            if race.candidates[0] == self.best:
                self.best = race.preferred() or self.best
        return race


def _unique(found: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(found))


def _axes(mesh: Mesh) -> str:
    """The axes that have several ranks.

    >>> _axes(Mesh(pipeline=2, tensor=4)), _axes(Mesh())
    ('pipeline 2 x tensor 4', 'data 1')
    """
    sizes = [(axis, getattr(mesh, axis)) for axis in AXES]
    return " x ".join(f"{axis} {size}" for axis, size in sizes if size > 1) or "data 1"
