"""How likely texts are that stand in a file, or what follows their prompts (`--score`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hvdlm.errors import UserError
from hvdlm.inference.engine import Token
from hvdlm.inference.generate import count_unknown
from hvdlm.inference.infer.likelihood import Judge, Text, num_cut
from hvdlm.inference.infer.lines import Line, Unit, id_of, text_at
from hvdlm.inference.infer.wanted import OF_TEXTS, Wanted
from hvdlm.inference.infer.work import Tell, Values, Work, nats, told_of
from hvdlm.inference.infer.writing import prompt_of
from hvdlm.inference.load import Loaded
from hvdlm.inference.log_likelihoods import Score, encode_pair
from hvdlm.tokenizer import Tokenizer

ROWS = 32  # texts
FOLLOWS = ("completion", "continuation")  # keys of what is scored after a prompt


class Scoring(Work):
    """Log-probabilities in nats: of a text and of its end, or of what follows a prompt, whose end does not count."""

    counted = ("tokens scored",)
    keys = ("id", "prompt", *FOLLOWS)

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer, wanted: Wanted) -> None:
        if name := wanted.among(*OF_TEXTS):
            raise UserError(f"{name}: is of texts that are written, --score reads; leave one out")
        self._tokenizer, self._wanted = tokenizer, wanted
        self.rows = wanted.batch or ROWS
        self._vocabulary, self._judge = loaded.vocabulary, Judge(loaded, batch=self.rows)
        if not self._judge.is_by_token and wanted.logprobs is not None:
            raise UserError("--logprobs: this model has a bound for a text as a whole, none for a token; leave it out")

    def check(self, values: Values) -> None:
        prompt_of(values)
        name = _follows(values)
        if not name:
            return
        assert isinstance(values, dict)
        if all(key in values for key in FOLLOWS):
            raise ValueError(f"has both {' and '.join(map(repr, FOLLOWS))}; leave one out")
        if not text_at(values, name):
            raise ValueError(f"{name!r} is empty: nothing is to be scored; fill it or leave the record out")
        if not self._judge.is_by_token:
            raise ValueError(f"{name!r}: this model has a bound for a text as a whole, none for a part; leave it out")

    def lines(self, unit: Unit, given: Sequence[Line], tell: Tell) -> tuple[list[dict[str, Any]], Counter[str]]:
        texts = [self._text(line.values) for line in given]
        follows = [bool(_follows(line.values)) for line in given]
        left = sum(len(text.ids) - text.num_given for text in texts)

        def count(num_tokens: int) -> None:
            nonlocal left
            left -= num_tokens
            tell(num_tokens, is_last=not left)

        if not self._judge.is_by_token:
            return self._bounds(unit, given, texts, count)
        found: dict[int, Score] = {}
        for is_pair in (False, True):
            places = [place for place, follow in enumerate(follows) if follow == is_pair]
            asked = [texts[place] for place in places]
            judged = self._judge.likelihoods(asked, count, num_top=self._wanted.logprobs or 0, asks_greedy=is_pair)
            found.update(zip(places, judged, strict=True))
        counts = Counter[str]({"truncated": 0, "unknown_tokens": self._num_unknown(given, texts)})
        lines = []
        for place, (line, text) in enumerate(zip(given, texts, strict=True)):
            cut, ids = num_cut(text, self._judge.context), text.ids[text.num_given :]
            told = self._pair(ids, found[place], cut) if follows[place] else self._whole(ids, found[place])
            counts.update({"truncated": int(told.get("truncated", 0) > 0), "num_tokens": told["num_tokens"]})
            counts["log_prob"] += told["log_prob"]
            lines.append({**id_of(line.values), "index": unit.first + place, **told})
        return lines, counts

    def _text(self, values: Values) -> Text:
        prompt, name = prompt_of(values), _follows(values)
        first, end = self._vocabulary.first_id, self._vocabulary.eos_id
        if not name:
            return Text((first, *self._encode(prompt), end))
        assert isinstance(values, dict)
        before, ids = encode_pair(self._encode, prompt, text_at(values, name))
        ids = ids or self._encode(text_at(values, name))  # it is part of the prompt's last token
        return Text((first, *before, *ids), 1 + len(before))

    def _num_unknown(self, given: Sequence[Line], texts: Sequence[Text]) -> int:
        """Of prompts and what follows them."""
        spelled = [_spelled(line.values) for line in given]
        return sum(
            count_unknown(self._tokenizer, *one)
            for one in zip(spelled, (list(text.ids) for text in texts), strict=True)
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text).tolist())

    def _whole(self, ids: Sequence[int], found: Score) -> dict[str, Any]:
        """The end of the text is told apart."""
        own, end = found.log_probs[:-1], found.log_probs[-1]
        told = {"log_prob": nats(sum(own)), "num_tokens": len(own), "end_log_prob": nats(end)}
        return told | self._tokens(ids, found)

    def _pair(self, ids: Sequence[int], found: Score, num_cut: int) -> dict[str, Any]:
        told = {"log_prob": nats(found.log_prob), "num_tokens": len(ids)}
        return told | {"is_greedy": found.is_greedy, "truncated": num_cut} | self._tokens(ids, found)

    def _tokens(self, ids: Sequence[int], found: Score) -> dict[str, Any]:
        if self._wanted.logprobs is None:
            return {}
        tops = found.top or [()] * len(ids)
        tokens = [Token(*entry) for entry in zip(ids, found.log_probs, tops, strict=True)]
        return {"tokens": told_of(tokens, self._tokenizer)}

    def _bounds(
        self, unit: Unit, given: Sequence[Line], texts: Sequence[Text], count: Callable[[int], None]
    ) -> tuple[list[dict[str, Any]], Counter[str]]:
        lines, counts = [], Counter[str]({"unknown_tokens": self._num_unknown(given, texts)})
        for place, (line, text) in enumerate(zip(given, texts, strict=True)):
            bound = self._judge.bound(text, unit.first + place)
            told = {"log_prob_bound": nats(bound), "num_tokens": len(text.ids) - 1}
            lines.append({**id_of(line.values), "index": unit.first + place, **told})
            counts["num_tokens"] += len(text.ids) - 1
            count(len(text.ids) - 1)
        return lines, counts


def _follows(values: Values) -> str:
    """The key of what follows a prompt, or nothing."""
    return "" if isinstance(values, str) else next((name for name in FOLLOWS if name in values), "")


def _spelled(values: Values) -> str:
    """All that a record says."""
    if isinstance(values, str):
        return values
    return " ".join(text_at(values, key) for key in ("prompt", *FOLLOWS) if key in values)
