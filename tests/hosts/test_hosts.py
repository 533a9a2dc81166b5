"""Separate hosts with a network of their own: launched over ssh, one dies, the cable is pulled, the network is slow."""

import json
import statistics
import time
from pathlib import Path

import pytest
from harness import HVDLM, make_config, preprocess_values, run_values, write_config
from hvdlm.perf.record import read_all
from hvdlm.perf.sweep import Effort, plan_study

from hvdlm import checkpoint
from hvdlm.manifest import MANIFEST
from hvdlm.runlog import read_metrics
from hvdlm.world.launch import find_mpirun

LIMIT_S = 15
MPIRUN = (str(find_mpirun()), "--allow-run-as-root", "--bind-to", "none")
TWO = {
    "mpirun": (*MPIRUN, "-np", "2", "--host", "h1:1,h2:1", *HVDLM),
    "rsh agent": (*MPIRUN, "--mca", "plm_rsh_agent", "ssh -q", "-np", "2", "--host", "h1:1,h2:1", *HVDLM),
    "horovodrun": (str(Path(HVDLM[0]).parent / "horovodrun"), "-np", "2", "-H", "h1:1,h2:1", *HVDLM),
    "hvdlm launch": (*HVDLM, "launch", "-np", "2", "--hosts", "h1:1,h2:1", "--"),
}


def losses(run_dir):
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl", "train")]


@pytest.fixture
def config(data_dir, tmp_path):
    return write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))


@pytest.mark.parametrize("launcher", TWO)
def test_two_hosts_train_as_one_process_does(network, job, config, tmp_path, launcher):
    done = network.hosts[0].run(*TWO[launcher], "train", config, "train.steps=5")
    assert done.returncode == 0, done.stderr
    job(0, "train", config, f"run_dir={tmp_path}/serial", "train.steps=5")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "serial"), rel=1e-5)


def test_two_hosts_make_the_same_shards(network, corpus, data_dir, tmp_path):
    config = write_config(tmp_path / "data.yaml", preprocess_values(corpus, tmp_path / "data"))
    done = network.hosts[0].run(*TWO["mpirun"], "preprocess", config)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / MANIFEST).read_bytes() == (data_dir / MANIFEST).read_bytes()


@pytest.fixture
def started(network, config, tmp_path):
    """A run on h1 and h2 that lasts for minutes, at its first checkpoint."""
    words = ("train", config, "train.steps=20000", "train.eval_every=20000", "checkpoint.every=5", "guard.stall_s=4")
    process = network.hosts[0].start(tmp_path / "log", *TWO["hvdlm launch"], *words)
    deadline = time.monotonic() + 60
    while not checkpoint.complete_steps(tmp_path / "run"):
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


def resume_on_h1(network, config, tmp_path):
    """The surviving host goes on, and no step is lost or made twice."""
    saved = checkpoint.complete_steps(tmp_path / "run")[-1]
    words = ("train", config, f"train.steps={saved + 3}", "train.eval_every=20000", "checkpoint.every=5")
    done = network.hosts[0].run(*MPIRUN, "-np", "2", "--oversubscribe", "--host", "h1:2", *HVDLM, *words)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {tmp_path}/run/checkpoints/step_{saved:08d}" in done.stderr
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl", "train")]
    assert steps == list(range(1, saved + 4))


def test_a_host_that_dies_ends_the_job_and_the_other_goes_on(network, started, config, tmp_path):
    start = time.monotonic()
    network.hosts[1].kill()
    assert started.wait(timeout=LIMIT_S) != 0
    assert time.monotonic() - start < LIMIT_S
    resume_on_h1(network, config, tmp_path)


def test_a_pulled_cable_ends_the_job_and_the_host_goes_on(network, started, config, tmp_path):
    """Nothing says that the other host is gone: the waiting rank gives up after guard.stall_s, mpirun never does."""
    start = time.monotonic()
    network.hosts[1].run("ip", "link", "set", "eth0", "down")
    assert started.wait(timeout=4 + LIMIT_S) == 1
    assert time.monotonic() - start < 4 + LIMIT_S
    assert "has waited 4 s for a rank that does not answer" in (tmp_path / "log").read_text()
    network.hosts[1].kill()  # what runs on where nobody reaches it
    resume_on_h1(network, config, tmp_path)


def test_an_unknown_host_is_explained(network, config):
    done = network.hosts[0].run(*HVDLM, "launch", "-np", "2", "--hosts", "h1:1,nowhere:1", "--", "train", config)
    assert done.returncode != 0
    assert "nowhere" in done.stderr


def test_a_scaling_point_over_a_slow_network(network, data_dir, tmp_path):
    """The same point over the fast and a slow network; the records say on which hosts it was measured."""
    config = make_config(data_dir, tmp_path / "run", "model.width=64", "train.threads=1")
    medians = []
    for name in ("fast", "slow"):
        if name == "slow":
            network.slow_down(megabits_per_s=40)
        out = tmp_path / name
        [planned] = plan_study(config, out, ranks=[2], modes=("strong",), effort=Effort(steps=6, warmup=2, repeats=1),
                               threads=1, records=out / "records")  # fmt: skip
        planned.write()
        done = network.hosts[0].run(*TWO["mpirun"], "measure", next(iter(planned.specs)))
        assert done.returncode == 0, done.stderr
        [record] = read_all(out)
        assert record.environment.hosts == ("h1", "h2")
        medians.append(statistics.median(record.slowest_s))
    bits = 32 * record.workload.num_parameters
    assert medians[1] > bits / 40e6 / 2, "a ring sends each gradient once"
    assert medians[1] > 2 * medians[0]
    print(json.dumps({"fast_s": medians[0], "slow_s": medians[1]}))
