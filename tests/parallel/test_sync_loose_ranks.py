"""Ways to combine that are not synchronous, on real ranks: local SGD, DiLoCo, asynchronous SGD."""

import sys
from pathlib import Path

import pytest
from harness import run_ranks


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("script", ["rank_local.py", "rank_async.py"])
def test_on_ranks(script, ranks):
    """The script's functions `check_…` say what is tested."""
    done = run_ranks(ranks, [sys.executable, Path(__file__).parent / script, str(ranks)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == ranks
