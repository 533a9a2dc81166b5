"""Who started a process, where variables alone cannot tell: a shell inside a SLURM step and what is typed there."""

import os
import pty
import subprocess
import sys

import pytest

from hvdlm.errors import UserError
from hvdlm.launch.ancestors import Process, has_mpirun_as_task, nearest_starter
from hvdlm.launch.environment import forget_the_step, is_in_step, launched_as
from hvdlm.launch.slurm_tasks import check_tasks

STEP = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEPID": "0"}
PMIX = {"PMIX_RANK": "0", "PMIX_NAMESPACE": "slurm.pmix.9.0", "PMIX_MCA_gds": "hash"}


def process(line, *, terminal=True, name=None):
    words = tuple(line.split())
    return Process(name or words[0].split("/")[-1].lstrip("-")[:15], words, terminal)


DAEMON = process("slurmstepd: [8.0]", terminal=False, name="slurmstepd")
SCRIPT = process("/bin/bash /var/spool/slurmd/job00008/slurm_script", terminal=False, name="slurm_script")
SHELL = process("/bin/bash")


@pytest.mark.parametrize(
    "shell",
    ["bash", "-bash", "/usr/bin/zsh -l", "bash --norc -i", "bash --rcfile /x/rc", "/bin/bash --init-file /vscode/x.sh"]
    + ["fish", "sh -i", "bash -l -O checkwinsize", "tcsh"],
)
def test_a_shell_without_a_script_on_a_terminal_is_a_persons(shell):
    assert nearest_starter([process(shell), DAEMON]) == "terminal"
    assert nearest_starter([process("timeout 60 hvdlm", terminal=True), process(shell), DAEMON]) == "terminal"


@pytest.mark.parametrize(
    "task",
    ["bash wrapper.sh", "bash -c hvdlm", "bash -lc hvdlm", "sh -euc hvdlm", "bash --login wrapper.sh", "./wrapper.sh"]
    + ["bash --rcfile x wrapper.sh", "fish --command hvdlm", "bash -l -O checkwinsize wrapper.sh"],
)
def test_a_shell_with_a_script_is_a_launchers_task(task):
    assert nearest_starter([process(task), DAEMON]) == "launcher"


def test_a_shell_without_a_terminal_reads_a_script_that_each_task_gets():
    assert nearest_starter([process("bash", terminal=False), DAEMON]) == "launcher"


def test_what_stands_nearest_is_right():
    mpirun = process("mpirun -np 2 hvdlm train")
    proxy = process("/opt/mpich/hydra_bstrap_proxy --x", name="hydra_bstrap_pr")
    tmux = [process("tmux new", name="tmux: server"), DAEMON]
    assert nearest_starter([DAEMON]) == "launcher"
    assert nearest_starter([SCRIPT, DAEMON]) == "batch script"
    assert nearest_starter([process("bash train.sh"), SCRIPT, DAEMON]) == "batch script"
    assert nearest_starter([mpirun, SCRIPT, DAEMON]) == "launcher"
    assert nearest_starter([mpirun, SHELL, DAEMON]) == nearest_starter([proxy, SHELL, DAEMON]) == "launcher"
    assert nearest_starter([SHELL, *tmux]) == "terminal"
    assert nearest_starter([]) == "unknown"


def test_an_mpirun_that_is_a_task_of_srun_is_seen():
    mpirun = process("mpirun -np 4 hvdlm train")
    assert has_mpirun_as_task([mpirun, DAEMON])
    assert has_mpirun_as_task([mpirun, process("bash wrapper.sh"), DAEMON])
    for chain in ([mpirun, SCRIPT, DAEMON], [mpirun, SHELL, DAEMON], [process("orted -mca x"), DAEMON], [DAEMON], []):
        assert not has_mpirun_as_task(chain), chain


