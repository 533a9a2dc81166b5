"""Commands that tell before a run what ranks that share a model will do: schedules as pictures, memory and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hvdlm.cli.options import PATH, Choice, Command, Group, Number, WholeNumber, json_option, result
from hvdlm.errors import UserError
from hvdlm.parallel.schedule import SCHEDULES, build


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
