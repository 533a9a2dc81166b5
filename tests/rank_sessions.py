"""Tests on ranks as ordinary pytest items, inside a few long sessions of mpirun. A plugin.

A test marked `@pytest.mark.on_ranks(1, 2, 3)`, or `@pytest.mark.on_ranks(2, kind="horovod")`, is run once for each of
these sizes and takes a `world` of so many ranks; `tmp_path` is one folder that all of them share. Kinds are mpi,
horovod, and gloo, which is Horovod without MPI. The pytest that a person starts is the controller: it collects as
ever, starts `mpirun pytest` for the items that need it (rank_worker.py), names them one item after the other, and
reports an item as passed when it passed on all its ranks. Between items ranks wait on a socket, outside MPI, which
costs no core. A session lives on until its last item, or until a rank does not answer: one that hangs or dies is
named with its stack, and the next item gets new ranks.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest
from rank_reports import Answers, Report, report_of

ADDRESS, KIND = "HVDLM_RANK_SESSION", "HVDLM_RANK_KIND"  # in the environment of a session's ranks
FOLDER = "HVDLM_TEST_FOLDER"  # of this whole run: its ranks, and the workers of pytest-xdist, know it too
KINDS = ("mpi", "horovod", "gloo")
# Groups that Horovod is told of when a session of so many ranks starts: of two stages, with one rank each or two.
DATA_GROUPS = {1: [[0]], 2: [[0], [1]], 3: [[0, 1, 2]], 4: [[0, 1], [2, 3]]}
SESSION_SIZE = 4  # of MPI; a test takes the first ranks of it
START_LIMIT_S = 120
ITEM_LIMIT_S = 120  # unless the item has a `timeout` mark
AFTER_PASS_S, AFTER_FAILURE_S = 60, 10  # for the other ranks, once one has come to its end
# As hvdlm's own command does: torch is imported in half the time if nobody looks for garbage meanwhile.
START = "import gc; gc.set_threshold(100_000, 20, 100); import pytest; pytest.main()"
PASSED_ON = ("tbstyle", "showlocals", "verbose", "fulltrace")  # options that ranks need


@pytest.hookimpl(trylast=True)  # after pytest knows where temporary folders lie
def pytest_configure(config: pytest.Config) -> None:
    if FOLDER not in os.environ:
        os.environ[FOLDER] = str(config._tmp_path_factory.mktemp("shared"))
    config.addinivalue_line("markers", "on_ranks(*sizes, kind='mpi'): the test takes a `world` of each of these sizes")
    if ADDRESS in os.environ:
        from rank_worker import Worker

        config.pluginmanager.register(Worker(config), "rank-worker")
    else:
        config.pluginmanager.register(Controller(config), "rank-controller")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = list(metafunc.definition.iter_markers("on_ranks"))
    worlds = [(mark.kwargs.get("kind", "mpi"), size) for mark in reversed(marks) for size in mark.args]
    if any(not mark.args or mark.kwargs.get("kind", "mpi") not in KINDS for mark in marks):
        place = metafunc.definition.nodeid
        raise pytest.UsageError(f"{place}: write on_ranks(SIZE, ...[, kind=KIND]) with a kind of {', '.join(KINDS)}")
    if worlds:
        metafunc.parametrize("world", worlds, indirect=True, ids=[f"{kind}-{size}" for kind, size in worlds])


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    """The controller watches the ranks itself."""
    return True if world_of(item) else None


def world_of(item: pytest.Item) -> tuple[str, int] | None:
    """(kind, size) of the world that an item on ranks takes."""
    return item.callspec.params["world"] if item.get_closest_marker("on_ranks") else None


def session_of(item: pytest.Item) -> tuple[str, int] | None:
    """(kind, size) of the session in which an item runs; Horovod has no worlds that are a part of another."""
    world = world_of(item)
    return ("mpi", SESSION_SIZE) if world and world[0] == "mpi" and world[1] <= SESSION_SIZE else world


@pytest.fixture(scope="session")
def made_once() -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)`: a folder of this whole run that `make(folder)` has filled once.

    The process that asks first makes it: a rank, a worker of pytest-xdist, or the pytest that was started. Others wait.
    """

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        folder = Path(os.environ[FOLDER], name)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.with_suffix(".made").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that died while it made it
                folder.mkdir()
                make(folder)
                folder.with_suffix(".made").touch()
        return folder

    return made_once


