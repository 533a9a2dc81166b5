"""The routes: what each asks of the service, and how it is answered."""

from __future__ import annotations

import asyncio
import functools
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hvdlm.serve import replies
from hvdlm.serve.access import Guard
from hvdlm.serve.answers import CANCELLED, Answer, shape_of
from hvdlm.serve.faults import Fault, later, no_such_model
from hvdlm.serve.measures import CONTENT_TYPE
from hvdlm.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, parse
from hvdlm.serve.service import Service
from hvdlm.serve.worker import Outbox
from hvdlm.serve.writing import Piece, Place, Told, told

log = logging.getLogger("hvdlm")

T = TypeVar("T")

MOST_BYTES = 8 << 20  # of a request's body
PORTION = 64  # tokens whose texts are made in one go
BODY_S = 30.0  # in which it must be there
PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter tells nginx to hold nothing back


class Routes:
    """Each answers with JSON, or raises a Fault."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._texts = ThreadPoolExecutor(1, "texts")  # tokenizers take long over long texts
        self._marks = ThreadPoolExecutor(1, "marks")  # and over the alternatives of each token
        self._outbox: Outbox | None = None

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """The worker, as long as the application."""
        self._outbox = Outbox(asyncio.get_running_loop())
        self._service.worker.start()
        yield
        self._service.worker.end()
        self._texts.shutdown(cancel_futures=True)
        self._marks.shutdown(cancel_futures=True)

    async def page(self, request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        service = self._service
        said = "stopping" if service.is_closing else "ok" if service.worker.is_ready else "starting"
        return JSONResponse({"status": said}, 200 if said == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        service = self._service
        return Response(service.measures.text(service.gauges, service.counters), headers={"Content-Type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        return _json(replies.Models(data=[self._service.model_card]))

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._service.name:
            raise no_such_model(name[:100], self._service.name)
        return _json(self._service.model_card)

    async def tokenize(self, request: Request) -> Response:
        asked = parse(TokenizeRequest, await _body(request))
        self._service.check_model(asked.model)
        encode = self._service.ids_of if asked.add_special_tokens else self._service.plain_ids_of
        ids = await self._encoded(request, functools.partial(encode, asked.prompt))
        if ids is None:
            return Response(status_code=CANCELLED)
        return _json(replies.Tokens(tokens=list(ids), count=len(ids), max_model_len=self._service.context))

    async def detokenize(self, request: Request) -> Response:
        asked = parse(DetokenizeRequest, await _body(request))
        self._service.check_model(asked.model)
        text = await self._encoded(request, functools.partial(self._service.text_of, asked.tokens))
        return Response(status_code=CANCELLED) if text is None else _json(replies.Text(prompt=text))

    async def completions(self, request: Request) -> Response:
        return await self._write(request, parse(CompletionRequest, await _body(request)))

    async def chat(self, request: Request) -> Response:
        return await self._write(request, parse(ChatRequest, await _body(request)))

    async def _write(self, request: Request, asked: CompletionRequest | ChatRequest) -> Response:
        service, outbox = self._service, self._outbox
        assert outbox is not None, "the application runs"
        service.check_model(asked.model)
        answer = Answer(shape_of(asked, service), self._told, includes_usage=asked.includes_usage)

        def tell(piece: Piece) -> None:
            outbox.put(functools.partial(answer.hear, piece))

        writings = await self._encoded(request, lambda: service.writings(asked, service.prompts(asked), tell))
        if writings is None:
            return Response(status_code=CANCELLED)
        self._check_open(sum(writing.request.choices for writing in writings))
        answer.expect(writings)
        service.worker.submit(*writings)
        if asked.stream:
            return EventStream(answer, self._gone)
        try:
            done = await _unless_gone(request.receive, answer.whole())
        finally:
            if answer.cancel():
                self._gone()
        return Response(status_code=CANCELLED) if done is None else _json(done)

    def _check_open(self, num: int) -> None:
        """A Fault where nothing more is taken, or not so many texts more."""
        service = self._service
        if service.is_closing or service.broken:
            raise later(503, f"the server is stopping{service.broken and ': '}{service.broken}", "stopping")
        num_open = service.worker.num_open + service.num_encoding
        if num_open + num > service.limits.rows + service.limits.queue:
            raise later(429, f"{num_open} texts are written or wait; try again soon", "queue_full")

    def _gone(self) -> None:
        self._service.measures.num_cancelled += 1

    async def _encoded(self, request: Request, work: Callable[[], T]) -> T | None:
        """Done in the texts' thread, counted among what waits. None, and not begun any more, once the client left."""
        self._check_open(1)
        self._service.num_encoding += 1
        try:
            return await _unless_gone(request.receive, _in_thread(self._texts, work))
        finally:
            self._service.num_encoding -= 1

    async def _told(self, places: Sequence[Place]) -> list[Told]:
        """By portions, so that long ones hold up nobody, and end where their client leaves."""
        tokenizer, found = self._service.tokenizer, list[Told]()
        for start in range(0, len(places), PORTION):
            work = functools.partial(told, tokenizer, places[start : start + PORTION])
            found += await _in_thread(self._marks, work)
        return found


