"""A fault on one rank is everybody's: overflow, a flipped bit, the wish to stop. On real ranks."""

import sys
from pathlib import Path

import pytest
from harness import run_ranks

SCRIPT = Path(__file__).parent / "rank_engine.py"


@pytest.mark.parametrize(("ranks", "kind"), [(2, "horovod"), (3, "mpi"), (4, "mpi")])
def test_faults_and_counts(ranks, kind, data_dir):
    done = run_ranks(ranks, ["env", f"PYTHONPATH={SCRIPT.parent.parent}", sys.executable, SCRIPT, data_dir, kind])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == ranks
