"""Texts that continue the prompts of a unit, written side by side by an engine of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hvdlm.errors import UserError
from hvdlm.inference.engine import Engine, Request
from hvdlm.inference.generate import count_unknown
from hvdlm.inference.infer.lines import Line, Unit, id_of, text_at
from hvdlm.inference.infer.wanted import Wanted
from hvdlm.inference.infer.work import Tell, Values, Work, seed_of, told_of
from hvdlm.inference.listeners import Written
from hvdlm.inference.load import Loaded, context_of
from hvdlm.inference.texts import TextWriter
from hvdlm.tokenizer import Tokenizer

ROWS = 16  # texts that are written side by side


@dataclass(frozen=True)
class Prompt:
    """A record's prompt as the model reads it."""

    text: str
    ids: tuple[int, ...]
    own: tuple[int, ...]  # of its text
    num_cut: int  # tokens at its beginning that had no room


def prompt_of(values: Values) -> str:
    """ValueError where a record has none."""
    _ = id_of(values)
    return values if isinstance(values, str) else text_at(values, "prompt")


class Prompts:
    """Prompts of records to ids, the last of them where there are more than have room.

    What is written needs room too: `max_tokens`, or half of the context where that is less. With `slides` none.
    """

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer, *, max_tokens: int, slides: bool) -> None:
        self._loaded, self._tokenizer, context = loaded, tokenizer, context_of(loaded.config)
        self._most = context
        if context is not None and not slides and not loaded.model.reads_source:
            self._most = max(1, context - max_tokens, context // 2)

    def read(self, values: Values) -> Prompt:
        text = prompt_of(values)
        own = tuple(self._tokenizer.encode(text).tolist())
        ids = self._loaded.prompt_of(own)
        num_cut = 0 if self._most is None else max(0, len(ids) - self._most)
        return Prompt(text, ids[num_cut:], own, num_cut)


class Writing(Work):
    """Texts as they are wanted, drawn by the engine."""

    counted = ("tokens read", "tokens written")
    keys = ("id", "prompt")

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer, wanted: Wanted) -> None:
        self._loaded, self._tokenizer, self._wanted = loaded, tokenizer, wanted
        how = wanted.texts
        self._prompts = Prompts(loaded, tokenizer, max_tokens=how.max_tokens, slides=how.slides)
        self.rows = wanted.batch or ROWS
        self._vocabulary, self._context = loaded.vocabulary, context_of(loaded.config)
        self.seconds: dict[str, float] = dict.fromkeys(self.counted, 0.0)
        first = (loaded.vocabulary.first_id,)
        if fault := self._engine().fault(self._request(Prompt("", first, (), 0), 0)):
            raise UserError(f"--slide: {fault}" if how.slides else fault.replace("logit_bias", "--logit-bias"))

    def check(self, values: Values) -> None:
        prompt_of(values)

    def lines(self, unit: Unit, given: Sequence[Line], tell: Tell) -> tuple[list[dict[str, Any]], Counter[str]]:
        engine = self._engine()
        prompts = [self._prompts.read(line.values) for line in given]
        heard = [self._listener(prompt) for prompt in prompts]
        for place in sorted(range(len(prompts)), key=lambda place: len(prompts[place].ids)):
            engine.add(self._request(prompts[place], unit.first + place), heard[place])
        done, read, written = engine.counts, 0, 0
        while engine.step():
            is_last = not (engine.num_running or engine.num_waiting)
            tell(done.prompt_tokens - read, done.written_tokens - written, is_last=is_last)
            read, written = done.prompt_tokens, done.written_tokens
        for name, spent_s in zip(self.counted, (done.read_s, done.write_s), strict=True):
            self.seconds[name] += spent_s
        lines = [
            self._line(unit.first + place, *entry)
            for place, entry in enumerate(zip(given, prompts, heard, strict=True))
        ]
        counts = _counted(prompts, heard)
        counts["unknown_tokens"] = sum(count_unknown(self._tokenizer, one.text, list(one.own)) for one in prompts)
        return lines, counts

    def _engine(self) -> Engine:
        rows = max(self.rows, self._wanted.choices)
        return Engine(self._loaded.model, self._vocabulary, context=self._context, rows=rows)

    def _listener(self, prompt: Prompt) -> Written:
        before = () if self._loaded.task.continues_whole else prompt.own
        stops = self._wanted.texts.stops
        return Written([TextWriter(self._tokenizer, before, stops) for _ in range(self._wanted.choices)])

    def _request(self, prompt: Prompt, index: int) -> Request:
        wanted, how = self._wanted, self._wanted.texts
        return Request(
            prompt.ids,
            how.max_tokens,
            replace(how.sampling, seed=seed_of(how.sampling.seed, index)),
            self._loaded.ends,
            choices=wanted.choices,
            logprobs=wanted.logprobs,
            echo=wanted.echo,
            slides=how.slides,
        )

    def _line(self, index: int, line: Line, prompt: Prompt, heard: Written) -> dict[str, Any]:
        """One text stands in the line itself, several are its `choices`."""
        found = {**id_of(line.values), "index": index}
        if self._wanted.echo:
            found["prompt"] = prompt.text
            if self._wanted.logprobs is not None:
                found["prompt_tokens"] = told_of(heard.echoed, self._tokenizer)
        choices = [self._choice(heard, choice) for choice in range(self._wanted.choices)]
        texts = choices[0] if len(choices) == 1 else {"choices": choices}
        return {**found, **texts, "truncated": prompt.num_cut}

    def _choice(self, heard: Written, choice: int) -> dict[str, Any]:
        tokens = heard.tokens[choice]
        found = {
            "text": heard.texts[choice],
            "finish_reason": heard.reasons[choice],
            "num_tokens": len(tokens),
        }
        if self._wanted.logprobs is not None:
            found["tokens"] = told_of(tokens, self._tokenizer)
        return found


def _counted(prompts: Sequence[Prompt], heard: Sequence[Written]) -> Counter[str]:
    counts = Counter[str]({f"finish_{reason}": 0 for reason in ("stop", "length")})
    counts.update(f"finish_{reason}" for one in heard for reason in one.reasons)
    counts["truncated"] = sum(prompt.num_cut > 0 for prompt in prompts)
    counts["prompt_tokens"] = sum(len(prompt.ids) for prompt in prompts)
    counts["written_tokens"] = sum(len(tokens) for one in heard for tokens in one.tokens)
    return counts
