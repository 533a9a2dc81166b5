"""A server of `hvdlm serve` in a thread of the test, and a client of plain lines."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import until

from hvdlm.serve.access import LOOPBACK
from hvdlm.serve.app import make_app
from hvdlm.serve.connections import config_of
from hvdlm.serve.service import Limits, Service
from hvdlm.serve.serving import Address, Offer, Server, listening, open_service


class Client:
    """Of the server at http://127.0.0.1:`port`; `own` headers are sent each time."""

    def __init__(self, port: int, own: dict[str, str] | None = None) -> None:
        self.port, self._own = port, own or {}
        self.url = f"http://127.0.0.1:{port}"

    def begin(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> http.client.HTTPConnection:
        """A request on its way: `getresponse` waits for the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request("GET" if data is None else "POST", path, data, self._own | (headers or {}))
        return connection

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status, and the answer's JSON or text."""
        connection = self.begin(path, body, headers)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        is_json = "json" in (reply.headers["content-type"] or "")
        return reply.status, json.loads(text) if is_json else text

    def headers(self, path: str, headers: dict[str, str]) -> dict[str, str]:
        """Those of the answer to a GET, in small letters."""
        connection = self.begin(path, headers=headers)
        found = {name.lower(): value for name, value in connection.getresponse().getheaders()}
        connection.close()
        return found

    def complete(self, **asked: Any) -> Any:
        status, found = self.ask("/v1/completions", asked)
        assert status == 200, found
        return found

    def events(self, path: str, **asked: Any) -> list[Any]:
        """Of a stream, in order: objects, and other lines as they stand."""
        status, text = self.ask(path, {**asked, "stream": True})
        assert status == 200, text
        parts = text.split("\n\n")
        assert parts.pop() == "", "the last event ends with a blank line"
        return [json.loads(part[6:]) if part.startswith("data: {") else part for part in parts]


class Running(Client):
    """With its service at hand."""

    def __init__(self, service: Service, server: Server, port: int) -> None:
        super().__init__(port)
        self.service, self.server = service, server

    def is_free(self) -> bool:
        """Whether nothing is written or waits."""
        return self.service.worker.num_open == 0


def opened(run: Path, **limits: int) -> Service:
    return open_service(Offer(run, name="tiny", limits=Limits(**limits)))


@contextmanager
def running(service: Service, most_open: int = 64, **access: Any) -> Iterator[Running]:
    listener = listening(Address(port=0))
    app = make_app(service, **{"key": None, "origins": (), "names": LOOPBACK, **access})
    server = Server(config_of(app, most_open=most_open, grace_s=1))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[server.serve([listener])], daemon=True)
    thread.start()
    found = Running(service, server, listener.getsockname()[1])
    until(lambda: server.started and service.worker.is_ready)
    try:
        yield found
    finally:
        service.worker.cancel_all("the test is over")
        loop.call_soon_threadsafe(server.end)
        thread.join(10)
        loop.close()
