"""What clients may ask for: fields as OpenAI's API has them, those of others that are usual, and their limits.

A field that would change the answer and cannot be honoured is refused unless it says what is so anyway; one that
changes nothing is passed over; an unknown one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from hvdlm.serve.faults import of_validation, wrong

MOST_PROMPTS, MOST_CHARACTERS = 64, 1_000_000  # of a request, all its prompts together
MOST_MESSAGES, MOST_STOPS, MOST_STOP_CHARACTERS, MOST_BIASES, MOST_TOP = 500, 4, 200, 1024, 20
SEEDS = 2**63

PASSED_OVER = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
# What is not offered, and the values that ask for nothing.
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
}

Prompt = str | tuple[int, ...]


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _prompts(value: Any) -> list[Prompt]:
    """A text, ids, or several of either."""
    if isinstance(value, str):
        return [_text(value)]
    if isinstance(value, list) and value and _is_ids(value):
        return [tuple(value)]
    if not isinstance(value, list) or not value:
        raise ValueError("is neither a text nor a list of token ids, nor a list of texts or of lists of ids")
    if len(value) > MOST_PROMPTS:
        raise ValueError(f"has {len(value)} prompts, more than {MOST_PROMPTS}")
    if all(isinstance(one, str) for one in value):
        if sum(map(len, value)) > MOST_CHARACTERS:
            raise ValueError(f"has more than {MOST_CHARACTERS} characters")
        return [_text(one) for one in value]
    if all(map(_is_ids, value)):
        return [tuple(one) for one in value]
    raise ValueError("has prompts that are neither all texts nor all lists of token ids")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is no text")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"has {len(value)} characters, more than {MOST_CHARACTERS}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half a surrogate pair, and no text") from None
    return value


def _stops(value: Any) -> tuple[str, ...]:
    given = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) and one for one in given):
        raise ValueError("is neither a text nor a list of texts that are not empty")
    if len(given) > MOST_STOPS or any(len(one) > MOST_STOP_CHARACTERS for one in given):
        raise ValueError(f"has more than {MOST_STOPS} texts, or one of more than {MOST_STOP_CHARACTERS} characters")
    return tuple(given)


def _biases(value: Any) -> dict[int, float]:
    given = {} if value is None else value
    if not isinstance(given, dict) or len(given) > MOST_BIASES:
        raise ValueError(f"is no object of at most {MOST_BIASES} token ids")
    for token, bias in given.items():
        if not token.isascii() or not token.isdigit() or len(token) > 10:
            raise ValueError(f"{token[:20]!r} is no token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"that of {token} is no number from -100 to 100")
    return {int(token): float(bias) for token, bias in given.items()}


def _content(value: Any) -> str:
    """A text, or a list of parts of type text."""
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        raise ValueError("is neither a text nor a list of parts")
    for part in value:
        if part.get("type") != "text":
            raise ValueError(f"has a part of type {str(part.get('type'))[:40]!r}; only text can be read")
    return _text("\n".join(_text(part.get("text")) for part in value))


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # passed over: nothing is added to the chunks


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(_content)]
    name: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: list[Any] | None = None  # of an answer that is sent back


class Asked(BaseModel):
    """What both ways to ask for a text have. None: as the server has it by default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[int, float], PlainValidator(_biases)] = Field(default_factory=dict)
    # of other servers
    top_k: int | None = Field(None, ge=-1)  # -1 or 0: all
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    ignore_eos: bool | None = None
    slide: bool | None = None  # our own: past the context the older half is forgotten

    prompt_field: ClassVar[str] = "prompt"

    @model_validator(mode="after")
    def _check_stream(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: are only for stream: true")
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        """How many tokens at most, and the field that says so."""
        return "max_tokens", self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """So many of the likeliest tokens are told at each place; None: not even how likely its own is."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        return False

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(Asked):
    prompt: Annotated[list[Prompt], PlainValidator(_prompts)]
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    echo: bool | None = None
    best_of: int | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @model_validator(mode="after")
    def _check_best(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (1 if self.n is None else self.n):
            raise ValueError("best_of: only as many texts as are returned (n) are written")
        return self


class ChatRequest(Asked):
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)

    prompt_field: ClassVar[str] = "messages"

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: is only for logprobs: true")
        if sum(len(message.content) for message in self.messages) > MOST_CHARACTERS:
            raise ValueError(f"messages: have more than {MOST_CHARACTERS} characters")
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().limit


class TokenizeRequest(BaseModel):
    """As vLLM has it; with what begins a text unless `add_special_tokens` is false."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: Annotated[str, PlainValidator(_text)]
    add_special_tokens: bool = True


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    tokens: list[int] = Field(max_length=MOST_CHARACTERS)


T = TypeVar("T", bound=BaseModel)


def parse(kind: type[T], data: bytes) -> T:
    """A request's body as one of the above; a Fault that names the field for any other."""
    try:
        given = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):  # its message would show a part of the body
        raise wrong(None, "the body is no JSON") from None
    if not isinstance(given, dict):
        raise wrong(None, "the body is no JSON object")
    for name in [name for name in given if name in NOT_OFFERED and name not in kind.model_fields]:
        value = given.pop(name)
        if not _is_among(value, NOT_OFFERED[name]):
            raise wrong(name, f"{name}: is not offered here; leave it out", "unsupported_parameter")
    kept = {name: value for name, value in given.items() if name not in PASSED_OVER}
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        fault = of_validation(error)
        if fault.param is None and ":" in fault.message:  # of a check of several fields, which begins with one's name
            fault.param = fault.message.split(":")[0]
        raise fault from None


def _is_among(value: Any, neutral: Sequence[Any]) -> bool:
    return any(type(value) is type(one) and value == one for one in neutral)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
