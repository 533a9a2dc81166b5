"""`hvdlm serve`: from a run to a server, and to its end, which refuses what is new and finishes what runs."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from hvdlm import checkpoint
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.inference.load import Loaded, load_writer
from hvdlm.serve.access import LOOPBACK, check_origins, read_key
from hvdlm.serve.app import make_app
from hvdlm.serve.chat import Chat, Specials, find_template
from hvdlm.serve.connections import config_of, raise_limit
from hvdlm.serve.service import Limits, Service
from hvdlm.session.stop import EXIT_INTERRUPTED, SPARE_S, BatchJob, heard
from hvdlm.tables import counted
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")

LAST_WORDS_S = 5  # for answers that are complete to reach their clients
LOOK_S = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class Address:
    """Where it listens, and who may ask."""

    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    origins: Sequence[str] = ()

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def is_open(self) -> bool:
        """Whether other machines may ask without a key."""
        return not self.is_loopback and self.key_file is None

    def url(self, port: int) -> str:
        return f"http://[{self.host}]:{port}" if ":" in self.host else f"http://{self.host}:{port}"


@dataclass(frozen=True)
class Ending:
    """How long what runs may go on after a signal, and what the batch system says of the job's end."""

    grace_s: float = 30.0
    job: BatchJob = field(default_factory=BatchJob)
    login: str = ""  # the host that a job was submitted from


@dataclass(frozen=True)
class Offer:
    """What is served, and how much of it."""

    target: Path
    overrides: tuple[str, ...] = ()
    name: str = ""
    template: Path | None = None
    int8: bool = False
    limits: Limits = field(default_factory=Limits)


def serve(offer: Offer, address: Address, ending: Ending, has_begun: Callable[[], None] = lambda: None) -> None:
    """Until it is asked to stop: StoppedOnRequest, but for Ctrl-C, after which nothing is left to be done.

    `has_begun` is called when it listens to signals itself.
    UserError where it cannot begin, or the model can do nothing any more.
    """
    check_origins(address.origins)
    key = None if address.key_file is None else read_key(address.key_file)
    with listening(address) as listener:  # before the model is loaded, which takes long
        service = open_service(offer)
        tell = functools.partial(announce, service, address, listener.getsockname()[1], ending, has_key=key is not None)
        has_begun()
        app = make_app(service, key=key, origins=address.origins, names=names_of(address))
        reason, num_cut = asyncio.run(_run(app, service, listener, ending, tell))
    if service.broken:
        raise UserError(service.broken)
    told = f"stopped by {reason}; {outcome(num_cut, ending.grace_s)}"
    if reason != signal.SIGINT.name:
        raise StoppedOnRequest(told)
    log.info("%s", told)


def outcome(num_cut: int, grace_s: float) -> str:
    """What became of all that was asked before the end."""
    if not num_cut:
        return "all that was asked before is answered"
    return f"{counted(num_cut, 'text')} cut off after --grace-s {grace_s:g}; all else that was asked before is answered"


def names_of(address: Address) -> tuple[str, ...] | None:
    """By which a server without a key may be asked, beside addresses; with a key, which no stranger's page has, any."""
    if address.is_loopback:
        return LOOPBACK
    own = socket.gethostname()
    return (*LOOPBACK, address.host, own, own.split(".")[0], socket.getfqdn()) if address.is_open else None


def listening(address: Address) -> socket.socket:
    """A socket at the address; UserError where there can be none."""
    listener = None
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        if listener is not None:
            listener.close()
        other = "; another program listens there: take another --port" if error.errno == errno.EADDRINUSE else ""
        raise UserError(f"--host {address.host} --port {address.port}: {error.strerror}{other}") from None
    return listener


def open_service(offer: Offer) -> Service:
    """UserError for a run whose model writes no text."""
    path = checkpoint.resolve(offer.target)
    loaded, tokenizer = load_writer(path, offer.overrides, find_place(SerialWorld()), int8=offer.int8)
    run = path.resolve().parent.parent
    chat = Chat(Specials(tokenizer), *find_template(run, offer.template), begin=_begin(loaded))
    name = offer.name or "-".join(run.parts[-2:]).lstrip("/-")
    return Service(name, loaded, tokenizer, chat, offer.limits)


