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

from hvdlm.compute.peak_flops import peak_flops
from hvdlm.host import memory_bytes
from hvdlm.models.flops import flops_per_token
from hvdlm.session.stop import Wish
from hvdlm.tables import figure
from hvdlm.train.guard import Verdict
from hvdlm.train.replicas import fold, tensor_digests
from hvdlm.train.step import Engine, StepResult

TARGET_S = 0.25  # a signal is heard after about this time


@dataclass(frozen=True)
class StepFacts:
    """A step over all ranks."""

    step: int
    loss: float  # nats per token
    grad_norm: float
    lr: float


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
    live: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def line(self) -> str:
        """For a person: what matters, in a few words."""
        last, live = self.steps[-1], self.live
        mfu = f" | MFU {live['mfu']:.0%}" if "mfu" in live else ""
        noise = f" | noise scale {figure(live['noise_scale'])}" if "noise_scale" in live else ""
        return (
            f"loss {last.loss:.4f} | ppl {figure(live['perplexity'], 4)} | lr {last.lr:.2e}"
            f" | norm {figure(last.grad_norm)}"
            f" | {self.tokens_per_s:,.0f} tokens/s{mfu} | data {live['data_wait']:.1%} comm {live['exposed_comm']:.1%}"
            f" spread {live['straggler_spread']:.1%} | {live['memory_gb']:.2f} GB{noise}"
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
    small: float  # squared norm of a micro-batch's gradient, for the noise scale
    has_small: float


class IntervalMeter:
    """Collects an interval's results and shares them."""

    def __init__(self, engine: Engine, every: int) -> None:
        self._engine, self._every = engine, every
        self._length = 1
        train = engine.config.train
        self._peak = peak_flops(engine.device, train.precision)
        self._flops = flops_per_token(engine.model, engine.config.model, engine.config.data.seq_len)
        numbers = (every, train.eval_every, engine.config.checkpoint.every, train.digest_every)
        self._stops = [number for number in numbers if number]
        self._since = time.perf_counter()

    def next_end(self, step: int) -> int:
        """Where the interval that begins at `step` ends."""
        boundary = min(step + number - step % number for number in self._stops)
        length = self._length if self._engine.config.sync.steps_together else self._every
        return min(boundary, step + length, self._engine.total_steps)

    def restart_clock(self) -> None:
        """After a validation or a checkpoint, whose time is no step's."""
        self._since = time.perf_counter()

    def agree(self, first: int, end: int, results: list[StepResult], *, wish: Wish) -> Interval:
        """Collective: the interval [first, end) over all ranks."""
        engine, world = self._engine, self._engine.world
        count, width = end - first, len(_Row.__dataclass_fields__)
        digest = fold(tensor_digests(engine.model)) if self._checks(end) else (0, 0)
        buffer = np.zeros(3 * count + world.size * width)
        for result in results:
            buffer[result.step - first] += float(result.loss_sum)
            buffer[count + result.step - first] += result.micro_batches
            buffer[2 * count + result.step - first] += float(result.grad_norm) * result.micro_batches
        rows = buffer[3 * count :].reshape(world.size, width)
        rows[world.rank] = list(vars(self._row(results, wish, digest)).values())
        with np.errstate(all="ignore"):
            world.sum_(buffer)
        return self._interval(first, end, buffer[: 3 * count].reshape(3, count), rows)

    def _checks(self, end: int) -> bool:
        """Whether replicas are compared: every `digest_every` steps, and before a checkpoint keeps what is wrong."""
        every, saves = self._engine.config.train.digest_every, self._engine.config.checkpoint.every
        return every > 0 and self._engine.config.sync.keeps_replicas_equal and (end % every == 0 or end % saves == 0)

    def _row(self, results: list[StepResult], wish: Wish, digest: tuple[int, int]) -> _Row:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        comm_s, wait_s = sum(r.comm_s for r in results), sum(r.data_wait_s for r in results)
        small = self._engine.noise_scale.small
        device = self._engine.device
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_bytes("VmHWM")
        busy_s = sum(r.step_s for r in results) - comm_s - wait_s
        verdict = max((r.verdict for r in results), default=Verdict.APPLY)
        noise = small or 0.0, small is not None
        return _Row(seconds, busy_s, wait_s, comm_s, memory, wish, verdict, *digest, *noise)

    def _interval(self, first: int, end: int, sums: np.ndarray, rows: np.ndarray) -> Interval:
        engine = self._engine
        ranks = [_Row(*row) for row in rows.tolist()]
        losses, norms = sums[0] / sums[1], sums[2] / sums[1]
        facts = [
            StepFacts(step + 1, float(losses[step - first]), float(norms[step - first]), engine.lr_of(step))
            for step in range(first, end)
        ]
        seconds = ranks[0].seconds
        self._length = max(1, min(self._every, round(TARGET_S / max(seconds / (end - first), 1e-6))))
        wish, verdict = Wish(int(max(row.wish for row in ranks))), Verdict(int(max(row.verdict for row in ranks)))
        replicas_equal = len({(row.digest_high, row.digest_low) for row in ranks}) == 1
        tokens = engine.tokens_before(end) - engine.tokens_before(first)
        interval = Interval(end, facts, wish, verdict, replicas_equal, seconds, tokens)
        interval.live.update(self._live(interval, ranks))
        return interval

    def _live(self, interval: Interval, ranks: list[_Row]) -> dict[str, float]:
        """The numbers of an interval that a person watches."""
        engine = self._engine
        worked = [row.busy_s + row.comm_s + row.data_wait_s for row in ranks]
        busy = [row.busy_s for row in ranks]
        loss = interval.steps[-1].loss
        live = {
            "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.nan,
            "tokens_per_s": interval.tokens_per_s,
            "data_wait": sum(row.data_wait_s for row in ranks) / sum(worked),
            "exposed_comm": sum(row.comm_s for row in ranks) / sum(worked),
            "straggler_spread": max(busy) / (sum(busy) / len(busy)) - 1,
            "memory_gb": max(row.memory for row in ranks) / 1e9,
            **{name: value for name, value in engine.sync.facts().items() if isinstance(value, int | float)},
        }
        if self._peak:
            live["mfu"] = interval.tokens_per_s * self._flops / (self._peak * engine.world.size)
        noise, batches = engine.noise_scale, (engine.config.train.micro_batch, engine.plan.batch_at(interval.end - 1))
        if all(row.has_small for row in ranks) and noise.large is not None:
            scale = noise.estimate(sum(row.small for row in ranks) / len(ranks), noise.large, *batches)
            live |= {"noise_scale": scale} if scale is not None else {}
        return live
