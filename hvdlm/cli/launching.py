"""`hvdlm launch`: start ranks with what is here, show how, and say what a known error means."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import click

from hvdlm.cli.launch_options import LaunchCommand, check_command, words_of_hvdlm
from hvdlm.cli.options import PATH, RANKS, Choice, refuse_a_launcher
from hvdlm.errors import EXIT_STOPPED, UserError
from hvdlm.launch import plan as starting
from hvdlm.launch.environment import BAR_IN_LAUNCHER
from hvdlm.launch.hosts import parse_hosts, read_hostfile
from hvdlm.launch.known_errors import KnownError, explain
from hvdlm.launch.launchers import LAUNCHERS, MPIRUN_PROGRAMS
from hvdlm.launch.plan import CHOICES, Asked, LaunchPlan

OWN_WORDS = re.compile(rb"(?:\d+: )?(hvdlm: .*)")  # srun labels lines with the rank
RANK_ENDED = re.compile(rb"hvdlm: (error: |rank \d+ of \d+ failed)")
RANKS_HELP = "Ranks. Default: all slots there are."
INTERFACE = "Network interface for MPI, NCCL and Gloo, such as ib0."
HOSTFILE = "A host a line: `a slots=4`, `a:4`, or a line a slot as in $PBS_NODEFILE."
PATIENCE_S = 8.0  # for a launcher after a rank's end: mpirun waits for minutes for a host whose cable was pulled
LAST_WORDS_S = 5.0  # a process that outlived its launcher may hold the pipe of its messages open


@click.command(
    cls=LaunchCommand,
    context_settings={"allow_interspersed_args": False},
    epilog="hvdlm launch -np 2 -- train configs/quickstart.yaml run_dir=runs/two\n"
    "hvdlm launch --hosts node1:4,node2:4 --interface ib0 --print -- train configs/quickstart.yaml",
)
@click.option("-np", "-n", "--np", "--ntasks", "--num-proc", "ranks", type=RANKS, help=RANKS_HELP)
@click.option("--hosts", "--host", "-H", "-host", "-hosts", default="", help="With slots: a:4,b:4 or node[1-2]:4.")
@click.option("--hostfile", "--machinefile", "-hostfile", "-machinefile", type=PATH, default=None, help=HOSTFILE)
@click.option("--launcher", type=Choice(CHOICES), default="auto", show_default=True)
@click.option("--interface", "--network-interface", "--network-interfaces", "-iface", default="", help=INTERFACE)
@click.option("--print", "only_print", is_flag=True, help="Print the command; start nothing.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND ...")
@click.pass_context
def launch(
    ctx: click.Context, words: tuple[str, ...], hosts: str, hostfile: Path | None, only_print: bool, **chosen: Any
) -> int:
    """Run `hvdlm COMMAND ...` on several ranks by mpirun, srun or horovodrun, whichever is right here.

    Options stand before the command. In a job of SLURM, PBS or LSF its nodes are used.
    Ctrl-C, TERM or USR1 let a training save and end with code 75; a second one ends it at once.
    """
    refuse_a_launcher("hvdlm launch")
    words = words_of_hvdlm(words)
    check_command(words, ctx)
    if hosts and hostfile:
        raise UserError("--hosts and --hostfile both name hosts; give one of them")
    named = read_hostfile(hostfile) if hostfile else parse_hosts(hosts)
    asked = Asked(hosts=named, **chosen)
    plan = starting.plan(asked, [*starting.own_command(), *words])
    if only_print:
        print(shell_line(plan))
        return 0
    print(f"hvdlm: {shell_line(plan)}", file=sys.stderr, flush=True)
    return Running(plan).wait()


def shell_line(plan: LaunchPlan) -> str:
    """The command as a person would type it, with the variables that are added."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    return " ".join([*variables, shlex.join(plan.words)])


