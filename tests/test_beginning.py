"""A command that is ended before its work begins says so, and ends by the signal as it would have ended anyhow."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal
from hvdlm.cli.beginning import ends_with
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
with ends_with("before the work") as has_begun:
    os.kill(os.getpid(), signal.SIGHUP)
    if {begins}:
        has_begun()
    os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.parametrize(
    ("name", "rank", "code", "said"),
    [
        ("SIGINT", 0, 130, "hvdlm: interrupted before the work\n"),
        ("SIGTERM", 0, -15, "hvdlm: ended by SIGTERM before the work\n"),
        ("SIGUSR1", 1, -10, ""),
    ],
)
def test_the_end_before_the_work_is_one_line_on_rank_0(name, rank, code, said):
    env = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank)}
    script = SCRIPT.format(name=name, begins=False)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_once_the_work_has_begun_nothing_is_said():
    script = SCRIPT.format(name="SIGTERM", begins=True)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-15, "")
