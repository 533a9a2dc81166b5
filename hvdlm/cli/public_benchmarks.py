"""`hvdlm lm-eval`: the benchmarks of lm-evaluation-harness on a run."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import PATH, Command, WholeNumber, check_run, json_option, overrides_argument, result
from hvdlm.errors import UserError
from hvdlm.world.connect import connected

MAY_WAIT = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "0"}  # for rank 0, which alone loads tasks and works out figures


class JsonObject(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"{value[:60]!r} is no JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{value[:60]!r} is no JSON object, such as '{{\"key\": 1}}'", param, ctx)
        return found


@click.command(
    "lm-eval",
    cls=Command,
    epilog="mpirun -np 2 hvdlm lm-eval runs/quickstart/train --tasks arc_easy,lambada_openai --limit 100",
)
@click.argument("checkpoint", type=PATH, metavar="RUN|CHECKPOINT")
@overrides_argument
@import_option
@click.option(
    "--tasks", required=True, metavar="NAME,…", help="Tasks, groups or tags of lm_eval, wildcards, or YAML files."
)
@click.option("--include-path", type=PATH, default=None, help="A folder with further tasks.")
@click.option("--num-fewshot", type=WholeNumber(0), default=None, help="Examples before each; else as the task says.")
@click.option("--limit", type=WholeNumber(1), default=None, help="Of each task the first so many.")
@click.option("--gen-kwargs", type=JsonObject(), default="{}", help="Laid over the tasks' generation_kwargs.")
@click.option("--metadata", type=JsonObject(), default="{}", help="For tasks that make their data themselves.")
@click.option("--run-code", is_flag=True, help="Allow tasks that run programs which the model wrote.")
@click.option("--out", type=PATH, default=None, help="Write all that lm_eval tells as JSON there.")
@click.option("--samples", type=PATH, default=None, help="Write a line of JSON for each question there.")
@json_option
def lm_eval(checkpoint: Path, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Score a model on public benchmarks, by the tasks of lm-evaluation-harness (pip install 'hvdlm[lm-eval]').

    All ranks compute; the figures do not depend on their number.
    """
    check_run(checkpoint)
    out, samples = options["out"], options["samples"]
    names = tuple(name.strip() for name in options["tasks"].split(",") if name.strip())
    if not names:
        raise UserError.shared("--tasks: names none")
    from hvdlm.files import make_ready, to_json, write_text_durably
    from hvdlm.inference.lm_eval_adapter import Wanted, evaluate_on_tasks
    from hvdlm.session.logs import setup_logging

    wanted = Wanted(
        names,
        include_path=options["include_path"],
        num_fewshot=options["num_fewshot"],
        limit=options["limit"],
        generation=options["gen_kwargs"],
        metadata=options["metadata"],
        runs_code=options["run_code"],
        keeps_samples=samples is not None,
    )
    with connected(environment=MAY_WAIT) as world:
        setup_logging(world.rank)
        for option, path in (("--out", out), ("--samples", samples)):
            if path is not None:
                world.on_root(functools.partial(make_ready, option, path))
        found = evaluate_on_tasks(checkpoint, overrides, wanted, world)
        table, lines = found.pop("table", ""), found.pop("samples", {})
        if samples is not None:
            rows = [to_json({"task": task, **line}) for task, entries in lines.items() for line in entries]
            world.on_root(lambda: write_text_durably(samples, "".join(f"{row}\n" for row in rows)))
        if out is not None:
            world.on_root(lambda: write_text_durably(out, to_json(found, indent=1) + "\n"))
        told = ("results", "groups", "versions", "n-shot", "hvdlm")
        result({name: found[name] for name in told if name in found}, as_json, table, world.rank)
