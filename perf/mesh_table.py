"""`hvdlm plan`: the meshes of some ranks side by side, by memory and time, and which one to take."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hvdlm.compute.speed import measured_flops
from hvdlm.errors import UserError
from hvdlm.host import affinity, memory_bytes
from hvdlm.parallel.link import measured_link
from hvdlm.parallel.mesh import Mesh, meshes_of
from hvdlm.parallel.prediction import Machine
from hvdlm.session.metrics import METRICS, RESUMED, STARTED, read_run
from hvdlm.tables import counted, figure, table
from hvdlm.train.config import RunConfig
from hvdlm.train.mesh_plan import Change, Planned, Planner, plan_all
from hvdlm.world.interface import World

ALPHA_US, GB_PER_S = 20.0, 5.0  # of messages, where nobody has measured them


@dataclass(frozen=True)
class PlanOptions:
    ranks: int | None = None
    mesh: Mesh | None = None
    memory_gb: float | None = None
    flops: float | None = None
    alpha_us: float | None = None  # else ALPHA_US
    gb_per_s: float | None = None
    run: Path | None = None  # whose memory and steps were measured
    is_measured: bool = False  # speed and messages, by the ranks of this job


class Measured(NamedTuple):
    """What the ranks of one start of a run have needed, by the rows that they made."""

    ranks: int | None  # None: not told, as by versions without events
    mesh: str  # as ParallelConfig.in_words
    memory_gb: float  # the most of a rank
    steps_s: list[float]  # seconds of a step, of each interval but the first, which warms up

    def is_of(self, planned: Planned) -> bool:
        return self.ranks is None or (self.ranks, self.mesh) == (planned.mesh.size, planned.in_words)


def planned(config: RunConfig, options: PlanOptions) -> dict[str, Any]:
    """What `--json` prints. UserError for a mesh that cannot be, or where none has room."""
    measured = [] if options.run is None else _measured(options.run)
    meshes = _meshes(config, options, measured[-1].ranks if measured else None)
    speed = options.flops or speed_of_rank(config, meshes[0].size)
    alpha_us = ALPHA_US if options.alpha_us is None else options.alpha_us
    machine = Machine(speed, alpha_us * 1e-6, 1e-9 / (options.gb_per_s or GB_PER_S))
    planner = Planner(config, machine)
    found, refused = [], {}
    for mesh, one in plan_all(planner, meshes):
        if isinstance(one, Planned):
            found.append(one)
        elif len(meshes) == 1:
            raise one
        else:
            refused[str(mesh)] = str(one)
    if not found:
        first, reason = next(iter(refused.items()))
        raise UserError(
            f"--ranks: no mesh of {meshes[0].size} ranks can train this; {first}: {reason}; take another number"
        )
    process = 0 if is_on_gpu(config) else memory_bytes("VmRSS")  # this process has loaded what a rank loads
    found.sort(key=lambda one: one.time.step_s)
    rows = [_row(one, config, process) for one in found]
    kept = _fit(rows, options.memory_gb)
    if options.memory_gb is not None and not kept:
        raise _no_room(planner, found, process, options.memory_gb)
    told: dict[str, Any] = {"ranks": meshes[0].size, **asdict(machine), "process_bytes": process}
    told["is_measured"] = options.is_measured
    told |= {"meshes": rows, "refused": refused, "best": kept[0]["overrides"]}
    if measured:
        told |= _compared(list(zip(found, rows, strict=True)), measured)
    return told


def _compared(planned: list[tuple[Planned, dict[str, Any]]], measured: list[Measured]) -> dict[str, Any]:
    """What was measured on a mesh beside its row; of none of them, on which meshes the run was."""
    for one, row in planned:
        own = [each for each in measured if each.is_of(one)]
        if own:
            steps = [step_s for each in own for step_s in each.steps_s]
            row["measured_step_s"] = statistics.median(steps) if steps else None
            row["measured_gb"] = max(each.memory_gb for each in own)
    names = [each.mesh or counted(each.ranks or 1, "rank") for each in measured]
    return {"measured_on": list(dict.fromkeys(names))}


def _meshes(config: RunConfig, options: PlanOptions, ranks: int | None) -> list[Mesh]:
    """Those to compare."""
    if options.mesh is not None:
        if options.ranks not in (None, options.mesh.size):
            raise UserError(f"--mesh: has {options.mesh.size} ranks, and --ranks is {options.ranks}; leave one out")
        return [options.mesh]
    parallel = config.parallel
    if options.ranks is not None:
        return meshes_of(options.ranks)
    if ranks is None:
        ranks = parallel.shared_by * (1 if parallel.data == "auto" else parallel.data)
    return [parallel.mesh(ranks)]


def _measured(run: Path) -> list[Measured]:
    """Of each start of a run whose ranks have made steps that still count."""
    rows, events = read_run(run / METRICS)
    starts = [event for event in events if event["event"] in (STARTED, RESUMED) and isinstance(event.get("ranks"), int)]
    made: list[tuple[dict, list[dict]]] = [(start, []) for start in starts or [{"step": 0}]]
    for row in (row for row in rows if row["split"] == "train"):  # a resume has dropped the rows after its step
        next((own for start, own in reversed(made) if start["step"] < row["step"]), made[0][1]).append(row)
    found = []
    for start, own in made:
        memory = [row["memory_gb"] for row in own if isinstance(row.get("memory_gb"), int | float)]
        if memory:
            found.append(Measured(start.get("ranks"), start.get("mesh", ""), max(memory), _steps_s(own)))
    if not found:
        raise UserError(f"{run}: no memory was measured there; give the run of a config that has trained some steps")
    return found


def _steps_s(rows: list[dict]) -> list[float]:
    """Of each interval but the first: the row of its last step has its speed."""
    found = []
    for before, row in itertools.pairwise(rows):
        told = before.get("tokens"), row.get("tokens"), row.get("tokens_per_s")
        numbers = [value for value in told if isinstance(value, int | float) and value > 0]
        if len(numbers) == len(told) and numbers[1] > numbers[0]:
            found.append((numbers[1] - numbers[0]) / max(1, row["step"] - before["step"]) / numbers[2])
    return found


def measured_by(world: World, config: RunConfig, options: PlanOptions) -> PlanOptions:
    """With what the ranks of a job measure together, where the user says nothing of it; collective."""
    world.barrier()
    flops = options.flops or min(world.gather(speed_of_rank(config, world.size)))
    alpha_s, beta_s = measured_link(world)
    told: dict[str, Any] = {"flops": flops, "is_measured": True}
    if options.alpha_us is None:
        told["alpha_us"] = alpha_s * 1e6
    if options.gb_per_s is None:
        told["gb_per_s"] = 1e-9 / max(beta_s, 1e-15)
    if options.ranks is None and options.mesh is None and options.run is None:
        told["ranks"] = world.size
    return replace(options, **told)


def speed_of_rank(config: RunConfig, ranks: int) -> float:
    """Of a rank that shares this machine's cores with the others, as far as there are as many."""
    import torch

    on_gpu = config.train.device != "cpu" and torch.cuda.is_available()
    cores = len(affinity())
    threads = config.train.threads or max(1, cores // min(ranks, cores))
    return measured_flops(torch.device("cuda" if on_gpu else "cpu"), config.train.precision, threads)


def is_on_gpu(config: RunConfig) -> bool:
    """Whether a rank's memory is that of a GPU, where nothing but tensors is counted."""
    import torch

    return config.train.device == "cuda" or (config.train.device == "auto" and torch.cuda.is_available())


def _row(one: Planned, config: RunConfig, process: int) -> dict[str, Any]:
    stages = [{**memory._asdict(), "total": memory.total} for memory in one.memories]
    return {
        "pipeline": one.mesh.pipeline,
        "data": one.mesh.data,
        "tensor": one.mesh.tensor,
        "overrides": one.overrides(config.parallel),
        **one.time._asdict(),
        "memory_gb": (one.fullest.total + process) / 1e9,
        "stages": stages,
    }


def _fit(rows: list[dict[str, Any]], memory_gb: float | None) -> list[dict[str, Any]]:
    """Those that have room, in their order."""
    for row in rows:
        row["fits"] = memory_gb is None or row["memory_gb"] <= memory_gb
    return [row for row in rows if row["fits"]]


def _no_room(planner: Planner, found: list[Planned], process: int, memory_gb: float) -> UserError:
    """In a line, with the first change that makes room on the mesh that needs least."""
    least = min(found, key=lambda one: one.fullest.total)
    overrides = least.overrides(planner.config.parallel)
    told = (
        f"--memory-gb: {memory_gb:g} is too little: the least is {figure((least.fullest.total + process) / 1e9)} GB a"
        f" rank, with {overrides}"
    )
    if process >= memory_gb * 1e9:
        return UserError(f"{told}; the process and its libraries alone hold {figure(process / 1e9)} GB; raise it")
    for change in _changes(planner.config, least.mesh):
        try:
            one = planner.changed(*change).plan(least.mesh)
        except UserError:  # it does not go with the rest
            continue
        if one.fullest.total + process <= memory_gb * 1e9:
            section, key, value = change
            return UserError(f"{told}; {section}.{key}={str(value).lower()} makes room")
    return UserError(
        f"{told}; neither parallel.zero, model.activation_checkpointing nor train.micro_batch alone makes room: take"
        " more ranks"
    )


def _changes(config: RunConfig, mesh: Mesh) -> Iterator[Change]:
    """What makes room on the same mesh, that which costs least time first."""
    if mesh.data > 1 and not config.parallel.zero:
        yield "parallel", "zero", 1
    micro_batch = config.train.micro_batch
    yield from (("train", "micro_batch", n) for n in range(micro_batch - 1, 0, -1) if micro_batch % n == 0)
    if not getattr(config.model, "activation_checkpointing", True):
        yield "model", "activation_checkpointing", True


def to_text(found: dict[str, Any]) -> str:
    heads = ["pipeline x data x tensor", "GB a rank", "step s", "idle", "tensor s", "data s", ""]
    lines = [
        f"{counted(found['ranks'], 'rank')} of {found['flops_per_s'] / 1e9:.3g} GFLOP/s, messages"
        f" {found['alpha_s'] * 1e6:.3g} us + {1e-9 / found['beta_s']:.3g} GB/s{_source(found)}; times of these alone",
        table(heads, [_cells(row) for row in found["meshes"]]),
    ]
    lines += [f"{mesh}: {reason}" for mesh, reason in found["refused"].items()]
    best = next(row for row in found["meshes"] if row["overrides"] == found["best"])
    names = ("weights", "gradients", "optimizer", "buffers", "passes", "total")
    cells = [[str(s["rank"]), f"{s['parameters']:,}", *(_mb(s[name]) for name in names)] for s in best["stages"]]
    lines += ["", f"MB of {found['best']}:", table(["rank", "parameters", *names], cells)]
    lines.append(f"beside these a process holds {_mb(found['process_bytes'])} MB; `passes` has the gradients in it")
    lines += _measured_lines(found)
    lines.append(found["best"])
    return "\n".join(lines)


def _measured_lines(found: dict[str, Any]) -> Iterator[str]:
    if "measured_on" not in found:
        return
    known = [row for row in found["meshes"] if "measured_gb" in row]
    for row in known:
        line = f"measured{_of(row, found)}: {row['measured_gb']:.3f} GB at most, estimated {row['memory_gb']:.3f} GB"
        step_s = row["measured_step_s"]
        if step_s is not None:
            times = f"{figure(step_s / row['step_s'])} times that"
            line += f"; {figure(step_s)} s a step, predicted {figure(row['step_s'])} s ({times})"
        yield line
    if not known:
        yield f"measured: nothing on what is planned here, for the run was on {'; '.join(found['measured_on'])}"


def _of(row: dict[str, Any], found: dict[str, Any]) -> str:
    return f" ({row['overrides']})" if len(found["meshes"]) > 1 else ""


def _source(found: dict[str, Any]) -> str:
    return " as measured by them" if found["is_measured"] else " (start it by mpirun to measure them)"


def _cells(row: dict[str, Any]) -> list[str]:
    name = f"{row['pipeline']} x {row['data']} x {row['tensor']}"
    numbers = [figure(row[key]) for key in ("memory_gb", "step_s")]
    exchanged = [figure(row[key]) for key in ("tensor_s", "data_s")]
    return [name, *numbers, f"{row['idle']:.0%}", *exchanged, "" if row["fits"] else "no room"]


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f}"
