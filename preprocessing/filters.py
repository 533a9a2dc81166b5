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
from hvdlm.tokenizer.interface import code_points

_CJK = ("han", "kana", "hangul")
_OTHER = "other"

# First and last code points of blocks (Unicode 15). Only letters in them count, so blocks may be taken whole.
_BLOCKS = {
    "latin": "41-2AF 1D00-1D25 1D2C-1D5C 1D62-1D65 1D6B-1DBE 1E00-1EFF 2071-209C 212A-212B 2C60-2C7F A722-A7FF "
    "AB30-AB6F FB00-FB06 FF21-FF5A",
    "greek": "370-3FF 1F00-1FFF",
    "cyrillic": "400-52F 1C80-1C8F A640-A69F",
    "armenian": "530-58F FB13-FB17",
    "hebrew": "590-5FF FB1D-FB4F",
    "arabic": "600-6FF 750-77F 870-8FF FB50-FDFF FE70-FEFE",
    "devanagari": "900-97F A8E0-A8FF",
    "bengali": "980-9FF",
    "tamil": "B80-BFF",
    "telugu": "C00-C7F",
    "thai": "E00-E7F",
    "georgian": "10A0-10FF 1C90-1CBF 2D00-2D2F",
    "han": "3005-3007 3021-3029 3400-4DBF 4E00-9FFF F900-FAFF 20000-3FFFF",
    "kana": "3031-30FF 31F0-31FF FF66-FF9F 1AFF0-1B16F",
    "hangul": "1100-11FF 3131-318E A960-A97F AC00-D7FF FFA0-FFDC",
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


def _is_in_other_scripts(text: str, least: float, config: FilterConfig) -> bool:
    shares = script_shares(text)
    wanted = {part for script in config.scripts for part in (_CJK if script == "cjk" else (script,))}
    # A sum of quotients can miss 1 by rounding, and min_script_ratio 1 means all letters.
    return round(sum(share for script, share in shares.items() if script in wanted), 9) < least


_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")

# Whether a text breaks the rule of a key of the config, by the key's value; the key names the reason.
FILTERS: dict[str, Callable[[str, float, FilterConfig], bool]] = {
    "min_chars": lambda text, least, _: len(text) < least,
    "max_chars": lambda text, most, _: len(text) > most,
    "max_symbol_ratio": lambda text, most, _: symbol_ratio(text) > most,
    "max_repeated_line_ratio": lambda text, most, _: repeated_ratio(text.split("\n")) > most,
    "max_repeated_paragraph_ratio": lambda text, most, _: repeated_ratio(_PARAGRAPH_BREAK.split(text)) > most,
    "min_script_ratio": _is_in_other_scripts,
}


def make_filter(config: FilterConfig) -> Callable[[str], str | None]:
    """The function from a text to `filter_KEY`, the first rule that drops it, or None.

    >>> drop_reason = make_filter(FilterConfig(min_chars=3, scripts=["cjk"], min_script_ratio=0.5))
    >>> [drop_reason(text) for text in ("汉", "Latin", "汉字ひら")]
    ['filter_min_chars', 'filter_min_script_ratio', None]
    """
    rules = [(key, getattr(config, key), breaks) for key, breaks in FILTERS.items()]
    chosen = [rule for rule in rules if rule[1] is not None]

    def drop_reason(text: str) -> str | None:
        for key, limit, breaks in chosen:
            if breaks(text, limit, config):
                return f"filter_{key}"
        return None

    return drop_reason


# --- What the rules measure -----------------------------------------------------------------------------------


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
        for first, last in (block.split("-") for block in blocks.split()):
            block = table[int(first, 16) : int(last, 16) + 1]
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
        codes = code_points(text[start : start + _CHUNK])
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
