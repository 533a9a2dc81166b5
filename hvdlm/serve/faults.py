"""What a client hears when a request cannot be answered: a status, and OpenAI's error body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_AFTER_S = 2
# Of each kind of fault that pydantic finds in our fields; what stands in braces is the field's own limit.
WORDS: Mapping[str, str] = {
    "missing": "is missing",
    "too_short": "is empty",
    "too_long": "has more than {max_length} entries",
    "greater_than": "is not greater than {gt}",
    "greater_than_equal": "is less than {ge}",
    "less_than": "is not less than {lt}",
    "less_than_equal": "is more than {le}",
    "literal_error": "is none of {expected}",
    "none_required": "is not offered here; leave it out",
    "int_type": "is no whole number",
    "int_from_float": "is no whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "is no number",
    "finite_number": "is no finite number",
    "bool_type": "is neither true nor false",
    "string_type": "is no text",
    "string_unicode": "is no text",
    "list_type": "is no list",
    "model_type": "is no object",
    "model_attributes_type": "is no object",
}


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
    first = error.errors(include_url=False, include_input=False)[0]
    place = place_of(first["loc"])
    if first["type"] == "extra_forbidden":
        return wrong(place, f"there is no field {place}", "unknown_parameter")
    facts = {name: _told(value) for name, value in first.get("ctx", {}).items()}
    own = WORDS.get(first["type"])
    what = own.format(**facts) if own else first["msg"].removeprefix("Value error, ")
    return wrong(place, f"{place}: {what[:1].lower()}{what[1:]}" if place else what)


def _told(value: Any) -> Any:
    """A limit as people write it: 2, not 2.0."""
    return f"{value:g}" if isinstance(value, float) else value


def place_of(parts: tuple[int | str, ...]) -> str | None:
    """Where in a request something stands.

    >>> place_of(("messages", 0, "content"))
    'messages[0].content'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or None
