"""`hvdlm bench train`: ways of combining gradients, and the peers, against ranks that never communicate.

All jobs of a workload live at once, stopped but for the one that measures a block of a second or two; a round is
a block of each, and ratios are taken within a round (see `paired`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import to_json, write_text_durably
from hvdlm.host import free_bytes, physical_cores
from hvdlm.launch.plan import find_mpirun, version_of
from hvdlm.session.metrics import read_metrics
from hvdlm.tables import counted, table

from . import paired
from .cell_job import CellJob
from .confidence import bracketed
from .job import HVDLM, TAKE_TURNS, end_job, start_job
from .random_shards import write_random_shards
from .record import Machine, Start, cpu_name, environment
from .train_cases import CONSTANT, LIMIT, PEERS, SEQ_LEN, WORKLOADS, TrainBenchOptions, Variant, run_config, variant_of
from .training_cell import CellSpec

log = logging.getLogger("hvdlm")

NUM_TOKENS = 4_000_000
BASES = (LIMIT, *PEERS)
WARM_UP = 3  # steps of a new job, after its first
LOADER_S = 0.3
# What starts before any line of ours is reached: the comparison of `starts`.
BARE_START = "import time, horovod.torch as hvd; hvd.init(); print(f'{time.monotonic():.3f};', flush=True)"


def bench(options: TrainBenchOptions) -> dict:
    """Measure every workload, then starts; returns rows and every raw block, and writes them to OUT/train.json."""
    for name in options.workloads:
        if name not in WORKLOADS:
            raise UserError(f"--workloads {name}: there is none of this name; choose from {', '.join(WORKLOADS)}")
    variants = {name: variant_of(name) for name in dict.fromkeys((LIMIT, *options.variants))}
    if options.ranks > physical_cores():
        log.warning(TAKE_TURNS, counted(options.ranks, "rank"), counted(physical_cores(), "core"))
    options.out.mkdir(parents=True, exist_ok=True)
    start = Start.now()
    for name in options.workloads:
        for variant in variants.values():  # a mistake in any of them is said before a job starts
            run_config(WORKLOADS[name], options, run_dir=options.out, ranks=options.ranks, sync=variant.sync)
    result: dict[str, Any] = {"ranks": options.ranks, "threads": options.threads, "rounds": options.rounds}
    result["workloads"] = {}
    for name in options.workloads:
        result["workloads"][name] = _measure(name, variants, options)
        _write(result, options, start)  # what was measured is not lost by what fails later
    result["start_s"] = _starts(options)
    _write(result, options, start)
    return result


def _write(result: dict, options: TrainBenchOptions, start: Start) -> None:
    hosts = (socket.gethostname(),) * options.ranks
    mpi, *_ = version_of(find_mpirun()).splitlines()
    machine = Machine(hosts, physical_cores(), cpu_name(), mpi)
    result["environment"] = environment(start, machine).model_dump()
    write_text_durably(options.out / "train.json", to_json(result, indent=1) + "\n")


def _measure(name: str, variants: dict[str, Variant], options: TrainBenchOptions) -> dict:
    """One workload: all its jobs, the rounds, and what they say."""
    write_random_shards(options.data_of(WORKLOADS[name]), WORKLOADS[name].vocab_size, NUM_TOKENS)
    with contextlib.ExitStack() as stack:
        jobs = {}
        for variant, found in variants.items():
            jobs[variant], ready = _start(stack, name, variant, found, options)
            log.info("%s: %s is ready, %d MB a rank", name, variant, ready[0]["memory_bytes"] >> 20)
            _check_memory(ready, len(variants) - len(jobs))
            jobs[variant].steps = paired.steps_for(options.block_seconds, ready[0]["step_s"])
            if variant == LIMIT:
                num_parameters = ready[0]["num_parameters"]
        blocks: list[paired.TimedBlock] = []
        loader: list[float] = []
        for number in range(options.rounds):
            log.info("%s: round %d of %d", name, number + 1, options.rounds)
            for variant in paired.order_of_round(list(variants), number):
                blocks += _blocks(jobs[variant], variant, number)
            loader.append(_loader_rate(jobs[LIMIT]))
    cores = dict.fromkeys((LIMIT, CONSTANT), float(options.threads))
    rows = paired.summarise(blocks, BASES, cores)
    return {
        "num_parameters": num_parameters,
        "steps_per_block": {variant: job.steps for variant, job in jobs.items()},
        "rows": rows,
        "loader_tokens_per_s": loader,
        "loader_to_limit": statistics.median(loader) / rows[LIMIT]["tokens_per_s"],
        "blocks": [asdict(block) for block in blocks],
    }


def _blocks(job: CellJob, variant: str, number: int) -> list[paired.TimedBlock]:
    """What a variant does in a round, alone on the machine.

    The limit runs twice, with the loader and without it: one first in one round and the other in the next.
    """
    orders: list[tuple[str, dict]] = [(variant, {})]
    if variant == LIMIT:
        orders = [(LIMIT, {"data": "real"}), (CONSTANT, {"data": "constant"})][:: 1 if number % 2 == 0 else -1]
    job.resume()
    blocks = []
    for name, order in orders:
        answers = job.order(do="block", steps=job.steps, **order)
        blocks.append(paired.TimedBlock(number, name, tuple(paired.RankBlock(**answer) for answer in answers)))
    job.stop()
    return blocks


def _loader_rate(job: CellJob) -> float:
    """Tokens a second that the loader gives to all ranks together."""
    job.resume()
    answers = job.order(do="load", seconds=LOADER_S)
    job.stop()
    return sum(answer["windows_per_s"] for answer in answers) * SEQ_LEN


def _start(
    stack: contextlib.ExitStack, workload: str, name: str, variant: Variant, options: TrainBenchOptions
) -> tuple[CellJob, list[dict]]:
    """A stopped job that the stack will end, and what its ranks said; its folder is OUT/WORKLOAD-VARIANT."""
    run_dir = options.out / f"{workload}-{name}"
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir()
    ranks = 1 if variant.program == "alone" else options.ranks
    config = run_config(WORKLOADS[workload], options, run_dir=run_dir, ranks=ranks, sync=variant.sync)
    with tempfile.TemporaryDirectory(prefix="hvdlm-") as folder:  # a socket's path must be short; met once is enough
        spec = CellSpec(program=variant.program, socket=f"{folder}/socket", warmup=WARM_UP, config=config)
        job = stack.enter_context(
            CellJob(run_dir.name, asdict(spec), folder=run_dir, ranks=options.ranks, environment=variant.environment())
        )
        ready = job.meet()
    job.stop()
    return job, ready


def _check_memory(ready: list[dict], jobs_to_come: int) -> None:
    """UserError before the machine runs out of memory; it is the jobs to come that are refused."""
    available = free_bytes()
    needed = jobs_to_come * sum(answer["memory_bytes"] for answer in ready)
    if needed > available:
        raise UserError(
            f"bench: {counted(jobs_to_come, 'more job')} would need {needed >> 20} MB, {available >> 20} MB are free; "
            "choose fewer --variants or smaller --workloads"
        )


def _starts(options: TrainBenchOptions) -> dict | None:
    """Seconds from launch to the first finished step of `hvdlm train`, beside those of torch and hvd.init alone."""
    if not options.starts:
        return None
    workload = WORKLOADS["tiny"]
    write_random_shards(options.data_of(workload), workload.vocab_size, NUM_TOKENS)
    bare, ours = [], []
    for number in range(options.starts):
        log.info("start %d of %d", number + 1, options.starts)
        bare.append(_bare_start(options.ranks))
        ours.append(_first_step(options))
    more = [a - b for a, b in zip(ours, bare, strict=True)]
    return {"torch and hvd.init": bare, "first step": ours, "median_more": statistics.median(more)}


def _bare_start(ranks: int) -> float:
    launched = time.monotonic()
    job = start_job(ranks, [sys.executable, "-c", BARE_START], stdout=subprocess.PIPE, text=True)
    output, _ = job.communicate()
    if job.returncode:
        raise UserError("bench: Horovod does not start; see `hvdlm doctor`")
    return max(float(part) for part in output.split(";") if part.strip()) - launched  # mpirun may lose a line end


def _first_step(options: TrainBenchOptions) -> float:
    """Until the row of step 1 stands in metrics.jsonl."""
    run_dir = options.out / "start"
    shutil.rmtree(run_dir, ignore_errors=True)
    values = run_config(WORKLOADS["tiny"], options, run_dir=run_dir, ranks=options.ranks, sync={"kind": "horovod"})
    values["train"]["steps"], values["log"]["every"] = 1, 1
    config = options.out / "start.yaml"
    config.write_text(json.dumps(values))
    launched = time.monotonic()
    silent = subprocess.DEVNULL
    job = start_job(options.ranks, [*HVDLM, "train", str(config)], stdout=silent, stderr=silent)
    try:
        while not read_metrics(run_dir / "metrics.jsonl", "train"):
            if job.poll() is not None:
                on = counted(options.ranks, "rank")
                raise UserError(f"bench: `hvdlm train {config}` failed; run it on {on} to see why")
            time.sleep(0.005)
        return time.monotonic() - launched
    finally:
        end_job(job, patience_s=60)


HEADS = ("", "", "tokens/s", "of the limit", "x stock hvd", "x stock DDP", "CPU", "n")


def to_text(result: dict) -> str:
    """One line a variant, then what the loader and a start take."""
    lines, notes = [], []
    for name, found in result["workloads"].items():
        rows = found["rows"]
        lines += [_cells(name, variant, row) for variant, row in rows.items() if variant != CONSTANT]
        notes.append(
            f"{name}: the loader gives {found['loader_to_limit']:,.0f} times what the limit takes, "
            f"{100 * (rows[LIMIT]['data_wait'] or 0):.2f} % of a step waits for it, "
            f"constant data: {_ratio(rows[CONSTANT], LIMIT)}"
        )
        if len(rows[LIMIT]["disturbed_rounds"]) == result["rounds"]:
            notes.append(f"{name}: somebody else was computing in every round, so there is no ratio to the limit")
    start = result["start_s"]
    if start:
        notes.append(
            f"the first step is done {start['median_more']:.2f} s after torch and Horovod alone are ready "
            f"({statistics.median(start['first step']):.2f} s after launch, n = {len(start['first step'])})"
        )
    return "\n".join([table(HEADS, lines, num_left=2), *notes])


def _cells(workload: str, variant: str, row: dict) -> list[str]:
    found = row["to"]
    beside = [f"{found[peer]['median']:.2f}" if peer in found else "" for peer in PEERS]
    rounds = str(min((ratio["rounds"] for ratio in found.values()), default=""))
    speed, cores = f"{row['tokens_per_s']:,.0f}", f"{row['cpu_per_wall']:.2f}"
    return [workload, variant, speed, _ratio(row, LIMIT), *beside, cores, rounds]


def _ratio(row: dict, base: str) -> str:
    ratio = row["to"].get(base)
    return bracketed(ratio["median"], ratio["low"], ratio["high"]) if ratio else ""
