"""What a server has to offer: a model with its vocabulary, what holds where a request says nothing, and its limits."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.inference.engine import Engine, Request
from hvdlm.inference.load import INT8, Loaded, context_of
from hvdlm.inference.sampling import NUMBERS, Sampling
from hvdlm.serve import replies
from hvdlm.serve.chat import Chat
from hvdlm.serve.faults import no_such_model, too_long, wrong
from hvdlm.serve.measures import Measures
from hvdlm.serve.requests import Asked, ChatRequest, CompletionRequest, Prompt
from hvdlm.serve.worker import Worker
from hvdlm.serve.writing import Piece, Writing
from hvdlm.tokenizer import Tokenizer

MOST_ECHOED = 1 << 16  # tokens of prompts and alternatives whose texts and log-probabilities are told
BEGINNING, SPARE = 16, 64  # characters of a long text that are encoded first, by tokens of the context and some more
MOST_TOKENS = 4096  # of a text, where no context ends it sooner
OF_SAMPLING = tuple(name for name in NUMBERS if name != "top_k")  # which others tell otherwise


@dataclass(frozen=True)
class Limits:
    rows: int = 16  # texts that are written side by side
    queue: int = 64  # that wait
    max_tokens: int = 256  # of a text, where a request says nothing


@dataclass
class Service:
    """Everything but HTTP. Made once, before the first request."""

    name: str
    loaded: Loaded
    tokenizer: Tokenizer
    chat: Chat
    limits: Limits = Limits()
    measures: Measures = field(default_factory=Measures)
    is_closing: bool = False
    num_encoding: int = 0  # requests whose texts are encoded or wait for it
    broken: str = ""  # why it can do nothing any more
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.context = context_of(self.loaded.config)
        self.ends = self.loaded.ends
        self.begin = self.loaded.prompt_of(())
        self.worker = Worker(self._engine, Request(self.begin, 2, Sampling()), self._break)
        self.on_broken: Callable[[], Any] = lambda: None

    def _engine(self) -> Engine:
        return Engine(self.loaded.model, self.loaded.vocabulary, context=self.context, rows=self.limits.rows)

    def _break(self, why: str) -> None:
        self.broken = why
        self.on_broken()

    @property
    def fingerprint(self) -> str:
        """What the numbers depend on, beside the request: the weights' step, their type, the kind of device.

        Rounding depends on what is computed side by side too, so even at temperature 0 near ties may fall either way.
        """
        model = self.loaded.model
        numbers = itertools.chain(model.parameters(), model.buffers())  # what is counted has no parameters
        kind = next((str(one.dtype).removeprefix("torch.") for one in numbers if one.is_floating_point()), "counts")
        kind = "int8" if INT8 in self.loaded.changes else kind
        return f"step{self.loaded.state['step']}-{kind}-{model.device.type}"

    @property
    def defaults(self) -> dict[str, Any]:
        sampling = Sampling()
        return {
            "max_tokens": self.limits.max_tokens,
            **{name: getattr(sampling, name) for name in (*OF_SAMPLING, "top_k")},
            "seed": "random",
            "n": 1,
        }

    @property
    def model_card(self) -> replies.Model:
        config = self.loaded.config
        facts = {
            "family": config.model.family,
            "task": config.task.kind,
            "step": self.loaded.state["step"],
            "vocab_size": self.loaded.vocabulary.size,
            "context": self.context,
            "chat_template": Path(self.chat.origin).name,  # folders of this machine are nobody's business
            "reads_source": self.loaded.model.reads_source,
            "system_fingerprint": self.fingerprint,
            "defaults": self.defaults,
        }
        return replies.Model(id=self.name, created=self.created, facts=facts)

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise no_such_model(name[:100], self.name)

    def prompts(self, asked: CompletionRequest | ChatRequest) -> list[tuple[int, ...]]:
        """The ids that the model reads; takes as long as the texts are long."""
        if isinstance(asked, ChatRequest):
            ids = self._encoded(self.chat.encode, self.chat.text(asked.messages), asked.prompt_field)
            return [self.loaded.prompt_of(ids) if self.loaded.task.continues_whole else tuple(ids)]
        return [
            self._encoded(self.ids_of, prompt, asked.prompt_field) if isinstance(prompt, str) else self.ids_of(prompt)
            for prompt in asked.prompt
        ]

    def _encoded(self, encode: Callable[[str], Sequence[int]], text: str, param: str) -> tuple[int, ...]:
        """A Fault for a text far beyond the context, once its beginning is known to be.

        What follows a beginning may only join its last word's tokens into fewer: twice as many as the context leave
        room for that.
        """
        if self.context is not None:
            beginning = text[: BEGINNING * (self.context + SPARE)]
            if len(beginning) < len(text) and len(encode(beginning)) > 2 * (self.context + SPARE):
                raise too_long(f"{param}: has far more than {self.context} tokens, the model's context", param)
        return tuple(encode(text))

    def ids_of(self, prompt: Prompt) -> tuple[int, ...]:
        """Of a text, with what begins one; ids are taken as they are."""
        if isinstance(prompt, str):
            return self.loaded.prompt_of(self.plain_ids_of(prompt))
        return prompt or self.begin

    def plain_ids_of(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text).tolist())

    def text_of(self, ids: Sequence[int]) -> str:
        size = self.loaded.vocabulary.size
        if outside := [token for token in ids if not 0 <= token < size]:
            raise wrong("tokens", f"tokens: {outside[0]} is no id of a vocabulary of {size}")
        return self.tokenizer.decode(np.array(ids, dtype=np.int64))

    def writings(
        self, asked: Asked, prompts: Sequence[tuple[int, ...]], tell: Callable[[Piece], None]
    ) -> list[Writing]:
        """What the worker is to do, one for each prompt; a Fault for what cannot be done."""
        requests = [self._request(asked, prompt) for prompt in prompts]
        most = self.limits.rows + self.limits.queue
        if (num := sum(request.choices for request in requests)) > most:
            raise wrong("prompt", f"prompt: {num} texts at once are more than {most}")
        has_source = self.loaded.task.continues_whole or self.loaded.model.reads_source
        if asked.echoes and has_source:
            raise wrong("echo", "echo: what this model reads is no beginning of what it writes")
        if asked.echoes and asked.num_logprobs is not None:
            each = 1 + asked.num_logprobs
            num = each * sum(len(request.prompt) * request.choices for request in requests)
            if num > MOST_ECHOED:
                message = f"logprobs: {num} tokens of prompts and alternatives are more than {MOST_ECHOED} for echo"
                raise wrong("logprobs", f"{message}; ask for fewer, or for fewer prompts at once")
        return [
            Writing(
                request,
                self.tokenizer,
                tell,
                self.measures,
                stops=asked.stop,
                first=number * request.choices,
                echo=asked.echoes,
                before=() if has_source else request.prompt,
            )
            for number, request in enumerate(requests)
        ]

    def _request(self, asked: Asked, prompt: tuple[int, ...]) -> Request:
        choices = 1 if asked.n is None else asked.n
        if choices > self.limits.rows:
            raise wrong("n", f"n: {choices} is more than {self.limits.rows}")
        max_tokens, logprobs, slides = self._max_tokens(asked), asked.num_logprobs, bool(asked.slide)
        echo = asked.echoes and (logprobs is not None or max_tokens == 0)  # else its text alone, which is known
        self._check_prompt(prompt, asked.prompt_field, max_tokens, slides)
        ends = frozenset[int]() if asked.ignore_eos else self.ends
        return Request(prompt, max_tokens, self._sampling(asked), ends, choices, logprobs, echo, slides)

    def _max_tokens(self, asked: Asked) -> int:
        name, given = asked.limit
        if given is None:
            return self.limits.max_tokens
        most = max(MOST_TOKENS, self.context or 0)
        if given > most:
            raise wrong(name, f"{name}: {given} is more than {most}")
        if given == 0 and not asked.echoes:
            raise wrong(name, f"{name}: 0 is only for echo: true")
        return given

    def _check_prompt(self, prompt: tuple[int, ...], param: str, max_tokens: int, slides: bool) -> None:
        size, has_encoder = self.loaded.vocabulary.size, self.loaded.model.reads_source
        if outside := [token for token in prompt if not 0 <= token < size]:
            raise wrong(param, f"{param}: {outside[0]} is no id of a vocabulary of {size}")
        if not prompt:
            raise wrong(param, f"{param}: is empty, and the chat template adds nothing")
        if slides and has_encoder:
            raise wrong("slide", "slide: a model with an encoder has no context that slides")
        needs_room = bool(max_tokens) and not has_encoder and not slides
        if self.context is not None and len(prompt) + needs_room > self.context:
            room = " and one more to be written" if needs_room else ""
            raise too_long(f"{param}: has {len(prompt)} tokens{room}; the model's context is {self.context}", param)

    def _sampling(self, asked: Asked) -> Sampling:
        """Where a request says nothing, not even 0, the defaults hold; a seed is drawn then."""
        said = {name: value for name in OF_SAMPLING if (value := getattr(asked, name)) is not None}
        if asked.top_k is not None:
            said["top_k"] = max(asked.top_k, 0)  # others have -1 for all
        size = self.loaded.vocabulary.size
        if outside := [token for token in asked.logit_bias if token >= size]:
            raise wrong("logit_bias", f"logit_bias: {outside[0]} is no id of a vocabulary of {size}")
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        return Sampling(**said, logit_bias=asked.logit_bias, seed=seed)

    @property
    def gauges(self) -> dict[str, float]:
        running = self.worker.num_running
        return {"texts_running": running, "texts_waiting": max(0, self.worker.num_open - running) + self.num_encoding}

    @property
    def counters(self) -> dict[str, float]:
        counts = self.worker.counts
        return {
            "prompt_tokens_total": counts.prompt_tokens,
            "written_tokens_total": counts.written_tokens,
            "reading_seconds_total": counts.read_s,
            "writing_seconds_total": counts.write_s,
        }