class EventStream(Response):
    """An answer as server-sent events; its client's leaving ends it at once, whatever it is waiting for."""

    def __init__(self, answer: Answer, gone: Callable[[], None]) -> None:
        self.status_code, self.background, self._answer, self._on_gone = 200, None, answer, gone
        self.media_type = "text/event-stream"
        self.body = b""
        self.init_headers(STREAM_HEADERS)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> bool:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for text in self._answer.events():
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return True

        try:
            await _unless_gone(receive, write())
        finally:
            if self._answer.cancel():
                self._on_gone()


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None, with the work given up, once the client has gone."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """A Fault for one that is too large or too slow; no more than the limit is held."""
    too_large = Fault(413, f"the body is larger than {MOST_BYTES} bytes", code="too_large")
    if int(request.headers.get("content-length", "0")) > MOST_BYTES:
        raise too_large

    async def read() -> bytes:
        found = bytearray()
        async for part in request.stream():
            found += part
            if len(found) > MOST_BYTES:
                raise too_large
        return bytes(found)

    try:
        return await asyncio.wait_for(read(), BODY_S)
    except asyncio.TimeoutError:
        raise Fault(408, f"the body did not come within {BODY_S:.0f} s", code="too_slow") from None


def _json(reply: BaseModel) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json")


async def _on_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return JSONResponse(error.body, error.status, error.headers)


async def _on_http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = {404: f"there is no {request.scope['path'][:200]} here", 405: f"not by {request.method}"}
    fault = Fault(error.status_code, message.get(error.status_code, error.detail), headers=error.headers)
    return JSONResponse(fault.body, fault.status, fault.headers)


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CANCELLED)


def make_app(
    service: Service, *, key: str | None, origins: Collection[str], names: Collection[str] | None
) -> Starlette:
    """`names`: of hosts, by which it may be asked; None: any."""
    routes = Routes(service)

    def get(path: str, view: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, view, methods=["GET"])

    def post(path: str, view: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, _guarded(view), methods=["POST"])

    listed = [
        get("/", routes.page),
        get("/health", routes.health),
        get("/metrics", routes.metrics),
        get("/v1/models", routes.models),
        get("/v1/models/{name:path}", routes.model),
        post("/tokenize", routes.tokenize),
        post("/detokenize", routes.detokenize),
        post("/v1/completions", routes.completions),
        post("/v1/chat/completions", routes.chat),
    ]
    around = []
    if origins:
        rules = {"allow_origins": list(origins), "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        around.append(Middleware(CORSMiddleware, **rules))  # type: ignore[arg-type]
    seen = service.measures.requests
    around.append(Middleware(Guard, key=key, origins=origins, names=names, seen=seen))
    handlers = {Fault: _on_fault, HTTPException: _on_http, ClientDisconnect: _on_gone}
    return Starlette(routes=listed, middleware=around, exception_handlers=handlers, lifespan=routes.running)


def _guarded(view: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """An error that nobody foresaw is a 500; the log has its place and kind, as its message may hold a prompt."""

    async def answered(request: Request) -> Response:
        try:
            return await view(request)
        except (Fault, HTTPException, ClientDisconnect):
            raise
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s failed\n%s%s", request.scope["path"], where, type(error).__name__)
            raise Fault(500, "the server failed; its log says why", code="failed") from None

    return answered
