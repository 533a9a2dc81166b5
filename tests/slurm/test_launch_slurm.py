"""`hvdlm launch` inside a real SLURM job, and what is refused there."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from harness import ROOT

from hvdlm.launch.plan import own_command

HVDLM = f"{shlex.quote(sys.executable)} -m hvdlm"


@pytest.fixture
def in_job(slurm, tmp_path):
    """Run shell lines as a batch job on both nodes; what they print."""

    def run(lines, *options, timeout_s=60):
        script = tmp_path / "job.sh"
        script.write_text(f"#!/bin/bash\n#SBATCH --output={tmp_path}/log\ncd {shlex.quote(str(ROOT))}\n{lines}\n")
        environment = {name: value for name, value in slurm.items() if name != "OMP_NUM_THREADS"}
        subprocess.run(
            ["sbatch", "--wait", *options, str(script)], env=environment, capture_output=True, timeout=timeout_s
        )
        return (tmp_path / "log").read_text()

    return run


def test_srun_is_taken_with_the_plugin_of_the_mpi_over_both_nodes(in_job):
    log = in_job(f"{HVDLM} launch -- doctor", "-N2", "--ntasks-per-node=1")
    assert "hvdlm: OMP_NUM_THREADS=" in log
    assert " srun --mpi=pmix --kill-on-bad-exit=1 --wait=60 --ntasks=2 --cpus-per-task=" in log
    assert "allreduce over mpi4py (2 ranks) and horovod (2 ranks)" in log


def test_hosts_have_as_many_ranks_as_they_are_given(in_job):
    """The line that is printed, with another program at its end."""
    printed = f"{HVDLM} launch --print --launcher srun --hosts n1:2,n2:1 -- doctor"
    start = f"${{line%% {shlex.quote(own_command()[0])}*}}"
    say = r"sh -c 'echo from \$SLURMD_NODENAME'"
    log = in_job(f'line=$({printed}); eval "{start} {say}"', "-N2", "--ntasks-per-node=2")
    assert sorted(line for line in log.splitlines() if line.startswith("from")) == ["from n1", "from n1", "from n2"], (
        log
    )


def test_fewer_ranks_than_the_job_has_tasks_are_a_job_of_their_own(in_job):
    log = in_job(f"{HVDLM} launch --launcher mpirun -np 2 -- doctor", "-N2", "--ntasks-per-node=2")
    assert " env SLURM_NTASKS=2 " in log
    assert "all is well" in log


@pytest.fixture
def train(data_dir, tmp_path):
    """The command of a training, into `tmp_path / "run"`."""
    return f"{HVDLM} train configs/quickstart.yaml data.path={data_dir} run_dir={tmp_path}/run"


def test_a_process_without_a_launcher_is_refused(in_job, tmp_path, train):
    run_dir = tmp_path / "run"
    log = in_job(f"{train}; echo code $?", "-N2", "--ntasks-per-node=2")
    assert log.startswith("hvdlm: error: one process in a SLURM job of 4 tasks; start it by `hvdlm launch")
    assert log.endswith("code 2\n")
    assert not run_dir.exists()


@pytest.fixture
def typed(slurm):
    """Type lines into the shell of `srun OPTIONS --pty bash`; what its terminal shows."""
    if not shutil.which("script"):
        pytest.skip("no script(1) here, which gives srun a terminal")

    def run(lines, options, timeout_s=100):
        command = ["script", "-qec", f"srun {options} --pty bash --norc", "/dev/null"]
        environment = {name: value for name, value in slurm.items() if name != "OMP_NUM_THREADS"}
        text = "\n".join([*lines, "exit", ""])
        streams = {"input": text, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, timeout=timeout_s, **streams)
        return done.stdout.replace("\r", "")

    return run


def meetings(said):
    """How many ranks met in the MPI world, each time."""
    return [int(size) for size in re.findall(r'^\{"met": \{"mpi4py": (\d+)', said, re.MULTILINE)]


@pytest.mark.parametrize("options", ["-n1", "-n2 --mpi=pmix"])
def test_the_shell_of_a_step_is_as_any_shell(options, typed):
    """One process is one, a second one too though PMIx serves a task once; `launch` starts a rank for each task."""
    said = typed([f"{HVDLM} doctor --as-rank"] * 2 + [f"{HVDLM} launch -- doctor --as-rank"], f"{options} -c1 -t5")
    tasks = int(options[2])
    assert meetings(said) == [1, 1, tasks], said
    assert " srun --overlap --mpi=pmix " in said
    assert ("one process in a SLURM job of 2 tasks" in said) is (tasks > 1)


def test_tasks_that_cannot_meet_are_refused_in_words(in_job, tmp_path, train):
    """And so is a launcher under srun."""
    log = in_job(
        f"srun --mpi=none -n2 {train}; echo code $?\nsrun --mpi=none -n2 {HVDLM} launch -- doctor; echo code $?\n",
        *("-N1", "-n2"),
    )
    first, second, _ = re.split(r"^code 2\n", log, flags=re.MULTILINE)
    assert "the launcher started 2 processes but the horovod world has 1; use `srun --mpi=pmix`" in first
    assert "`hvdlm launch` starts its own ranks, and it was itself started by srun (2 of it)" in second
    assert "direct launched" not in log  # what Open MPI would say, and end
    assert not (tmp_path / "run").exists()


def test_srun_without_pmix_is_explained(in_job, tmp_path, train):
    log = in_job(
        f"srun --mpi=none -n2 {train} > {tmp_path}/out 2>&1; {HVDLM} doctor --log {tmp_path}/out", "-N1", "-n2"
    )
    assert log.startswith("every rank is alone\n  cause: srun and the MPI speak different languages")