def _begin(loaded: Loaded) -> tuple[int, ...]:
    """What stands before messages without a template; around a source the task puts it itself."""
    return () if loaded.task.continues_whole else loaded.prompt_of(())


def announce(service: Service, address: Address, port: int, ending: Ending, *, has_key: bool) -> None:
    """What a person has to know: where it is, how to reach it, by what defaults it answers."""
    facts = service.model_card.facts
    context = "any length" if service.context is None else f"context {service.context}"
    log.info(
        "serves %s (%s, step %s, %s, %s) at %s/v1, a page at %s/",
        *(service.name, facts["family"], facts["step"], context, service.fingerprint),
        *(address.url(port), address.url(port)),
    )
    log.info("defaults: %s", ", ".join(f"{name} {value}" for name, value in service.defaults.items()))
    log.info("chat template: %s", service.chat.origin)
    if not address.is_loopback and not has_key:
        log.warning("--host %s without --api-key-file: whoever reaches this host may use it", address.host)
    if ending.job.id:
        log.info("from your own machine: %s", tunnel(address, port, ending.login))


def tunnel(address: Address, port: int, login: str) -> str:
    """The ssh command that brings the server of a batch node to a person's own machine.

    On loopback it is reached from its node alone, into which a cluster lets those who have a job there.
    """
    node, login = socket.gethostname(), login or "LOGIN-NODE"
    if address.is_loopback:
        return f"ssh -N -L {port}:localhost:{port} -J {login} {node}"
    return f"ssh -N -L {port}:{node}:{port} {login}"


class Server(uvicorn.Server):
    """Uvicorn's, but that it sleeps while nothing comes, and leaves signals to `_run`."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._ends, self._tell = asyncio.Event(), tell

    def end(self) -> None:
        self.should_exit = True
        self._ends.set()

    async def main_loop(self) -> None:
        self._tell()  # whoever reads it may connect
        await self._ends.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(
    app: Starlette, service: Service, listener: socket.socket, ending: Ending, tell: Callable[[], None]
) -> tuple[str, int]:
    """Serve until a signal, or the end of the job's time; the reason, and how many texts were cut off.

    `tell` is called when it listens.
    """
    loop = asyncio.get_running_loop()
    server = Server(config_of(app, most_open=raise_limit(), grace_s=LAST_WORDS_S), tell)
    asked: asyncio.Future[str] = loop.create_future()

    def ask(reason: str) -> None:
        if not asked.done():
            asked.set_result(reason)
            log.info("%s: nothing new is taken; what runs has %g s to end", reason, ending.grace_s)
        elif reason == signal.SIGINT.name:
            os._exit(EXIT_INTERRUPTED)

    for number in heard(SIGNALS):
        loop.add_signal_handler(number, ask, number.name)
    if ending.job.end is not None:
        left_s = ending.job.end - time.time() - ending.grace_s - LAST_WORDS_S - SPARE_S
        loop.call_later(max(0.0, left_s), ask, "the end of the job's time")
    service.on_broken = functools.partial(loop.call_soon_threadsafe, ask, "the model's failure")
    serving: asyncio.Future[None] = asyncio.create_task(server.serve([listener]))
    both: list[asyncio.Future[Any]] = [serving, asked]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    num_cut = 0
    if asked.done():
        num_cut = await _drain(service, ending.grace_s)
        server.end()
    await serving
    return asked.result() if asked.done() else "", num_cut


async def _drain(service: Service, grace_s: float) -> int:
    """Refuse what is new, and wait for what runs; what has not ended by then is told so: how many texts."""
    service.is_closing = True
    until = time.monotonic() + grace_s
    while service.worker.num_open and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)
    return service.worker.cancel_all("the server was stopped before this was done")
