"""The launch lines of a script: which launcher starts what, with which options. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hvdlm.launch.launchers import MPIRUN_PROGRAMS

from .sbatch import OPTIONS, SHORT, Script, named
from .shell import ShellCommand, unquote

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
        value = self.options.get("ntasks", "")
        return int(value) if value.isdecimal() else None

    @property
    def is_mpirun(self) -> bool:
        return self.launcher in MPIRUN_PROGRAMS

    @property
    def is_hvdlm(self) -> bool:
        return any(word.rpartition("/")[2] == "hvdlm" for word in self.program)


def launch_lines(script: Script) -> list[LaunchLine]:
    """Every launch of ranks in the script; steps of system tools and of one task are none."""
    traces = any(_MPI_TRACES.search(word) for command in script.body.commands for word in command.words)
    found = [_read(command) for command in script.body.named("srun", *MPIRUN_PROGRAMS, "horovodrun")]
    return [line for line in found if _starts_ranks(line, traces)]


def _starts_ranks(line: LaunchLine, has_traces_of_mpi: bool) -> bool:
    if not line.program or (line.tasks == 1 and line.launcher == "srun"):
        return False
    program = line.program
    if program[0] in ("bash", "sh") and len(program) > 2:  # bash -c 'nvidia-smi -L'
        program = tuple(program[2].split()) or program
    if program[0].rpartition("/")[2] in _SYSTEM.split():
        return False
    if any(word.rpartition("/")[2] in _OWN_RENDEZVOUS for word in line.program):
        return False
    return line.launcher != "srun" or line.is_hvdlm or has_traces_of_mpi


def _read(command: ShellCommand) -> LaunchLine:
    launcher, *words = [unquote(word) for word in command.arguments]
    launcher = launcher.rpartition("/")[2]
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
