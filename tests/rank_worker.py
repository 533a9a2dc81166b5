"""The side of rank_sessions.py that runs under mpirun: a rank, which runs the items that it is told."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import pytest
from _pytest.runner import runtestprotocol
from rank_sessions import ADDRESS, DATA_GROUPS, KIND

from hvdlm.world.interface import World

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


class Worker:
    """One rank: collects the same files as the controller, then runs item after item by name."""

    def __init__(self, config: pytest.Config) -> None:
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
        self._config, self._kind = config, os.environ[KIND]
        self._rank, self._horovod = self._join()
        stacks = (Path(os.environ[ADDRESS]).parent / f"stack-{self._rank}").open("w")
        faulthandler.register(signal.SIGUSR2, stacks)
        self._tmp_path = Path()
        self._orders: SimpleQueue = SimpleQueue()

    def _join(self) -> tuple[int, World | None]:
        """This rank's number, and the one world that Horovod has."""
        if self._kind == "mpi":
            from hvdlm.world.mpi import load_mpi

            return load_mpi().COMM_WORLD.Get_rank(), None
        from hvdlm.world.horovod import start_horovod

        world = start_horovod(None if self._kind == "gloo" else DATA_GROUPS.get)
        return world.rank, world

    def _call(self) -> None:
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(os.environ[ADDRESS])
        self._controller = Connection(caller.detach())
        self._controller.send((self._rank, os.getpid()))
        vars(self._config.option).update(self._controller.recv())
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        """A rank without its controller ends, wherever it stands."""
        try:
            while True:
                self._orders.put(self._controller.recv())
        except (EOFError, OSError):
            os._exit(1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self._call()
        while (order := self._orders.get()) is not None:
            name, following, self._tmp_path = order
            session._setupstate.teardown_exact(items[name])  # the item before may have expected another one next
            runtestprotocol(items[name], nextitem=items.get(following))
            self._controller.send(None)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._controller.send(data)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._horovod is not None:
            self._horovod.close()
        session.exitstatus = 0  # failures were reported
        gc.freeze()  # at exit Python would look for garbage among a million objects of torch

    @pytest.fixture
    def world(self, request: pytest.FixtureRequest) -> Iterator[World]:
        """The first ranks of this session as a world; Horovod has but one."""
        if self._kind == "mpi":
            yield from self._first_ranks(request.param[1])
        else:
            yield self._horovod

    @pytest.fixture
    def pair(self) -> Iterator[World | None]:
        """The first two ranks as a world over MPI, beside `world`; None on the others."""
        yield from self._first_ranks(2)

    def _first_ranks(self, size: int) -> Iterator[World | None]:
        """The first ranks with a communicator of their own, in whose making no other rank takes part."""
        from hvdlm.world.mpi import MpiWorld, load_mpi

        if self._rank >= size:
            yield None
            return
        everybody = load_mpi().COMM_WORLD
        comm = everybody.Create_group(everybody.Get_group().Range_incl([(0, size - 1, 1)]))
        world = MpiWorld(comm)
        yield world
        world.close()
        comm.Free()

    @pytest.fixture
    def tmp_path(self) -> Path:
        """One folder for all ranks of an item."""
        return self._tmp_path
