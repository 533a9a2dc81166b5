"""What a client hears when a request cannot be answered: a status, and OpenAI's error body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_AFTER_S = 2


class Fault(Exception):
    """An answer other than 200. `param` names the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = SERVER if self.status >= 500 else INVALID
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str | None, message: str, code: str | None = None) -> Fault:
    """For a value that cannot be."""
    return Fault(400, message, param=param, code=code)


def too_long(message: str, param: str) -> Fault:
    """For a prompt that the model's context has no room for."""
    return wrong(param, message, "context_length_exceeded")


def no_such_model(name: str, own: str) -> Fault:
    return Fault(404, f"there is no model {name!r} here, only {own!r}", param="model", code="model_not_found")


def later(status: int, message: str, code: str) -> Fault:
    """For a request that may be repeated."""
    return Fault(status, message, code=code, headers={"Retry-After": str(RETRY_AFTER_S)})


def of_validation(error: ValidationError) -> Fault:
    """The first fault that pydantic found; without the value, which may be a prompt."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = place_of(first["loc"])
    if first["type"] == "extra_forbidden":
        return wrong(place, f"there is no field {place}", "unknown_parameter")
    what = first["msg"].removeprefix("Value error, ")
    return wrong(place, f"{place}: {what[:1].lower()}{what[1:]}" if place else what)


def place_of(parts: tuple[int | str, ...]) -> str | None:
    """Where in a request something stands.

    >>> place_of(("messages", 0, "content"))
    'messages[0].content'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or None
