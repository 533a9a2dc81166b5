"""A rank that waits too long for others ends the job; one that works does not."""

import threading
import time

import pytest

from hvdlm.session.watchdog import watchdog
from hvdlm.world.threads import thread_worlds


def test_a_rank_that_stands_still_ends_the_job(capsys):
    world = thread_worlds(2)[0]
    world.mesh_place = "stage 0, data 0, tensor 0"
    with watchdog(world, 0.1), pytest.raises(threading.BrokenBarrierError):
        world.barrier()  # which the other rank never reaches
    assert world.exit_code == 1
    message = capsys.readouterr().err
    assert message.startswith(
        f"hvdlm: error: rank 0 of 2 ({world.mesh_place}) has waited 0.1 s for a rank that does not answer;"
    )


def test_a_rank_that_works_is_left_alone_and_so_is_one_after_its_work():
    world = thread_worlds(2)[0]
    with watchdog(world, 1.0):
        for _ in range(30):
            world.beats += 1
            time.sleep(0.1)
    time.sleep(1.5)
    assert world.exit_code is None


@pytest.mark.parametrize(("size", "limit_s"), [(1, 0.05), (2, 0)])
def test_nobody_watches_one_rank_or_without_a_limit(size, limit_s):
    world = thread_worlds(size)[0]
    with watchdog(world, limit_s):
        time.sleep(0.5)
    assert world.exit_code is None
