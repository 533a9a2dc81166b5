"""Commands that show settings and check the installation."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import Choice, Command, Group, by_rank_0, config_arguments, json_option, result
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as


@click.command(cls=Command, epilog="hvdlm doctor --json\nhvdlm doctor --log runs/jobs/train-001/1234.r0.log")
@click.option("--as-rank", is_flag=True, hidden=True)
@click.option("--alone", is_flag=True, hidden=True)
@click.option("--log", default=None, metavar="FILE", help="Instead: name the known errors in a log (- for stdin).")
@json_option
def doctor(as_rank: bool, alone: bool, log: str | None, as_json: bool) -> int:
    """Check that torch, Horovod, MPI and HDF5 here fit together; each problem comes with its remedy."""
    rank, size = launched_as() or (0, 1)
    if log is not None:
        from hvdlm.files import open_stream
        from hvdlm.launch import known_errors

        try:
            with sys.stdin.buffer if log == "-" else open_stream(Path(log)) as file:
                found = known_errors.explain_stream(file)
        except UserError as error:
            raise UserError(f"{log}: {error}") from None
        value = {"known_errors": [asdict(known) for known in found]}
        result(value, as_json, known_errors.to_text(found) or "no known error in it", rank)
        return 0
    from hvdlm import doctor as stage

    if as_rank or alone:
        (stage.tell_as_rank if as_rank else stage.tell_alone)()
        return 0
    checks = stage.examine(is_job=size > 1)
    is_well = all(check.ok for check in checks)
    result({"ok": is_well, "checks": [asdict(check) for check in checks]}, as_json, stage.to_text(checks), rank)
    return 0 if is_well else 1


@click.group("config", cls=Group)
def config_group() -> None:
    """Show resolved settings and what may be set."""


@config_group.command("show", epilog="hvdlm config show configs/quickstart.yaml optim.lr=3e-4")
@config_arguments
@import_option
@json_option
@by_rank_0
def config_show(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """The config as a command would see it, defaults and overrides included."""
    from hvdlm.config import to_yaml, validate
    from hvdlm.config.written import read

    node, values = read(config)  # once: it may be a pipe
    model = _models()["preprocess" if "input" in values else "train"]
    settings = validate(model, values, config, overrides, node)
    result(settings.model_dump(mode="json"), as_json, to_yaml(settings).rstrip())


@config_group.command("schema", epilog="hvdlm config schema train")
@click.argument("kind", type=Choice(["train", "preprocess"]))
@json_option
@by_rank_0
def config_schema(kind: str, as_json: bool) -> None:
    """Every key of a config with its default, meaning, choices and range, as YAML to start from.

    With --json the JSON Schema, which editors can check a config against.
    """
    from hvdlm.cli.config_reference import commented_yaml

    schema = _models()[kind].model_json_schema()
    width = min(max(80, shutil.get_terminal_size((100, 0)).columns), 120)
    result(schema, as_json, commented_yaml(schema, width))


def _models() -> dict[str, Any]:
    from hvdlm.preprocessing.plan import PreprocessConfig
    from hvdlm.train.config import RunConfig

    return {"train": RunConfig, "preprocess": PreprocessConfig}
