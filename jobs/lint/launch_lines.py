"""The launch lines of a script: which launcher starts what, with which options. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hvdlm.launch.launchers import MPIRUN_PROGRAMS

from .sbatch import OPTIONS, SHORT, Script, named
from .shell import ShellCommand, base_name, behind_wrappers, inner_text, read_body, unquote

_SRUN_SHORT = SHORT | named("K kill-on-bad-exit T threads W wait j jobid l label r relative u unbuffered")
_SRUN_OWN = "accel-bind bcast cpu-bind epilog het-group jobid mpi msg-timeout prolog relative task-epilog task-prolog"
_SRUN_VALUES = {name for name, wants in OPTIONS.items() if wants == "yes"} | {*_SRUN_OWN.split(), "threads", "wait"}
# mpirun's of Open MPI 4 and 5, MPICH and Intel MPI, and horovodrun's: option -> how many words follow it
_ONE_WORD = """
    app am bind-to bootstrap c configfile cpu-list cpu-set display envlist f genvlist H host hostfile hosts
    iface launcher launcher-exec machinefile map-by n N np npernode npersocket output output-filename path
    perhost personality ppn prefix rank-by rankfile rf rmk stdin timeout tune wd wdir x binding-args
    cache-capacity config-file cycle-time-ms fusion-threshold-mb host-discovery-script i log-level max-np min-np
    mpi-args network-interfaces nics num-proc p slots-per-host ssh-identity-file ssh-port start-timeout
    timeline-filename
