"""Who may ask: a key, and no web page of others."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import stat
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hvdlm.errors import UserError
from hvdlm.serve.faults import Fault

log = logging.getLogger("hvdlm")

MODELS = "/v1/models"
OPEN = ("/", "/health")  # without a key
ROUTES = (*OPEN, "/metrics", MODELS, "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST = 16  # characters of a key: `openssl rand -hex 32` gives 64


def read_key(path: Path) -> str:
    """A key from a file that is its owner's alone."""
    try:
        mode = path.stat().st_mode
        key = path.read_text().strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise UserError(f"--api-key-file {path}: cannot be read ({why})") from None
    if mode & stat.S_IROTH:
        raise UserError(f"--api-key-file {path}: everybody may read it; `chmod 600 {path}`")
    if mode & stat.S_IRGRP:
        log.warning("--api-key-file %s: its whole group may read it", path)
    if len(key) < SHORTEST or not key.isascii() or len(key.split()) != 1:
        raise UserError(
            f"--api-key-file {path}: a key is one word of {SHORTEST} ASCII characters or more; `openssl rand -hex 32`"
            " makes one"
        )
    return key


def check_origins(origins: Iterable[str]) -> None:
    """UserError for one that a browser would never tell."""
    for origin in origins:
        scheme, netloc = _scheme_and_netloc(origin) or ("", "")
        if scheme not in ("http", "https") or origin != f"{scheme}://{netloc}" or not netloc:
            raise UserError(f"--allow-origin {origin}: is no origin; write https://host or http://host:port")


class Guard:
    """Around the application: who may not ask hears it here. Counts answers by route and status.

    A browser tells with `Origin` which page asks. Those of other hosts may do so if they are listed. A page of
    somebody else's whose name is made to point here (DNS rebinding) asks as this host's own, but by that name: where
    there are `names`, others are not answered to, but for addresses and the listed origins' hosts. None: any name.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        origins: Collection[str],
        names: Collection[str] | None,
        seen: Counter[tuple[str, int]],
    ) -> None:
        self._app, self._key, self._origins, self._seen = app, key, frozenset(origins), seen
        listed = {urlsplit(origin).hostname or "" for origin in origins}
        self._names = None if names is None else listed.union(map(str.lower, names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._seen[_label(scope["path"]), message["status"]] += 1
            await send(message)

        fault = self._fault(Headers(scope=scope), scope["path"])
        if fault is None:
            await self._app(scope, receive, counting)
        else:
            await JSONResponse(fault.body, fault.status, fault.headers)(scope, receive, counting)

    def _fault(self, headers: Headers, path: str) -> Fault | None:
        host, origin = _scheme_and_netloc(f"//{headers.get('host', '')}"), headers.get("origin")
        if host is None:
            return Fault(400, "the header Host is no name of a host", code="wrong_host")
        netloc = host[1]
        if not self._answers_to(urlsplit(f"//{netloc}").hostname or ""):
            message = "this server does not answer to that name; localhost, an address or its own name will do"
            return Fault(403, message, code="wrong_host")
        is_own = origin is None or (_scheme_and_netloc(origin) or ("", None))[1] == netloc
        if not is_own and origin not in self._origins:
            return Fault(403, "pages of other hosts may not ask here", code="wrong_origin")
        if self._key is None or path in OPEN:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._key.encode())
        if kind.lower() == "bearer" and is_right:
            return None
        what = "is not the right one" if given else "is missing: Authorization: Bearer KEY"
        return Fault(401, f"the API key {what}", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _answers_to(self, name: str) -> bool:
        return self._names is None or name in self._names or _is_address(name)


def _label(path: str) -> str:
    """Of all paths that people may think of, few are told apart."""
    return path if path in ROUTES else f"{MODELS}/" if path.startswith(f"{MODELS}/") else "other"


def _scheme_and_netloc(url: str) -> tuple[str, str] | None:
    """None for what is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts.scheme, parts.netloc


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
