"""A job of ranks that wait stopped until they are told to measure: the parent's side of `training_cell`.

The ranks dial in on a Unix socket and say their process ids; signals go to these processes alone. A stopped
process cannot notice that its parent is gone, so Linux is asked to end mpirun with the parent and the ranks
with mpirun, however these end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, NoReturn

from hvdlm.errors import UserError

from .job import HVDLM, QUIT_LIMIT_S, end_job, start_job

POLL_S = 0.2
ANSWER_LIMIT_S = 600.0


class CellJob:
    """`ranks` processes of `hvdlm bench cell SPEC` under one mpirun; a context that ends them all."""

    def __init__(self, name: str, spec: dict, *, folder: Path, ranks: int, environment: dict[str, str]) -> None:
        self.name, self._ranks = name, ranks
        self.steps = 1  # of a block
        self._links: dict[int, socket.socket] = {}
        self._files: dict[int, Any] = {}
        self._pids: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(spec["socket"])
        self._listener.listen(ranks)
        self._log = folder / f"{name}.log"
        path = folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        with self._log.open("wb") as log:
            command = [*HVDLM, "bench", "cell", str(path)]
            self._mpirun = start_job(ranks, command, environment, stdout=log, stderr=log)

    def __enter__(self) -> CellJob:
        return self

    def __exit__(self, *error: object) -> None:
        self.resume()
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.sendall(b'{"do": "quit"}\n')
        try:
            end_job(self._mpirun, QUIT_LIMIT_S)
        finally:
            for held in (*self._files.values(), *self._links.values(), self._listener):
                held.close()

    def meet(self) -> list[dict]:
        """Wait until every rank has dialled in and is ready; what each says of itself, in rank order."""
        while len(self._links) < self._ranks:
            self._await(self._listener)
            link, _ = self._listener.accept()
            file = link.makefile("r", encoding="utf-8")
            hello = json.loads(file.readline() or self._failed())
            self._links[hello["rank"]], self._files[hello["rank"]] = link, file
            self._pids.append(hello["pid"])
        return self._answers()

    def stop(self) -> None:
        """Take all ranks off the cores, their background threads too."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def order(self, **words: object) -> list[dict]:
        """Tell all ranks what to do; their answers, in rank order."""
        for link in self._links.values():
            link.sendall((json.dumps(words) + "\n").encode())
        return self._answers()

    def _signal(self, number: int) -> None:
        if self._mpirun.poll() is not None:
            return  # the ids may be somebody else's by now
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _answers(self) -> list[dict]:
        found = []
        for rank in range(self._ranks):
            self._await(self._links[rank])
            found.append(json.loads(self._files[rank].readline() or self._failed()))
        return found

    def _await(self, link: socket.socket) -> None:
        """Until something arrives, or the job is over."""
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while not select.select([link], [], [], POLL_S)[0]:
            if self._mpirun.poll() is not None or time.monotonic() > deadline:
                self._failed()

    def _failed(self) -> NoReturn:
        """Raise what the job died of."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._mpirun.wait(QUIT_LIMIT_S)
        output = self._log.read_text(errors="replace")
        reason = re.search(r"hvdlm: error: (.*)", output)
        if reason:
            raise UserError(f"bench: {self.name}: {reason.group(1)}")
        raise RuntimeError(f"bench: {self.name} ended or fell silent:\n{output[-4000:]}")
