"""`hvdlm bench models`: every family on one corpus and as many tokens: loss, speed, size, in a table and a picture.

Families have their defaults. Those that descend see the same global batches for the same number of steps; those that
are counted read the corpus as often as that is in tokens, n-grams once. Each run is `hvdlm train` under an mpirun of
its own, and the loss is that of its last validation.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvdlm.config import validate
from hvdlm.data.corpora import open_corpora
from hvdlm.errors import UserError
from hvdlm.files import to_json, write_text_durably
from hvdlm.models import MODELS
from hvdlm.tables import counted, table
from hvdlm.train.config import RunConfig

from .fresh_run import OTHER_ENDS, train_afresh
from .job import JobFailed

log = logging.getLogger("hvdlm")


@dataclass(frozen=True)
class ModelBenchOptions:
    """What is measured: `models` are `model` sections, by the name they have in the table."""

    ranks: int
    steps: int
    models: dict[str, dict[str, Any]]
    out: Path


@dataclass(frozen=True)
class ModelResult:
    """One family: what a run of it came to."""

    task: str
    parameters: int
    val_loss: float  # nats a target
    tokens_per_s: float  # of all ranks
    tokens: int
    seconds: float  # of the whole command, start and validation included


def families(names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The `model` sections of these families, for None of all that predict tokens.

    >>> families(["lstm"])
    {'lstm': {'family': 'lstm'}}
    """
    predicting = [name for name, family in MODELS.items() if family.model_construct(family=name).predicts_tokens]
    return {name: {"family": name} for name in names or predicting}


def settings_of(config: RunConfig, name: str, options: ModelBenchOptions) -> RunConfig:
    """The config of one run; one validation, at the end."""
    values = config.model_dump(mode="json")
    values.pop("task")  # what the family is for
    values["model"] = options.models[name]
    family = MODELS[values["model"]["family"]].model_validate(values["model"])
    steps = options.steps
    if family.learner != "gradient":
        corpus = open_corpora(config.data).manifest.splits["train"].num_tokens
        steps = max(1, round(options.steps * config.train.global_batch * config.data.seq_len / corpus))
    values["run_dir"] = str(options.out / "runs" / name)
    values["train"] |= {"steps": steps, "eval_every": steps, "eval_tokens": 0, **dict.fromkeys(OTHER_ENDS)}
    values["checkpoint"] |= {"every": steps, "keep": 1}
    values["log"] |= {"tensorboard": False}
    return validate(RunConfig, values, Path(f"bench models, {name}"))


def bench(config: RunConfig, options: ModelBenchOptions) -> dict[str, Any]:
    """Run all in turn; returns what OUT/models.json holds, and writes OUT/models.md and OUT/models.png too."""
    if not open_corpora(config.data).having("val"):
        raise UserError("the data has no validation split to compare losses on; preprocess it with split.val")
    options.out.mkdir(parents=True, exist_ok=True)
    plan = {name: settings_of(config, name, options) for name in options.models}
    rows, failed = {}, {}
    for number, (name, settings) in enumerate(plan.items()):
        try:
            rows[name] = found = _run(settings, options.ranks)
        except JobFailed as error:
            failed[name] = str(error)
            log.info("%s failed: %s", name, error)
            continue
        text = "%s: validation loss %.4f, %s tokens/s | %d of %s"
        log.info(text, name, found.val_loss, f"{found.tokens_per_s:,.0f}", number + 1, counted(len(plan), "run"))
    result = {
        "ranks": options.ranks,
        "steps": options.steps,
        "tokens": options.steps * config.train.global_batch * config.data.seq_len,
        "unigram_loss": open_corpora(config.data).unigram_loss("val"),
        "rows": ranked(rows),
        "failed": failed,
    }
    write_text_durably(options.out / "models.json", to_json(result, indent=1) + "\n")
    write_text_durably(options.out / "models.md", to_markdown(result))
    if rows:
        from .pictures import draw_models

        (options.out / "models.png").write_bytes(draw_models(result))
    return result


def ranked(results: dict[str, ModelResult]) -> dict[str, dict[str, Any]]:
    """Those of the next token first, and of each task the best loss first."""
    rows = sorted(results.items(), key=lambda named: (named[1].task != "lm", named[1].task, named[1].val_loss))
    return {name: asdict(row) for name, row in rows}


def _run(settings: RunConfig, ranks: int) -> ModelResult:
    """Train from nothing in the run's own folder, of which the checkpoint is not kept; raises JobFailed."""
    start = time.monotonic()
    summary = train_afresh(settings, ranks)
    seconds = time.monotonic() - start
    return ModelResult(
        task=settings.task.kind,
        parameters=summary["parameters"],
        val_loss=summary["val_loss"],
        tokens_per_s=summary["tokens_per_s"],
        tokens=summary["tokens"],
        seconds=seconds,
    )


HEADS = ("", "task", "parameters", "validation loss", "perplexity", "tokens/s", "tokens", "seconds")


def cells(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows as text."""
    return [
        [
            *(name, row["task"], f"{row['parameters']:,}", f"{row['val_loss']:.4f}"),
            *(f"{math.exp(row['val_loss']):,.2f}", f"{row['tokens_per_s']:,.0f}"),
            *(f"{row['tokens']:,}", f"{row['seconds']:.0f}"),
        ]
        for name, row in result["rows"].items()
    ]


def to_text(result: dict[str, Any]) -> str:
    """The table as columns, below it the families that failed."""
    num = counted(result["tokens"], "token")
    head = f"{counted(result['ranks'], 'rank')}, {num} each; what is counted reads the text as a whole"
    unigram = result["unigram_loss"]
    beat = f"to beat: {unigram:.4f} (token frequencies alone)" if unigram is not None else ""
    failed = [f"{name} failed: {reason}" for name, reason in result["failed"].items()]
    return "\n".join([head, table(HEADS, cells(result), num_left=2), beat, *failed])


def to_markdown(result: dict[str, Any]) -> str:
    """The table for docs/benchmarks/models.md."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    lines += [f"| {' | '.join((f'`{row[0]}`', *row[1:]))} |" for row in cells(result)]
    return "\n".join(lines) + "\n"
