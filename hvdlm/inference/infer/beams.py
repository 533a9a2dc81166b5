"""The likeliest continuations of the prompts of a unit, by beam search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hvdlm.data.records import stacked
from hvdlm.decoding import Hypothesis, decode
from hvdlm.errors import UserError
from hvdlm.inference.generate import count_unknown
from hvdlm.inference.infer.lines import Line, Unit, id_of
from hvdlm.inference.infer.wanted import OF_DRAWING, Wanted
from hvdlm.inference.infer.work import Tell, Values, Work, nats
from hvdlm.inference.infer.writing import ROWS, Prompt, Prompts, prompt_of
from hvdlm.inference.load import Loaded
from hvdlm.inference.search import room_after, search_of, text_of
from hvdlm.inference.texts import TextWriter
from hvdlm.tokenizer import Tokenizer


class Searching(Work):
    """The best `choices` of so many beams."""

    counted = ("tokens read", "tokens written")
    keys = ("id", "prompt")

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer, wanted: Wanted) -> None:
        if name := wanted.among(*OF_DRAWING, "logprobs", "echo"):
            raise UserError(f"{name}: is of texts that are drawn, --beams searches; leave one out")
        self._beams = wanted.beams or 1
        if wanted.choices > self._beams:
            raise UserError(f"--n: {wanted.choices} texts are more than --beams {self._beams} find; raise --beams")
        self._loaded, self._tokenizer, self._wanted = loaded, tokenizer, wanted
        self._prompts = Prompts(loaded, tokenizer, max_tokens=wanted.texts.max_tokens, slides=False)
        self.rows = wanted.batch or ROWS

    def check(self, values: Values) -> None:
        prompt_of(values)

    def lines(self, unit: Unit, given: Sequence[Line], tell: Tell) -> tuple[list[dict[str, Any]], Counter[str]]:
        prompts = [self._prompts.read(line.values) for line in given]
        found: list[list[Hypothesis]] = [[] for _ in prompts]
        left = len(prompts)
        for group, most in self._groups(prompts):
            ids = [np.array(prompts[place].ids) for place in group]
            lengths = torch.tensor([len(own) for own in ids])
            rows = torch.from_numpy(stacked(ids, int(lengths.max()), 0))
            how = search_of(self._loaded, most, self._beams)
            for place, best in zip(group, decode(self._loaded.model, rows, lengths, how), strict=True):
                found[place] = best[: self._wanted.choices]
            left -= len(group)
            written = sum(len(best.ids) for place in group for best in found[place])
            tell(int(lengths.sum()), written, is_last=not left)
        counts = Counter[str]({f"finish_{reason}": 0 for reason in ("stop", "length")})
        lines = [
            self._line(unit.first + place, *entry, counts)
            for place, entry in enumerate(zip(given, prompts, found, strict=True))
        ]
        return lines, counts

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], int]]:
        """Prompts of about one length that are searched together, and how many tokens there is room for."""
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].ids))
        rooms: dict[int, list[int]] = {}
        for place in order:
            room = room_after(self._loaded, len(prompts[place].ids), self._wanted.texts.max_tokens)
            rooms.setdefault(room, []).append(place)
        for most, places in rooms.items():
            for start in range(0, len(places), self.rows):
                yield places[start : start + self.rows], most

    def _line(
        self, index: int, line: Line, prompt: Prompt, found: list[Hypothesis], counts: Counter[str]
    ) -> dict[str, Any]:
        choices = [self._choice(prompt, one) for one in found]
        counts.update(f"finish_{choice['finish_reason']}" for choice in choices)
        counts["truncated"] += prompt.num_cut > 0
        counts["unknown_tokens"] += count_unknown(self._tokenizer, prompt.text, list(prompt.own))
        counts["prompt_tokens"] += len(prompt.ids)
        counts["written_tokens"] += sum(choice["num_tokens"] for choice in choices)
        texts = choices[0] if self._wanted.choices == 1 else {"choices": choices}
        return {**id_of(line.values), "index": index, **texts, "truncated": prompt.num_cut}

    def _choice(self, prompt: Prompt, found: Hypothesis) -> dict[str, Any]:
        before = () if self._loaded.task.continues_whole else prompt.own
        text, reason = text_of(found, TextWriter(self._tokenizer, before, self._wanted.texts.stops))
        told = {"text": text, "finish_reason": reason, "num_tokens": len(found.ids)}
        return {**told, "log_prob": nats(found.log_prob), "score": nats(found.score)}
