"""Who is there and how bytes travel: one interface, three worlds, and the choice between them."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

from hvdlm.errors import StoppedOnRequest, UserError, lack_of_memory
from hvdlm.launch.ancestors import ancestors, has_mpirun_as_task, started_by
from hvdlm.launch.environment import launched_as, launcher_waits_for_all, met_over_gloo
from hvdlm.launch.slurm_tasks import check_tasks
from hvdlm.tables import counted
from hvdlm.world.interface import World

WorldKind = Literal["auto", "serial", "mpi", "horovod"]
DataGroups = Callable[[int], Sequence[Sequence[int]]]  # of the job's size the groups of ranks that add up gradients


def connect(
    kind: WorldKind = "auto",
    *,
    prefer: Literal["mpi", "horovod"] = "mpi",
    needs_ranks: bool = True,
    data_groups: DataGroups | None = None,
) -> World:
    """Join the job's world.

    `auto` is serial for a process started by hand; under a launcher it is `prefer`, or mpi where Horovod
    is not installed, or horovod where ranks met over Gloo and are no MPI processes. A world of another
    size than the launcher's is an error: otherwise N processes would each do the whole work, silently. So is
    one that SLURM has other plans for, unless the work needs no ranks or the world is serial on purpose.
    Horovod has to know `data_groups` when it starts; None: all ranks are one.
    """
    launched = launched_as()
    if kind != "serial" and needs_ranks:
        is_copied = has_mpirun_as_task(ancestors())
        if remark := check_tasks(os.environ, launched, started_by(), has_mpirun_as_task=is_copied):
            print(f"hvdlm: {remark}", file=sys.stderr, flush=True)
    if kind == "auto":
        kind = _choose(prefer)
    world: World
    if kind == "serial":
        from hvdlm.world.serial import SerialWorld

        world = SerialWorld()
    elif kind == "mpi":
        from hvdlm.world.mpi import MpiWorld

        world = MpiWorld()
    else:
        from hvdlm.world.horovod import start_horovod

        world = start_horovod(data_groups)
    if launched and launched[1] != world.size:
        raise UserError(_size_mismatch(world, launched[1]))
    return world


def _choose(prefer: Literal["mpi", "horovod"]) -> Literal["serial", "mpi", "horovod"]:
    if met_over_gloo():
        return "horovod"
    if launched_as() is None:
        return "serial"
    if prefer == "horovod" and importlib.util.find_spec("horovod") is None:
        return "mpi"
    return prefer


def _size_mismatch(world: World, expected: int) -> str:
    started = counted(expected, "process", "processes")
    found = f"the launcher started {started} but the {world.kind} world has {world.size}"
    if world.kind == "serial":
        return f"{found}; use world=auto, or start one process"
    if launcher_waits_for_all():
        return f"{found}; use `srun --mpi=pmix`, or pmi2 for MPICH and Intel MPI (see `srun --mpi=list`)"
    return f"{found}; start it with the mpirun of the MPI that mpi4py and Horovod use (`hvdlm doctor`)"


def _connect_or_die(kind: WorldKind, **how: Any) -> World:
    """`connect`, but a crash in it ends this process at once: at a normal exit MPI would wait for the others."""
    try:
        return connect(kind, **how)
    except UserError:
        raise
    except Exception:
        if (launched_as() or (0, 1))[1] == 1:
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@contextmanager
def connected(
    kind: WorldKind = "auto",
    *,
    prefer: Literal["mpi", "horovod"] = "mpi",
    environment: Mapping[str, str] = MappingProxyType({}),
    needs_ranks: bool = True,
    data_groups: DataGroups | None = None,
) -> Iterator[World]:
    """A world for a command's whole work: whatever one rank dies of ends the whole job at once.

    `environment` is what MPI or Horovod shall find when they start, unless the user has set it. Work that
    one process does as well as many (`needs_ranks` false) is not refused in a SLURM job of many tasks. `data_groups` as
    for `connect`.

    Ends that all ranks share (StoppedOnRequest, a UserError out of `World.together`) pass through.
    """
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    world = _connect_or_die(kind, prefer=prefer, needs_ranks=needs_ranks, data_groups=data_groups)
    try:
        yield world
    except StoppedOnRequest:
        world.close()
        raise
    except UserError as error:
        if world.size > 1 and not error.on_all_ranks:
            print(f"hvdlm: error: {error}", file=sys.stderr, flush=True)
            world.abort(2)
        world.close()
        raise
    except KeyboardInterrupt:
        if world.size > 1:
            world.abort(130)
        raise
    except BaseException as error:
        if world.size == 1:
            raise
        _fail(error, world)
    else:
        world.close()


def _fail(error: BaseException, world: World) -> None:
    """End the job of many ranks: in one line for a lack of memory, else with the traceback."""
    if lack := lack_of_memory(error):
        print(f"hvdlm: error: {world}: {lack}", file=sys.stderr, flush=True)
        world.abort(2)
    trace = traceback.format_exc()
    print(f"hvdlm: {world} failed:\n{trace}", file=sys.stderr, flush=True)
    world.abort(1)
