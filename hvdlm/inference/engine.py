"""Many texts written at once by one model, of any family: continuous batching (Yu et al. 2022, "Orca").

Each text has a row of the model's slots. Rows that are being written stand first, those whose prompt is still read
behind them; a step reads a chunk of prompts, then writes one token in each of the first rows. So texts join and leave
between two steps, a long prompt holds the others up for a chunk only, and what is finished takes no more time. Rows do
not see each other: what is written depends on a text's own prompt, settings and seed, but for the rounding of products
of other shapes.

The engine knows ids alone, and is no thread: whoever has one calls `step`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hvdlm.data.records import stacked
from hvdlm.decoding import never_written, refuse_diverged
from hvdlm.inference.sampling import Past, Sampling, choose, uniform
from hvdlm.models import LanguageModel, Vocabulary

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"  # why a text ends


@dataclass(frozen=True)
class Request:
    """`choices` texts that continue ids, of at most `max_tokens` each; one reading of the prompt serves all of them."""

    prompt: tuple[int, ...]  # with what begins a text; of a model with an encoder, its source
    max_tokens: int
    sampling: Sampling
    ends: frozenset[int] = frozenset()  # ids that end a text, and are no part of it
    choices: int = 1
    logprobs: int | None = None  # of so many of the likeliest ids at each place, beside that of its own; None: of none
    echo: bool = False  # the prompt is told with its log-probabilities too
    slides: bool = False  # where the context is full its older half is forgotten; else the text ends there


Top = tuple[tuple[int, float], ...]  # ids and their log-probabilities, the likeliest first


class Token(NamedTuple):
    id: int
    log_prob: float | None  # the model's own, in nats; None where nobody asked, or for what has nothing before it
    top: Top = ()  # the likeliest ids at its place


class Listener(Protocol):
    """Who hears of a request's texts, between two products of matrices: it must be quick."""

    @property
    def is_cancelled(self) -> bool: ...

    def read(self, tokens: Sequence[Token]) -> None:
        """The prompt, once, if it was to be echoed."""

    def take(self, choice: int, token: Token) -> bool:
        """One more token of a text; True: that is enough of it."""

    def end(self, choice: int, reason: str) -> None:
        """Once for each choice: STOP, LENGTH or CANCELLED."""


@dataclass
class Counts:
    """What an engine has done so far."""

    prompt_tokens: int = 0
    written_tokens: int = 0
    read_s: float = 0.0
    write_s: float = 0.0


@dataclass
class Row:
    """A text in the making."""

    request: Request
    listener: Listener
    choice: int
    unread: list[int]
    past: Past
    ids: list[int]  # all that the model has read or will read
    num_written: int = 0
    echoed: list[Token] = field(default_factory=list)
    is_begun: bool = False  # its prompt was read

    def generator(self) -> torch.Generator:
        """What its state is drawn with, where that is drawn."""
        return torch.Generator().manual_seed(int(uniform(self.request.sampling.seed, self.choice, -1) * 2**53))


