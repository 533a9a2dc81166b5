"""The `bench` group: what this machine makes of hvdlm, beside its parts and its peers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import (
    PATH,
    RANKS,
    REPEATS,
    Choice,
    Group,
    NameList,
    Number,
    WholeNumber,
    check_run,
    config_of_study,
    json_option,
    overrides_argument,
    refuse_a_launcher,
    result,
)
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as
from hvdlm.parallel.schedule import SCHEDULES
from hvdlm.world.connect import connected

WORKLOADS = "tiny,small,small-bf16,vocab50k,lstm"
VARIANTS = "limit,horovod,allreduce,tree,stock-horovod,stock-ddp"
VARIANTS_HELP = "Also allreduce+NAME and horovod+fp16: with that compression."


def _workloads() -> Iterable[str]:
    from hvdlm.perf.train_cases import WORKLOADS as FOUND

    return FOUND


def _families() -> Iterable[str]:
    from hvdlm.models import MODELS

    return MODELS


@click.group(cls=Group)
def bench() -> None:
    """Measure what this machine makes of hvdlm, beside its parts and its peers."""


@bench.command("preprocess", epilog="hvdlm bench preprocess --megabytes 200 --out runs/bench")
@click.option("--corpus", type=PATH, default=None, help="Your .jsonl; default: text of this Python.")
@click.option("--megabytes", type=WholeNumber(1), default=200, show_default=True)
@click.option("--vocab-size", type=WholeNumber(257), default=32768, show_default=True)
@click.option("--ranks", default="1,2", show_default=True)
@click.option("--repeats", type=REPEATS, default=3, show_default=True)
@click.option("--datatrove-python", default=None, help="An interpreter that has datatrove, to measure it too.")
@click.option("--out", type=PATH, default=Path("runs/bench"), show_default=True)
@json_option
def bench_preprocess(ranks: str, out: Path, as_json: bool, **choices: Any) -> None:
    """Raw jsonl to shards as a whole process, the encoder alone, the tokenizers library, and datatrove."""
    refuse_a_launcher("hvdlm bench")
    from hvdlm.perf import bench_preprocess as stage
    from hvdlm.perf.sweep import parse_ranks
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    found = stage.bench(stage.BenchOptions(out=out, ranks=tuple(parse_ranks(ranks)), **choices))
    result(found, as_json, stage.to_text(found))


@bench.command("reading", epilog="hvdlm bench reading")
@click.option("--repeats", type=REPEATS, default=7, show_default=True)
@json_option
def bench_reading(repeats: int, as_json: bool) -> None:
    """Windows from shards against h5py slices and a plain memory map; the byte tokenizer against memcpy."""
    from hvdlm.perf import bench_reading as stage

    found = stage.bench(repeats)
    result(found, as_json, stage.to_text(found))


@bench.command("train", epilog="hvdlm bench train --workloads tiny,small-bf16 --rounds 7")
@click.option("--ranks", type=RANKS, default=2, show_default=True)
@click.option("--workloads", type=NameList(_workloads), metavar="NAMES", default=WORKLOADS, show_default=True)
@click.option("--variants", default=VARIANTS, show_default=True, help=VARIANTS_HELP)
@click.option("--rounds", type=WholeNumber(2), default=7, show_default=True, help="Six or more have an interval.")
@click.option("--block-seconds", type=Number(0.01), default=1.5, show_default=True, help="Of one variant.")
@click.option("--starts", type=WholeNumber(0), default=5, show_default=True, help="Starts of a run that are timed.")
@click.option("--out", type=PATH, default=Path("runs/bench-train"), show_default=True)
@json_option
def bench_train(workloads: tuple[str, ...], variants: str, out: Path, as_json: bool, **counts: Any) -> None:
    """Training by every way of combining gradients, by stock Horovod and by stock DDP, against ranks that never talk.

    All variants of a workload are alive at once and measured in turn, some seconds each; the others are stopped.
    """
    refuse_a_launcher("hvdlm bench")
    from hvdlm.perf import bench_train as stage
    from hvdlm.perf.train_cases import TrainBenchOptions
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    options = TrainBenchOptions(
        out=out, workloads=workloads, variants=tuple(map(str.strip, variants.split(","))), **counts
    )
    found = stage.bench(options)
    result(found, as_json, stage.to_text(found))


@bench.command("models", epilog="hvdlm bench models configs/quickstart.yaml --steps 400 --out runs/bench-models")
@click.argument("config", type=PATH, default=Path("configs/quickstart.yaml"))
@overrides_argument
@click.option("--ranks", type=RANKS, default=2, show_default=True)
@click.option("--steps", type=WholeNumber(1), default=400, show_default=True, help="Of those that descend.")
@click.option("--families", type=NameList(_families), metavar="NAMES", default=None, help="With commas; default: all.")
@click.option("--out", type=PATH, default=Path("runs/bench-models"), show_default=True)
@import_option
@json_option
def bench_models(
    config: Path, overrides: tuple[str, ...], families: tuple[str, ...] | None, as_json: bool, **choices: Any
) -> None:
    """Every family on one corpus and as many tokens: loss, speed, parameters, in a table and a picture."""
    settings = config_of_study("hvdlm bench", config, overrides)
    from hvdlm.perf import bench_models as stage

    options = stage.ModelBenchOptions(models=stage.families(families), **choices)
    found = stage.bench(settings, options)
    result(found, as_json, stage.to_text(found))


@bench.command("infer", epilog="hvdlm bench infer runs/quickstart/train --rounds 7 --out runs/bench-infer")
@click.argument("run", type=PATH)
@click.option("--preset", type=Choice(["gpt2", "gpt2-medium"]), default="gpt2", show_default=True, help="The shape.")
@click.option("--tokens", type=WholeNumber(2), default=64, show_default=True, help="Of each text of that shape.")
@click.option("--prompts", type=WholeNumber(0), default=1000, show_default=True, help="That ranks share; 0: none.")
@click.option("--threads", type=WholeNumber(1), default=1, show_default=True)
@click.option("--rounds", type=WholeNumber(2), default=7, show_default=True, help="Six or more have an interval.")
@click.option("--out", type=PATH, default=Path("runs/bench-infer"), show_default=True)
@json_option
def bench_infer(run: Path, as_json: bool, **choices: Any) -> None:
    """Writing text: without a cache and with one, one text and many, int8, `transformers`, two ranks and one."""
    refuse_a_launcher("hvdlm bench")
    check_run(run)
    from hvdlm.perf import bench_infer as stage
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    found = stage.bench(stage.InferBenchOptions(run=run, **choices))
    result(found, as_json, stage.to_text(found))


@bench.command("gpu", epilog="hvdlm bench gpu --micro-batches 8,16 --out runs/bench-gpu")
@click.option("--layers", type=WholeNumber(1), default=12, show_default=True)
@click.option("--heads", type=WholeNumber(1), default=12, show_default=True)
@click.option("--width", type=WholeNumber(2), default=768, show_default=True)
@click.option("--seq-len", type=WholeNumber(1), default=1024, show_default=True)
@click.option("--vocab-size", type=WholeNumber(257), default=50304, show_default=True)
@click.option("--precision", type=Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--batch", type=WholeNumber(1), default=480, show_default=True, help="Sequences a step.")
@click.option("--micro-batches", default="8,16,32", show_default=True)
@click.option("--compile", "compiles", type=Choice(["both", "yes", "no"]), default="both", show_default=True)
@click.option("--rounds", type=REPEATS, default=5, show_default=True)
@click.option("--steps", type=WholeNumber(1), default=2, show_default=True, help="Of one program in a round.")
@click.option("--device", type=Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--out", type=PATH, default=Path("runs/bench-gpu"), show_default=True)
@json_option
def bench_gpu(out: Path, as_json: bool, micro_batches: str, compiles: str, **choices: Any) -> None:
    """Training of GPT-2 124M on one GPU beside a plain torch loop, in turn: tokens/s, MFU, memory, where time goes."""
    refuse_a_launcher("hvdlm bench")
    from hvdlm.perf import bench_gpu as stage
    from hvdlm.perf.plain_gpt import GptShape
    from hvdlm.perf.sweep import parse_ranks
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    shape = GptShape(**{name: choices.pop(name) for name in GptShape.__dataclass_fields__})
    sizes, either = tuple(parse_ranks(micro_batches)), {"both": (False, True), "yes": (True,), "no": (False,)}
    options = stage.GpuBenchOptions(out=out, shape=shape, micro_batches=sizes, compiles=either[compiles], **choices)
    found = stage.bench(options)
    result(found, as_json, stage.to_text(found))


@bench.command("cell", hidden=True)
@click.argument("spec", type=PATH)
def bench_cell(spec: Path) -> None:
    """What every rank of a job of `hvdlm bench train` runs."""
    from hvdlm.perf.training_cell import read_spec, serve

    serve(read_spec(spec), *(launched_as() or (0, 1)))


@bench.command("encoder", hidden=True)
@click.argument("kind", type=Choice(["fast", "tokenizers"]))
@click.argument("corpus", type=PATH)
@click.argument("path", type=PATH)
@click.argument("rank", type=WholeNumber())
@click.argument("size", type=WholeNumber())
def bench_encoder(**task: Any) -> None:
    """What a process of `hvdlm bench preprocess` runs."""
    from hvdlm.perf.bench_preprocess import encoder_rate

    print(encoder_rate(**task))


@bench.command("checkpoint", epilog="hvdlm bench checkpoint --megabytes 1500 --out runs/bench")
@click.option("--megabytes", type=WholeNumber(1), default=1500, show_default=True, help="Of a rank's state.")
@click.option("--rounds", type=REPEATS, default=5, show_default=True)
@click.option("--out", type=PATH, default=Path("runs/bench"), show_default=True, help="On the disk to be measured.")
@json_option
def bench_checkpoint(as_json: bool, **choices: Any) -> None:
    """Saving beside a memcpy, a raw write with fsync, torch.save and torch's distributed checkpoints."""
    refuse_a_launcher("hvdlm bench")
    from hvdlm.perf import bench_checkpoint as stage

    found = stage.bench(stage.CheckpointBenchOptions(**choices))
    result(found, as_json, stage.to_text(found))


