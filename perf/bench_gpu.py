"""`hvdlm bench gpu`: the training step on one GPU beside a plain torch loop: speed, memory, where time goes.

Both are alive at once and take turns, so that what the card does meanwhile (clocks, heat) is the same for both.
"""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from hvdlm.compute.device import Precision
from hvdlm.compute.peak_flops import peak_flops
from hvdlm.config import validate
from hvdlm.errors import UserError, lack_of_memory
from hvdlm.files import to_json, write_text_durably
from hvdlm.tables import table
from hvdlm.train.config import RunConfig
from hvdlm.train.setup import build_learner
from hvdlm.train.step import GradientLearner
from hvdlm.world.serial import SerialWorld

from .gpu_time import where_time_goes
from .plain_gpt import GptShape, PlainTraining
from .random_shards import write_random_shards

log = logging.getLogger("hvdlm")

MANY_STEPS = 1_000_000  # so that the schedule never ends
WARM_STEPS = 2  # compilation, allocation, the choice of kernels


@dataclass(frozen=True)
class GpuBenchOptions:
    """What is measured: a step of `batch` sequences in micro-batches of each size, compiled or not."""

    out: Path
    shape: GptShape
    precision: Precision
    batch: int
    micro_batches: tuple[int, ...]
    compiles: tuple[bool, ...]
    rounds: int
    steps: int  # of one program in a round
    device: str


class Program(Protocol):
    def run(self, num_steps: int) -> None: ...


class EngineSteps:
    """hvdlm's own training step."""

    def __init__(self, config: RunConfig) -> None:
        learner, _ = build_learner(config, SerialWorld())
        assert isinstance(learner, GradientLearner), "a GPT descends"
        self.learner = learner
        self._step = 0

    def run(self, num_steps: int) -> None:
        self.learner.run(self._step, self._step + num_steps)
        self._step += num_steps


def bench(options: GpuBenchOptions) -> dict:
    """A row for each program, micro-batch and compilation, and what the fastest of hvdlm's spends its time on."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is to be seen here (see `hvdlm doctor`); --device cpu shows what would be measured")
    for micro_batch in options.micro_batches:
        if options.batch % micro_batch:
            raise UserError(f"--micro-batches: {micro_batch} does not divide --batch {options.batch}")
    write_random_shards(_data_of(options), options.shape.vocab_size, 4 * options.batch * (options.shape.seq_len + 1))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    facts = {"gpu": name, "torch": torch.__version__, "shape": asdict(options.shape), "precision": options.precision}
    result: dict[str, Any] = {**facts, "batch": options.batch, "rounds": options.rounds, "rows": [], "profiles": {}}
    for compiled in options.compiles:
        for micro_batch in options.micro_batches:
            found, profile = _measure(options, micro_batch, compiled, device)
            for row in found:
                log.info(", ".join(f"{name} {value}" for name, value in row.items()))
            result["rows"] += found
            result["profiles"][f"{micro_batch}, {'compiled' if compiled else 'eager'}"] = profile
            write_text_durably(options.out / "bench-gpu.json", to_json(result, indent=1) + "\n")
            _forget()
    return result


def _data_of(options: GpuBenchOptions) -> Path:
    shape = options.shape
    return options.out / f"data-{shape.vocab_size}-{options.batch}x{shape.seq_len}"


def _config(options: GpuBenchOptions, micro_batch: int, compiled: bool) -> RunConfig:
    shape = options.shape
    values = {
        "run_dir": str(options.out / "run"),
        "data": {"path": str(_data_of(options)), "seq_len": shape.seq_len},
        "model": {"family": "transformer", "layers": shape.layers, "heads": shape.heads, "width": shape.width},
        "train": {
            "steps": MANY_STEPS,
            "global_batch": options.batch,
            "micro_batch": micro_batch,
            "precision": options.precision,
            "compile": compiled,
            "device": options.device,
        },
    }
    return validate(RunConfig, values, Path("bench"))


def _measure(
    options: GpuBenchOptions, micro_batch: int, compiled: bool, device: torch.device
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of hvdlm and of the plain loop, measured in turn, and the profile of a step of hvdlm."""
    case = {"micro_batch": micro_batch, "compiled": compiled}
    memory: dict[str, float] = {}
    programs: dict[str, Program] = {}
    try:
        with _peak(device) as peak:
            steps = EngineSteps(_config(options, micro_batch, compiled))
            programs["hvdlm"] = steps
            steps.run(WARM_STEPS)
        memory["hvdlm"] = peak[0]
        how: dict[str, Any] = {"compiled": compiled, "device": device, "precision": options.precision}
        with _peak(device) as peak:
            plain = PlainTraining(options.shape, micro_batch, options.batch // micro_batch, **how)
            programs["plain torch"] = plain
            plain.run(WARM_STEPS)
        memory["plain torch"] = peak[0]
        seconds = _in_turn(programs, options, device)
    except Exception as error:
        if not lack_of_memory(error):
            raise
        lacking = "hvdlm" if not memory else "plain torch"
        return [{"program": lacking, **case, "lacks": "memory"}], {}
    flops = steps.learner.model.flops_per_token(options.shape.seq_len)
    most = peak_flops(device, options.precision)
    rows = []
    for name, times in seconds.items():
        speeds = [options.batch * options.shape.seq_len / took for took in times]
        speed = statistics.median(speeds)
        mfu = round(speed * flops / most, 4) if most else None
        spread = round((max(speeds) - min(speeds)) / speed, 4)
        row = {"tokens_per_s": round(speed), "spread": spread, "mfu": mfu, "memory_gb": round(memory[name], 2)}
        rows.append({"program": name, **case, **row})
    return rows, where_time_goes(lambda: steps.run(1), device)


def _in_turn(programs: dict[str, Program], options: GpuBenchOptions, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a step, one number a round."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(options.rounds):
        names = list(programs) if number % 2 == 0 else list(programs)[::-1]
        for name in names:
            _wait(device)
            start = time.perf_counter()
            programs[name].run(options.steps)
            _wait(device)
            seconds[name].append((time.perf_counter() - start) / options.steps)
    return seconds


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float]]:
    """GB that torch has allocated at most in the body beyond what was there before; 0 on a CPU."""
    found = [0.0]
    if device.type == "cpu":
        yield found
        return
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    found[0] = (torch.cuda.max_memory_allocated(device) - before) / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget() -> None:
    """Compiled code knows the last case's sizes and would be made for any size at the next; memory goes back too."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def to_text(result: dict) -> str:
    """A row a program, the peer below hvdlm, and where the time of hvdlm's step goes."""
    shape = result["shape"]
    what = f"{shape['layers']} layers, width {shape['width']}, T = {shape['seq_len']}, {result['precision']}"
    heads = ["micro-batch", "", "program", "tokens/s", "MFU", "spread", "GB"]
    rows = []
    for row in result["rows"]:
        case = [str(row["micro_batch"]), "compiled" if row["compiled"] else "eager", row["program"]]
        if "lacks" in row:
            rows.append([*case, "not enough memory"])
            continue
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
        rows.append([*case, f"{row['tokens_per_s']:,}", mfu, f"{row['spread']:.1%}", f"{row['memory_gb']:.1f}"])
    parts = [f"{result['gpu']}, torch {result['torch']}: {what}, {result['batch']} sequences a step"]
    parts.append(table(heads, rows, num_left=3))
    for case, profile in result["profiles"].items():
        if profile:
            kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in profile["kinds"].items())
            parts.append(f"a step of hvdlm ({case}): the GPU works {profile['busy']:.1%} of the time: {kinds}")
    return "\n".join(parts)
