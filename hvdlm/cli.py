"""The one command `hvdlm`. Each subcommand imports its stage when it is called.

Exit codes: 0 done, 2 the user's error (one line), 75 stopped on request and resumable, others failed.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from hvdlm import __version__
from hvdlm.errors import EXIT_STOPPED, EXIT_USER_ERROR, StoppedOnRequest, UserError
from hvdlm.world import connected, launched_as, launcher_waits_for_all

ALONE_S = 5.0  # a rank that still runs so long after its mistake is the only one that made it

EXIT_CODES = "Exit codes: 0 done, 2 the user's error, 75 stopped on request and resumable, others failed."


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit with its documented code."""
    rank = (launched_as() or (0, 1))[0]
    try:
        sys.exit(cli.main(argv, standalone_mode=False) or 0)
    except UserError as error:
        _complain(f"hvdlm: error: {error}", rank, error.on_all_ranks)
        sys.exit(EXIT_USER_ERROR)
    except StoppedOnRequest as stop:
        if rank == 0:
            print(f"hvdlm: {stop}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except click.UsageError as error:
        if rank == 0:
            error.show()
        sys.exit(EXIT_USER_ERROR)
    except click.exceptions.Abort:
        sys.exit(130)
    finally:
        gc.freeze()  # at exit Python would look for garbage among a million objects of torch: 1.1 s, now 0.3 s


def _complain(message: str, rank: int, on_all_ranks: bool) -> None:
    """Print once: rank 0 at once; another only if the launcher has not ended it for rank 0's failure by then.

    srun does not end the others, and names the tasks that failed itself.
    """
    if rank and (on_all_ranks or launcher_waits_for_all()):
        return
    if rank:
        time.sleep(ALONE_S)
    print(message, file=sys.stderr, flush=True)


def _result(value: dict[str, Any], as_json: bool, text: str, rank: int = 0) -> None:
    """The command's result as the last line of stdout, on rank 0."""
    if rank == 0:
        print(json.dumps(value) if as_json else text, flush=True)


class _Command(click.Command):
    """A command whose help ends with an example, printed as it stands."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write("\nExample:\n" + "".join(f"  {line}\n" for line in self.epilog.splitlines()))


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hvdlm")
def cli() -> None:
    """Train language models with MPI and Horovod: raw text to shards, training, scaling report.

    Every command works as one process and under mpirun, horovodrun and srun. Settings come from one
    YAML file and key.sub=value overrides after it.
    """


def _json_option(function: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")(function)


def _by_rank_0(function: Any) -> Any:
    """For commands that only read or print: under a launcher rank 0 alone runs them."""

    @functools.wraps(function)
    def alone(*args: Any, **options: Any) -> Any:
        return function(*args, **options) if (launched_as() or (0, 1))[0] == 0 else 0

    return alone


_config = click.argument("config", type=click.Path(path_type=Path))
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")


@cli.command(epilog="hvdlm doctor --json")
@click.option("--hello", is_flag=True, hidden=True)
@_json_option
def doctor(hello: bool, as_json: bool) -> int:
    """Check that torch, Horovod, MPI and HDF5 here fit together; each problem comes with its remedy."""
    from hvdlm import doctor as stage

    rank, size = launched_as() or (0, 1)
    if hello:
        _result(stage.hello(), True, "", rank)
        return 0
    checks = stage.examine(is_job=size > 1)
    is_well = all(check.ok for check in checks)
    _result({"ok": is_well, "checks": [check.to_dict() for check in checks]}, as_json, stage.to_text(checks), rank)
    return 0 if is_well else 1


@cli.command(
    epilog="mpirun -np 4 hvdlm preprocess configs/quickstart-data.yaml output=data/mine input='texts/*.jsonl.gz'"
)
@_config
@_overrides
@_json_option
def preprocess(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Turn raw text into tokenized HDF5 shards; the same bytes at any number of ranks."""
    from hvdlm.config import load
    from hvdlm.host import find_place
    from hvdlm.preprocessing.build import build
    from hvdlm.preprocessing.plan import PreprocessConfig
    from hvdlm.runlog import setup_logging

    settings = load(PreprocessConfig, config, overrides)
    with connected() as world:
        setup_logging(world.rank)
        os.environ.setdefault("RAYON_NUM_THREADS", str(find_place(world).threads))  # the tokenizers library's threads
        manifest = build(settings, world)
        value = {
            "output": str(settings.output), "num_tokens": manifest.num_tokens, "num_documents": manifest.num_documents,
            "vocab_size": manifest.vocab_size, "tokenizer_digest": manifest.tokenizer_digest,
        }  # fmt: skip
        text = f"{settings.output}: {manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents"
        _result(value, as_json, text, world.rank)


@cli.group(cls=_Group)
def data() -> None:
    """Look into a data folder."""


@data.command("inspect", epilog="hvdlm data inspect runs/quickstart/data")
@click.argument("folder", type=click.Path(path_type=Path))
@_json_option
@_by_rank_0
def data_inspect(folder: Path, as_json: bool) -> None:
    """Counts, document lengths, and the beginning of a document decoded."""
    from hvdlm.inspection import inspect, to_text

    facts = inspect(folder)
    _result(facts, as_json, to_text(facts))


@data.command("verify", epilog="hvdlm data verify runs/quickstart/data")
@click.argument("folder", type=click.Path(path_type=Path))
@_json_option
@_by_rank_0
def data_verify(folder: Path, as_json: bool) -> None:
    """Compare every shard with the manifest's checksum."""
    from hvdlm.shards import read_manifest, verify

    faults = verify(folder)
    if faults:
        raise UserError("; ".join(faults) + "; copy these files again or rerun `hvdlm preprocess` into a new folder")
    num_shards = sum(len(split.shards) for split in read_manifest(folder).splits.values())
    _result({"ok": True, "num_shards": num_shards}, as_json, f"{folder}: {num_shards} shards, all as written")


@cli.command(epilog="mpirun -np 2 hvdlm train configs/quickstart.yaml train.steps=50 run_dir=runs/short")
@_config
@_overrides
@_json_option
def train(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train, or resume the run in run_dir from its newest complete checkpoint."""
    from hvdlm import train as stage
    from hvdlm.config import load
    from hvdlm.run import RunConfig
    from hvdlm.runlog import setup_logging

    settings = load(RunConfig, config, overrides)
    with connected(settings.world, prefer="horovod") as world:
        setup_logging(world.rank)
        summary = stage.train(settings, world)
        text = f"{settings.run_dir}: step {summary['step']}" + (
            f", validation loss {summary['val_loss']:.4f}" if summary["val_loss"] is not None else ""
        )
        _result(summary, as_json, text, world.rank)


@cli.command("eval", epilog="mpirun -np 2 hvdlm eval runs/quickstart/train --split val --json")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN|CHECKPOINT")
@_overrides
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val", show_default=True)
@_json_option
def evaluate(checkpoint: Path, overrides: tuple[str, ...], split: str, as_json: bool) -> None:
    """Perplexity and bits per byte over a whole split, each token exactly once over all ranks."""
    from hvdlm.restore import evaluate_checkpoint
    from hvdlm.runlog import setup_logging

    with connected() as world:
        setup_logging(world.rank)
        result = evaluate_checkpoint(checkpoint, overrides, split, world)
        text = "  ".join(f"{name} {value:,.4f}" if isinstance(value, float) else f"{name} {value:,}"
                         for name, value in result.items() if isinstance(value, int | float))  # fmt: skip
        _result(result, as_json, text, world.rank)


@cli.command(
    epilog="hvdlm generate runs/quickstart/train --prompt 'def __init__(self' --max-tokens 100 --temperature 0.7"
)
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN|CHECKPOINT")
@_overrides
@click.option("--prompt", default="", help="Text to continue.")
@click.option("--max-tokens", type=click.IntRange(1), default=200, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0: the likeliest.")
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="0: all.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@_json_option
def generate(
    checkpoint: Path, overrides: tuple[str, ...], prompt: str, max_tokens: int, as_json: bool, **options: Any
) -> None:
    """Write text with a trained model. Under a launcher rank 0 does it alone."""
    from hvdlm.generate import Sampling
    from hvdlm.restore import continue_text

    with connected() as world:
        text = world.on_root(lambda: continue_text(checkpoint, overrides, prompt, Sampling(**options), max_tokens))
        _result({"prompt": prompt, "text": text}, as_json, prompt + text, world.rank)


@cli.command(epilog="hvdlm scale configs/quickstart.yaml --ranks 1,2 --mode both --out runs/scaling")
@_config
@_overrides
@click.option("--ranks", default="1,2", show_default=True, help="Rank counts, smallest first.")
@click.option("--mode", type=click.Choice(["strong", "weak", "both"]), default="both", show_default=True)
@click.option("--steps", type=click.IntRange(3), default=20, show_default=True, help="Timed steps of one measurement.")
@click.option("--warmup", type=click.IntRange(1), default=5, show_default=True, help="Steps before them, discarded.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each point.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Default: RUN_DIR/scaling.")
@_json_option
def scale(
    config: Path, overrides: tuple[str, ...], ranks: str, mode: str, out: Path | None, as_json: bool, **counts: int
) -> None:
    """Measure weak and strong scaling of the real training step; leaves DIR/records and the report."""
    if (launched_as() or (0, 1))[1] > 1:
        raise UserError("`hvdlm scale` starts its own ranks; call it without mpirun")
    from hvdlm.config import load
    from hvdlm.perf.report import write_report
    from hvdlm.perf.sweep import Effort, parse_ranks, sweep
    from hvdlm.run import RunConfig
    from hvdlm.runlog import setup_logging

    setup_logging(0)
    settings = load(RunConfig, config, overrides)
    folder = out or settings.run_dir / "scaling"
    modes = ("strong", "weak") if mode == "both" else (mode,)
    sweep(settings, folder, ranks=parse_ranks(ranks), modes=modes, effort=Effort(**counts))
    report_path = write_report(folder)
    _result({"out": str(folder), "report": str(report_path)}, as_json, str(report_path))


@cli.command(hidden=True)
@click.argument("spec", type=click.Path(path_type=Path))
def measure(spec: Path) -> None:
    """What every rank of one measurement of `hvdlm scale` runs."""
    from hvdlm.perf.measure import Spec, measure_and_write

    task = Spec(**json.loads(spec.read_text()))
    with connected(task.config["world"], prefer="horovod") as world:
        measure_and_write(task, world, job=os.environ.get("SLURM_JOB_ID", ""))


@cli.command(epilog="hvdlm report runs/quickstart/scaling")
@click.argument("folder", type=click.Path(path_type=Path))
@_json_option
@_by_rank_0
def report(folder: Path, as_json: bool) -> None:
    """Write report.html, report.md, report.csv and plots from the records of `hvdlm scale`."""
    from hvdlm.perf.report import write_report

    path = write_report(folder)
    _result({"report": str(path)}, as_json, str(path))


@cli.group("config", cls=_Group)
def config_group() -> None:
    """Show resolved settings and what may be set."""


@config_group.command("show", epilog="hvdlm config show configs/quickstart.yaml optim.lr=3e-4")
@_config
@_overrides
@_json_option
@_by_rank_0
def config_show(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """The config as a command would see it, defaults and overrides included."""
    from hvdlm.config import load, to_yaml

    settings = load(_config_model(config), config, overrides)
    _result(settings.model_dump(mode="json"), as_json, to_yaml(settings).rstrip())


@config_group.command("schema", epilog="hvdlm config schema train")
@click.argument("kind", type=click.Choice(["train", "preprocess"]))
@_json_option
@_by_rank_0
def config_schema(kind: str, as_json: bool) -> None:
    """JSON Schema of a config: every key with type, default and meaning (editors can check against it)."""
    schema = _models()[kind].model_json_schema()
    _result(schema, as_json, json.dumps(schema, indent=1))


def _models() -> dict[str, Any]:
    from hvdlm.preprocessing.plan import PreprocessConfig
    from hvdlm.run import RunConfig

    return {"train": RunConfig, "preprocess": PreprocessConfig}


def _config_model(path: Path) -> Any:
    """A preprocess config is the one with an `input`."""
    import re

    try:
        is_preprocess = re.search(r"^input\s*:", path.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        is_preprocess = None  # loading it will say what is wrong
    return _models()["preprocess" if is_preprocess else "train"]
