"""Run by every rank of test_failures.py: the last rank fails in the way that is asked for."""

import sys
import time
from pathlib import Path

from hvdlm.cli import main
from hvdlm.errors import UserError
from hvdlm.world.connect import connected


def fail(kind: str, world) -> None:
    last = world.rank == world.size - 1
    if kind == "crash" and last:
        raise RuntimeError("the last rank is broken")
    if kind == "mistake" and last:
        raise UserError("the last rank's own mistake")
    if kind == "elsewhere" and last:
        time.sleep(60)
    fail_together(kind, world)
    world.barrier()
    time.sleep(60)  # a rank that is alone here would wait longer than the test


def fail_together(kind: str, world) -> None:
    last = world.rank == world.size - 1
    with world.together():
        if kind == "agreed" and last:
            raise UserError("found by the last rank")
        if kind == "lost" and last:
            Path("/nowhere/file").read_text()


def run(kind: str, world_kind: str) -> None:
    import hvdlm.cli

    def command(*_args, **_options):
        with connected(world_kind) as world:
            fail(kind, world)

    hvdlm.cli.cli.main = command  # main() with its error handling around our own command
    main([])


if __name__ == "__main__":
    run(*sys.argv[1:])
