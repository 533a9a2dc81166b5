"""What benchmarks ask of a model, answered by all ranks: how likely texts are, and what it writes after others.

Rank 0 alone has the questions; the others do their part of each round. What is computed together does not depend on the
ranks, so neither do the answers.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hvdlm.errors import UserError
from hvdlm.inference.engine import Engine, Request
from hvdlm.inference.listeners import Written
from hvdlm.inference.load import Loaded, context_of
from hvdlm.inference.log_likelihoods import (
    Score,
    Stretch,
    batches,
    check_scores,
    encode_pair,
    score,
    stretches,
    together,
)
from hvdlm.inference.sampling import NUMBERS, Sampling
from hvdlm.inference.texts import TextWriter
from hvdlm.session.progress import Progress
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.interface import World

ROWS = 16  # texts that are written side by side
PROMPTS = 2 * ROWS  # that a rank is given at once
MAX_TOKENS = 256  # of a text, where a task does not say
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # how tasks call it; the first wins
KNOWN = {"until", "do_sample", *LENGTHS, *NUMBERS}


class Prompt(NamedTuple):
    """Ids, and what is to be written after them."""

    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]


class Worker:
    """What one rank computes."""

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer) -> None:
        self.loaded, self.tokenizer = loaded, tokenizer
        self._engine = Engine(loaded.model, loaded.vocabulary, context=context_of(loaded.config), rows=ROWS)

    def score(self, part: Sequence[Stretch]) -> list[Score]:
        return score(self.loaded, part)

    def write(self, part: Sequence[Prompt]) -> list[str]:
        heard = []
        for prompt in part:
            before = () if self.loaded.task.continues_whole else prompt.ids
            heard.append(Written([TextWriter(self.tokenizer, before, prompt.stops)]))
            request = Request(prompt.ids, prompt.max_tokens, prompt.sampling, self.loaded.ends)
            if fault := self._engine.fault(request):
                raise UserError(f"a task's prompt: {fault}")
            self._engine.add(request, heard[-1])
        self._engine.run()
        return [listener.texts[0] for listener in heard]


class Ranks:
    """Rounds of work: rank 0 calls `all_parts` and, at the end, `dismiss`; the others `follow`."""

    def __init__(self, world: World, worker: Worker) -> None:
        self._world, self._worker = world, worker

    def all_parts(self, kind: str, parts: Sequence[Sequence[Any]], title: str) -> list[Any]:
        """What the parts of some work come to, one after the other."""
        found: list[Any] = []
        with Progress(title, sum(map(len, parts)), "texts", self._world) as progress:
            for start in range(0, len(parts), self._world.size):
                before = len(found)
                together = parts[start : start + self._world.size]
                self._world.broadcast((kind, together))
                for own in self._round(kind, together):
                    found += own
                progress.advance(len(found) - before)
        return found

    def dismiss(self, fault: str = "") -> None:
        """There is no more work; with a `fault` all ranks end with it."""
        self._world.broadcast(("", fault))
        if fault:
            raise UserError.shared(fault)

    def follow(self) -> None:
        while True:
            kind, told = self._world.broadcast(None)
            if not kind and told:
                raise UserError.shared(told)
            if not kind:
                return
            self._round(kind, told)

    def _round(self, kind: str, together: Sequence[Sequence[Any]]) -> list[Any]:
        own: list[Any] = []
        with self._world.together():
            if self._world.rank < len(together):
                part = together[self._world.rank]
                own = self._worker.score(part) if kind == "score" else self._worker.write(part)
        return self._world.gather_on_root(own)


class Answers:
    """Rank 0's: questions of texts to answers, in the order of the questions."""

    def __init__(self, ranks: Ranks, worker: Worker, name: object) -> None:
        self._ranks, self._loaded, self._tokenizer = ranks, worker.loaded, worker.tokenizer
        self._name, self._context = name, context_of(worker.loaded.config)
        # The choices of a question have its context in common.
        self._encode = functools.lru_cache(64)(lambda text: tuple(worker.tokenizer.encode(text).tolist()))
        self.counts = Counter[str]()  # of questions, by what is to be said of them
        self.ignored: set[str] = set()  # settings of tasks that say nothing to us

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Of each continuation after its context."""
        check_scores(self._loaded, self._name)
        asked = []
        for context, continuation in pairs:
            context_ids, ids = encode_pair(self._encode, context, continuation)
            before = (self._loaded.vocabulary.first_id, *context_ids)
            self.counts["cut"] += self._context is not None and len(before) + len(ids) - 1 > self._context
            asked.append(self._stretches(before, ids))
        self.counts["log_likelihoods"] += len(pairs)
        return self._scored(asked)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each text as a whole; what is longer than the context is read in windows."""
        check_scores(self._loaded, self._name)
        before = (self._loaded.vocabulary.first_id,)
        self.counts["whole_texts"] += len(texts)
        asked = [self._stretches(before, self._encode(text)) for text in texts]
        return [found.log_prob for found in self._scored(asked)]

    def _stretches(self, before: Sequence[int], ids: tuple[int, ...]) -> list[Stretch]:
        if self._tokenizer.unk_id is not None:
            self.counts["unknown_tokens"] += ids.count(self._tokenizer.unk_id)
        return stretches(before, ids, self._context) if ids else []

    def _scored(self, asked: Sequence[list[Stretch]]) -> list[Score]:
        """What all stretches of a question are together."""
        flat = [stretch for parts in asked for stretch in parts]
        found: dict[int, Score] = {}
        groups = batches(flat)
        answers = self._ranks.all_parts("score", [[flat[number] for number in group] for group in groups], "scoring")
        for number, answer in zip((number for group in groups for number in group), answers, strict=True):
            found[number] = answer
        ordered = iter(found[number] for number in range(len(flat)))
        return [together([next(ordered) for _ in parts]) for parts in asked]

    def written(self, questions: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What the model writes after each text, by the settings of a task."""
        prompts = [self._prompt(number, *question) for number, question in enumerate(questions)]
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number].ids))
        parts = [[prompts[n] for n in order[first : first + PROMPTS]] for first in range(0, len(order), PROMPTS)]
        self.counts["written"] += len(prompts)
        answers = self._ranks.all_parts("write", parts, "writing")
        return [text for _, text in sorted(zip(order, answers, strict=True))]

    def _prompt(self, number: int, text: str, settings: Mapping[str, Any]) -> Prompt:
        until = settings.get("until") or ()
        stops = tuple(filter(None, [until] if isinstance(until, str) else until))
        max_tokens = int(next((settings[name] for name in LENGTHS if settings.get(name) is not None), MAX_TOKENS))
        ids = self._loaded.prompt_of(self._encode(text))
        self.ignored |= settings.keys() - KNOWN
        if self._context is not None and not self._loaded.model.reads_source:
            max_tokens = min(max_tokens, max(1, self._context // 2))
        if self._context is not None:
            room = self._context - (0 if self._loaded.model.reads_source else max_tokens)
            self.counts["cut"] += len(ids) > room
            ids = ids[-room:]
        return Prompt(ids, max_tokens, _sampling(number, settings), stops)


def _sampling(number: int, settings: Mapping[str, Any]) -> Sampling:
    """Greedy where a task does not ask for draws; draws of question `number` are its own."""
    given = {name: settings[name] for name in NUMBERS if settings.get(name) is not None}
    if not settings.get("do_sample", float(given.get("temperature", 0)) > 0):
        given["temperature"] = 0.0
    try:
        return Sampling(**{"temperature": 1.0, **given}, seed=number)
    except (TypeError, ValueError) as error:
        raise UserError(f"a task's generation_kwargs: {error}") from None
