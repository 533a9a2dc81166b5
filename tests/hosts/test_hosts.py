"""Separate hosts with a network of their own: launched over ssh, one dies, the cable is pulled, the network is slow."""

import re
import statistics
import time
from pathlib import Path

import pytest
from harness import HVDLM, make_config, preprocess_values, run_ranks, run_values, write_config
from processes import until

from hvdlm import checkpoint
from hvdlm.data.manifest import MANIFEST
from hvdlm.launch.plan import find_mpirun
from hvdlm.perf.record import read_all
from hvdlm.perf.sweep import Effort, plan_study
from hvdlm.session.metrics import read_metrics

LIMIT_S = 15
MPIRUN = (str(find_mpirun()), "--allow-run-as-root", "--bind-to", "none")
ON_TWO = (*MPIRUN, "-np", "2", "--host", "h1:1,h2:1", *HVDLM)
HOROVODRUN = str(Path(HVDLM[0]).parent / "horovodrun")
LAUNCHERS = {  # the words before `train`, and the host of each rank
    "mpirun": (ON_TWO, ["h1", "h2"]),
    "rsh agent": ((*MPIRUN, "--mca", "plm_rsh_agent", "ssh -q", *ON_TWO[len(MPIRUN) :]), ["h1", "h2"]),
    "horovodrun": ((HOROVODRUN, "-np", "2", "-H", "h1:1,h2:1", *HVDLM), ["h1", "h2"]),
    "hvdlm launch": ((*HVDLM, "launch", "-np", "2", "--hosts", "h1:1,h3:1", "--"), ["h1", "h3"]),
}


def losses(run_dir):
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl", "train")]


@pytest.fixture
def config(data_dir, tmp_path):
    return write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))


@pytest.fixture(scope="module")
def serial_losses(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    config = write_config(folder / "config.yaml", run_values(data_dir, folder / "run"))
    done = run_ranks(0, [*HVDLM, "train", config, "train.steps=5"])
    assert done.returncode == 0, done.stderr
    return losses(folder / "run")


def hosts_of(messages):
    """The host of each rank, from the table that a run prints at its start."""
    return re.findall(r"\d +(h\d) +\S+ +\d+ +cpu", messages)


@pytest.mark.parametrize(
    "launcher",
    ["mpirun", "hvdlm launch", *(pytest.param(name, marks=pytest.mark.long) for name in ("rsh agent", "horovodrun"))],
)
def test_hosts_train_as_one_process_does(network, config, tmp_path, serial_losses, launcher):
    words, hosts = LAUNCHERS[launcher]
    done = network.hosts[0].run(*words, "train", config, "train.steps=5")
    assert done.returncode == 0, done.stderr
    assert hosts_of(done.stderr + done.stdout) == hosts
    assert losses(tmp_path / "run") == pytest.approx(serial_losses, rel=1e-5)


def test_two_hosts_make_the_same_shards(network, corpus, data_dir, tmp_path):
    config = write_config(tmp_path / "data.yaml", preprocess_values(corpus, tmp_path / "data"))
    done = network.hosts[0].run(*ON_TWO, "preprocess", config)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / MANIFEST).read_bytes() == (data_dir / MANIFEST).read_bytes()


@pytest.fixture
def started(network, config, tmp_path):
    """A run on h1 and h2 that lasts for minutes, at its first checkpoint."""
    words = ("train", config, "train.steps=20000", "train.eval_every=20000", "checkpoint.every=5", "guard.stall_s=4")
    process = network.hosts[0].start(tmp_path / "log", *HVDLM, "launch", "--hosts", "h1,h2", "--", *words)
    until(lambda: checkpoint.complete_steps(tmp_path / "run"), 60, process, tmp_path / "log")
    yield process
    process.kill()
    process.wait()


def resume_without_h2(network, config, tmp_path):
    """The surviving host goes on with another, and no step is lost or made twice."""
    saved = checkpoint.complete_steps(tmp_path / "run")[-1]
    words = ("train", config, f"train.steps={saved + 3}", "train.eval_every=20000", "checkpoint.every=5")
    done = network.hosts[0].run(*HVDLM, "launch", "--hosts", "h1,h3", "--", *words)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {tmp_path}/run/checkpoints/step_{saved:08d}" in done.stderr
    assert hosts_of(done.stderr) == ["h1", "h3"]
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl", "train")]
    assert steps == list(range(1, saved + 4))


def test_a_host_that_dies_ends_the_job_and_the_others_go_on(network, started, config, tmp_path):
    start = time.monotonic()
    network.hosts[1].kill()
    assert started.wait(timeout=LIMIT_S) != 0
    assert time.monotonic() - start < LIMIT_S
    resume_without_h2(network, config, tmp_path)


def test_a_pulled_cable_ends_the_job_and_the_others_go_on(network, started, config, tmp_path):
    """Nothing says that the other host is gone: the waiting rank gives up after guard.stall_s, mpirun never does."""
    start = time.monotonic()
    network.hosts[1].run("ip", "link", "set", "eth0", "down")
    assert started.wait(timeout=4 + LIMIT_S) == 1
    assert time.monotonic() - start < 4 + LIMIT_S
    assert "has waited 4 s for a rank that does not answer" in (tmp_path / "log").read_text()
    network.hosts[1].kill()  # what runs on where nobody reaches it
    resume_without_h2(network, config, tmp_path)


def test_an_unknown_host_is_explained(network, config):
    done = network.hosts[0].run(*HVDLM, "launch", "-np", "2", "--hosts", "h1:1,nowhere:1", "--", "train", config)
    assert done.returncode != 0
    assert "nowhere" in done.stderr


def median_step_s(network, data_dir, folder):
    """The median step of a point of a scaling study on two hosts, and its record, which says where it was measured."""
    config = make_config(data_dir, folder / "run", "model.width=64", "train.threads=1")
    [planned] = plan_study(config, folder, ranks=[2], modes=("strong",), effort=Effort(steps=6, warmup=2, repeats=1),
                           threads=1, records=folder / "records")  # fmt: skip
    planned.write()
    done = network.hosts[0].run(*ON_TWO, "measure", next(iter(planned.specs)))
    assert done.returncode == 0, done.stderr
    [record] = read_all(folder)
    assert record.environment.hosts == ("h1", "h2")
    return statistics.median(record.slowest_s), record


@pytest.fixture(scope="module")
def fast_s(session_network, data_dir, tmp_path_factory):
    return median_step_s(session_network, data_dir, tmp_path_factory.mktemp("fast"))[0]


@pytest.mark.long
def test_a_narrow_network_shows_in_a_scaling_point(network, data_dir, tmp_path, fast_s):
    network.limit_rate(megabits_per_s=40)
    slow_s, record = median_step_s(network, data_dir, tmp_path / "slow")
    bits = 32 * record.workload.num_parameters
    assert slow_s > bits / 40e6 / 2, "a ring sends each gradient once"
    assert slow_s > 2 * fast_s


@pytest.mark.long
def test_a_distant_network_shows_in_a_scaling_point(network, data_dir, tmp_path, fast_s):
    network.delay(milliseconds=50)
    slow_s, _ = median_step_s(network, data_dir, tmp_path / "slow")
    assert slow_s > 2 * 0.05, "a ring of two ranks passes messages on twice"
    assert slow_s > fast_s + 0.05