@bench.command("pipeline", epilog="mpirun -np 4 hvdlm bench pipeline --micro-batches 8")
@click.option(
    "--schedules", type=NameList(lambda: SCHEDULES), metavar="NAMES", default=",".join(SCHEDULES), show_default=True
)
@click.option("--micro-batches", type=WholeNumber(1), default=8, show_default=True)
@click.option("--chunks", type=WholeNumber(2), default=2, show_default=True, help="Of interleaved.")
@click.option("--forward-ms", type=Number(0), default=100.0, show_default=True, help="Of a stage and micro-batch.")
@click.option("--backward-ms", type=Number(0), default=100.0, show_default=True, help="Of inputs.")
@click.option("--weights-ms", type=Number(0), default=100.0, show_default=True, help="Of weights.")
@click.option("--kilobytes", type=WholeNumber(1), default=512, show_default=True, help="Of a message.")
@click.option("--rounds", type=REPEATS, default=5, show_default=True)
@json_option
def bench_pipeline(as_json: bool, **choices: Any) -> None:
    """Each rank is a stage that sleeps for compute: idle time as measured, and as the simulator says."""
    from hvdlm.perf import bench_pipeline as stage

    _on_ranks(stage, stage.PipelineBenchOptions(**choices), as_json, "pipeline: has a stage a rank")


