"""Cleaning text: small pure functions `str -> str`, switched on by the `clean:` section, in a fixed order.

Every cleaner takes any str, lone surrogates and NUL too, changes nothing when applied a second time, and
takes time linear in the text; text without what it looks for passes at hundreds of MB/s.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Literal

import ftfy
from ftfy.badness import is_bad
from pydantic import Field

from hvdlm.config import Section

from .markup import strip_html, strip_markdown, strip_wiki

Cleaner = Callable[[str], str]
Repeats = Literal["keep", "consecutive", "document"]


class CleanConfig(Section):
    """The `clean` section; the keys are in the order of application. All are off by default."""

    mojibake: bool = Field(False, description="repair UTF-8 that was read as Latin-1, Windows-1252, ... (ftfy)")
    wiki: bool = Field(False, description="MediaWiki links, quotes, headings, templates, references; not for code")
    markdown: bool = Field(False, description="Markdown links, images and **bold** become their text; not for code")
    html: bool = Field(False, description="remove HTML/XML tags, comments, scripts; decode entities; not for code")
    unicode: Literal["none", "NFC", "NFKC"] = Field(
        "none", description="normal form; NFKC also turns ① into 1 and full width into half width"
    )
    width: Literal["none", "letters", "all"] = Field(
        "none",
        description="full-width ASCII to half width, half-width katakana to full; letters leaves punctuation as it is",
    )
    control: bool = Field(False, description="remove control and zero-width characters; keep newline, tab, ZWJ, ZWNJ")
    repeated_lines: Repeats = Field("keep", description="drop a line that repeats the one before, or any before")
    repeated_paragraphs: Repeats = Field("keep", description="the same for paragraphs, which blank lines separate")
    whitespace: bool = Field(
        False, description="\\n ends lines; no trailing blanks, runs of blanks (but indents) or over 2 blank lines"
    )


# What the characters of 1-byte encodings are in Unicode: all that ftfy.badness looks for.
_MOJIBAKE = re.compile("[\x80-\u25ff\uf8ff\ufb01\ufb02\ufffd]")


def fix_mojibake(text: str) -> str:
    """Undo a wrong decoding, line by line, as one document can mix good lines and bad (Speer, ftfy 6).

    >>> fix_mojibake("voilÃ\\xa0 l’été")
    'voilà l’été'
    """
    if text.isascii() or not _MOJIBAKE.search(text):
        return text
    # Only \n: str.splitlines would cut inside a damaged character, whose bytes may show as U+0085.
    return "\n".join(map(_fix_line, text.split("\n")))


def _fix_line(line: str) -> str:
    is_sound = line.isascii() or not _MOJIBAKE.search(line) or not is_bad(line)
    return line if is_sound else ftfy.fix_encoding(line)


# Sorting the combining marks of one character takes time quadratic in their number, and 4 MiB of them hours.
# Real text has a handful, text made to look broken ("Zalgo") dozens.
MAX_MARKS = 256


@functools.cache
def _mark() -> str:
    """The pattern of what normalisation must sort: characters that decompose to a non-starter first."""
    assigned = map(chr, range(0x300, 0x1F000))
    marks = [char for char in assigned if unicodedata.combining(unicodedata.normalize("NFKD", char)[0])]
    return f"[{''.join(marks)}]"


def _has_long_run_of_marks(text: str) -> bool:
    """Whether there are more than MAX_MARKS in a row; then one of them is at a multiple of MAX_MARKS."""
    return bool(re.search(_mark(), text[::MAX_MARKS]) and re.search(f"{_mark()}{{{MAX_MARKS + 1}}}", text))


def _normalize(form: Literal["NFC", "NFKC"], text: str) -> str:
    """Unicode normal form (UAX #15); a text with over MAX_MARKS combining marks in a row stays as it is.

    >>> _normalize("NFC", "e\\u0301"), _normalize("NFKC", "ﬁ①")
    ('é', 'fi1')
    """
    if text.isascii() or _has_long_run_of_marks(text) or unicodedata.is_normalized(form, text):
        return text
    return unicodedata.normalize(form, text)


_HALF_KATAKANA = re.compile("[\uff61-\uff9f]+")
_FULL_LETTERS = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\u3000]+")
_FULL_ASCII = re.compile("[\uff01-\uff5e\u3000]+")
_TO_HALF = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def _fold_width(full: re.Pattern[str], text: str) -> str:
    """Full-width ASCII and the ideographic space to half width, half-width katakana to full.

    >>> _fold_width(_FULL_ASCII, "ＡＢＣ，　１２！ ｶﾞｷﾞ"), _fold_width(_FULL_LETTERS, "Ａ，Ｂ！")
    ('ABC, 12! ガギ', 'A，B！')
    """
    if text.isascii():
        return text
    text = full.sub(lambda match: match[0].translate(_TO_HALF), text)
    return _HALF_KATAKANA.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# C0, DEL, C1; soft hyphen, zero-width space, word joiner and invisible operators, deprecated format characters,
# byte order mark, interlinear annotation; lone surrogates, which no UTF-8 can hold. Kept: ZWNJ and ZWJ (U+200C,
# U+200D: Persian, Indic scripts, emoji) and the marks of writing direction (Arabic, Hebrew).
_JUNK = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]+"
)
_ASCII_CONTROLS = bytes([*range(9), *range(11, 32), 127])


def strip_control(text: str) -> str:
    """Remove characters that no reader sees; \\r, \\v, \\f, NEL, U+2028 and U+2029 become a newline.

    >>> strip_control("\\ufeffa\\x00b\\u200bc\\r\\nd\\u200de")
    'abc\\nd\\u200de'
    """
    # bytes.translate is some 20 times as fast as a regex search that finds nothing.
    if text.isascii() and len(text.encode().translate(None, _ASCII_CONTROLS)) == len(text):
        return text
    return _LINE_ENDS.sub("\n", _JUNK.sub("", text))


# Space separators that may stand inside a line, but the ideographic one, which indents Chinese paragraphs.
_ODD_BLANKS = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_BLANK_LINES = re.compile("\n{4,}")
_BLANKS = " \t\u3000"
_RUN_OF_BLANKS = re.compile("[ \t\u3000]{2,}")


def tidy_whitespace(text: str) -> str:
    """\\r\\n and \\r become \\n, NBSP and its kin a space; trailing blanks go; at most 2 blank lines in a row.

    A run of blanks inside a line becomes one space; the indent of a line stays, as it is the syntax of code.

    >>> tidy_whitespace("a\\u00a0 b \\r\\n\\n\\n\\n\\n    c\\td")
    'a b\\n\\n\\n    c\\td'
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = _ODD_BLANKS.sub(" ", text)
    text = "\n".join(map(_tidy_line, text.split("\n")))
    return _BLANK_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text


def _tidy_line(line: str) -> str:
    line = line.rstrip(_BLANKS)
    body = line.lstrip(_BLANKS)
    if "  " in body or "\t" in body or "\u3000" in body:
        return line[: len(line) - len(body)] + _RUN_OF_BLANKS.sub(" ", body)
    return line


def _drop_repeated_lines(among: Repeats, text: str) -> str:
    """Keep the first of equal lines (Rae et al., 2021, "Gopher", A1: repetition); blank lines may repeat.

    Blanks at the end do not distinguish lines, an indent does. `document` suits pages with boilerplate; in code
    it would drop the second `return`.

    >>> _drop_repeated_lines("consecutive", "a\\na\\nb\\na")
    'a\\nb\\na'
    >>> _drop_repeated_lines("document", "a\\na\\nb\\na")
    'a\\nb'
    """
    lines = text.split("\n")
    kept = _first_of_equals(lines, [line.rstrip() for line in lines], among)
    return text if len(kept) == len(lines) else "\n".join(lines[i] for i in kept)


_PARAGRAPH_BREAK = re.compile(r"(\n\s*\n)")


def _drop_repeated_paragraphs(among: Repeats, text: str) -> str:
    """Keep the first of equal paragraphs, with the blank lines before it (Rae et al., 2021, "Gopher", A1).

    >>> _drop_repeated_paragraphs("document", "a\\nb\\n\\nc\\n\\na\\nb\\n\\nd")
    'a\\nb\\n\\nc\\n\\nd'
    """
    pieces = ["", *_PARAGRAPH_BREAK.split(text)]  # break, paragraph, break, paragraph, ...
    paragraphs = pieces[1::2]
    kept = _first_of_equals(paragraphs, [paragraph.strip() for paragraph in paragraphs], among)
    if len(kept) == len(paragraphs):
        return text
    return "".join(pieces[2 * i] + pieces[2 * i + 1] for i in kept)


def _first_of_equals(items: list[str], keys: list[str], among: Repeats) -> list[int]:
    """Numbers of the items whose key is empty or new: in all of the text, or since the item before."""
    if among == "consecutive":
        return [i for i, key in enumerate(keys) if i == 0 or not key or key != keys[i - 1]]
    first = dict(zip(reversed(keys), range(len(items) - 1, -1, -1), strict=True))
    return [i for i, key in enumerate(keys) if not key or first[key] == i]


# In the order of application: broken characters first, as a cleaner must see the right ones; markup before
# characters, as entities become characters; whitespace last, as all others leave blanks behind.
CLEANERS: dict[str, dict[object, Cleaner]] = {
    "mojibake": {True: fix_mojibake},
    "wiki": {True: strip_wiki},
    "markdown": {True: strip_markdown},
    "html": {True: strip_html},
    "unicode": {form: functools.partial(_normalize, form) for form in ("NFC", "NFKC")},
    "width": {
        "letters": functools.partial(_fold_width, _FULL_LETTERS),
        "all": functools.partial(_fold_width, _FULL_ASCII),
    },
    "control": {True: strip_control},
    "repeated_lines": {among: functools.partial(_drop_repeated_lines, among) for among in ("consecutive", "document")},
    "repeated_paragraphs": {
        among: functools.partial(_drop_repeated_paragraphs, among) for among in ("consecutive", "document")
    },
    "whitespace": {True: tidy_whitespace},
}


def make_cleaner(config: CleanConfig) -> Callable[[str, Counter[str]], str]:
    """The function that applies what `config` switches on, and counts as `clean_KEY` the documents that each changed.

    A text that none changes is returned itself.

    >>> statistics = Counter()
    >>> make_cleaner(CleanConfig(unicode="NFC", whitespace=True))("a  b", statistics)
    'a b'
    >>> statistics
    Counter({'clean_whitespace': 1})
    """
    chosen = [
        (f"clean_{name}", by_value[value])
        for name, by_value in CLEANERS.items()
        if (value := getattr(config, name)) in by_value
    ]

    def clean(text: str, statistics: Counter[str]) -> str:
        for name, cleaner in chosen:
            cleaned = cleaner(text)
            if cleaned != text:
                statistics[name] += 1
                text = cleaned
        return text

    return clean
