"""What people write after `hvdlm launch`: options by the names that other launchers have, and the command to start.

All of it is read before anything is started: what is not understood starts no ranks.
"""

from __future__ import annotations

import difflib
import re
import shutil
import sys
from pathlib import Path

import click

from hvdlm.cli.options import Command
from hvdlm.errors import UserError

# Options of mpirun, srun, horovodrun, torchrun and their kin, and what they are called here.
FOREIGN = (
    (
        "-N --nodes --nnodes --ntasks-per-node --nproc-per-node --nproc_per_node --npernode -npernode -ppn -perhost"
        " --num-nodes --num_nodes --num-gpus --num_gpus --slots-per-host",
        "-np is the number of all ranks, and --hosts a:4,b:4 says how many each host has",
    ),
    (
        "-c --cpus-per-task --cpus-per-proc --cpu-bind --bind-to -bind-to --map-by -map-by --rank-by --binding-args",
        "a rank has OMP_NUM_THREADS cores, which may be set before the command, or its share of the host",
    ),
    (
        "-x --export --env -env -genv -genvall -genvlist --mca -mca --gmca --prtemca --pmixmca",
        "set variables before the command, as in `OMPI_MCA_pml=ob1 hvdlm launch ...`",
    ),
    (
        "--oversubscribe -oversubscribe --overcommit --overlap --allow-run-as-root --use-hwthread-cpus --mpi --gloo"
        " --standalone --rdzv-backend --rdzv-endpoint --rdzv_backend --rdzv_endpoint --master-addr --master-port"
        " --master_addr --master_port --node-rank --node_rank --pty",
        "leave it out: what is needed is added (--print shows it)",
    ),
    (
        "-l --label --tag-output -tag-output --output --output-filename -v --verbose -q --quiet",
        "leave it out: messages come as the launcher passes them on, and this has no more of them",
    ),
)


class LaunchCommand(Command):
    """`hvdlm launch`, whose own options end at the first word that is none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        check_options(args, [each for each in self.get_params(ctx) if isinstance(each, click.Option)])
        return super().parse_args(ctx, args)


def check_options(args: list[str], options: list[click.Option]) -> None:
    """UserError for the first option that `hvdlm launch` has not, with its name here or the nearest one."""
    wants_value = {name: not each.is_flag for each in options for name in each.opts}
    words = iter(args)
    for word in words:
        if word == "--" or not word.startswith("-"):
            return
        name, is_given, _ = word.partition("=")
        if name not in wants_value and not re.fullmatch(r"-n\d+", word):
            raise UserError(f"hvdlm launch {name}: {_answer(name, options)}; nothing was started")
        if wants_value.get(name) and not is_given:
            next(words, None)


def _answer(name: str, options: list[click.Option]) -> str:
    for names, answer in FOREIGN:
        if name in names.split():
            return f"not an option here; {answer}"
    known = {each: option.opts[0] for option in options for each in option.opts}
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(f"-{name}", known, n=1)
    if near:
        return f"no such option, did you mean {known[near[0]]}? (those of the command come after it)"
    return f"no such option; there are {', '.join(option.opts[0] for option in options)}"


def words_of_hvdlm(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a command of ours, where people wrote the program before it, as after mpirun.

    >>> words_of_hvdlm(("python", "-m", "hvdlm", "train", "x.yaml"))
    ('train', 'x.yaml')
    """
    program, rest = words[0], words[1:]
    if re.fullmatch(r"python[\d.]*", Path(program).name):
        while rest and rest[0].startswith("-") and rest[0] != "-m":
            rest = rest[1:]
        if rest[:2] == ("-m", "hvdlm"):
            rest = rest[2:]
        elif rest and Path(rest[0]).name == "hvdlm":
            rest = rest[1:]
        else:
            return words
    elif Path(program).name != "hvdlm":
        return words
    if "/" in program:
        _check_own(program)
    return rest


def _check_own(program: str) -> None:
    """UserError for the path of another environment than the one at hand, which is what would be started."""
    found = shutil.which(program)
    if found is None:
        raise UserError(f"{program}: there is no such program; leave it out, hvdlm's own commands are started")
    if Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        raise UserError(f"{program}: is not the hvdlm at hand ({sys.executable}); call the `launch` of that one")


def check_command(words: tuple[str, ...], ctx: click.Context) -> None:
    """UserError, or click's, for words that every rank would refuse: asked once, before there are any."""
    if not words:
        raise UserError("hvdlm launch: the command is missing, as in `hvdlm launch -np 2 -- train CONFIG`")
    root = ctx.find_root()
    command: click.Command | None = root.command
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        group, name = command, rest.pop(0)
        command = group.get_command(root, name)
        if command is None:
            raise UserError(_no_command(name, group.list_commands(root)))
    assert command is not None
    if command is ctx.command:
        raise UserError("hvdlm launch -- launch: one launcher is enough; nothing was started")
    try:
        command.make_context(command.name, rest, parent=root)
    except click.NoSuchOption as error:
        if error.option_name in {name for each in ctx.command.params for name in each.opts}:
            raise UserError(
                f"hvdlm launch: {error.option_name} stands before the command, as in `hvdlm launch {error.option_name}"
                f" ... -- {words[0]} ...`; nothing was started"
            ) from None
        raise


def _no_command(name: str, commands: list[str]) -> str:
    near = difflib.get_close_matches(name, commands, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return (
        f"{name}: is no command of hvdlm; {meant}`hvdlm launch` starts these alone, another program is started by"
        " mpirun or srun; nothing was started"
    )
