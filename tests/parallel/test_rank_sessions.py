"""The plugin that runs tests on ranks: what passes, what fails and how it is told, and that nothing is left."""

import re
import subprocess
import sys

import pytest
from harness import ROOT, job_environment

ITEMS = """
import os
import time
import pytest

@pytest.fixture(scope="module")
def started():
    return time.time()

@pytest.mark.on_ranks(1, 2, 3)
def test_pass(world, tmp_path, started, monkeypatch):
    monkeypatch.setenv("X", str(started))
    assert world.gather(tmp_path) == [tmp_path] * world.size
    assert os.environ["X"] == str(started)

@pytest.mark.on_ranks(3)
@pytest.mark.parametrize("number", [0, 1])
def test_fail(world, number):
    print("said by rank", world.rank)
    assert world.rank == 0, f"wrong on rank {world.rank if number else 'all'}"

@pytest.mark.on_ranks(2)
def test_pass_after_a_failure(world):
    world.barrier()

@pytest.mark.on_ranks(2)
def test_skip(world):
    pytest.skip("not today")

@pytest.mark.on_ranks(2)
@pytest.mark.xfail(strict=True)
def test_xfail(world):
    raise AssertionError

@pytest.mark.on_ranks(2)
def test_skip_on_one(world):
    if world.rank:
        pytest.skip("not here")

@pytest.mark.on_ranks(2)
@pytest.mark.timeout(2)
def test_hang(world):
    def stuck():
        world.barrier()
    if world.rank == 1:
        stuck()

@pytest.mark.on_ranks(2)
def test_diverge(world):
    if world.rank == 0:
        raise KeyError("left early")
    world.barrier()

@pytest.mark.on_ranks(2)
def test_exit(world):
    if world.rank == 1:
        os._exit(5)
    world.barrier()

@pytest.mark.on_ranks(3)
def test_pass_last(world):
    assert world.size == 3

def test_plain(tmp_path):
    assert "PYTEST_CURRENT_TEST" in os.environ
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run pytest on the items above; its outcomes by name and all that it prints."""
    folder = tmp_path_factory.mktemp("items")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra\n")
    (folder / "conftest.py").write_text('pytest_plugins = ["rank_sessions"]\n')
    (folder / "test_items.py").write_text(ITEMS)

    def run(*words):
        environment = {**job_environment(), "PYTHONPATH": str(ROOT / "tests")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-vv", *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        found = re.findall(r"test_items\.py::test_(\S+) ([A-Z]+)", done.stdout.split("short test summary")[0])
        return dict(found), done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def everything(run):
    return run()


def part(output, name):
    """What is printed about a failed item."""
    return re.search(rf"_ test_{re.escape(name)} _+\n(.*?)\n[_=]{{5}}", output, re.DOTALL).group(1)


def test_each_item_has_its_own_end_and_a_new_session_follows_a_broken_one(everything):
    outcomes, output = everything
    failed = ["fail[mpi-3-0]", "fail[mpi-3-1]", "skip_on_one[mpi-2]", "hang[mpi-2]", "diverge[mpi-2]", "exit[mpi-2]"]
    passed = ["plain", "pass[mpi-1]", "pass[mpi-2]", "pass[mpi-3]", "pass_after_a_failure[mpi-2]", "pass_last[mpi-3]"]
    expected = {**dict.fromkeys(failed, "FAILED"), **dict.fromkeys(passed, "PASSED")}
    assert outcomes == {**expected, "skip[mpi-2]": "SKIPPED", "xfail[mpi-2]": "XFAIL"}, output
    assert "6 failed, 6 passed, 1 skipped, 1 xfailed" in output


def test_a_failure_is_shown_once_with_its_rank_and_who_else_failed(everything):
    alike, differs = (part(everything[1], f"fail[mpi-3-{number}]") for number in (0, 1))
    assert alike.count("assert world.rank == 0") == 1
    assert "the above is rank 1 of 3" in alike
    assert "rank 2 failed likewise" in alike
    assert "said by rank 1" in alike
    assert "rank 2 failed: AssertionError: wrong on rank 2" in differs


def test_a_rank_that_hangs_is_named_with_its_stack(everything):
    text = part(everything[1], "hang[mpi-2]")
    assert "no answer from ranks [1], passed on [0], failed on []" in text
    assert re.search(r'test_items.py", line \d+ in stuck', text)


def test_a_rank_that_waits_for_one_that_failed_is_ended(everything):
    text = part(everything[1], "diverge[mpi-2]")
    assert "KeyError: 'left early'" in text
    assert "the above is rank 0 of 2" in text
    assert "no answer from ranks [1], passed on [], failed on [0]" in text


def test_a_rank_that_dies_is_told_by_mpirun(everything):
    text = part(everything[1], "exit[mpi-2]")
    assert "has ended; no answer from" in text
    assert re.search(r"exit(ed|s)? .*code", text), text


def test_only_what_is_asked_for_is_run(run):
    outcomes, output = run("-k", "pass and mpi-2", "-x")
    assert outcomes == {"pass[mpi-2]": "PASSED", "pass_after_a_failure[mpi-2]": "PASSED"}, output


@pytest.mark.parametrize("mark", ["on_ranks()", "on_ranks(2, kind='mpj')"])
def test_a_mark_that_says_no_world_is_refused(run, mark, tmp_path):
    (tmp_path / "test_it.py").write_text(f"import pytest\n\n@pytest.mark.{mark}\ndef test_it(world):\n    pass\n")
    outcomes, output = run(f"--rootdir={tmp_path}", "-prank_sessions", tmp_path / "test_it.py")
    assert not outcomes
    assert re.search(r"test_it.py::test_it: write on_ranks\(SIZE, .* kind of mpi, horovod, gloo", output), output


def test_without_mpirun_an_item_is_skipped_and_says_why(run, monkeypatch, tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setattr("test_rank_sessions.job_environment", lambda: {"PATH": str(tmp_path)})
    outcomes, output = run("-k", "pass_last or plain")
    assert outcomes == {"pass_last[mpi-3]": "SKIPPED", "plain": "PASSED"}, output
    assert "no mpirun beside this Python or on PATH" in output