class Running:
    """A launcher at work: its messages pass through, and what is known about them is kept.

    Unchanged, but on a terminal: there the lines in which rank 0 says how far it is become a bar.
    """

    def __init__(self, plan: LaunchPlan) -> None:
        self._passes_signals = LAUNCHERS[plan.kind].passes_signals
        self._asked_by = 0  # the first signal
        self._met: dict[str, KnownError] = {}
        self._deadline: threading.Timer | None = None
        self._is_given_up = False
        self._own_words = self._last_words = b""
        from hvdlm.cli.launch_screen import Screen
        from hvdlm.session.stop import heard

        self._screen = Screen(sys.stderr.buffer) if sys.stderr.isatty() else None
        told = {BAR_IN_LAUNCHER: "1"} if self._screen else {}
        takes_results = self._screen is not None and sys.stdout.isatty()  # which would tear the bar

        numbers = heard((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until there is somebody to pass them to
        # In a session of its own: a terminal's Ctrl-C would reach mpirun at once, which kills what could be saved.
        self._job = subprocess.Popen(
            plan.words,
            env={**starting.fresh_environment(), **plan.environment, **told},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if takes_results else None,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
        )
        for number in numbers:
            signal.signal(number, self._pass_on)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self) -> int:
        """Until the job is over; its exit code, as a shell has it."""
        pipes = [pipe for pipe in (self._job.stderr, self._job.stdout) if pipe is not None]
        readers = [threading.Thread(target=self._read, args=(pipe,), daemon=True) for pipe in pipes]
        for reader in readers:
            reader.start()
        code = self._job.wait()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._is_given_up:
            return 1
        for reader in readers:
            reader.join(LAST_WORDS_S)
        if code == 128 + signal.SIGKILL:  # Open MPI says it in words only if it is quick enough
            self._note(b"signal 9 (Killed)")
        if code not in (0, EXIT_STOPPED):
            for known in self._met.values():
                print(f"hvdlm: {known.title}: {known.cause}. Cure: {known.cure_here}", file=sys.stderr)
        killed_as_asked = self._asked_by and code == 128 + signal.SIGUSR1  # before or without a way to save
        if killed_as_asked or code == EXIT_STOPPED:
            self._repeat_own_words()
        return 128 + self._asked_by if killed_as_asked else code if code >= 0 else 128 - code

    def _repeat_own_words(self) -> None:
        """mpirun takes the exit code of a stopped run for a failure, and says so below what the run has said itself."""
        if self._last_words != self._own_words or not self._own_words:
            words = self._own_words or b"hvdlm: ended by the signal: this start has saved nothing"
            print(words.decode(errors="replace"), file=sys.stderr)

    def _pass_on(self, number: int, frame: object) -> None:
        """USR1 is the one signal that every launcher hands to all ranks before it ends them; TERM ends the job."""
        is_first, self._asked_by = not self._asked_by, self._asked_by or number
        wanted = signal.SIGUSR1 if is_first or number == signal.SIGUSR1 else signal.SIGTERM
        target = self._job.pid if self._passes_signals else _mpirun_below(self._job.pid)
        if self._job.poll() is not None:
            return
        if target is None and wanted == signal.SIGUSR1:  # it is still starting, or met over Gloo, and would die of it
            message = b"hvdlm: horovodrun passes no signal on; touch STOP in the run's folder, or signal again to end\n"
            self._say(message)
            return
        with contextlib.suppress(OSError):  # the terminal may be gone
            if is_first:
                self._say(b"hvdlm: the ranks are asked to save and end; a second time ends them at once\n")
        with contextlib.suppress(ProcessLookupError):
            os.kill(target or self._job.pid, wanted)

    def _read(self, pipe: IO[bytes]) -> None:
        rest, number = b"", pipe.fileno()
        with pipe:
            while piece := os.read(number, 1 << 16):
                if self._screen is not None:
                    lines = self._screen.take(number, piece)
                else:
                    sys.stderr.buffer.write(piece)
                    sys.stderr.buffer.flush()
                    *lines, rest = (rest + piece).split(b"\n")
                for line in lines if pipe is self._job.stderr else ():
                    self._note(line)
        rest = self._screen.end(number) if self._screen is not None else rest
        if pipe is self._job.stderr:
            self._note(rest)

    def _say(self, words: bytes) -> None:
        """From a signal handler or a timer, while others write too."""
        os.write(sys.stderr.fileno(), (self._screen.gap if self._screen is not None else b"") + words)

    def _give_up(self) -> None:
        """A rank has ended the job, and the launcher has not: kill it, and what it started on this host."""
        self._is_given_up = True
        message = f"hvdlm: {PATIENCE_S:.0f} s after that the launcher still waits for a host: it is ended here\n"
        self._say(message.encode())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._job.pid, signal.SIGKILL)

    def _note(self, line: bytes) -> None:
        if self._deadline is None and RANK_ENDED.search(line):
            self._deadline = threading.Timer(PATIENCE_S, self._give_up)
            self._deadline.daemon = True
            self._deadline.start()
        if line.strip():
            own = OWN_WORDS.fullmatch(line)
            self._last_words = own[1] if own else line
            self._own_words = own[1] if own else self._own_words
        for known in explain(line.decode(errors="replace")):
            self._met.setdefault(known.name, known)


def _mpirun_below(pid: int) -> int | None:
    """horovodrun becomes a shell that waits for an mpirun, which alone knows what signals mean."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # it has ended
            continue
        if name in MPIRUN_PROGRAMS and int(rest.split()[1]) == pid:
            return int(stat.parent.name)
    return None
