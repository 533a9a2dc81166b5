"""Each world's collectives on real ranks; 3 because powers of two hide mistakes."""

import sys
from pathlib import Path

import pytest
from harness import run_ranks

SCRIPT = Path(__file__).parent / "rank_world.py"


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["mpi", "horovod"])
def test_collectives(kind, ranks):
    done = run_ranks(ranks, [sys.executable, SCRIPT, kind, str(ranks)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == ranks


def test_horovod_over_gloo():
    horovodrun = Path(sys.executable).parent / "horovodrun"
    done = run_ranks(0, [horovodrun, "--gloo", "-np", "2", sys.executable, SCRIPT, "horovod", "2"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == 2
