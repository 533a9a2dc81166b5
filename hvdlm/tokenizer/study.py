"""What a vocabulary does to text: its tokens, and its cost by language."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from hvdlm.tables import table
from hvdlm.tokenizer import digest
from hvdlm.tokenizer.interface import Tokenizer, num_ends, shown

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
    tokens = [shown(tokenizer, number) for number in range(tokenizer.vocab_size)]
    ids = tokenizer.encode(text).tolist()
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "unk_id": tokenizer.unk_id,
        "digest": digest(tokenizer),
        "first_tokens": tokens[:NUM_SHOWN],
        "longest_tokens": sorted(tokens, key=len, reverse=True)[:NUM_SHOWN],
        "ids": ids,
        "pieces": [tokens[number] for number in ids],
    }


def compare(tokenizers: dict[str, Tokenizer], texts: Iterable[str]) -> list[dict]:
    """One row for each tokenizer and group: all texts, then those of each script (`script_of`).

    bytes_per_token: UTF-8 bytes of text a token stands for. fertility: tokens a word (`num_words`, so
    tokens a character in CJK). unknown_rate: part of the tokens that is the unknown one. A row without
    tokens or words has None.
    """
    texts = list(texts)
    groups = np.array([script_of(text) for text in texts])
    rows = []
    for name, tokenizer in tokenizers.items():
        costs = _costs(tokenizer, texts)
        rows.append(_row(name, "all", costs))
        rows += [_row(name, group, costs[groups == group]) for group in (*SCRIPTS, "other") if group in groups]
    return rows


def _costs(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Of each text: bytes, words, tokens without bos and eos, and unknown tokens; int64 (texts, 4)."""
    ids, counts = tokenizer.encode_documents(texts)
    unknown = (part == tokenizer.unk_id for part in np.split(ids, np.cumsum(counts)[:-1]))
    return np.array(
        [
            (len(text.encode()), num_words(text), count - num_ends(tokenizer), np.count_nonzero(is_unknown))
            for text, count, is_unknown in zip(texts, counts, unknown, strict=False)  # of no texts one empty part
        ],
        dtype=np.int64,
    ).reshape(-1, 4)


def _row(name: str, group: str, costs: np.ndarray) -> dict:
    num_bytes, words, tokens, unknown = costs.sum(0).tolist()
    return {
        "tokenizer": name,
        "group": group,
        "texts": len(costs),
        "bytes": num_bytes,
        "tokens": tokens,
        "bytes_per_token": num_bytes / tokens if tokens else None,
        "fertility": tokens / words if words else None,
        "unknown_rate": unknown / tokens if tokens else None,
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
