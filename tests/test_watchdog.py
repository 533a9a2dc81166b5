"""A rank that waits too long for others ends the job; one that works does not."""

import threading
import time

import pytest

from hvdlm.session.watchdog import watchdog
from hvdlm.world.serial import SerialWorld


class TwoRanks(SerialWorld):
    size = 2

    def __init__(self):
        self.aborted = threading.Event()
        self.code = None

    def abort(self, code):
        self.code = code
        self.aborted.set()


def test_a_rank_that_stands_still_ends_the_job(capsys):
    world = TwoRanks()
    with watchdog(world, 0.1):
        assert world.aborted.wait(10)
    assert world.code == 1
    message = capsys.readouterr().err
    assert message.startswith("hvdlm: error: rank 0 of 2 has waited 0.1 s for a rank that does not answer;")


def test_a_rank_that_works_is_left_alone_and_so_is_one_after_its_work():
    world = TwoRanks()
    with watchdog(world, 1.0):
        for _ in range(30):
            world.beats += 1
            time.sleep(0.1)
    assert not world.aborted.wait(1.5)


@pytest.mark.parametrize(("size", "limit_s"), [(1, 0.05), (2, 0)])
def test_nobody_watches_one_rank_or_without_a_limit(size, limit_s):
    world = TwoRanks()
    world.size = size
    with watchdog(world, limit_s):
        assert not world.aborted.wait(0.5)