class RankFailure(Exception):
    """What ranks did that is no report of pytest's: they hung, died, or could not be started."""


class NoRanks(Exception):
    """This machine has no MPI, or no Horovod."""


class RankSession:
    """The ranks of one mpirun, which wait for items."""

    def __init__(self, kind: str, size: int, files: list[str], config: pytest.Config) -> None:
        self.kind, self.size, self._config = kind, size, config
        self._shows = config.getoption("capture") == "no"
        command = self._command(files)
        self._folder = Path(tempfile.mkdtemp(prefix="hvdlm-ranks-"))
        self._pids: dict[int, int] = {}
        self._ranks: dict[int, Connection] = {}
        self._process = self._start(command)
        try:
            self._meet()
        except BaseException:
            self.kill()
            raise

    def _command(self, files: list[str]) -> list[str]:
        from hvdlm.errors import UserError
        from hvdlm.launch.plan import start_command

        if self.kind != "mpi" and importlib.util.find_spec("horovod") is None:
            raise NoRanks("Horovod is not installed; `make setup` builds it")
        options = ["-oaddopts=", "-pno:cacheprovider", "-qq", "--no-header", f"--rootdir={self._config.rootpath}"]
        options += [f"-c{self._config.inipath}"] if self._config.inipath else []
        options += ["-s"] if self._shows else []
        try:
            start = gloo_command if self.kind == "gloo" else start_command
            return start(self.size, [sys.executable, "-c", START, *files, *options])
        except UserError as error:
            raise NoRanks(str(error)) from None

    def _start(self, command: list[str]) -> subprocess.Popen:
        from harness import ROOT, job_environment

        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "socket"))
        self._server.listen(self.size)
        environment = {name: value for name, value in job_environment().items() if not name.startswith("PYTEST_")}
        environment |= {ADDRESS: str(self._folder / "socket"), KIND: self.kind, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (self._folder / "log").open("w") as log:
            out = {} if self._shows else {"stdout": log, "stderr": log}
            pipes = {"stdin": subprocess.DEVNULL, **out}
            return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)

    def _meet(self) -> None:
        """Wait until every rank has called, with its number and process id."""
        deadline = time.monotonic() + START_LIMIT_S
        self._server.settimeout(0.2)
        options = {name: getattr(self._config.option, name) for name in PASSED_ON if name in self._config.option}
        while len(self._ranks) < self.size:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RankFailure(f"{self} did not start:\n{self._log()}")
            try:
                caller, _ = self._server.accept()
            except TimeoutError:
                continue
            caller.setblocking(True)
            rank = Connection(caller.detach())
            number, pid = rank.recv()
            self._ranks[number], self._pids[number] = rank, pid
            rank.send(options)

    def __str__(self) -> str:
        return f"the session of {self.size} ranks over {self.kind}"

    def run(self, item: pytest.Item, nextitem: pytest.Item | None, folder: Path) -> Answers:
        """Have the item's ranks run it. Raises RankFailure when some do not answer; then the session is over."""
        answers = Answers(world_of(item)[1])
        following = nextitem.nodeid if nextitem is not None else None
        ranks = {self._ranks[number]: number for number in range(answers.size)}
        for number in ranks.values():
            self._tell(number, (item.nodeid, following, folder))
        mark = item.get_closest_marker("timeout")
        start = time.monotonic()
        deadline = start + (mark.args[0] if mark else ITEM_LIMIT_S)
        while len(answers.done) < answers.size:
            waiting = [rank for rank, number in ranks.items() if number not in answers.done]
            ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                silent = [ranks[rank] for rank in waiting]
                raise RankFailure(self._why(answers, f"after {time.monotonic() - start:.0f} s", silent))
            for rank in ready:
                self._hear(rank, ranks[rank], answers)
            if answers.done or answers.failed():
                patience_s = AFTER_FAILURE_S if answers.failed() else AFTER_PASS_S
                deadline = min(deadline, time.monotonic() + patience_s)
        return answers

    def _tell(self, number: int, order: object) -> None:
        with contextlib.suppress(OSError):  # a rank that has ended is noticed when it does not answer
            self._ranks[number].send(order)

    def _hear(self, rank: Connection, number: int, answers: Answers) -> None:
        try:
            data = rank.recv()
        except (EOFError, OSError):
            raise RankFailure(self._why(answers, f"rank {number} has ended", [])) from None
        if data is None:
            answers.done.add(number)
        else:
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            answers.reports.setdefault(number, []).append(report)

    def _why(self, answers: Answers, when: str, silent: list[int]) -> str:
        """What those that failed said, and where those stand that did not answer."""
        parts = []
        if failed := answers.failed():
            report = next(report for report in answers.reports[failed[0]] if report.failed)
            parts.append(f"{report.longreprtext}\nthe above is rank {failed[0]} of {answers.size}")
        for number in silent:
            self._signal(number, signal.SIGUSR2)
        time.sleep(0.5 if silent else 0.0)  # faulthandler is writing
        passed = sorted(answers.done - set(failed))
        parts.append(f"{when}; no answer from ranks {silent}, passed on {passed}, failed on {failed}; {self} is over")
        parts += [f"rank {number} stands at:\n{self._stack(number)}" for number in silent]
        if not silent:  # someone died: mpirun says of what
            self._wait(5)
            parts.append(self._log())
        return "\n".join(parts)

    def _signal(self, rank: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[rank], number)

    def _stack(self, number: int) -> str:
        """Where a rank's main thread stands, down to pytest's own frames."""
        _, _, text = (self._folder / f"stack-{number}").read_text().partition("Current thread")
        return "\n".join(itertools.takewhile(lambda line: "/_pytest/" not in line, text.splitlines()[1:]))

    def _log(self, num_lines: int = 40) -> str:
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-num_lines:])

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> str:
        """Let the ranks leave; what went wrong with that, if anything did."""
        for number in self._ranks:
            self._tell(number, None)
        code = self._wait(30)
        problem = "" if code == 0 else f"{self} ended with {code}:\n{self._log()}"
        self.kill()
        return problem

    def kill(self) -> None:
        """Also ranks that are stuck; mpirun itself ends when its last rank is gone."""
        for number in self._pids if self._process.poll() is None else ():
            self._signal(number, signal.SIGKILL)
        if self._wait(5) is None:
            self._process.kill()
            self._process.wait()
        for rank in self._ranks.values():
            rank.close()
        self._server.close()
        shutil.rmtree(self._folder)


