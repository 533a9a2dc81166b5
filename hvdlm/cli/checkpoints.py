"""The `ckpt` group: what people ask of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hvdlm.cli.options import PATH, Command, Group, WholeNumber, check_run, json_option, result
from hvdlm.errors import UserError
from hvdlm.tables import counted, figure, table

TARGET = click.argument("target", type=PATH, metavar="RUN|CHECKPOINT")
RUN = click.argument("run_dir", type=PATH, metavar="RUN")


@click.group("ckpt", cls=Group)
def ckpt() -> None:
    """List, verify, compare, thin out, average checkpoints, or make one file of a model's weights."""


@ckpt.command("ls", cls=Command, epilog="hvdlm ckpt ls runs/quickstart/train")
@RUN
@json_option
def list_(run_dir: Path, as_json: bool) -> None:
    """The checkpoints of a run, oldest first; their files are not read (see verify)."""
    check_run(run_dir)
    from hvdlm.checkpoint.tools import listed

    found = listed(run_dir)
    rows = [
        [
            each.path.name,
            " ".join(each.marks),
            figure(each.val_loss, 5) if each.val_loss is not None else "",
            f"{each.bytes / 1e6:,.1f}",
            str(each.parts),
            each.fault,
        ]
        for each in found
    ]
    heads = ["checkpoint", "", "val loss", "MB", "parts", "fault"]
    has_fault = any(each.fault for each in found)
    shown = table(heads, rows, num_left=2) if has_fault else table(heads[:-1], [row[:-1] for row in rows], num_left=2)
    told = [{**each._asdict(), "path": str(each.path)} for each in found]
    result({"checkpoints": told}, as_json, shown)


@ckpt.command("verify", cls=Command, epilog="hvdlm ckpt verify runs/quickstart/train")
@TARGET
@json_option
def verify(target: Path, as_json: bool) -> None:
    """Hash every file and look at every number; exit code 2 if any checkpoint is damaged."""
    check_run(target)
    from hvdlm.checkpoint.tools import verified

    found = dict(verified(target))
    lines = [f"{path}: {fault or 'sound'}" for path, fault in found.items()]
    told = [{"path": str(path), "fault": fault} for path, fault in found.items()]
    result({"checkpoints": told}, as_json, "\n".join(lines))
    if bad := [path for path, fault in found.items() if fault]:
        raise UserError(f"{bad[0]}: {found[bad[0]]}; restore it, or remove it to use another one")


@ckpt.command("diff", cls=Command, epilog="hvdlm ckpt diff runs/a/checkpoints/latest runs/b/checkpoints/latest")
@click.argument("one", type=PATH, metavar="RUN|CHECKPOINT")
@click.argument("other", type=PATH, metavar="RUN|CHECKPOINT")
@click.option("--weights", is_flag=True, help="The model's alone, without the optimizer's state and the rest.")
@json_option
def diff(one: Path, other: Path, weights: bool, as_json: bool) -> None:
    """Tensors that are not the same in two checkpoints, whatever meshes wrote them; settings that differ.

    The exit status is 1 where a tensor or a number that training goes on with is not the same in both.
    """
    for target in (one, other):
        check_run(target)
    from hvdlm.checkpoint import Checkpoint, resolve
    from hvdlm.checkpoint.tools import differences, plain_differences
    from hvdlm.config import changes

    first, second = (Checkpoint(resolve(target)) for target in (one, other))
    found = [each for each in differences(first, second) if not weights or each.key.startswith("model/")]
    keys = [key for key in first.entries.keys() | second.entries.keys() if not weights or key.startswith("model/")]
    settings = changes(first.state["config"], second.state["config"])
    lines = [f"{each.key}: {each.what}{_at_most(each.largest)}" for each in found]
    same = f"{len(keys) - len(found)} of {counted(len(keys), 'tensor')} have the same bits"
    same = f"{first.path.resolve()} and {second.path.resolve()}: {same}"
    plain = [] if weights else list(plain_differences(first.state, second.state))
    lines += [same, *plain, *(f"setting {line}" for line in settings)]
    told: dict[str, Any] = {"tensors": len(keys), "differ": [each._asdict() for each in found]}
    result(told | {"values": plain, "settings": settings}, as_json, "\n".join(lines))
    if found or plain:
        raise SystemExit(1)


