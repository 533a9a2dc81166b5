"""The fixed tree gives the same bits for every number of ranks and in every world; compressed replicas stay equal."""

import re
import sys
from pathlib import Path

from harness import run_ranks

SCRIPT = Path(__file__).parent / "rank_sync.py"
JOBS = [("mpi", 1), ("mpi", 2), ("horovod", 3), ("mpi", 4)]


def test_the_tree_is_the_same_for_every_number_of_ranks():
    digests = []
    for kind, ranks in JOBS:
        done = run_ranks(ranks, [sys.executable, SCRIPT, kind, str(ranks)])
        assert done.returncode == 0, done.stderr
        found = re.findall(r"passed with tree (\w{16})", done.stdout)
        assert len(found) == ranks, done.stdout
        digests += found
    assert len(set(digests)) == 1, digests
