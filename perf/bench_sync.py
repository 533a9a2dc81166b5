"""`hvdlm bench sync`: the same model on the same tokens by every way of combining gradients.

Each run is `hvdlm train` under an mpirun of its own, in a folder of its own. All ways of a round start from the
same seed and see the same global batches, so a difference in loss is the way's; the next round has the next
seed, so the spread of that difference is known. Speeds too are compared within a round.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvdlm.config import validate
from hvdlm.data.corpora import open_corpora
from hvdlm.data.manifest import MANIFEST
from hvdlm.errors import UserError
from hvdlm.files import to_json, write_text_durably
from hvdlm.session.metrics import read_metrics
from hvdlm.tables import counted, table
from hvdlm.train.config import RunConfig

from .confidence import bracketed
from .fresh_run import OTHER_ENDS, train_afresh
from .job import JobFailed

log = logging.getLogger("hvdlm")

REFERENCE = "allreduce"


@dataclass(frozen=True)
class Way:
    """A `sync` section, and the world it needs where that is not the config's own."""

    sync: dict[str, Any]
    needs_world: str | None = None


WAYS: dict[str, Way] = {
    "allreduce": Way({"kind": "allreduce"}),
    "horovod": Way({"kind": "horovod"}),
    "horovod+fp16": Way({"kind": "horovod", "compression": "fp16"}),
    "tree": Way({"kind": "tree"}),
    "allreduce+bf16": Way({"kind": "allreduce", "compress": {"name": "bf16"}}),
    "allreduce+int8": Way({"kind": "allreduce", "compress": {"name": "int8"}}),
    "allreduce+topk": Way({"kind": "allreduce", "compress": {"name": "topk"}}),
    "allreduce+powersgd": Way({"kind": "allreduce", "compress": {"name": "powersgd"}}),
    "local_sgd": Way({"kind": "local_sgd", "every": 8}),
    "diloco": Way({"kind": "diloco", "every": 32}),
    "async": Way({"kind": "async"}, needs_world="mpi"),
}

WARMUP_SHARE = 0.1  # of the steps, without which speeds are taken
INTERVALS = 20  # measurements of the speed in a run, at least


@dataclass(frozen=True)
class SyncBenchOptions:
    """What is measured; the reference is always among the kinds."""

    ranks: int
    steps: int
    repeats: int
    kinds: tuple[str, ...]
    out: Path


@dataclass(frozen=True)
class Outcome:
    """One run: validation loss after the last step, tokens/s of all ranks, payload a rank sent a step."""

    val_loss: float
    tokens_per_s: float
    bytes_per_step: float


def kinds_with_reference(kinds: Sequence[str] | None) -> tuple[str, ...]:
    """What is measured: the reference first, then what was asked for (None: all).

    >>> kinds_with_reference(["tree", "async"])
    ('allreduce', 'tree', 'async')
    """
    return tuple(dict.fromkeys([REFERENCE, *(kinds or WAYS)]))