class Engine:
    """`context`: tokens of prompt and text together, or of each where there is an encoder; None: there is no limit."""

    def __init__(
        self, model: LanguageModel, vocabulary: Vocabulary, *, context: int | None, rows: int = 16, chunk: int = 256
    ) -> None:
        model.eval()
        self._model, self._vocabulary, self.context, self._most, self._chunk = model, vocabulary, context, rows, chunk
        self._slots = model.slots(rows)
        self._rows: list[Row] = []
        self._num_writing = 0  # the first of them
        self._promised = 0  # rows that choices of prompts which are still read will take
        self._waiting: deque[tuple[Request, Listener]] = deque()
        self._never = frozenset(never_written(model, vocabulary))
        self._never_ids = torch.tensor(sorted(self._never), device=model.device, dtype=torch.int64)
        self.counts = Counts()

    @property
    def num_running(self) -> int:
        return len(self._rows)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def fault(self, request: Request) -> str:
        """Why a request cannot be done, or nothing."""
        if not request.prompt:
            return "the prompt has no token; begin it with an end of text"
        if outside := [token for token in request.prompt if not 0 <= token < self._vocabulary.size]:
            return f"{outside[0]} is no id of a vocabulary of {self._vocabulary.size}"
        if outside := [token for token in request.sampling.logit_bias if not 0 <= token < self._vocabulary.size]:
            return f"logit_bias: {outside[0]} is no id of a vocabulary of {self._vocabulary.size}"
        if not 1 <= request.choices <= self._most:
            return f"{request.choices} texts at once are not from 1 to {self._most}"
        if request.max_tokens < 0 or (request.max_tokens == 0 and not request.echo):
            return f"max_tokens: {request.max_tokens} is less than 1"
        if request.slides and self._model.reads_source:
            return "a model with an encoder has no context that slides"
        num, most = len(request.prompt), self.context
        if most is not None and num > most:
            return f"the prompt has {num} tokens, the model's context {most}"
        if most is not None and num == most and request.max_tokens and not self._model.reads_source:
            return (
                "" if request.slides else f"the prompt's {num} tokens fill the model's context; none is left to write"
            )
        return ""

    def add(self, request: Request, listener: Listener) -> None:
        """Wait for a row; ValueError where it cannot be done."""
        if fault := self.fault(request):
            raise ValueError(fault)
        self._waiting.append((request, listener))

    @torch.no_grad()
    def step(self) -> bool:
        """Read a chunk, write a token; False if there was nothing to do."""
        self._drop_cancelled()
        self._admit()
        if not self._rows:
            return False
        if len(self._rows) > self._num_writing:
            with self._timed("read_s"):
                self._read()
        if self._num_writing:
            with self._timed("write_s"):
                self._write()
        return True

    def run(self) -> None:
        """Until all is done."""
        while self.step():
            pass

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        setattr(self.counts, name, getattr(self.counts, name) + time.perf_counter() - start)

    def _drop_cancelled(self) -> None:
        for request, listener in [entry for entry in self._waiting if entry[1].is_cancelled]:
            self._waiting.remove((request, listener))
            for choice in range(request.choices):
                listener.end(choice, CANCELLED)
        for number in reversed(range(len(self._rows))):
            if self._rows[number].listener.is_cancelled:
                self._leave(number, CANCELLED)

    def _admit(self) -> None:
        while self._waiting:
            request, listener = self._waiting[0]
            if len(self._rows) + self._promised + request.choices > self._most:
                return
            self._waiting.popleft()
            apart = range(request.choices) if self._model.draws_state else range(1)
            self._promised += request.choices - len(apart)
            for choice in apart:
                row = Row(request, listener, choice, [], _past(request), [])
                self._rows.append(row)
                self._begin(len(self._rows) - 1, request.prompt)

    def _begin(self, number: int, ids: Sequence[int]) -> None:
        """Forget what a row has read, to read ids."""
        row = self._rows[number]
        row.unread = list(self._slots.begin(number, ids, row.generator()))
        row.ids = list(row.unread)

    def _read(self) -> None:
        """At most a chunk of the prompts that are still read, of the first of them, side by side."""
        first = self._num_writing
        time = min(self._chunk, len(self._rows[first].unread))
        rows = self._rows[first : first + max(1, self._chunk // time)]
        parts = [row.unread[:time] for row in rows]
        lengths = [len(part) for part in parts]
        hidden = self._slots.read(first, padded(parts, self._model.device), lengths)
        self.counts.prompt_tokens += sum(lengths)
        ends = torch.tensor(lengths, device=hidden.device) - 1
        logits = self._logits(hidden[torch.arange(len(rows), device=hidden.device), ends].unsqueeze(1))
        for place, (row, part) in enumerate(zip(rows, parts, strict=True)):
            del row.unread[: len(part)]
            if row.request.echo and not row.is_begun:
                self._echo(row, hidden[place : place + 1, : len(part)])
        done = [place for place, row in enumerate(rows) if not row.unread]
        for place in done:
            self._begin_writing(rows[place], logits[place])

    def _echo(self, row: Row, hidden: Tensor) -> None:
        """Log-probabilities of what follows in the prompt, from hidden (1, T, C) of a part of it."""
        if not row.echoed:
            row.echoed.append(Token(row.ids[0], None))
        start, logits = len(row.echoed), self._model.head(hidden)[0].float()
        followers = row.ids[start : start + len(logits)]
        row.echoed += tokens_of(followers, logits[: len(followers)], row.request.logprobs or 0)

    def _begin_writing(self, row: Row, logits: Tensor) -> None:
        """Its prompt was read: each choice gets a row and its first token."""
        was_begun, row.is_begun = row.is_begun, True
        if row.request.echo and not was_begun and row.choice == 0:
            row.listener.read(row.echoed)
        others = [] if was_begun or self._model.draws_state else range(1, row.request.choices)
        copies = [
            Row(row.request, row.listener, choice, [], _past(row.request), list(row.ids), is_begun=True)
            for choice in others
        ]
        self._promised -= len(copies)
        number = self._index(row)
        for copy in copies:
            self._slots.copy(number, len(self._rows))
            self._rows.append(copy)
        for one in (row, *copies):
            self._swap(self._index(one), self._num_writing)
            self._num_writing += 1
        likeliest = int(logits.argmax())
        chosen = [self._chosen(one, logits, likeliest) for one in (row, *copies)]
        self._take([row, *copies], chosen, logits.expand(len(chosen), -1))

    def _write(self) -> None:
        rows = self._rows[: self._num_writing]
        ids = torch.tensor([row.unread for row in rows], device=self._model.device)
        hidden = self._slots.read(0, ids, [1] * len(rows))
        for row in rows:
            row.unread = []
        logits = self._logits(hidden)
        likeliest = logits.argmax(-1).tolist()
        chosen = [self._chosen(*entry) for entry in zip(rows, logits, likeliest, strict=True)]
        self._take(rows, chosen, logits)

    def _logits(self, hidden: Tensor) -> Tensor:
        """float32 (B, V) of hidden (B, 1, C)."""
        logits = self._model.head(hidden)[:, 0].float()
        refuse_diverged(logits)
        return logits

    def _chosen(self, row: Row, logits: Tensor, likeliest: int) -> int:
        sampling = row.request.sampling
        if sampling.temperature == 0 and not sampling.changes_logits and likeliest not in self._never:
            return likeliest
        if self._never:
            logits = logits.index_fill(0, self._never_ids, float("-inf"))
        return choose(logits, sampling, row.past, uniform(sampling.seed, row.choice, row.num_written))

    def _take(self, rows: list[Row], chosen: list[int], logits: Tensor) -> None:
        """Each row's next id, from logits (B, V) of before any penalty."""
        asked = [place for place, row in enumerate(rows) if row.request.logprobs is not None]
        tokens = [Token(token, None) for token in chosen]
        for place in asked:
            num = rows[place].request.logprobs or 0
            tokens[place] = tokens_of([chosen[place]], logits[place : place + 1], num)[0]
        for row, token in zip(rows, tokens, strict=True):
            self._take_one(row, token)

    def _take_one(self, row: Row, token: Token) -> None:
        request = row.request
        if request.max_tokens == 0:
            return self._leave(self._index(row), LENGTH)
        if token.id in request.ends:
            return self._leave(self._index(row), STOP)
        row.num_written += 1
        self.counts.written_tokens += 1
        if row.listener.take(row.choice, token):
            return self._leave(self._index(row), STOP)
        if row.num_written == request.max_tokens:
            return self._leave(self._index(row), LENGTH)
        row.past.take(token.id)
        row.ids.append(token.id)
        row.unread = [token.id]
        if self.context is not None and len(row.ids) - self._model.reads_source >= self.context:
            return self._make_room(row)
        return None

    def _make_room(self, row: Row) -> None:
        """The context is full."""
        if not row.request.slides or self.context is None:
            return self._leave(self._index(row), LENGTH)
        number = self._index(row)
        self._num_writing -= 1
        self._swap(number, self._num_writing)
        return self._begin(self._num_writing, row.ids[-max(1, self.context // 2) :])

    def _leave(self, number: int, reason: str) -> None:
        """A row's text is done; the last rows take its place."""
        row = self._rows[number]
        if number < self._num_writing:
            self._num_writing -= 1
            self._swap(number, self._num_writing)
            number = self._num_writing
        elif not row.is_begun and not self._model.draws_state:
            self._promised -= row.request.choices - 1
            for choice in range(1, row.request.choices):
                row.listener.end(choice, reason)
        last = self._rows.pop()
        if last is not row:
            self._slots.copy(len(self._rows), number)
            self._rows[number] = last
        row.listener.end(row.choice, reason)

    def _index(self, row: Row) -> int:
        return next(number for number, other in enumerate(self._rows) if other is row)

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            self._slots.swap(one, other)
            self._rows[one], self._rows[other] = self._rows[other], self._rows[one]


def _past(request: Request) -> Past:
    """What penalties count of a prompt: ends of text are none of it, or the one before each prompt would be rare."""
    return Past([token for token in request.prompt if token not in request.ends])


def tokens_of(ids: Sequence[int], logits: Tensor, num_top: int) -> list[Token]:
    """Ids (n,) with their log-probabilities by float32 logits (n, V), and those of the `num_top` likeliest."""
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(1, torch.tensor(ids, device=logits.device).unsqueeze(1))[:, 0].tolist()
    if not num_top:
        return [Token(token, value) for token, value in zip(ids, own, strict=True)]
    values, tops = log_probs.topk(min(num_top, log_probs.shape[1]))
    pairs = [tuple(zip(top, value, strict=True)) for top, value in zip(tops.tolist(), values.tolist(), strict=True)]
    return [Token(*entry) for entry in zip(ids, own, pairs, strict=True)]


def padded(parts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids as int64 (B, T), 0 behind the end of each."""
    return torch.from_numpy(stacked(parts, max(map(len, parts)), 0)).to(device)
