"""Two ranks are asked to save, to end, or to give way: all do the same at the same step."""

import json
import os
import re
import signal
import time

from harness import HVDLM, job_environment, ranks_of, run_ranks

from hvdlm import checkpoint
from hvdlm.session.metrics import read_metrics


def test_save_now_and_go_on(start_training, tmp_path):
    start_training("checkpoint.every=100000", wait=False)
    run_dir = tmp_path / "run"
    until(lambda: read_metrics(run_dir / "metrics.jsonl"))
    assert not checkpoint.complete_steps(run_dir)
    (run_dir / "SAVE").touch()
    until(lambda: checkpoint.complete_steps(run_dir))
    until(lambda: not (run_dir / "SAVE").exists())
    [saved] = checkpoint.complete_steps(run_dir)
    until(lambda: read_metrics(run_dir / "metrics.jsonl")[-1]["step"] > saved)


def test_kill_ends_at_once_and_every_start_while_it_is_there(start_training, tmp_path):
    process = start_training()
    (tmp_path / "run" / "KILL").touch()
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 75, errors
    assert re.search(r"hvdlm: ended before step \d+ by .*/run/KILL; remove it", errors)
    saved = checkpoint.complete_steps(tmp_path / "run")
    again = run_ranks(2, [*HVDLM, "train", tmp_path / "config.yaml", "train.steps=20000", "train.eval_every=20000",
                          "checkpoint.every=5"])  # fmt: skip
    assert again.returncode == 75
    assert again.stderr.count("KILL is there: nothing was started") == 1
    assert checkpoint.complete_steps(tmp_path / "run") == saved


def test_the_run_ends_before_its_time_is_over(start_training, tmp_path):
    end = time.time() + 25
    process = start_training(environment={**job_environment(), "HVDLM_JOB_END": str(int(end)), "SLURM_JOB_ID": "7"})
    _, errors = process.communicate(timeout=40)
    assert time.time() < end
    assert process.returncode == 75, errors
    assert re.search(r"stopped at step (\d+) of 20000 by the end of the job's time, saved", errors)
    saved = checkpoint.complete_steps(tmp_path / "run")[-1]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == saved


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


def test_a_finished_run_ends_at_once_and_well(job, start_training, tmp_path):
    process = start_training()
    (tmp_path / "run" / "STOP").touch()
    process.communicate(timeout=15)
    saved = checkpoint.complete_steps(tmp_path / "run")[-1]
    words = ("train", tmp_path / "config.yaml", f"train.steps={saved}", "train.eval_every=20000", "checkpoint.every=5")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    start = time.monotonic()
    job(2, *words)
    assert time.monotonic() - start < 30  # 3 s on a quiet machine
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert checkpoint.complete_steps(tmp_path / "run")[-1] == saved


def until(what, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)
