"""`--import my_model.py`: a user's file that registers a family, a task or a way to combine gradients."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from hvdlm.errors import UserError
from hvdlm.files import sha256_of


def _import_option(*, is_told: bool) -> Any:
    return click.option(
        "--import",
        "extensions",
        type=click.Path(path_type=Path),
        multiple=True,
        is_eager=True,
        expose_value=is_told,
        callback=lambda _context, _option, files: import_all(files),
        help="Run a Python file that registers a model family, a task or a sync: "
        'MODELS["mine"] = MineConfig. May be given several times.',
    )


# The file is run while the command line is read, so that configs may name what it registers.
import_option = _import_option(is_told=False)
# For commands that start others: they are told the files too, as `extensions`.
passed_import_option = _import_option(is_told=True)


def import_all(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """Run the files, and return them; UserError for one that cannot be run, or registers nothing of use."""
    if not files:
        return files
    from hvdlm.models import MODELS, FamilyConfig
    from hvdlm.sync import SYNCS, StrategyConfig
    from hvdlm.tasks import TASKS, TaskConfig
    from hvdlm.train.config import RunConfig

    registries = (("MODELS", MODELS, FamilyConfig), ("TASKS", TASKS, TaskConfig), ("SYNCS", SYNCS, StrategyConfig))
    for file in files:
        before = {name: dict(registry) for name, registry, _ in registries}
        _run(file)
        num_added = 0
        for name, registry, kind in registries:
            added = registry.keys() - before[name].keys()
            num_added += len(added)
            if changed := [key for key, section in before[name].items() if registry.get(key) is not section]:
                raise UserError(f"--import {file}: {name} has {changed[0]!r} already; register yours by another name")
            for key in added:
                if not (isinstance(registry[key], type) and issubclass(registry[key], kind)):
                    raise UserError(f"--import {file}: {key} in {name} is no {kind.__name__}")
        if not num_added:
            raise UserError(f"--import {file}: registers nothing in {', '.join(name for name, _, _ in registries)}")
    try:
        RunConfig.model_rebuild(force=True)
    except ValueError as error:
        raise UserError(f"--import {', '.join(map(str, files))}: {error}") from None
    return files


def _run(file: Path) -> None:
    from hvdlm.train.parts import EXTENSION, SHA256

    if not file.is_file():
        raise UserError(f"--import {file}: there is no such file")
    name = f"{EXTENSION}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--import {file}: is no Python file (.py)")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    setattr(module, SHA256, sha256_of(file))
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
