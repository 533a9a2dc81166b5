"""Pieces of text to what clients read: whole objects, or events in the order that OpenAI's have."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from hvdlm.serve import replies
from hvdlm.serve.faults import Fault
from hvdlm.serve.requests import Asked, ChatRequest
from hvdlm.serve.service import Service
from hvdlm.serve.writing import ERROR, Likely, Piece, Place, Told, Writing

PING_S = 15.0  # of silence, after which proxies might take a connection for dead
PING, DONE = ": ping\n\n", "data: [DONE]\n\n"
CANCELLED = 499  # as nginx counts requests whose client has gone


class Choice(NamedTuple):
    """All of one."""

    number: int
    text: str
    tokens: Sequence[Told]
    reason: str


class Shape(Protocol):
    """The objects of an endpoint; `head` is what all of an answer have in common."""

    def begin(self, choice: int) -> BaseModel | None:
        """A chunk before the first."""

    def chunk(self, choice: int, text: str, tokens: Sequence[Told], reason: str) -> BaseModel: ...

    def usage(self, usage: replies.Usage) -> BaseModel: ...

    def whole(self, choices: Sequence[Choice], usage: replies.Usage) -> BaseModel: ...


class CompletionShape:
    def __init__(self, head: dict[str, Any], has_logprobs: bool, num_top: int) -> None:
        self._head, self._has_logprobs, self._num_top = head, has_logprobs, num_top

    def begin(self, choice: int) -> BaseModel | None:
        return None

    def chunk(self, choice: int, text: str, tokens: Sequence[Told], reason: str) -> BaseModel:
        return self._reply([self._choice(choice, text, tokens, reason or None)], None)

    def usage(self, usage: replies.Usage) -> BaseModel:
        return self._reply([], usage)

    def whole(self, choices: Sequence[Choice], usage: replies.Usage) -> BaseModel:
        return self._reply([self._choice(*piece) for piece in choices], usage)

    def _reply(self, choices: list[replies.CompletionChoice], usage: replies.Usage | None) -> BaseModel:
        return replies.Completion(**self._head, choices=choices, usage=usage)

    def _choice(self, choice: int, text: str, tokens: Sequence[Told], reason: Any) -> replies.CompletionChoice:
        logprobs = self._logprobs(tokens) if self._has_logprobs else None
        return replies.CompletionChoice(index=choice, text=text, logprobs=logprobs, finish_reason=reason)

    def _logprobs(self, tokens: Sequence[Told]) -> replies.Logprobs:
        tops = [_by_text(told.top) if told.top else None for told in tokens] if self._num_top else None
        return replies.Logprobs(
            tokens=[told.likely.text for told in tokens],
            token_logprobs=[told.likely.log_prob for told in tokens],
            top_logprobs=tops and [top and {text: one.log_prob or 0.0 for text, one in top.items()} for top in tops],
            text_offset=[told.offset for told in tokens],
            token_ids=[told.likely.id for told in tokens],
            top_token_ids=tops and [top and {text: one.id for text, one in top.items()} for top in tops],
        )


def _by_text(top: Sequence[Likely]) -> dict[str, Likely]:
    """The likeliest of those with equal texts has it; others, such as parts of characters, go by their id."""
    found: dict[str, Likely] = {}
    for one in top:
        found[f"token_id:{one.id}" if one.text in found else one.text] = one
    return found


class ChatShape:
    def __init__(self, head: dict[str, Any], has_logprobs: bool) -> None:
        self._head, self._has_logprobs = head, has_logprobs

    def begin(self, choice: int) -> BaseModel | None:
        return self._chunk(choice, replies.Delta(role="assistant", content=""))

    def chunk(self, choice: int, text: str, tokens: Sequence[Told], reason: str) -> BaseModel:
        delta = replies.Delta() if reason else replies.Delta(content=text)
        return self._chunk(choice, delta, logprobs=self._logprobs(tokens), finish_reason=reason or None)

    def usage(self, usage: replies.Usage) -> BaseModel:
        return replies.ChatChunk(**self._head, choices=[], usage=usage)

    def whole(self, choices: Sequence[Choice], usage: replies.Usage) -> BaseModel:
        told = [
            replies.ChatChoice(
                index=choice,
                message=replies.ReplyMessage(content=text),
                logprobs=self._logprobs(tokens),
                finish_reason=reason,
            )
            for choice, text, tokens, reason in choices
        ]
        return replies.ChatCompletion(**self._head, choices=told, usage=usage)

    def _chunk(self, choice: int, delta: replies.Delta, **more: Any) -> BaseModel:
        return replies.ChatChunk(**self._head, choices=[replies.ChunkChoice(index=choice, delta=delta, **more)])

    def _logprobs(self, tokens: Sequence[Told]) -> replies.ChatLogprobs | None:
        if not self._has_logprobs:
            return None
        tops = [[replies.TopLogprob(**_in_chat(one)) for one in told.top] for told in tokens]
        content = [
            replies.ChatLogprob(**_in_chat(told.likely), top_logprobs=top)
            for told, top in zip(tokens, tops, strict=True)
        ]
        return replies.ChatLogprobs(content=content)


def _in_chat(one: Likely) -> dict[str, Any]:
    """Bytes of a text are told where it is whole: those of a part of a character are not known."""
    whole = None if "\N{REPLACEMENT CHARACTER}" in one.text else list(one.text.encode())
    return {"token": one.text, "logprob": one.log_prob, "bytes": whole, "token_id": one.id}


def shape_of(asked: Asked, service: Service) -> Shape:
    is_chat = isinstance(asked, ChatRequest)
    head = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.name,
        "system_fingerprint": service.fingerprint,
    }
    num = asked.num_logprobs
    return ChatShape(head, num is not None) if is_chat else CompletionShape(head, num is not None, num or 0)


class Answer:
    """To one request of a client: what is written for it, in the order in which it comes.

    `told` makes texts of tokens, where that holds up nobody else.
    """

    def __init__(
        self, shape: Shape, told: Callable[[Sequence[Place]], Awaitable[list[Told]]], *, includes_usage: bool
    ) -> None:
        self._shape, self._told, self._includes_usage = shape, told, includes_usage
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._writings: Sequence[Writing] = ()

    @property
    def hear(self) -> Callable[[Piece], None]:
        """In the event loop."""
        return self._pieces.put_nowait

    def expect(self, writings: Sequence[Writing]) -> None:
        self._writings = writings

    def cancel(self) -> bool:
        """Nobody reads it any more; whether something of it was still to come."""
        is_early = any(not writing.is_over for writing in self._writings)
        for writing in self._writings:
            writing.is_cancelled = True
        return is_early

    @property
    def _num_choices(self) -> int:
        return sum(writing.request.choices for writing in self._writings)

    def _usage(self) -> replies.Usage:
        read = sum(len(writing.request.prompt) for writing in self._writings)
        written = sum(writing.num_written for writing in self._writings)
        return replies.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    async def whole(self) -> BaseModel:
        """The reply when all of it is there; a Fault if something has failed."""
        texts: list[list[str]] = [[] for _ in range(self._num_choices)]
        tokens: list[list[Told]] = [[] for _ in texts]
        reasons: dict[int, str] = {}
        while len(reasons) < len(texts):
            piece = await self._pieces.get()
            if piece.reason == ERROR:
                raise Fault(500, piece.text, code="failed")
            texts[piece.choice].append(piece.text)
            tokens[piece.choice] += await self._told(piece.tokens)
            if piece.reason:
                reasons[piece.choice] = piece.reason
        choices = [Choice(n, "".join(texts[n]), tokens[n], reasons[n]) for n in range(len(texts))]
        return self._shape.whole(choices, self._usage())

    async def events(self) -> AsyncIterator[str]:
        """Of a stream: beginnings, pieces as they come, why each ends, the usage, [DONE]; an error ends it at once."""
        for choice in range(self._num_choices):
            if (chunk := self._shape.begin(choice)) is not None:
                yield event(chunk)
        num_over = 0
        while num_over < self._num_choices:
            async for piece in self._next():
                if piece is None:
                    yield PING
                    continue
                if piece.reason == ERROR:
                    yield f"data: {json.dumps(Fault(500, piece.text, code='failed').body)}\n\n"
                    return
                if piece.text or piece.tokens:
                    tokens = await self._told(piece.tokens)
                    yield event(self._shape.chunk(piece.choice, piece.text, tokens, ""))
                if piece.reason:
                    num_over += 1
                    yield event(self._shape.chunk(piece.choice, "", (), piece.reason))
        if self._includes_usage:
            yield event(self._shape.usage(self._usage()))
        yield DONE

    async def _next(self) -> AsyncIterator[Piece | None]:
        """The next piece, and None after each time of silence before it."""
        coming = asyncio.ensure_future(self._pieces.get())
        try:
            while not (await asyncio.wait({coming}, timeout=PING_S))[0]:
                yield None
            yield coming.result()
        finally:
            coming.cancel()


def event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"
