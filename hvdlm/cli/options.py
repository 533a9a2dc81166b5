"""What all commands share: how options are declared and results are printed."""

from __future__ import annotations

import difflib
import functools
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvdlm.cli.usage import naming_command
from hvdlm.errors import UserError
from hvdlm.files import naming, to_json
from hvdlm.launch.environment import launched_as, launcher_waits_for_all
from hvdlm.numerals import LARGEST, is_too_large, number, whole_number

if TYPE_CHECKING:
    from hvdlm.preprocessing.plan import PreprocessConfig
    from hvdlm.session.stop import BatchJob
    from hvdlm.train.config import RunConfig


def result(value: dict[str, Any], as_json: bool, text: str, rank: int = 0) -> None:
    """The command's result as the last line of stdout, on rank 0."""
    if rank == 0:
        with naming(Path("stdout")):
            print(to_json(value) if as_json else text, flush=True)


class WholeSentence(click.Command):
    """In the list of commands its first sentence is wrapped, not cut."""

    def get_short_help_str(self, limit: int = 45) -> str:
        return super().get_short_help_str(limit=1000)


class Command(WholeSentence):
    """A command whose help ends with an example, printed as it stands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with naming_command(ctx):
            return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write("\nExample:\n" + "".join(f"  {line}\n" for line in self.epilog.splitlines()))


class Group(WholeSentence, click.Group):
    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with naming_command(ctx):
            return super().parse_args(ctx, args)


class Choice(click.Choice):
    """One of some names; for another one the nearest is said."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = self.nearest(value)
            if not near:
                raise
            self.fail(f"{error.message.removesuffix('.')}. Did you mean {near!r}?", param, ctx)

    def nearest(self, value: str) -> str | None:
        return next(iter(difflib.get_close_matches(value, self.choices, n=1)), None)


class Names(Choice):
    """The names of a registry, which is loaded when they are asked for: `hvdlm --help` shall load nothing heavy.

    An option whose registry is heavy has a `metavar`, so that its help needs no names.
    """

    def __init__(self, load: Callable[[], Iterable[str]]) -> None:
        self._load, self.case_sensitive = load, True

    @functools.cached_property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._load())


class NameList(Names):
    """Several of them, with commas; a tuple without repetitions."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        words = value.split(",") if isinstance(value, str) else value
        return tuple(dict.fromkeys(super(NameList, self).convert(word.strip(), param, ctx) for word in words))


class WholeNumber(click.IntRange):
    """A whole number of 64 bits within bounds, written as in a config: `1e3` and `1_000` too."""

    def __init__(self, least: int | None = None, most: int = LARGEST) -> None:
        super().__init__(-LARGEST if least is None else least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = whole_number(value.strip()) if isinstance(value, str) else value
        if found is None and is_too_large(value.strip()):
            self.fail(f"{value[:60]} is not in the range {self.min}<=x<={self.max}.", param, ctx)
        if found is None:
            self.fail(f"{value[:60]!r} is no whole number{self._bounds()}", param, ctx)
        return super().convert(found, param, ctx)

    def _describe_range(self) -> str:
        return f"x>={self.min}" if self.max == LARGEST else super()._describe_range()

    def _bounds(self) -> str:
        return "" if self.min == -LARGEST else f" from {self.min} on"


class Number(click.FloatRange):
    """A finite number within bounds, written as in a config."""

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = number(value.strip()) if isinstance(value, str) else value
        if found is None or not math.isfinite(found):
            self.fail(f"{str(value)[:60]!r} is no finite number", param, ctx)
        return super().convert(found, param, ctx)


class PictureFile(click.Path):
    """A file that a picture is drawn into, in the format that its name ends in."""

    endings = (".png", ".svg", ".pdf")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() not in self.endings:
            self.fail(f"{str(path)!r} ends in none of {', '.join(self.endings)}", param, ctx)
        return path


class SplitName(Names):
    """One of the splits."""

    def nearest(self, value: str) -> str | None:
        from hvdlm.data.manifest import OTHER_NAMES

        return OTHER_NAMES.get(value) or super().nearest(value)


def _splits() -> Iterable[str]:
    from hvdlm.data.manifest import SPLITS

    return SPLITS


def json_option(function: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")(function)


def by_rank_0(function: Any) -> Any:
    """For commands that only read or print: under a launcher rank 0 alone runs them."""

    @functools.wraps(function)
    def alone(*args: Any, **options: Any) -> Any:
        return function(*args, **options) if (launched_as() or (0, 1))[0] == 0 else 0

    return alone


RANKS = WholeNumber(1, 1_000_000)  # more are a slip of the hand, and lists of them fill the memory
REPEATS = WholeNumber(1, 10_000)
PATH = click.Path(path_type=Path)
PICTURE = PictureFile()
SPLIT = SplitName(_splits)
MODE = Choice(["strong", "weak", "both"])  # of a scaling study
work_option = click.option(
    "--work", type=Choice(["train", "infer"]), default="train", show_default=True, help="What a step is."
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")


def config_arguments(function: Any) -> Any:
    """A config, and overrides of its values."""
    return click.argument("config", type=PATH)(overrides_argument(function))


def batch_job() -> BatchJob:
    """What the batch system says of this job. HVDLM_JOB_END is set by the scripts of `hvdlm submit`."""
    from hvdlm.session.stop import BatchJob

    end = os.environ.get("HVDLM_JOB_END") or os.environ.get("SLURM_JOB_END_TIME") or ""
    is_ahead = end.isdigit() and int(end) > time.time()  # one that is over is a mistake, not a wish to stop
    return BatchJob(os.environ.get("SLURM_JOB_ID", ""), float(end) if is_ahead else None)


def refuse_a_launcher(command: str) -> None:
    """For commands that start their own jobs."""
    launched = launched_as()
    if launched is None or (launched[1] == 1 and launcher_waits_for_all()):  # one task of srun may start a step beside
        return
    launcher = "srun" if launcher_waits_for_all() else "mpirun or horovodrun"
    raise UserError.shared(
        f"`{command}` starts its own ranks, and it was itself started by {launcher} ({launched[1]} of it): call it"
        " without a launcher"
    )


def run_config(config: Path, overrides: tuple[str, ...]) -> RunConfig:
    """A train config; what is wrong with the file is told before torch is loaded, which takes seconds."""
    from hvdlm.config import opened

    validated = opened(config, overrides)
    from hvdlm.train.config import RunConfig

    return validated(RunConfig)


def preprocess_config(config: Path, overrides: tuple[str, ...]) -> PreprocessConfig:
    """The same of a preprocess config."""
    from hvdlm.config import opened

    validated = opened(config, overrides)
    from hvdlm.preprocessing.plan import PreprocessConfig

    return validated(PreprocessConfig)


def check_run(path: Path) -> None:
    """UserError, before torch is loaded, if there is nothing that could be a run or a checkpoint."""
    is_text = path.name in ("latest", "best") and path.is_file()  # for want of links
    if not path.is_dir() and not is_text:
        what = "is no folder" if path.exists() else "there is no such folder"
        raise UserError(f"{path}: {what}; give a run folder or RUN/checkpoints/step_…")


def config_of_study(command: str, config: Path, overrides: tuple[str, ...]) -> RunConfig:
    """The config that a command trains by in jobs of its own, under no launcher; it logs as rank 0 does."""
    refuse_a_launcher(command)
    settings = run_config(config, overrides)
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    return settings
