"""Which documents to drop: simple rules on length, symbols, repetition and script, by the `filter:` section."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from hvdlm.config import Section, choice_of

_CJK = ("han", "kana", "hangul")
_OTHER = "other"

# First and last code points of blocks (Unicode 15). Only letters in them count, so blocks may be taken whole.
_BLOCKS: dict[str, list[tuple[int, int]]] = {
    "latin": [
        (0x41, 0x2AF),
        (0x1D00, 0x1D25),
        (0x1D2C, 0x1D5C),
        (0x1D62, 0x1D65),
        (0x1D6B, 0x1DBE),
        (0x1E00, 0x1EFF),
        (0x2071, 0x209C),
        (0x212A, 0x212B),
        (0x2C60, 0x2C7F),
        (0xA722, 0xA7FF),
        (0xAB30, 0xAB6F),
        (0xFB00, 0xFB06),
        (0xFF21, 0xFF5A),
    ],
    "greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
    "cyrillic": [(0x400, 0x52F), (0x1C80, 0x1C8F), (0xA640, 0xA69F)],
    "armenian": [(0x530, 0x58F), (0xFB13, 0xFB17)],
    "hebrew": [(0x590, 0x5FF), (0xFB1D, 0xFB4F)],
    "arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)],
    "devanagari": [(0x900, 0x97F), (0xA8E0, 0xA8FF)],
    "bengali": [(0x980, 0x9FF)],
    "tamil": [(0xB80, 0xBFF)],
    "telugu": [(0xC00, 0xC7F)],
    "thai": [(0xE00, 0xE7F)],
    "georgian": [(0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)],
    "han": [
        (0x3005, 0x3007),
        (0x3021, 0x3029),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    ],
    "kana": [(0x3031, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F)],
    "hangul": [(0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC)],
}
_SCRIPTS = ["", _OTHER, *_BLOCKS]  # "" is what is no letter


class FilterConfig(Section):
    """The `filter` section; the first rule that a document breaks, in this order, drops it. All are off by default.

    The rules are those of Gopher (Rae et al., 2021, appendix A1) as FineWeb applies them (Penedo et al., 2024);
    its thresholds are in the descriptions.
    """

    min_chars: int | None = Field(None, ge=0, description="drop documents of fewer characters, for example 200")
    max_chars: int | None = Field(None, ge=1, description="drop documents of more characters, for example 100000")
    max_symbol_ratio: float | None = Field(
        None,
        ge=0,
        description="most # (or ellipses, the worse of the two) per word; a Han or kana is a word; Gopher: 0.1",
    )
    max_repeated_line_ratio: float | None = Field(
        None, ge=0, le=1, description="largest part of the lines that repeat a line before; Gopher: 0.3"
    )
    max_repeated_paragraph_ratio: float | None = Field(
        None, ge=0, le=1, description="largest part of the paragraphs that repeat one before; Gopher: 0.3"
    )
    scripts: list[Annotated[str, choice_of([*_BLOCKS, "cjk"])]] = Field(
        [], description="scripts that min_script_ratio adds up; cjk is han, kana and hangul"
    )
    min_script_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="least part of the letters in these scripts; a document without letters is dropped",
    )

    @model_validator(mode="after")
    def _check(self) -> FilterConfig:
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is more than max_chars {self.max_chars}: nothing passes")
        if bool(self.scripts) != (self.min_script_ratio is not None):
            raise ValueError("scripts and min_script_ratio go together: give both or neither")
        return self


def _is_too_short(text: str, config: FilterConfig) -> bool:
    return config.min_chars is not None and len(text) < config.min_chars


def _is_too_long(text: str, config: FilterConfig) -> bool:
    return config.max_chars is not None and len(text) > config.max_chars


def _has_too_many_symbols(text: str, config: FilterConfig) -> bool:
    return config.max_symbol_ratio is not None and symbol_ratio(text) > config.max_symbol_ratio


def _repeats_lines(text: str, config: FilterConfig) -> bool:
    limit = config.max_repeated_line_ratio
    return limit is not None and repeated_ratio(text.split("\n")) > limit


def _repeats_paragraphs(text: str, config: FilterConfig) -> bool:
    limit = config.max_repeated_paragraph_ratio
    return limit is not None and repeated_ratio(_PARAGRAPH_BREAK.split(text)) > limit


def _is_in_other_scripts(text: str, config: FilterConfig) -> bool:
    if config.min_script_ratio is None:
        return False
    shares = script_shares(text)
    wanted = {part for script in config.scripts for part in (_CJK if script == "cjk" else (script,))}
    # A sum of quotients can miss 1 by rounding, and min_script_ratio 1 means all letters.
    return round(sum(share for script, share in shares.items() if script in wanted), 9) < config.min_script_ratio


# The key of the config that a document breaks names the reason.
FILTERS: dict[str, Callable[[str, FilterConfig], bool]] = {
    "min_chars": _is_too_short,
    "max_chars": _is_too_long,
    "max_symbol_ratio": _has_too_many_symbols,
    "max_repeated_line_ratio": _repeats_lines,
    "max_repeated_paragraph_ratio": _repeats_paragraphs,
    "min_script_ratio": _is_in_other_scripts,
}


def make_filter(config: FilterConfig) -> Callable[[str], str | None]:
    """The function from a text to `filter_KEY`, the first rule that drops it, or None.

    >>> drop_reason = make_filter(FilterConfig(min_chars=3, scripts=["cjk"], min_script_ratio=0.5))
    >>> [drop_reason(text) for text in ("汉", "Latin", "汉字ひら")]
    ['filter_min_chars', 'filter_min_script_ratio', None]
    """
    chosen = [(f"filter_{key}", breaks) for key, breaks in FILTERS.items() if getattr(config, key) is not None]

    def drop_reason(text: str) -> str | None:
        return next((reason for reason, breaks in chosen if breaks(text, config)), None)

    return drop_reason


# --- What the rules measure -----------------------------------------------------------------------------------

_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


def symbol_ratio(text: str) -> float:
    """# or ellipses per word, whichever is more: Gopher's rule against tag lists and cut-off teasers.

    Words are what blanks separate; scripts without blanks count each Han character and kana instead.

    >>> symbol_ratio("#a #b c d"), symbol_ratio("read more... …"), symbol_ratio("他说……好")
    (0.5, 0.6666666666666666, 0.25)
    """
    num_hashes = text.count("#")
    num_ellipses = text.count("...") + text.count("…") - text.count("……")  # Chinese writes two for one
    if not num_hashes and not num_ellipses:
        return 0.0
    num_words = len(text.split())
    if not text.isascii():
        counts = _count_letters(text)
        num_words += int(counts[_SCRIPTS.index("han")] + counts[_SCRIPTS.index("kana")])
    return max(num_hashes, num_ellipses) / max(1, num_words)


def repeated_ratio(items: list[str]) -> float:
    """The part of the items that equal an earlier one, blanks around them and blank ones ignored.

    >>> repeated_ratio(["a", "b", " a", "", ""])
    0.3333333333333333
    """
    keys = [key for item in items if (key := item.strip())]
    return (len(keys) - len(set(keys))) / max(1, len(keys))


# --- Scripts --------------------------------------------------------------------------------------------------

_CHUNK = 1 << 16  # characters; a chunk's arrays stay in the cache


@functools.cache
def _script_of() -> np.ndarray:
    """(0x110000,) uint8: the index in _SCRIPTS of every code point."""
    table = np.zeros(0x110000, np.uint8)
    for code in range(0x20000):  # beyond are Han and marks alone
        if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Nl"):
            table[code] = _SCRIPTS.index(_OTHER)
    table[0x20000:0x40000] = _SCRIPTS.index(_OTHER)
    for script, blocks in _BLOCKS.items():
        for first, last in blocks:
            block = table[first : last + 1]
            block[block > 0] = _SCRIPTS.index(script)
    return table


_NOT_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())


def _count_letters(text: str) -> np.ndarray:
    """(len(_SCRIPTS),) int64: letters of each script; place 0 counts what is no letter."""
    counts = np.zeros(len(_SCRIPTS), np.int64)
    if text.isascii():
        counts[_SCRIPTS.index("latin")] = len(text.encode().translate(None, _NOT_LETTERS))
        return counts
    for start in range(0, len(text), _CHUNK):
        codes = np.frombuffer(text[start : start + _CHUNK].encode("utf-32-le", "surrogatepass"), np.uint32)
        counts += np.bincount(_script_of()[codes], minlength=len(_SCRIPTS))
    return counts


def script_shares(text: str) -> dict[str, float]:
    """The part of the letters in each script that occurs, `other` included; empty without letters.

    Letters are Unicode's categories L and Nl, so digits, marks, punctuation and emoji do not count.

    >>> script_shares("abc 汉, 12!")
    {'latin': 0.75, 'han': 0.25}
    """
    counts = _count_letters(text)
    num_letters = int(counts[1:].sum())
    return {script: int(count) / num_letters for script, count in zip(_SCRIPTS[1:], counts[1:], strict=True) if count}
