"""Ranks that share a GPU are found by what the GPU is; the bench of a GPU runs, whatever it finds."""

import json

import pytest
import torch

from hvdlm.compute import device as compute
from hvdlm.errors import UserError
from hvdlm.perf.gpu_time import where_time_goes
from hvdlm.world.threads import run_on_threads


@pytest.mark.parametrize(("gpus", "shared"), [("aabb", "0, 1"), ("abcb", "1, 3"), ("abcd", ""), ("    ", "")])
@pytest.mark.parametrize("needs_own", [True, False])
def test_ranks_that_share_a_gpu(gpus, shared, needs_own, monkeypatch, caplog):
    """A GPU's own name counts, for each rank may call it 0."""
    monkeypatch.setattr(compute, "gpu_id", lambda number: gpus[number].strip())

    def work(world):
        world.needs_own_gpu = needs_own
        try:
            compute.check_own_gpu(world.rank, world)
        except UserError as error:
            assert error.on_all_ranks
            return str(error)
        return ""

    with caplog.at_level("WARNING", "hvdlm"):
        found = run_on_threads(4, work)
    expected = f"ranks {shared} share one GPU"
    assert all(said.startswith(expected) == bool(shared and needs_own) for said in found)
    assert (expected in caplog.text) == bool(shared and not needs_own)


def test_a_cpu_has_no_kernels_to_be_shown():
    assert where_time_goes(lambda: 1 / 0, torch.device("cpu")) == {}


TINY = ["bench", "gpu", "--layers=1", "--heads=1", "--width=8", "--seq-len=16", "--vocab-size=300", "--batch=4"]
HOW = ["--compile=no", "--rounds=1", "--steps=1", "--device=cpu", "--json"]


def test_the_bench_of_a_gpu_runs_on_a_cpu_too(job, tmp_path):
    done = job(0, *TINY, *HOW, "--micro-batches=2,4", "--out", tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [(row["program"], row["micro_batch"]) for row in found["rows"]]
    assert rows == [("hvdlm", 2), ("plain torch", 2), ("hvdlm", 4), ("plain torch", 4)]
    assert all(row["tokens_per_s"] > 0 for row in found["rows"])


def test_the_bench_of_a_gpu_says_what_does_not_fit(job, tmp_path):
    refused = job(0, *TINY, *HOW, "--micro-batches=3", "--out", tmp_path, code=2)
    assert "--micro-batches: 3 does not divide --batch 4" in refused.stderr
