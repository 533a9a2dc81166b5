"""What a vocabulary does to text: its tokens, and its cost by language."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hvdlm.tables import table
from hvdlm.tokenizer import digest
from hvdlm.tokenizer.interface import Tokenizer

HAN_AND_KANA = "\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
SCRIPTS = {
    "latin": re.compile("[A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ]"),
    "cjk": re.compile(f"[{HAN_AND_KANA}]"),
    "cyrillic": re.compile("[\u0400-\u052f]"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc]"),
    "hangul": re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"),
    "devanagari": re.compile("[\u0900-\u097f]"),
    "greek": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
}
WORD = re.compile(f"[{HAN_AND_KANA}]|[^\\s{HAN_AND_KANA}]+")
NUM_SHOWN = 20


def script_of(text: str) -> str:
    """The script of most letters of a text; a CJK character counts for three, as it says more than a letter.

    >>> [script_of(text) for text in ("naïve", "我们用 Python 写代码", "мир", "42")]
    ['latin', 'cjk', 'cyrillic', 'other']
    """
    counts = {name: len(letters.findall(text)) * (3 if name == "cjk" else 1) for name, letters in SCRIPTS.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "other"


def num_words(text: str) -> int:
    """Words for fertility: what stands between spaces, and each CJK (Han, kana) character by itself.

    >>> num_words("two words"), num_words("你好 world")
    (2, 3)
    """
    return sum(1 for _ in WORD.finditer(text))


def show(tokenizer: Tokenizer, text: str) -> dict:
    """A vocabulary in short, and the pieces of one text: one id decoded at a time, so a split character is U+FFFD."""
    tokens = [tokenizer.decode(np.array([number])) for number in range(tokenizer.vocab_size)]
    ids = tokenizer.encode(text).tolist()
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "unk_id": tokenizer.unk_id,
        "digest": digest(tokenizer),
        "first_tokens": tokens[:NUM_SHOWN],
        "longest_tokens": sorted(tokens, key=len, reverse=True)[:NUM_SHOWN],
        "ids": ids,
        "pieces": [tokens[number] for number in ids],
    }


@dataclass(frozen=True)
class _Cost:
    """Of one text or, added up, of many."""

    num_bytes: int = 0
    num_words: int = 0
    num_tokens: int = 0  # without eos, which no text holds
    num_unknown: int = 0
    num_texts: int = 0

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(*(own + its for own, its in zip(vars(self).values(), vars(other).values(), strict=True)))


def compare(tokenizers: dict[str, Tokenizer], texts: Iterable[str]) -> list[dict]:
    """One row for each tokenizer and group: all texts, then those of each script (`script_of`).

    bytes_per_token: UTF-8 bytes of text a token stands for. fertility: tokens a word (`num_words`, so
    tokens a character in CJK). unknown_rate: part of the tokens that is the unknown one. A row without
    tokens or words has None.
    """
    texts = list(texts)
    groups = [script_of(text) for text in texts]
    order = ["all", *(name for name in [*SCRIPTS, "other"] if name in groups)]
    rows = []
    for name, tokenizer in tokenizers.items():
        costs = dict.fromkeys(order, _Cost())
        for group, cost in zip(groups, _costs(tokenizer, texts), strict=True):
            costs[group] += cost
            costs["all"] += cost
        rows += [_row(name, group, cost) for group, cost in costs.items()]
    return rows


def _costs(tokenizer: Tokenizer, texts: list[str]) -> Iterable[_Cost]:
    ids, counts = tokenizer.encode_documents(texts)
    stop = 0
    for text, count in zip(texts, counts.tolist(), strict=True):
        start, stop = stop, stop + count
        num_unknown = 0 if tokenizer.unk_id is None else int((ids[start:stop] == tokenizer.unk_id).sum())
        yield _Cost(len(text.encode()), num_words(text), count - 1, num_unknown, 1)


def _row(name: str, group: str, cost: _Cost) -> dict:
    return {
        "tokenizer": name,
        "group": group,
        "texts": cost.num_texts,
        "bytes": cost.num_bytes,
        "tokens": cost.num_tokens,
        "bytes_per_token": cost.num_bytes / cost.num_tokens if cost.num_tokens else None,
        "fertility": cost.num_tokens / cost.num_words if cost.num_words else None,
        "unknown_rate": cost.num_unknown / cost.num_tokens if cost.num_tokens else None,
    }


def to_text(rows: list[dict]) -> str:
    """Rows of `compare` as columns.

    >>> from hvdlm.tokenizer import ByteTokenizer
    >>> print(to_text(compare({"byte": ByteTokenizer()}, ["one two", "你好"])))
    tokenizer  group  texts  bytes  tokens  bytes_per_token  fertility  unknown_rate
    byte       all        2     13      13             1.00       3.25         0.00%
    byte       latin      1      7       7             1.00       3.50         0.00%
    byte       cjk        1      6       6             1.00       3.00         0.00%
    """
    cells = [[_cell(key, value) for key, value in row.items()] for row in rows]
    return table(list(rows[0]) if rows else [], cells, num_left=2)


def _cell(key: str, value: str | int | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2%}" if key == "unknown_rate" else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value