"""
_MPIRUN_VALUES = {
    **dict.fromkeys(("mca", "gmca", "genv", "env", "prtemca", "pmixmca"), 2),
    **dict.fromkeys(_ONE_WORD.split(), 1),
}
_SAME = dict.fromkeys(("np", "n", "c", "num-proc"), "ntasks")
_SAME |= named("H host hosts host machinefile hostfile f hostfile rf rankfile")

# Steps of these prepare or look; they take no part in a parallel run.
_SYSTEM = """
    [ cat chmod chown cp date df du echo find free hostname id ldd ln ls lscpu lstopo mkdir mktemp module mv
    nproc nvidia-smi printenv pwd rm rocm-smi rsync sbcast sed sleep stat sync tar test touch true ulimit
    uname unsquashfs unzip uptime which zstd
"""
_OWN_RENDEZVOUS = ("torchrun", "accelerate", "deepspeed", "torch.distributed.run", "torch.distributed.launch", "ray")
LAUNCHERS = ("srun", *MPIRUN_PROGRAMS, "horovodrun")
# What runs a program that is named somewhere behind it.
CARRIERS = """
    apptainer singularity shifter podman podman-hpc docker enroot ch-run sarus uv conda mamba micromamba pixi poetry
    python python3 xvfb-run
"""
# Commands of hvdlm that are refused where a SLURM job has another number of tasks than there are ranks.
RANKED = ("train", "preprocess", "eval", "infer")
_MPI_TRACES = re.compile(
    r"\b(hvdlm|horovod\w*|hvd|mpi4py|open-?mpi|mpich\d?|mvapich\d?|impi|intel-?mpi|hpcx|cray-mpich\w*"
    r"|(I_MPI|OMPI|MPICH|HOROVOD)_\w+)\b"
)


@dataclass(frozen=True)
class LaunchLine:
    """A command that starts ranks; values as written, without quotes."""

    command: ShellCommand
    launcher: str
    options: dict[str, str]
    program: tuple[str, ...]

    @property
    def line(self) -> int:
        return self.command.line

    @property
    def tasks(self) -> int | None:
        """How many it asks for; None if it does not say, or not as a number."""
        return self.number("ntasks")

    @property
    def is_mpirun(self) -> bool:
        return self.launcher in MPIRUN_PROGRAMS

    @property
    def words(self) -> tuple[str, ...]:
        """The program's, without quotes; those of the text for `bash -c '…'`."""
        text = inner_text(self.program)
        if text is None:
            return self.program
        return tuple(unquote(word) for command in read_body(text).commands for word in command.words)

    @property
    def is_hvdlm(self) -> bool:
        return any(base_name(word) == "hvdlm" for word in self.words)

    @property
    def is_horovod(self) -> bool:
        """Ranks that share a GPU there fail: NCCL refuses."""
        return self.is_hvdlm or self.launcher == "horovodrun" or any("horovod" in word for word in self.words)

    @property
    def has_parts(self) -> bool:
        """Several programs with a `:` between them, each with sizes of its own."""
        return ":" in self.program

    def number(self, key: str) -> int | None:
        """An option's whole number; None for any other, and for none."""
        value = self.options.get(key, "")
        return int(value) if value.isdecimal() and not self.has_parts else None


def started(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What a command runs in the end, behind wrappers, containers and `bash -c`; each with its own words.

    >>> started(("apptainer", "exec", "x.sif", "hvdlm", "train"))
    [('hvdlm', 'train')]
    """
    words = tuple(map(unquote, behind_wrappers(words)))
    text = inner_text(words)
    if text is not None:
        return [each for command in read_body(text).commands for each in started(command.words)]
    if words and base_name(words[0]) in CARRIERS.split():
        known = ("hvdlm", *LAUNCHERS)
        at = next((at for at, word in enumerate(words) if base_name(word) in known or inner_text(words[at:])), 0)
        words = words[at:]
        if inner_text(words) is not None:
            return started(words)
    return [(base_name(words[0]), *words[1:])] if words else []


def every_launch(script: Script) -> list[LaunchLine]:
    """All commands of launchers, whatever they start."""
    commands = [each for command in script.body.commands for each in (command, *command.substitutions)]
    return [_read(command) for command in commands if command.name in LAUNCHERS]


def launch_lines(script: Script) -> list[LaunchLine]:
    """Every launch of ranks in the script; steps of system tools and of one task are none."""
    traces = any(_MPI_TRACES.search(word) for command in script.body.commands for word in command.words)
    return [line for line in every_launch(script) if _starts_ranks(line, traces)]


def _starts_ranks(line: LaunchLine, has_traces_of_mpi: bool) -> bool:
    if not line.program or (line.tasks == 1 and line.launcher == "srun"):
        return False
    words = line.words or line.program
    if base_name(words[0]) in _SYSTEM.split():
        return False
    if any(base_name(word) in _OWN_RENDEZVOUS for word in words):
        return False
    return line.launcher != "srun" or line.is_hvdlm or has_traces_of_mpi


def _read(command: ShellCommand) -> LaunchLine:
    launcher, *words = [unquote(word) for word in command.arguments]
    launcher = base_name(launcher)
    options: dict[str, str] = {}
    while words and words[0].startswith("-") and words[0] != "--":
        read = _read_srun_option if launcher == "srun" else _read_mpirun_option
        name, value = read(words)
        options[name] = f"{options[name]} {value}" if name in options and name in ("x", "mca") else value
    return LaunchLine(command, launcher, options, tuple(words[1:] if words[:1] == ["--"] else words))


def _read_srun_option(words: list[str]) -> tuple[str, str]:
    word = words.pop(0)
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        return name, value if equals or name not in _SRUN_VALUES or not words else words.pop(0)
    name = _SRUN_SHORT.get(word[1:2], word[1:2])
    value = word[2:]
    return name, value if value or name not in _SRUN_VALUES or not words else words.pop(0)


def _read_mpirun_option(words: list[str]) -> tuple[str, str]:
    name, equals, value = words.pop(0).lstrip("-").partition("=")
    count = 0 if equals else _MPIRUN_VALUES.get(name, 0)
    values, words[:count] = words[:count], []
    return _SAME.get(name, name), value if equals else " ".join(values)
