"""`--import my_model.py`: a user's file that registers a family, a task or a way to combine gradients."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from hvdlm.errors import UserError


def import_option(function: Any) -> Any:
    """The file is run while the command line is read, so that configs may name what it registers."""
    return click.option(
        "--import",
        "extensions",
        type=click.Path(path_type=Path),
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=lambda _context, _option, files: _import_all(files),
        help="Run a Python file that registers a model family, a task or a sync: "
        'MODELS["mine"] = MineConfig. May be given several times.',
    )(function)


def _import_all(files: tuple[Path, ...]) -> None:
    if not files:
        return
    from hvdlm.models import MODELS
    from hvdlm.sync import SYNCS
    from hvdlm.tasks import TASKS
    from hvdlm.train.config import RunConfig

    registries: dict[str, Mapping[str, type]] = {"MODELS": MODELS, "TASKS": TASKS, "SYNCS": SYNCS}
    for file in files:
        before = {name: dict(registry) for name, registry in registries.items()}
        _run(file)
        added = [name for name, registry in registries.items() if registry.keys() - before[name].keys()]
        for name, registry in registries.items():
            if changed := [key for key, section in before[name].items() if registry.get(key) is not section]:
                raise UserError(f"--import {file}: {name} has {changed[0]!r} already; register it by another name")
        if not added:
            raise UserError(f"--import {file}: registers nothing in {', '.join(registries)}")
    _rebuild(RunConfig.model_rebuild, files)


def _rebuild(rebuild: Callable[..., Any], files: tuple[Path, ...]) -> None:
    try:
        rebuild(force=True)
    except Exception as error:
        raise UserError(f"--import {', '.join(map(str, files))}: what it registers is no section: {error}") from None


def _run(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"--import {file}: there is no such file")
    name = f"hvdlm_extension_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--import {file}: is no Python file (.py)")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"--import {file}:{error.lineno}: {error.msg}") from None
    except Exception as error:  # whatever a user's file does
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        place = f"{file}:{lines[-1]}" if lines else str(file)
        raise UserError(f"--import {place}: {type(error).__name__}: {error}") from None
