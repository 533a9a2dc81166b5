"""The one command `hvdlm`. Each subcommand imports its stage when it is called.

Exit codes: 0 done, 2 the user's error (one line), 75 stopped on request and resumable, others failed.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import time

import click

from hvdlm import __version__
from hvdlm.cli import (
    benchmarks,
    checkpoints,
    cluster,
    data,
    inferring,
    inspecting,
    launching,
    looking,
    models,
    planning,
    public_benchmarks,
    scaling,
    serving,
    settings,
    submission,
    training,
    tuning,
)
from hvdlm.cli.options import Group
from hvdlm.cli.usage import is_help, usage_line
from hvdlm.errors import EXIT_STOPPED, EXIT_USER_ERROR, StoppedOnRequest, UserError, lack_of_memory, line_of
from hvdlm.launch.environment import forget_the_step, launched_as, launcher_waits_for_all
from hvdlm.launch.plan import meets_through_slurm

EXIT_INTERRUPTED = 128 + signal.SIGINT
ALONE_S = 5.0  # a rank that still runs so long after its mistake is the only one that made it

EXIT_CODES = "Exit codes: 0 done, 2 the user's error, 75 stopped on request and resumable, others failed."


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit with its documented code."""
    rank = (launched_as() or (0, 1))[0]
    forget_the_step(knows_slurm=meets_through_slurm)  # before anything loads MPI, as a parallel h5py does
    os.environ["RUST_BACKTRACE"] = "0"  # what a library of Rust refuses is told in one line of ours
    gc.set_threshold(100_000, 20, 100)  # imports make a million objects and no garbage: torch loads in two thirds
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that is not UTF-8, a name that is not: still printed
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli.main(argv, "hvdlm", standalone_mode=False) or 0)
    except Exception as end:
        code = _say(lack_of_memory(end) or end, rank)
        if code is None:
            raise
        sys.exit(code)
    finally:
        gc.freeze()  # at exit Python would look for garbage among a million objects of torch: 1.1 s, now 0.3 s


def _say(end: Exception, rank: int) -> int | None:
    """Say in one line why a command ended, and return its exit code; None for a fault of ours."""
    if isinstance(end, UserError):
        _complain(f"hvdlm: error: {end}", rank, end.on_all_ranks)
        return EXIT_USER_ERROR
    if isinstance(end, StoppedOnRequest):
        if rank == 0:
            print(f"hvdlm: {end}", file=sys.stderr)
        return EXIT_STOPPED
    if isinstance(end, click.UsageError | click.exceptions.Abort):
        return _say_of_click(end, rank)
    if isinstance(end, BrokenPipeError):  # who reads our output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
        return 128 + signal.SIGPIPE
    if isinstance(end, OSError):  # a file that the user named: a missing one, a full disk
        if end.filename is None and end.errno != errno.ENOSPC:
            return None
        _complain(f"hvdlm: error: {line_of(end, end.filename or 'stdout')}", rank, on_all_ranks=False)
        return EXIT_USER_ERROR
    return None


def _say_of_click(end: click.UsageError | click.exceptions.Abort, rank: int) -> int:
    """For a command line that cannot be read, and for Ctrl-C."""
    if isinstance(end, click.exceptions.Abort):
        _complain("hvdlm: interrupted", rank, on_all_ranks=True)
        return EXIT_INTERRUPTED
    if not is_help(end):
        _complain(f"hvdlm: error: {usage_line(end)}", rank, on_all_ranks=True)
    elif rank == 0:
        end.show()
    return EXIT_USER_ERROR


def _complain(message: str, rank: int, on_all_ranks: bool) -> None:
    """Print once: rank 0 at once; another only if the launcher has not ended it for rank 0's failure by then.

    srun does not end the others, and names the tasks that failed itself.
    """
    if rank and (on_all_ranks or launcher_waits_for_all()):
        return
    if rank:
        time.sleep(ALONE_S)
    print(message.replace("\n", "\\n"), file=sys.stderr, flush=True)  # a path may hold a line end


@click.group(cls=Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hvdlm")
def cli() -> None:
    """Train language models with MPI and Horovod: raw text to shards, training, scaling report.

    Every command works as one process and under mpirun, horovodrun and srun. Settings come from one
    YAML file and key.sub=value overrides after it.
    """


for group in (
    (settings.doctor, data.preprocess, data.data, data.tokenizer, training.train, training.evaluate),
    (
        training.generate,
        inferring.infer,
        inspecting.inspect,
        serving.serve,
        models.export,
        models.model_group,
        planning.plan,
        planning.schedule_group,
        checkpoints.ckpt,
        launching.launch,
        scaling.scale,
        scaling.measure,
        looking.report,
        looking.watch,
        tuning.tune,
    ),
    (benchmarks.bench, public_benchmarks.lm_eval, settings.config_group, submission.submit),
    (cluster.jobs, cluster.logs, cluster.cancel, cluster.lint, cluster.sites),
):
    for command in group:
        cli.add_command(command)
benchmarks.bench.add_command(tuning.bench_sync)
