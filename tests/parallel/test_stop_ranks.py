"""Two ranks are asked to save, to end, or to give way: all do the same at the same step."""

import json
import os
import signal
import threading
import time

import pytest
from harness import make_config
from processes import ranks_of, until

from hvdlm import checkpoint
from hvdlm.errors import StoppedOnRequest
from hvdlm.session.metrics import read_metrics
from hvdlm.session.stop import BatchJob
from hvdlm.train import setup

on_two = pytest.mark.on_ranks(2)


@pytest.fixture
def train(world, data_dir, tmp_path):
    """Train on all ranks while a thread of each does something."""

    def train(*overrides, meanwhile=lambda: None, job=BatchJob()):  # noqa: B008 - frozen
        words = ("train.steps=20000", "train.eval_every=20000", "checkpoint.every=5", *overrides)
        thread = threading.Thread(target=meanwhile)
        thread.start()
        try:
            return setup.train(make_config(data_dir, tmp_path / "run", *words), world, job)
        finally:
            thread.join()
            world.barrier()

    return train


def last_step(run_dir):
    return read_metrics(run_dir / "metrics.jsonl")[-1]["step"]


ASKED = {
    "USR1 to rank 1": lambda rank, run_dir: rank == 1 and os.kill(os.getpid(), signal.SIGUSR1),
    "TERM to rank 0": lambda rank, run_dir: rank == 0 and os.kill(os.getpid(), signal.SIGTERM),
    "STOP file": lambda rank, run_dir: (run_dir / "STOP").touch(),
}


@on_two
@pytest.mark.parametrize("how", ASKED)
def test_a_run_that_is_asked_to_stop_saves_and_resumes(world, train, tmp_path, how):
    run_dir = tmp_path / "run"

    def ask():
        until(lambda: checkpoint.complete_steps(run_dir))
        ASKED[how](world.rank, run_dir)

    with pytest.raises(StoppedOnRequest, match="of 20,000 by .+, saved; the same command resumes"):
        train(meanwhile=ask)
    saved = checkpoint.complete_steps(run_dir)[-1]
    assert last_step(run_dir) == saved
    assert train(f"train.steps={saved + 2}")["step"] == saved + 2


@on_two
def test_save_now_and_go_on(world, train, tmp_path):
    run_dir = tmp_path / "run"
    seen = []

    def ask():
        until(lambda: read_metrics(run_dir / "metrics.jsonl"))
        seen.append(checkpoint.complete_steps(run_dir))
        (run_dir / "SAVE").touch()
        until(lambda: checkpoint.complete_steps(run_dir))
        until(lambda: not (run_dir / "SAVE").exists())
        seen.append(checkpoint.complete_steps(run_dir))
        until(lambda: last_step(run_dir) > seen[1][0])
        (run_dir / "STOP").touch()

    with pytest.raises(StoppedOnRequest):
        train("checkpoint.every=100000", meanwhile=ask if world.rank == 0 else lambda: None)
    if world.rank == 0:
        assert seen[0] == []
        assert len(seen[1]) == 1


@on_two
def test_kill_ends_at_once_and_every_start_while_it_is_there(train, tmp_path):
    run_dir = tmp_path / "run"

    def ask():
        until(lambda: checkpoint.complete_steps(run_dir))
        (run_dir / "KILL").touch()

    with pytest.raises(StoppedOnRequest, match=r"ended before step \d+ by .*/run/KILL; remove it"):
        train(meanwhile=ask)
    saved = checkpoint.complete_steps(run_dir)
    with pytest.raises(StoppedOnRequest, match="KILL is there: nothing was started"):
        train()
    assert checkpoint.complete_steps(run_dir) == saved


@on_two
def test_the_run_ends_before_its_time_is_over(world, train, tmp_path):
    end = time.time() + 12
    reason = "a signal to another rank" if world.rank else "the end of the job's time"
    with pytest.raises(StoppedOnRequest, match=rf"stopped at step \d+ of 20,000 by {reason}, saved"):
        train(job=BatchJob("7", end))
    assert time.time() < end
    assert last_step(tmp_path / "run") == checkpoint.complete_steps(tmp_path / "run")[-1]


@on_two
def test_a_finished_run_ends_at_once_and_well(train, tmp_path):
    run_dir = tmp_path / "run"
    train("train.steps=10")
    before = (run_dir / "metrics.jsonl").read_text()
    assert train("train.steps=10")["step"] == 10
    assert (run_dir / "metrics.jsonl").read_text() == before
    assert checkpoint.complete_steps(run_dir)[-1] == 10


# --- two jobs, which only start and signals join


def test_two_jobs_in_one_run_folder_do_not_both_write(start_training, tmp_path):
    """As after a node was taken for lost: the older one ends, the newer one goes on."""
    run_dir = tmp_path / "run"
    first = start_training()
    old = json.loads((run_dir / "owner").read_text())
    second = start_training(wait=False)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 2
    assert errors.count("this job ends and writes nothing more") == 1
    new = json.loads((run_dir / "owner").read_text())
    assert new["token"] != old["token"]
    assert new["total_steps"] == 20000
    (run_dir / "STOP").touch()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 75, errors
    steps = [row["step"] for row in read_metrics(run_dir / "metrics.jsonl", "train")]
    assert steps == list(range(1, checkpoint.complete_steps(run_dir)[-1] + 1))


def test_a_job_that_was_frozen_while_another_finished_writes_nothing_when_it_wakes(start_training, tmp_path):
    """A node without network looks dead to the scheduler; its ranks are not."""
    run_dir = tmp_path / "run"
    frozen = start_training()
    ranks = ranks_of(frozen.pid)
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    second = start_training(wait=False)
    until(lambda: json.loads((run_dir / "owner").read_text())["pid"] not in ranks)
    (run_dir / "STOP").touch()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 75, errors
    before = contents(run_dir)
    (run_dir / "STOP").touch()  # for whoever starts next
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    _, errors = frozen.communicate(timeout=60)
    assert frozen.returncode == 2
    assert errors.count("this job ends and writes nothing more") == 1
    assert contents(run_dir) == {**before, "STOP": b""}


def contents(run_dir):
    """Every file of a run that is whole, with its bytes."""
    files = {str(path.relative_to(run_dir)): path for path in run_dir.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "/." not in f"/{name}"}