def settings_of(config: RunConfig, kind: str, options: SyncBenchOptions, repeat: int) -> RunConfig:
    """The config of one run: another sync, its own folder, the seed of the round; one validation, at the end."""
    values = config.model_dump(mode="json")
    way = WAYS[kind]
    values |= {"sync": way.sync, "world": way.needs_world or values["world"], "seed": config.seed + repeat}
    values["run_dir"] = str(options.out / "runs" / f"{kind}-{repeat}")
    values["train"] |= {"steps": options.steps, "eval_every": options.steps, **dict.fromkeys(OTHER_ENDS)}
    values["checkpoint"] |= {"every": options.steps, "keep": 1}
    values["log"] |= {"every": max(1, options.steps // INTERVALS), "tensorboard": False}
    return validate(RunConfig, values, Path(f"bench sync, {kind}"))


def bench(config: RunConfig, options: SyncBenchOptions) -> dict[str, Any]:
    """Run all ways in turn, so many rounds; returns what OUT/sync.json holds, and writes OUT/sync.md too.

    A way that fails is left out of later rounds, with its reason; if the reference fails that is a UserError.
    """
    _check_data(config, options.ranks)
    options.out.mkdir(parents=True, exist_ok=True)
    plans = [
        {kind: settings_of(config, kind, options, number) for kind in options.kinds}
        for number in range(options.repeats)
    ]
    rounds: list[dict[str, Outcome]] = []
    failed: dict[str, str] = {}
    started = time.monotonic()
    for number, plan in enumerate(plans):
        rounds.append(_round({k: run for k, run in plan.items() if k not in failed}, options.ranks, failed))
        left_s = (time.monotonic() - started) / (number + 1) * (options.repeats - number - 1)
        log.info("round %d of %d done | %.0f s left", number + 1, options.repeats, left_s)
    result = {
        "ranks": options.ranks,
        "steps": options.steps,
        "repeats": options.repeats,
        "tokens": options.steps * config.train.global_batch * config.data.seq_len,
        "rows": summarise(rounds),
        "failed": failed,
        "rounds": [{kind: asdict(outcome) for kind, outcome in row.items()} for row in rounds],
    }
    write_text_durably(options.out / "sync.json", to_json(result, indent=1) + "\n")
    write_text_durably(options.out / "sync.md", to_markdown(result))
    return result


def _check_data(config: RunConfig, ranks: int) -> None:
    for corpus in config.data.corpora:
        if not (corpus.path / MANIFEST).exists():
            made_by = f"mpirun -np {ranks} hvdlm preprocess configs/quickstart-data.yaml output={corpus.path}"
            raise UserError(f"{corpus.path}: no data set; `{made_by}` makes one")
    if not open_corpora(config.data).having("val"):
        raise UserError("the data has no validation split to compare losses on; preprocess it with split.val")


def _round(plan: dict[str, RunConfig], ranks: int, failed: dict[str, str]) -> dict[str, Outcome]:
    """All runs of a round, one after the other; ways that fail are added to `failed`."""
    found: dict[str, Outcome] = {}
    for number, (kind, settings) in enumerate(plan.items()):
        try:
            found[kind] = outcome = run_way(settings, ranks)
        except JobFailed as error:
            if kind == REFERENCE:
                raise UserError(f"bench sync: {REFERENCE} failed: {error}") from None
            failed[kind] = str(error)
            log.info("%s failed: %s", kind, error)
            continue
        speed = f"{outcome.tokens_per_s:,.0f} tokens/s"
        done = f"{number + 1} of {counted(len(plan), 'run')} of this round"
        log.info("%s: validation loss %.4f, %s | %s", kind, outcome.val_loss, speed, done)
    return found


def run_way(settings: RunConfig, ranks: int) -> Outcome:
    """One run; raises JobFailed."""
    summary = train_afresh(settings, ranks)
    rows = [row for row in read_metrics(settings.run_dir / "metrics.jsonl", "train") if "tokens_per_s" in row]
    return Outcome(summary["val_loss"], rate_of(rows), summary["bytes_per_step"])


def rate_of(rows: Sequence[dict]) -> float:
    """Tokens/s over the whole run but its warm-up, from a row an interval: `step`, `tokens` so far, `tokens_per_s`.

    Time is added up, because some ways talk in few steps alone, which a median of intervals would not see.

    >>> rate_of([{"step": n, "tokens": 100 * n, "tokens_per_s": rate} for n, rate in ((1, 1), (2, 100), (3, 50))])
    66.66666666666667
    """
    warm = [row for row in rows[:-1] if row["step"] <= WARMUP_SHARE * rows[-1]["step"]] or rows[:-1][:1]
    tokens, seconds, done = 0, 0.0, warm[-1]["tokens"] if warm else 0
    for row in rows[len(warm) :]:
        tokens += row["tokens"] - done
        seconds += (row["tokens"] - done) / row["tokens_per_s"]
        done = row["tokens"]
    return tokens / seconds


def summarise(rounds: Sequence[dict[str, Outcome]]) -> dict[str, dict[str, Any]]:
    """A row for each way that ran in every round: medians, and [low, high] over the rounds of what is compared."""
    rows = {}
    for kind in rounds[0]:
        if not all(kind in row for row in rounds):
            continue
        own = [row[kind] for row in rounds]
        rows[kind] = {
            "val_loss": statistics.median(o.val_loss for o in own),
            "val_loss_more": _spread(rounds, kind, lambda mine, reference: mine.val_loss - reference.val_loss),
            "tokens_per_s": statistics.median(o.tokens_per_s for o in own),
            "speed": _spread(rounds, kind, lambda mine, reference: mine.tokens_per_s / reference.tokens_per_s),
            "bytes_per_step": statistics.median(o.bytes_per_step for o in own),
        }
    return rows


def _spread(
    rounds: Sequence[dict[str, Outcome]], kind: str, compared: Callable[[Outcome, Outcome], float]
) -> dict[str, float]:
    values = [compared(row[kind], row[REFERENCE]) for row in rounds]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


HEADS = ("", "validation loss", "more than allreduce", "tokens/s", "to allreduce", "MB a step and rank")


def cells(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows as text."""
    rows = []
    for kind, row in result["rows"].items():
        more, speed = _shown(row["val_loss_more"], "{:+.4f}"), _shown(row["speed"], "{:.2f}")
        if kind == REFERENCE:
            more = speed = ""
        num_mb = row["bytes_per_step"] / 1e6
        rows.append([kind, f"{row['val_loss']:.4f}", more, f"{row['tokens_per_s']:,.0f}", speed, f"{num_mb:.2f}"])
    return rows


def _shown(spread: dict[str, float], form: str) -> str:
    return bracketed(spread["median"], spread["low"], spread["high"], form=form)


def to_text(result: dict[str, Any]) -> str:
    """The table as columns, below it the ways that failed."""
    numbers = {"rank": "ranks", "step": "steps", "token": "tokens", "round": "repeats"}
    head = ", ".join(counted(result[key], noun) for noun, key in numbers.items())
    failed = [f"{kind} failed: {reason}" for kind, reason in result["failed"].items()]
    return "\n".join([head, table(HEADS, cells(result)), *failed])


def to_markdown(result: dict[str, Any]) -> str:
    """The table for docs/sync.md; a way that failed has its reason in place of numbers."""
    failed = [[kind, f"failed: {reason}", "", "", "", ""] for kind, reason in result["failed"].items()]
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    lines += [f"| {' | '.join((f'`{row[0]}`', *row[1:]))} |" for row in [*cells(result), *failed]]
    return "\n".join(lines) + "\n"