def _at_most(largest: float | None) -> str:
    return "" if largest is None else f", by at most {largest:.3g}"


@ckpt.command("prune", cls=Command, epilog="hvdlm ckpt prune runs/quickstart/train --keep 1 --dry-run")
@RUN
@click.option("--keep", type=WholeNumber(1), default=None, help="So many of the newest stay; default: the run's own.")
@click.option("--keep-every", type=WholeNumber(0), default=None, help="Those of each so many steps too; likewise.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@json_option
def prune(run_dir: Path, keep: int | None, keep_every: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove old checkpoints. The best and the newest sound one stay in any case."""
    check_run(run_dir)
    from hvdlm.checkpoint.folder import remove
    from hvdlm.checkpoint.tools import going

    found = going(run_dir, keep=keep, keep_every=keep_every)
    if not dry_run:
        for path in found:
            remove(path)
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {path}" for path in found] or ["nothing to remove"]
    result({"removed" if not dry_run else "would_remove": [str(path) for path in found]}, as_json, "\n".join(lines))


@ckpt.command(
    "average",
    cls=Command,
    epilog="hvdlm ckpt average runs/quickstart/train --last 2 --out runs/quickstart/averaged",
)
@click.argument("targets", type=PATH, nargs=-1, required=True, metavar="RUN|CHECKPOINT…")
@click.option("--last", type=WholeNumber(1), default=None, help="Of a run: so many of its newest; default: all.")
@click.option("--out", type=PATH, required=True, help="A new run folder, for eval, generate, infer and init.from.")
@json_option
def average(targets: tuple[Path, ...], last: int | None, out: Path, as_json: bool) -> None:
    """The mean of the weights of several checkpoints of one run, often better than the last ones."""
    for target in targets:
        check_run(target)
    from hvdlm.checkpoint.tools import average as averaged
    from hvdlm.checkpoint.tools import chosen

    paths = [path for target in targets for path in chosen(target)]
    paths = paths if last is None else paths[-last:]
    if len(paths) < 2:
        raise UserError(f"{targets[0]}: one checkpoint alone is its own mean; name more, or raise checkpoint.keep")
    path = averaged(paths, out)
    told = {"path": str(path), "averaged": [str(each) for each in paths]}
    runs = len({each.resolve().parent for each in paths})
    of_runs = f" of {counted(runs, 'run')}" if runs > 1 else ""
    result(told, as_json, f"{path}: the mean of {counted(len(paths), 'checkpoint')}{of_runs}")


@ckpt.command("consolidate", cls=Command, epilog="hvdlm ckpt consolidate runs/quickstart/train weights.safetensors")
@TARGET
@click.argument("file", type=PATH, metavar="FILE.safetensors")
@click.option("--ema", is_flag=True, help="The running mean of the weights instead.")
@json_option
def consolidate(target: Path, file: Path, ema: bool, as_json: bool) -> None:
    """Write a model's weights alone to one file, in serial names and shapes, whatever mesh trained it."""
    check_run(target)
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: must end in .safetensors")
    from hvdlm.checkpoint import resolve
    from hvdlm.checkpoint.tools import consolidate as written
    from hvdlm.files import make_ready

    make_ready("FILE", file)
    path = resolve(target).resolve()
    num_bytes = written(path, file, mean=ema)
    told = {"file": str(file), "checkpoint": str(path), "bytes": num_bytes}
    result(told, as_json, f"{file}: the weights of {path}, {num_bytes / 1e6:,.1f} MB")