@bench.command("tensor", epilog="mpirun -np 2 hvdlm bench tensor --width 512")
@click.option("--layers", type=WholeNumber(1), default=4, show_default=True)
@click.option("--heads", type=WholeNumber(1), default=8, show_default=True)
@click.option("--width", type=WholeNumber(2), default=512, show_default=True)
@click.option("--seq-len", type=WholeNumber(1), default=256, show_default=True)
@click.option("--batch", type=WholeNumber(1), default=4, show_default=True, help="Sequences at once.")
@click.option("--rounds", type=REPEATS, default=7, show_default=True)
@json_option
def bench_tensor(as_json: bool, **choices: Any) -> None:
    """Layers that ranks share: forward and backward, beside compute / ranks and four sums a layer."""
    from hvdlm.perf import bench_tensor as stage

    _on_ranks(stage, stage.TensorBenchOptions(**choices), as_json, "tensor: shares layers among ranks")


@bench.command("zero", epilog="mpirun -np 2 hvdlm bench zero --width 512")
@click.option("--layers", type=WholeNumber(1), default=4, show_default=True)
@click.option("--heads", type=WholeNumber(1), default=8, show_default=True)
@click.option("--width", type=WholeNumber(2), default=512, show_default=True)
@click.option("--vocab-size", type=WholeNumber(257), default=8192, show_default=True)
@json_option
def bench_zero(as_json: bool, **choices: Any) -> None:
    """Bytes a parameter with the optimizer's state whole and shared, counted."""
    from hvdlm.perf import bench_zero as stage

    _on_ranks(stage, stage.ZeroBenchOptions(**choices), as_json, "zero: shares the optimizer's state")


def _on_ranks(stage: Any, options: Any, as_json: bool, what: str) -> None:
    """A benchmark of what ranks do together."""
    with connected() as world:
        if world.size == 1:
            raise UserError(f"hvdlm bench {what}; start it with mpirun -np 2 or more")
        found = stage.bench(options, world)
        result(found, as_json, stage.to_text(found), world.rank)
