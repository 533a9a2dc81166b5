"""Real jobs: tuning is interrupted and leaves a config that trains, and no rank; the ways to combine are compared."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from harness import HVDLM, ROOT, job_environment, run_values, write_config
from processes import ranks_of, until

from hvdlm.config import load
from hvdlm.train.config import RunConfig

pytestmark = pytest.mark.long


def mpirun_of(pid):
    """Process ids of the ranks that a command has just started by mpirun."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next((ranks for child in children if len(ranks := ranks_of(int(child))) == 2), None)


@pytest.fixture
def start_tuning(data_dir, tmp_path):
    """Start `hvdlm tune` on 2 ranks that have a sequence each."""
    started = []

    def start(*words):
        config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
        options = ["--ranks", "2", "--steps", "3", "--warmup", "1", "--repeats", "2", "--out", tmp_path / "t.yaml"]
        command = [*HVDLM, "tune", config, "train.global_batch=2", "train.micro_batch=1", *words, *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=job_environment(), **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_meshes_are_measured_as_they_are_named(start_tuning, tmp_path):
    tuning = start_tuning("--meshes", "sync=allreduce")
    for line in tuning.stderr:
        if "mesh, round 1: " in line and "data 2" not in line:
            break
    until(lambda: mpirun_of(tuning.pid), 180, tuning)  # the third mesh is being run
    tuning.send_signal(signal.SIGINT)
    _, stderr = tuning.communicate(timeout=60)
    assert tuning.returncode == 130, stderr
    raw = json.loads((tmp_path / "t.json").read_text())
    planned = {row["settings"].split(",")[0]: row["predicted_s"] for row in raw["stages"][0]["candidates"]}
    assert planned.keys() == {"data 2", "pipeline 2", "tensor 2"}
    assert all(planned.values())
    measured = [(run["settings"]["mesh"], run["record"]["workload"]) for run in raw["runs"]]
    assert len(measured) == 2
    assert [(mesh["pipeline"], mesh["tensor"]) for mesh, _ in measured] == [
        (workload["pipeline"], workload["tensor"]) for _, workload in measured
    ]
    assert load(RunConfig, tmp_path / "t.yaml").parallel.mesh(2).size == 2


def test_an_interrupted_search_leaves_a_config_that_trains_and_no_rank(start_tuning, job, tmp_path):
    tuning = start_tuning()
    until((tmp_path / "t.yaml").exists, 180, tuning)
    ranks = until(lambda: mpirun_of(tuning.pid), 180, tuning)
    tuning.send_signal(signal.SIGINT)
    _, stderr = tuning.communicate(timeout=60)
    assert tuning.returncode == 130, stderr
    assert "Traceback" not in stderr
    until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))
    raw = json.loads((tmp_path / "t.json").read_text())
    first = raw["stages"][0]
    expected = [f"micro_batch 1, threads 1, {sync}" for sync in ("horovod", "allreduce")]
    assert [row["settings"] for row in first["candidates"]] == expected
    measured = [run["settings"]["kind"] for run in raw["runs"] if run["stage"] == first["stage"]]
    assert {"horovod", "allreduce"} <= set(measured)  # once at least: one may be hopeless after that
    assert all(run["record"]["workload"]["sync"] in run["settings"]["kind"] for run in raw["runs"])
    assert load(RunConfig, tmp_path / "t.yaml").train.global_batch == 2
    done = job(2, "train", tmp_path / "t.yaml", "train.steps=2", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 2


def test_ways_to_combine_are_compared_on_the_same_tokens(job, data_dir, tmp_path):
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    options = ["--steps", "4", "--repeats", "1", "--kinds", "local_sgd", "--out", tmp_path / "bench", "--json"]
    done = job(0, "bench", "sync", config, *options)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == {}
    exact, loose = (found["rows"][kind] for kind in ("allreduce", "local_sgd"))
    assert exact["val_loss"] != loose["val_loss"]
    assert loose["val_loss_more"]["median"] == pytest.approx(loose["val_loss"] - exact["val_loss"])
    # In 4 steps local SGD with every: 8 sends its weights for the validation, the checkpoint, and optimizer states.
    assert exact["bytes_per_step"] > 0
    assert loose["bytes_per_step"] > 0
    assert exact["tokens_per_s"] > 0
    assert not list((tmp_path / "bench" / "runs").rglob("*.safetensors"))
