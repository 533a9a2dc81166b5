"""Where the ranks meet besides the gradients: one small sum an interval, with everything that all must know.

Between two such sums no rank waits for another's numbers and nothing is copied from a GPU. An interval ends at
the next validation, checkpoint or digest, after `log.every` steps, or after about a quarter of a second, whichever is
first; its length follows from the last one's own numbers, so all ranks agree on it without a word.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from hvdlm.checkpoint import SaveState
from hvdlm.compute.peak_flops import peak_flops
from hvdlm.host import memory_bytes
from hvdlm.session.stop import Wish
from hvdlm.tables import figure
from hvdlm.tasks.interface import in_words
from hvdlm.train.guard import Verdict
from hvdlm.train.learner import Learner, StepResult
from hvdlm.train.noise_scale import NoiseScale
from hvdlm.train.replicas import Digests, are_equal, digests_of

TARGET_S = 0.25  # a signal is heard after about this time


@dataclass(frozen=True)
class StepFacts:
    """A step over all ranks."""

    step: int
    figures: dict[str, float]  # the task's, the loss among them
    grad_norm: float
    lr: float | None
    targets: float  # what the loss is a mean over

    @property
    def loss(self) -> float:
        return self.figures["loss"]


@dataclass(frozen=True)
class Interval:
    """What all ranks know at its end; the same numbers on each, but for the peak that MFU is measured against."""

    end: int
    steps: list[StepFacts]
    wish: Wish  # the gravest that some rank was asked for
    verdict: Verdict  # the gravest
    replicas_equal: bool
    seconds: float  # of rank 0
    tokens: int
    saves: list[SaveState]  # of each rank's parts of a checkpoint under way
    live: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def line(self) -> str:
        """For a person: what matters, in a few words."""
        last, live = self.steps[-1], self.live
        descent = "" if last.lr is None else f" | lr {last.lr:.2e} | norm {figure(last.grad_norm)}"
        mfu = f" | MFU {live['mfu']:.0%}" if "mfu" in live else ""
        perplexity = f" | ppl {figure(live['perplexity'], 4)}" if "perplexity" in live else ""
        padding = f" | padding {live['padding']:.0%}" if "padding" in live else ""
        noise = f" | noise scale {figure(live['noise_scale'])}" if "noise_scale" in live else ""
        return (
            f"loss {last.loss:.4f}{perplexity}{in_words(last.figures, ' | ')}{descent}"
            f" | {self.tokens_per_s:,.0f} tokens/s{mfu} | data {live['data_wait']:.1%} comm {live['exposed_comm']:.1%}"
            f" spread {live['straggler_spread']:.1%} | {live['memory_gb']:.2f} GB{padding}{noise}"
        )


@dataclass
class _Row:
    """What one rank says of an interval; one number a field."""

    seconds: float
    busy_s: float  # computing
    data_wait_s: float
    comm_s: float
    memory: float
    wish: float
    verdict: float
    digest_high: float
    digest_low: float
    shared_high: float  # of what tensor ranks hold alike
    shared_low: float
    small: float  # squared norm of a micro-batch's mean gradient, for the noise scale
    small_part: float  # 1 / its targets; 0 where none was measured
    save: float  # how far a checkpoint under way is


class IntervalMeter:
    """Collects an interval's results and shares them."""

    def __init__(self, learner: Learner, every: int) -> None:
        self._learner, self._every = learner, every
        self._noise: NoiseScale | None = getattr(learner, "noise_scale", None)
        self._length = 1
        train = learner.config.train
        self._peak = peak_flops(learner.device, train.precision)
        self._flops = learner.flops_per_token
        numbers = (every, train.eval_every, learner.config.checkpoint.every, train.digest_every)
        self._stops = [number for number in numbers if number]
        self._since = time.perf_counter()

    def next_end(self, step: int) -> int:
        """Where the interval that begins at `step` ends."""
        boundary = min(step + number - step % number for number in self._stops)
        length = self._length if self._learner.config.sync.steps_together else self._every
        return min(boundary, step + length, self._learner.total_steps)

    def restart_clock(self) -> None:
        """After a validation or a checkpoint, whose time is no step's."""
        self._since = time.perf_counter()

    def agree(
        self, first: int, end: int, results: list[StepResult], *, wish: Wish, save: SaveState = SaveState.IDLE
    ) -> Interval:
        """Collective: the interval [first, end) over all ranks; `save` is how far this one is with a save."""
        learner, world = self._learner, self._learner.world
        count, width = end - first, len(_Row.__dataclass_fields__)
        digests = digests_of(learner.model, learner.names_cut) if self._checks(end) else (0, 0, 0, 0)
        names = len(learner.task.sums)
        buffer = np.zeros(count * (names + 2) + world.size * width)
        steps = buffer[: count * (names + 2)].reshape(count, names + 2)  # sums, weighted norm, its weight
        for result in results:
            row = steps[result.step - first]
            row[:names] += result.sums.cpu().numpy()
            row[names:] += float(result.grad_norm) * result.micro_batches, result.micro_batches
        rows = buffer[steps.size :].reshape(world.size, width)
        rows[world.rank] = [*vars(self._row(results, wish, digests, save)).values()]
        with np.errstate(all="ignore"):
            world.sum_(buffer)
        return self._interval(first, end, steps, rows)

    def _checks(self, end: int) -> bool:
        """Whether replicas are compared: every `digest_every` steps; before each save they are in any case."""
        every = self._learner.config.train.digest_every
        return every > 0 and self._learner.config.sync.keeps_replicas_equal and end % every == 0

    def _row(self, results: list[StepResult], wish: Wish, digests: Digests, save: SaveState) -> _Row:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        comm_s, wait_s = sum(r.comm_s for r in results), sum(r.data_wait_s for r in results)
        noise = self._noise
        device = self._learner.device
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_bytes("VmHWM")
        busy_s = sum(r.step_s for r in results) - comm_s - wait_s
        verdict = max((r.verdict for r in results), default=Verdict.APPLY)
        small = (noise.small, 1 / noise.targets) if noise is not None and noise.small is not None else (0.0, 0.0)
        return _Row(seconds, busy_s, wait_s, comm_s, memory, wish, verdict, *digests, *small, save)

    def _interval(self, first: int, end: int, steps: np.ndarray, rows: np.ndarray) -> Interval:
        learner = self._learner
        ranks = [_Row(*row) for row in rows.tolist()]
        saves = [SaveState(int(row.save)) for row in ranks]
        facts = [self._facts(first + number, sums) for number, sums in enumerate(steps)]
        seconds = ranks[0].seconds
        self._length = max(1, min(self._every, round(TARGET_S / max(seconds / (end - first), 1e-6))))
        wish, verdict = Wish(int(max(row.wish for row in ranks))), Verdict(int(max(row.verdict for row in ranks)))
        digests = [(row.digest_high, row.digest_low, row.shared_high, row.shared_low) for row in ranks]
        replicas_equal = not self._checks(end) or are_equal(learner.axes.mesh, digests)
        tokens = learner.tokens_before(end) - learner.tokens_before(first)
        interval = Interval(end, facts, wish, verdict, replicas_equal, seconds, tokens, saves)
        interval.live.update(self._live(interval, ranks))
        return interval

    def _facts(self, step: int, sums: np.ndarray) -> StepFacts:
        task = self._learner.task
        by_name, (norm, weight) = task.named(sums), sums[len(task.sums) :]
        figures = task.figures(by_name)
        return StepFacts(step + 1, figures, float(norm / weight), self._learner.lr_of(step), by_name["targets"])

    def _live(self, interval: Interval, ranks: list[_Row]) -> dict[str, float]:
        """The numbers of an interval that a person watches."""
        learner = self._learner
        worked = [row.busy_s + row.comm_s + row.data_wait_s for row in ranks]
        busy = [row.busy_s for row in ranks]
        loss = interval.steps[-1].loss
        live = {
            "tokens_per_s": interval.tokens_per_s,
            "data_wait": sum(row.data_wait_s for row in ranks) / sum(worked),
            "exposed_comm": sum(row.comm_s for row in ranks) / sum(worked),
            "straggler_spread": max(busy) / (sum(busy) / len(busy)) - 1,
            "memory_gb": max(row.memory for row in ranks) / 1e9,
            **learner.facts(),
        }
        if learner.task.predicts_tokens:
            live["perplexity"] = math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.nan
        if self._peak and learner.descends:
            live["mfu"] = interval.tokens_per_s * self._flops / (self._peak * learner.world.size)
        if (scale := self._noise_scale(interval.end - 1, ranks)) is not None:
            live["noise_scale"] = scale
        return live

    def _noise_scale(self, step: int, ranks: list[_Row]) -> float | None:
        """In sequences; None where some rank did not measure."""
        noise, learner = self._noise, self._learner
        if noise is None or noise.large is None or not all(row.small_part for row in ranks):
            return None
        targets = len(ranks) / sum(row.small_part for row in ranks)
        small = sum(row.small for row in ranks) / learner.axes.mesh.data  # of a replica's ranks each has a part
        scale = noise.estimate(small, noise.large, targets, noise.all_targets)
        return None if scale is None else scale * learner.plan.batch_at(step) / noise.all_targets
