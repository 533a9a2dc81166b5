"""Answers to questions against gold ones: exact match and F1 of shared words, the best over several gold answers.

In English as SQuAD's evaluation (Rajpurkar et al. 2016), in Chinese as CMRC 2018's (Cui et al. 2019), elsewhere as
SQuAD's without articles.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdlm.scoring.intervals import wilson
from hvdlm.scoring.languages import LONE_LETTER, WITHOUT_BLANKS, language_of
from hvdlm.scoring.text import UNIT, f1_of_bags, f1_of_common, share_figures

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_MARKS = frozenset(string.punctuation)
# What CMRC's script leaves out; it keeps the ASCII comma and full stop, which numbers have.
_CHINESE_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
_PIECES = re.compile(rf"[{LONE_LETTER}]|[^\W{LONE_LETTER}]+(?:[.,][^\W{LONE_LETTER}]+)*|[^\w\s]")


def answer_figures(written: Sequence[str], gold: Sequence[Sequence[str]], language: str) -> dict[str, Any]:
    """`exact_match` with Wilson's interval and `token_f1` with one by bootstrap, 0 to 1; gold has one answer or more.

    The gold answer "" is that there is none: it is met by "" alone.
    """
    rows = answer_rows(written, gold, language)
    right = int(rows[:, 0].sum()) // UNIT
    told = share_figures(("exact_match", "token_f1"), rows)
    return told | {"exact_match_interval": wilson(right, len(rows))}


def answer_rows(written: Sequence[str], gold: Sequence[Sequence[str]], language: str) -> np.ndarray:
    """Of each record whether an answer is met exactly, and F1, in 1 / UNIT: int64 (n, 2); they add up over records."""
    rows = np.zeros((len(written), 2), dtype=np.int64)
    for row, text, answers in zip(rows, written, gold, strict=True):
        every = [(exact_match(text, answer, language), token_f1(text, answer, language)) for answer in answers]
        row[:] = np.rint(np.max(np.array(every, dtype=np.float64), axis=0) * UNIT)
    return rows


def exact_match(written: str, answer: str, language: str) -> bool:
    """Whether both are the same but for case, marks and, in English, articles.

    >>> exact_match("the Eiffel Tower!", "Eiffel tower", "en"), exact_match("《红楼梦》", "红楼梦", "zh")
    (True, True)
    """
    return normalized(written, language) == normalized(answer, language)


def token_f1(written: str, answer: str, language: str) -> float:
    """F1 of common words; in Chinese, of the longest run of letters and words that both have, as CMRC counts it.

    >>> token_f1("in the Eiffel Tower", "Eiffel tower", "en"), token_f1("在北京大学", "北京", "zh")
    (0.8, 0.5714285714285714)
    """
    found, wanted = tokens(written, language), tokens(answer, language)
    if not found or not wanted:
        return float(found == wanted)
    if language_of(language) in WITHOUT_BLANKS:
        return f1_of_common(common_run(found, wanted), len(found), len(wanted))
    return f1_of_bags(found, wanted)


def normalized(text: str, language: str) -> str:
    language, text = language_of(language), text.lower()
    if language in WITHOUT_BLANKS:
        return "".join(letter for letter in text.strip() if letter not in _CHINESE_MARKS)
    if language == "en":
        text = _ARTICLES.sub(" ", "".join(letter for letter in text if letter not in _ASCII_MARKS))
    else:
        text = "".join(letter for letter in text if letter not in _ASCII_MARKS and not _is_mark(letter))
    return " ".join(text.split())


def tokens(text: str, language: str) -> list[str]:
    """Words of the normalized text; in Chinese letters, and words of other scripts.

    >>> tokens("BERT有1.1亿个参数。", "zh")
    ['bert', '有', '1.1', '亿', '个', '参', '数']
    """
    kept = normalized(text, language)
    return _PIECES.findall(kept) if language_of(language) in WITHOUT_BLANKS else kept.split()


def common_run(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common run.

    >>> common_run("abcde", "xbcdyabc")
    3
    """
    longest, before = 0, [0] * (len(other) + 1)
    for item in one:
        row = [0] * (len(other) + 1)
        for place, another in enumerate(other):
            if item == another:
                row[place + 1] = before[place] + 1
        longest, before = max(longest, *row), row
    return longest


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("P")
