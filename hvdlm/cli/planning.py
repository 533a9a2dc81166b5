"""Commands that tell before a run what ranks that share a model will do: schedules as pictures, memory and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import (
    PATH,
    RANKS,
    Choice,
    Command,
    Group,
    Number,
    WholeNumber,
    check_run,
    json_option,
    overrides_argument,
    result,
    run_config,
)
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as
from hvdlm.numerals import whole_number
from hvdlm.parallel.schedule import SCHEDULES, build
from hvdlm.world.connect import connected

MOST_RANKS = 1_000_000


@click.group("schedule", cls=Group)
def schedule_group() -> None:
    """Schedules of a pipeline, without any rank."""


@schedule_group.command(
    "show",
    cls=Command,
    epilog="hvdlm schedule show --schedule zero_bubble --stages 4 --micro-batches 8 --out runs/zero-bubble.svg",
)
@click.option("--schedule", "name", type=Choice(SCHEDULES), default="1f1b", show_default=True)
@click.option("--stages", type=WholeNumber(1, 256), default=4, show_default=True)
@click.option("--micro-batches", "num", type=WholeNumber(1, 4096), default=8, show_default=True)
@click.option("--chunks", type=WholeNumber(1, 64), default=1, show_default=True, help="Of layers on each stage.")
@click.option("--forward", type=Number(0), default=1.0, show_default=True, help="Time of a stage's forward pass.")
@click.option("--backward", type=Number(0), default=1.0, show_default=True, help="Of its backward pass of inputs.")
@click.option("--weights", type=Number(0), default=1.0, show_default=True, help="Of its backward pass of weights.")
@click.option("--message", type=Number(0), default=0.0, show_default=True, help="Of a message between stages.")
@click.option("--out", type=PATH, default=None, help="Also draw it there (.svg).")
@json_option
def show(  # noqa: PLR0913 - an option each
    name: str,
    stages: int,
    num: int,
    chunks: int,
    forward: float,
    backward: float,
    weights: float,
    message: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Draw a schedule: which stage works when, how long it is idle, and how much it holds at once.

    Times are in any unit; those of a stage are shared by its chunks.
    """
    from hvdlm.files import make_ready, write_text_durably
    from hvdlm.parallel.drawing import figures, svg, text
    from hvdlm.parallel.simulator import Costs, simulate

    kind = SCHEDULES[name]
    if kind.takes_chunks != (chunks > 1):
        takers = ", ".join(other for other, one in SCHEDULES.items() if one.takes_chunks)
        remedy = "set --chunks 2 or more" if kind.takes_chunks else f"set --chunks 1, or --schedule {takers}"
        raise UserError(f"--chunks: {chunks} does not go with --schedule {name}; {remedy}")
    if chunks > 1 and stages == 1:
        raise UserError(f"--chunks: {chunks} are of several stages; set --stages 2 or more")
    if not forward + backward + weights:
        raise UserError("--forward, --backward, --weights: are all 0, and there is nothing to draw; give one of them")
    if out is not None:
        if out.suffix != ".svg":
            raise UserError(f"--out: {out} must end in .svg")
        make_ready("--out", out)
    costs = Costs(forward / chunks, backward / chunks, weights / chunks, alpha_s=message)
    found = simulate(build(name, stages, num, chunks), costs, chunks)
    title = f"{name}: {stages} stages, {num} micro-batches" + (f", {chunks} chunks" if chunks > 1 else "")
    if out is not None:
        write_text_durably(out, svg(found, title))
    told: dict[str, Any] = {
        "schedule": name,
        "stages": stages,
        "micro_batches": num,
        "chunks": chunks,
        "makespan": found.makespan,
        "idle_of_total": found.idle_of_total,
        "idle_of_ideal": found.idle_of_ideal,
        "most_open": [found.most_open(rank) for rank in range(stages)],
    }
    lines = [
        f"{title} ({kind.what})",
        text(found),
        f"{figures(found)}; {found.idle_of_ideal:.1%} of what work alone takes",
        "0-9 forward, a-v backward, w weights, . idle",
    ]
    result(told, as_json, "\n".join(lines))


class MeshOption(click.ParamType):
    """`data=2,pipeline=2,tensor=1`; what is not said is 1."""

    name = "mesh"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from hvdlm.parallel.mesh import AXES, Mesh

        if isinstance(value, Mesh):
            return value
        sizes: dict[str, int] = {}
        for word in value.split(","):
            axis, _, size = word.partition("=")
            found = whole_number(size.strip())
            if axis.strip() not in AXES or found is None or not 1 <= found <= MOST_RANKS:
                self.fail(f"{word!r} is not one of {', '.join(f'{axis}=N' for axis in AXES)}", param, ctx)
            if axis.strip() in sizes:
                self.fail(f"{value!r} has {axis.strip()} twice", param, ctx)
            sizes[axis.strip()] = found
        return Mesh(**sizes)


@click.command(
    "plan",
    cls=Command,
    epilog="hvdlm plan configs/gpt-mesh.yaml --ranks 4 --memory-gb 2\n"
    "hvdlm plan configs/gpt-mesh.yaml --mesh pipeline=2,tensor=2\nhvdlm plan runs/gpt-mesh",
)
@click.argument("config", type=PATH, metavar="CONFIG|RUN")
@overrides_argument
@click.option("--ranks", type=RANKS, default=None, help="Of which all meshes are compared; default: the config's.")
@click.option("--mesh", type=MeshOption(), default=None, help="This one alone: pipeline=2,data=1,tensor=2.")
@click.option("--memory-gb", type=Number(0, min_open=True), default=None, help="That a rank has, at most.")
@click.option("--flops", type=Number(0, min_open=True), default=None, help="FLOP/s of a rank; default: measured here.")
@click.option("--alpha-us", type=Number(0), default=None, help="Of a message, however short; else measured, or 20.")
@click.option("--gb-per-s", type=Number(0, min_open=True), default=None, help="Of a long one; else measured, or 5.")
@import_option
@json_option
def plan(config: Path, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Tell before a run what each rank will hold and how long a step will take, on every mesh of so many ranks.

    Memory is that of the run's own code, gone through without values; times are of products and messages alone, to
    compare meshes by: started by mpirun, of the speed that its ranks measure. Of a RUN the memory and step time that
    were measured stand beside.
    """
    if config.is_dir():
        check_run(config)
        settings = run_config(config / "config.yaml", overrides)
    else:
        settings = run_config(config, overrides)
    from hvdlm.perf.mesh_table import PlanOptions, measured_by, planned, to_text

    wanted = PlanOptions(run=config if config.is_dir() else None, **options)
    if (launched_as() or (0, 1))[1] == 1:
        found = planned(settings, wanted)
        result(found, as_json, to_text(found))
        return
    with connected() as world:
        wanted = measured_by(world, settings, wanted)
        found = world.on_root(lambda: planned(settings, wanted))
        result(found, as_json, to_text(found), world.rank)
