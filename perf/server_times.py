"""A server as its clients see it: time to the first piece of a stream, streams side by side, and what it takes idle."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvdlm.launch.plan import fresh_environment

from .job import HVDLM

BEGIN_S = 120.0
IDLE_S = 5.0
PROMPTS = {"short": 8, "long": 64}  # tokens
ASKED = 20  # times
STREAMS, TOKENS = 16, 48  # side by side, tokens of each
END_S = 10.0


def server_times(run: Path) -> dict[str, Any]:
    """Milliseconds to the first piece by length of the prompt, tokens/s of 1 and 16 streams, CPU of an idle server."""
    with _serving(run) as (port, pid):
        _first_ms(port, 8)
        idle = _cpu_s(pid)
        time.sleep(IDLE_S)
        idle = _cpu_s(pid) - idle
        first = {name: statistics.median(_first_ms(port, num) for _ in range(ASKED)) for name, num in PROMPTS.items()}
        return {
            "first_piece_ms": first,
            "prompt_tokens": PROMPTS,
            "tokens_per_s": {str(num): _rate(port, num) for num in (1, STREAMS)},
            "idle_cpu": idle / IDLE_S,
        }


@contextlib.contextmanager
def _serving(run: Path) -> Iterator[tuple[int, int]]:
    """A server on a port of its own; its port and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*HVDLM, "serve", str(run), "--port", str(port)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=fresh_environment(), stderr=pipe, text=True, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + BEGIN_S
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > until:
                assert process.stderr is not None
                raise RuntimeError(f"hvdlm serve did not begin: {process.stderr.read()[-500:]}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        process.kill()
        process.communicate()


def _is_ready(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False


def _cpu_s(pid: int) -> float:
    """Of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _stream(port: int, num_prompt: int, num: int) -> Iterator[http.client.HTTPResponse]:
    body = {"prompt": list(range(1, 1 + num_prompt)), "max_tokens": num, "stream": True, "ignore_eos": True}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        yield connection.getresponse()


def _first_ms(port: int, num_prompt: int) -> float:
    """From the request to the first piece, the reading of the prompt in it."""
    start = time.perf_counter()
    with _stream(port, num_prompt, 2) as response:
        while not response.readline().startswith(b"data: "):
            pass
        found = 1000 * (time.perf_counter() - start)
        response.read()
    return found


def _read_all(port: int) -> None:
    with _stream(port, 8, TOKENS) as response:
        response.read()


def _rate(port: int, streams: int) -> float:
    """Tokens/s of all streams together."""
    start = time.perf_counter()
    threads = [threading.Thread(target=_read_all, args=(port,)) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return streams * TOKENS / (time.perf_counter() - start)
