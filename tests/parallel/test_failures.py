"""What one rank dies of ends the whole job, soon and with one message; nobody waits for ever."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from harness import HVDLM, LONG, run_ranks, run_training
from processes import ranks_of, until
from rank_fails import fail_together
from saved import tensors_in

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.session.metrics import read_metrics

SCRIPT = Path(__file__).parent / "rank_fails.py"
LIMIT_S = 15


def fail(kind, ranks, world):
    start = time.monotonic()
    done = run_ranks(ranks, [sys.executable, SCRIPT, kind, world], timeout_s=60)
    return done, time.monotonic() - start


@pytest.mark.parametrize(("ranks", "world"), [(3, "mpi"), (2, "horovod")])
def test_a_crash_on_one_rank_ends_all_with_its_traceback_once(ranks, world):
    done, seconds = fail("crash", ranks, world)
    assert done.returncode == 1
    assert seconds < LIMIT_S
    assert done.stderr.count("RuntimeError: the last rank is broken") == 1
    assert f"rank {ranks - 1} of {ranks} failed" in done.stderr


@pytest.mark.parametrize(
    ("kind", "world", "message"),
    [("mistake", "mpi", "the last rank's own mistake"), ("agreed", "horovod", "found by the last rank")],
)
def test_a_mistake_that_one_rank_finds_is_one_line_and_exit_2(kind, world, message):
    """Alone, or together with the others."""
    done, seconds = fail(kind, 2, world)
    assert done.returncode == 2, done.stderr
    assert seconds < LIMIT_S
    assert done.stderr.count(f"hvdlm: error: {message}") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.on_ranks(2, 3)
@pytest.mark.on_ranks(2, kind="horovod")
@pytest.mark.parametrize("kind", ["agreed", "lost"])
def test_what_one_rank_finds_is_raised_on_all(world, kind):
    message = {"agreed": "found by the last rank", "lost": "/nowhere/file: No such file"}[kind]
    with pytest.raises(UserError, match=message) as caught:
        fail_together(kind, world)
    assert caught.value.on_all_ranks


STAGES = "parallel.pipeline=2"


@pytest.mark.parametrize(
    ("world", "parallel", "killed"),
    [("mpi", "parallel.zero=0", 1), ("horovod", "parallel.zero=0", 1), ("mpi", STAGES, 0), ("horovod", STAGES, 1)],
)
def test_kill_9_of_one_rank_ends_the_job_and_the_same_command_resumes(
    start_training, tmp_path, world, parallel, killed
):
    """Also of a stage of a pipeline; the job goes on without stages."""
    process = start_training(f"world={world}", parallel)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[killed], signal.SIGKILL)
    start = time.monotonic()
    process.wait(timeout=LIMIT_S)
    assert process.returncode != 0
    saved = checkpoint.complete_steps(tmp_path / "run")[-1]
    options = (f"train.steps={saved + 4}", f"world={world}", "train.eval_every=20000")
    again = run_ranks(2, [*HVDLM, "train", tmp_path / "config.yaml", *options])
    assert again.returncode == 0, again.stderr
    assert f"resuming from {tmp_path}/run/checkpoints/step_{saved:08d}" in again.stderr
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl", "train")]
    assert steps == list(range(1, saved + 5))
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.long), 1])
def test_kill_9_in_any_stage_ends_the_job_and_the_same_command_resumes_bit_for_bit(
    start_training, data_dir, tmp_path, stage
):
    same = ("sync=tree", "world=mpi", "model.dropout=0.1", "train.eval_every=20000")
    process = start_training(*same, "parallel.pipeline=2", "log.every=1", ranks=4)
    os.kill(ranks_of(process.pid)[2 * stage + 1], signal.SIGKILL)
    assert process.wait(timeout=LIMIT_S) != 0
    saved = checkpoint.complete_steps(tmp_path / "run")[-1]
    same += (f"train.steps={saved + 3}",)
    again = run_ranks(4, [*HVDLM, "train", tmp_path / "config.yaml", *same, "parallel.pipeline=2"])
    assert again.returncode == 0, again.stderr
    assert f"resuming from {tmp_path}/run/checkpoints/step_{saved:08d}" in again.stderr
    run_training(data_dir, tmp_path / "alone", *LONG, *same, "world=auto")
    found, expected = (tensors_in(checkpoint.resolve(tmp_path / name)) for name in ("run", "alone"))
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize(
    ("world", "parallel", "place"),
    [
        ("mpi", "parallel.zero=0", ""),
        ("horovod", "parallel.zero=0", ""),
        ("mpi", STAGES, " (stage 0, data 0, tensor 0)"),
    ],
)
def test_a_rank_that_does_not_answer_ends_the_job(start_training, world, parallel, place):
    process = start_training(f"world={world}", parallel, "guard.stall_s=4")
    rank = ranks_of(process.pid)[1]
    os.kill(rank, signal.SIGSTOP)
    _, errors = process.communicate(timeout=4 + LIMIT_S)
    assert process.returncode == 1
    assert errors.count(f"hvdlm: error: rank 0 of 2{place} has waited 4 s for a rank that does not answer;") == 1
    until(lambda: not Path(f"/proc/{rank}").exists(), LIMIT_S)  # mpirun ends before it has killed a stopped one


def test_horovod_names_the_rank_that_is_elsewhere_and_the_tensor(monkeypatch):
    monkeypatch.setenv("HOROVOD_STALL_CHECK_TIME_SECONDS", "2")
    monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "4")
    done, seconds = fail("elsewhere", 2, "horovod")
    assert done.returncode != 0
    assert seconds < 4 + LIMIT_S
    assert re.search(r"1!?: \[allreduce\.hvdlm\.sum\.", done.stderr), done.stderr


def test_a_run_that_is_asked_to_stop_saves_exits_75_and_resumes(start_training, tmp_path):
    """More ways to ask, without an exit, are in test_stop_ranks.py."""
    process = start_training()
    os.kill(ranks_of(process.pid)[1], signal.SIGUSR1)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75, errors
    assert re.search(r"hvdlm: stopped at step (\d+) of 20,000 by .+, saved; the same command resumes", errors)
    saved = checkpoint.complete_steps(tmp_path / "run")[-1]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == saved
    again = run_ranks(2, [*HVDLM, "train", tmp_path / "config.yaml", f"train.steps={saved + 2}", "--json"])
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["step"] == saved + 2
