"""`hvdlm launch` with real ranks: what it runs, what it passes on in both directions, and what it says at the end."""

import json
import os
import shlex
import signal
import subprocess
import time

import pytest
from harness import HVDLM, LONG, ROOT, fresh_environment, job_environment, run_command, run_values, write_config
from processes import find_processes, rank_of, until

from hvdlm import checkpoint
from hvdlm.launch.known_errors import known_errors
from hvdlm.session.metrics import read_metrics


def by_user():
    """The environment of a person who has set nothing for root or threads."""
    preset = ("OMPI_", "OMP_", "SLURM_")
    return {name: value for name, value in fresh_environment().items() if not name.startswith(preset)}


def launch(*words, **environment):
    return run_command([*HVDLM, "launch", *words], env={**by_user(), **environment})


@pytest.fixture
def config(data_dir, tmp_path):
    return write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))


@pytest.mark.parametrize("launcher", ["auto", "horovodrun"])
def test_ranks_are_started_and_the_command_is_shown(launcher, config, tmp_path):
    """Results come on stdout, where the launcher keeps them apart, and messages on stderr."""
    done = launch("-np", "2", "--launcher", launcher, "--", "train", config, "train.steps=3", "--json")
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("hvdlm: OMP_NUM_THREADS=")
    assert shlex.split(first)[-4:] == ["train", str(config), "train.steps=3", "--json"]
    assert "horovod world of 2" in (done.stderr if launcher == "auto" else done.stderr + done.stdout)
    assert launcher != "auto" or json.loads(done.stdout.splitlines()[-1])["step"] == 3
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl", "train")) >= 1


def test_the_command_that_is_shown_can_be_typed(config, tmp_path):
    shown = launch("--print", "-np", "2", "--", "train", config, "train.steps=3").stdout
    done = subprocess.run(shown, shell=True, env=by_user(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "horovod world of 2" in done.stderr


def test_the_users_error_stays_exit_2_and_needs_no_explanation():
    done = launch("-np", "2", "--", "train", "/nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr.count("hvdlm: error: /nowhere.yaml: cannot read this config") == 1
    assert "Cure:" not in done.stderr


def test_a_known_error_is_explained_once_at_the_end():
    done = launch("-np", "1", "--hosts", "no-such-host.invalid", "--", "doctor")
    assert done.returncode not in (0, 2, 75)
    assert "Could not resolve hostname" in done.stderr  # passed through as it was
    (known,) = (known for known in known_errors() if known.name == "unknown-host")
    assert done.stderr.count(known.cure) == 1
    assert done.stderr.rstrip().splitlines()[-1].startswith("hvdlm: ")


@pytest.fixture
def started(config, tmp_path):
    """Start a long training under `hvdlm launch`; it is there once its ranks have made steps. Ended after the test."""
    processes = []

    def start(*options):
        processes.append(start_training(config, tmp_path, *options))
        return processes[-1]

    yield start
    for process in processes:
        for _ in range(2):  # to save, and to end
            if process.poll() is None:
                process.terminate()
                time.sleep(1)
        process.wait(30)


def start_training(config, tmp_path, *options):
    training = ["train", str(config), *LONG, "checkpoint.every=20000", "log.every=5"]
    words = [*HVDLM, "launch", "-np", "2", *options, "--", *training]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, env=by_user(), cwd=ROOT, stderr=log, stdout=log, stdin=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        until(lambda: metrics.exists() and len(read_metrics(metrics, "train")) >= 2, 60, process, tmp_path / "log")
    except AssertionError:
        process.kill()
        raise
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_run_save_and_end_with_75(number, started, tmp_path):
    process = started()
    process.send_signal(number)
    assert process.wait(60) == 75, (tmp_path / "log").read_text()
    assert checkpoint.complete_steps(tmp_path / "run")
    assert "Cure:" not in (tmp_path / "log").read_text()


def test_horovodrun_passes_the_signal_on(started, tmp_path):
    process = started("--launcher", "horovodrun")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, (tmp_path / "log").read_text()


def rank_pids(run_dir):
    """Processes whose command line names the run's config: the ranks, and what started them."""
    config = str(run_dir.parent / "config.yaml").encode()
    return sorted(find_processes(lambda folder: config in (folder / "cmdline").read_bytes() and rank_of(folder)))


def test_a_killed_rank_ends_the_job_and_is_explained(started, tmp_path):
    process = started()
    os.kill(rank_pids(tmp_path / "run")[-1], signal.SIGKILL)
    assert process.wait(15) == 137
    assert "hvdlm: a process was killed: nearly always the memory" in (tmp_path / "log").read_text()


def test_a_second_signal_ends_the_job_at_once(started, tmp_path):
    process = started()
    for pid in rank_pids(tmp_path / "run"):  # ranks that cannot save any more
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(15) != 0
    assert not rank_pids(tmp_path / "run")


def test_horovod_that_counts_otherwise_than_mpi_is_refused(config):
    """Its Gloo controller without a rendezvous: each rank would be rank 0 of 1 for Horovod, and train alone."""
    gloo = {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    done = launch("-np", "2", "--", "train", config, "train.steps=3", **gloo)
    assert done.returncode == 2
    assert "of 2 for MPI but 0 of 1 for Horovod; unset HOROVOD_CONTROLLER" in done.stderr


def test_mpirun_with_another_number_than_the_slurm_job_is_refused(config):
    command = ["mpirun", "-np", "2", "--oversubscribe", *HVDLM, "train", config]
    done = run_command(command, env={**job_environment(), "SLURM_NTASKS": "4"})
    assert done.returncode == 2
    assert "the launcher started 2 ranks in a SLURM job of 4 tasks; leave its -np out" in done.stderr
