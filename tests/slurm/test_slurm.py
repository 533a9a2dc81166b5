"""hvdlm as SLURM jobs, on a real SLURM: what the README says about srun and sbatch."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from harness import HVDLM, ROOT, run_command, run_values, write_config
from mini_slurm import own_shared_memory
from processes import find_processes, until

from hvdlm.session.metrics import read_metrics


def run(slurm, *words, timeout_s=120):
    return run_command(words, timeout_s, env=slurm)


@pytest.fixture
def config(data_dir, tmp_path):
    return write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))


def losses(run_dir):
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl", "train")]


@pytest.fixture
def expected(job, config, tmp_path):
    job(0, "train", config, f"run_dir={tmp_path}/serial", "train.steps=5")
    return losses(tmp_path / "serial")


@pytest.mark.parametrize("nodes", ["-N1", "-N2"])
def test_srun_starts_real_ranks(slurm, config, tmp_path, expected, nodes):
    done = run(slurm, "srun", "--mpi=pmix", nodes, "-n2", *HVDLM, "train", config, "train.steps=5")
    assert done.returncode == 0, done.stderr
    assert "horovod world of 2" in done.stderr
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-5)


def test_mpirun_inside_a_job_of_two_nodes(slurm, config, tmp_path, expected):
    script = tmp_path / "job.sbatch"
    command = " ".join(map(str, [*HVDLM, "train", config, "train.steps=5"]))
    script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --output={tmp_path}/out\nmpirun {command}\n")
    done = run(slurm, "sbatch", "--wait", script)
    assert done.returncode == 0, (tmp_path / "out").read_text()
    assert "horovod world of 2" in (tmp_path / "out").read_text()
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-5)


def test_a_crash_on_one_task_ends_the_step(slurm):
    start = time.monotonic()
    script = ROOT / "tests" / "parallel" / "rank_fails.py"
    done = run(slurm, "srun", "--mpi=pmix", "-N1", "-n2", sys.executable, script, "crash", "horovod", timeout_s=60)
    assert done.returncode != 0
    assert time.monotonic() - start < 15
    assert done.stderr.count("RuntimeError: the last rank is broken") == 1


def test_srun_without_pmi_never_trains_twice(slurm, config, tmp_path):
    """Two tasks that do not find each other are two runs in one folder: refused before anything is written."""
    done = run(slurm, "srun", "--mpi=none", "-N1", "-n2", "--kill-on-bad-exit=1", *HVDLM, "train", config)
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()


def test_each_node_has_a_shared_memory_of_its_own(slurm):
    """Ranks of two nodes that share one host name would else open each other's segments."""
    if not own_shared_memory():
        pytest.skip("neither root nor user namespaces: /dev/shm is the machine's on both nodes")
    done = run(slurm, "srun", "-N2", "-n2", "stat", "--format=%d", "/dev/shm")
    assert len(set(done.stdout.split())) == 2, done.stdout + done.stderr


def processes_below(folder):
    """Daemons, steps and their tasks know the SLURM in `folder` by their environment."""
    return find_processes(lambda process: str(folder).encode() in (process / "environ").read_bytes())


BUSY = "sbatch -o /dev/null -N2 --exclusive --wrap 'srun sleep 600'; "
WITH_JOBS = BUSY + BUSY + "until [ $(squeue -h -t R | wc -l) = 1 ]; do sleep 0.2; done; "


@pytest.mark.parametrize(
    ("command", "code"),
    [(WITH_JOBS + "exit 3", 3), (WITH_JOBS + "kill -TERM $PPID; exec sleep 60", 143), ("kill -KILL $PPID", -9)],
    ids=["end", "TERM", "KILL"],
)
def test_a_private_slurm_goes_down_with_its_program(slurm, tmp_path, command, code):
    """Its jobs too, that run or wait, unless the program is killed: only the daemons see that."""
    tmpdir = tmp_path / ("long" * 10)  # no socket would fit below it
    tmpdir.mkdir()
    environment = {**slurm, "TMPDIR": str(tmpdir)}
    done = run(environment, sys.executable, ROOT / "scripts" / "mini_slurm.py", "--", "sh", "-c", command)
    assert done.returncode == code, done.stderr
    folder = Path(re.search(r"SLURM_CONF=(\S+)/slurm.conf", done.stderr).group(1))
    until(lambda: not processes_below(folder), 10)
    assert folder.exists() == (code == -9)
    shutil.rmtree(folder, ignore_errors=True)