@pytest.mark.parametrize(
    ("env", "starter", "expected"),
    [
        (STEP, "launcher", (0, 2)),
        (STEP, "unknown", (0, 2)),
        (STEP, "terminal", None),
        (STEP, "batch script", None),  # submitted from within a step
        (STEP | {"PMI_SIZE": "2", "PMI_RANK": "0"}, "terminal", None),
        (STEP | {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}, "terminal", (1, 3)),
        (STEP | {"HOROVOD_SIZE": "3", "HOROVOD_RANK": "1"}, "terminal", (1, 3)),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "terminal", (1, 2)),  # no SLURM: xterms under an mpirun
    ],
)
def test_variables_of_a_step_are_not_those_of_what_is_typed_in_it(env, starter, expected):
    assert launched_as(env, lambda: starter) == expected
    assert is_in_step(STEP, lambda: "batch script") is is_in_step({}, lambda: "launcher") is False
    assert is_in_step(STEP, lambda: "terminal")


def left(env, starter, knows_slurm=False):
    env = dict(env)
    forget_the_step(env, lambda: starter, knows_slurm=lambda: knows_slurm)
    return set(env)


def test_one_process_never_asks_the_step_for_its_mpi():
    """Each would be stopped by Open MPI, or use up the one meeting with PMIx that a task has."""
    kept = {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}
    one = STEP | {"SLURM_STEP_NUM_TASKS": "1"}
    for starter in ("launcher", "terminal", "batch script"):
        assert left(one, starter) == kept
        assert left(one | PMIX, starter) == kept | {"PMIX_MCA_gds"}
    assert left(STEP | PMIX, "terminal") == kept | {"PMIX_MCA_gds"}


def test_ranks_that_can_meet_are_left_alone():
    assert left(STEP | PMIX, "launcher") == set(STEP | PMIX)
    assert left(STEP, "launcher", knows_slurm=True) == set(STEP)
    assert left(STEP, "launcher") == {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}  # refused later, not stopped by MPI
    mpiruns = STEP | PMIX | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}
    assert left(mpiruns, "launcher") == set(mpiruns)
    assert left(PMIX | {"PMI_FD": "3"}, "launcher") == {*PMIX, "PMI_FD"}  # not of SLURM


@pytest.mark.parametrize(
    ("tasks", "step", "starter", "remark"),
    [("1", "1", "terminal", ""), ("2", "2", "terminal", "of 2 tasks"), ("4", "1", "terminal", "of 4 tasks")],
)
def test_one_process_in_the_shell_of_a_step_is_meant(tasks, step, starter, remark):
    said = check_tasks({"SLURM_NTASKS": tasks, "SLURM_STEP_NUM_TASKS": step}, None, starter)
    assert (remark in said, bool(said)) == (True, bool(remark))


def test_one_process_in_a_batch_script_is_none_however_it_was_submitted():
    with pytest.raises(UserError, match="one process in a SLURM job of 4 tasks"):
        check_tasks({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, None, "batch script")


def test_copies_of_mpirun_are_refused():
    """Each would train all of it into the same folder."""
    env = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
    with pytest.raises(UserError, match="srun started 4 copies of mpirun, so 4 jobs of 4 ranks"):
        check_tasks(env, (0, 4), "launcher", has_mpirun_as_task=True)
    assert check_tasks(env | {"SLURM_STEP_NUM_TASKS": "1"}, (0, 4), "launcher", has_mpirun_as_task=True) == ""


def test_the_ancestors_of_a_process_are_seen_with_their_terminal():
    """A real shell on a real terminal, and one without."""
    program = "from hvdlm.launch.ancestors import ancestors; p = ancestors()[0]; print(p.name, p.is_terminal_shell)"
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{sys.executable} -c '{program}'; exit\n".encode())
        words = ["bash", "--norc", "--noprofile", "-i"]
        done = subprocess.run(words, stdin=theirs, capture_output=True, text=True, timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout.strip() == "bash True"
    piped = subprocess.run(words[:3], input=f"{sys.executable} -c '{program}'; exit", capture_output=True, text=True)
    assert piped.stdout.strip() == "bash False"