def gloo_command(ranks: int, command: list[str]) -> list[str]:
    """`command` on ranks that meet without MPI."""
    return [str(Path(sys.executable).parent / "horovodrun"), "--gloo", "-np", str(ranks), *command]


class Controller:
    """Sorts the items by session, and has those on ranks run there."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._key: tuple[str, int] | None = None
        self._session: RankSession | None = None
        self._failures: dict[tuple[str, int], str] = {}  # of sessions that did not start: the next would not either

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The items of a session stand together, after those that need none."""
        items.sort(key=lambda item: session_of(item) or ("", 0))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if (key := session_of(item)) is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        is_last = nextitem is None or session_of(nextitem) != key
        for report in self._reports(item, key, None if is_last else nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        item.session._setupstate.teardown_exact(nextitem)  # what items before this one left for it
        return True

    def _reports(self, item: pytest.Item, key: tuple[str, int], nextitem: pytest.Item | None) -> list[Report]:
        start, reports, problem = time.time(), [], ""
        try:
            if self._session is None or self._key != key:
                self._start(item, key)
            answers = self._session.run(item, nextitem, self._new_folder(item))
            reports = answers.merged()
            problem = self._close() if nextitem is None else ""
        except NoRanks as missing:
            reports = [report_of(item, start, "setup", "skipped", (str(item.path), 0, f"Skipped: {missing}"))]
        except RankFailure as failure:
            self._kill()
            problem = str(failure)
        return [*reports, report_of(item, start, "call", "failed", problem)] if problem else reports

    def _start(self, item: pytest.Item, key: tuple[str, int]) -> None:
        self._close()
        if key in self._failures:
            raise RankFailure(self._failures[key])
        files = dict.fromkeys(str(other.path) for other in item.session.items if session_of(other) == key)
        try:
            self._session, self._key = RankSession(*key, list(files), self._config), key
        except RankFailure as failure:
            self._failures[key] = str(failure)
            raise

    def _new_folder(self, item: pytest.Item) -> Path:
        """A `tmp_path` for all ranks of an item."""
        return self._config._tmp_path_factory.mktemp("".join(c if c.isalnum() else "_" for c in item.name)[:40])

    def _close(self) -> str:
        session, self._session = self._session, None
        return session.close() if session else ""

    def _kill(self) -> None:
        session, self._session = self._session, None
        if session:
            session.kill()

    def pytest_sessionfinish(self) -> None:
        self._kill()
