"""Words as tokens: closed vocabularies in the convention of PTB and WikiText."""

from __future__ import annotations

import itertools
import json
import logging
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvdlm.errors import UserError
from hvdlm.files import read_bytes
from hvdlm.tables import counted
from hvdlm.tokenizer.char import most_frequent
from hvdlm.tokenizer.file_kinds import HEAD_BYTES, remedy
from hvdlm.tokenizer.interface import END, MAX_BYTES, UNKNOWN, join_documents, num_letters, require

log = logging.getLogger("hvdlm")

LINE_END = re.compile(r"\r\n|\r|\n")
PATTERN_S = 20.0  # of the processor, for LIMITED_CHARACTERS; a sound pattern takes a second or two
LIMITED_CHARACTERS, SHOWN_CHARACTERS = 1 << 20, 40
DEFAULT_PATTERN = r"\w+|[^\w\s]"
Cut = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class WordRule:
    """How a text becomes words; `line_ends`: each line end is a word too, <eos>."""

    words: str = "whitespace"
    pattern: str | None = None
    line_ends: bool = False

    def lines_of(self, text: str) -> list[str]:
        """What is cut into words by itself: the lines of a text, or all of it."""
        return text.split("\n") if self.line_ends else [text]


class _IdOf(dict[str, int]):
    """word -> id, and <unk>'s id for every other word."""

    unk_id = 0

    def __missing__(self, word: str) -> int:
        return self.unk_id


class WordTokenizer:
    """A closed vocabulary; a text that already holds the word <unk>, as PTB's, means the unknown word.

    With `line_ends` the end of a text's last line is the eos that follows every text, not one more.

    >>> tokenizer = WordTokenizer(["<unk>", "<eos>", "the", "cat"], WordRule())
    >>> ids = tokenizer.encode("the  dog the <unk> <eos>")
    >>> ids.tolist(), tokenizer.decode(ids)
    ([2, 0, 2, 0, 0], 'the <unk> the <unk> <unk>')
    """

    kind = "word"
    bos_id: int | None = None

    def __init__(self, words: list[str], rule: WordRule, origin: str = "tokenizer.json") -> None:
        if not all(isinstance(word, str) for word in words):
            raise UserError(f"{origin}: lists a word that is no text")
        words = [special for special in (UNKNOWN, END) if special not in words] + words
        self._words, self._rule = words, rule
        self._id_of = _IdOf(zip(words, range(len(words)), strict=True))
        if len(self._id_of) != len(words):
            twice = next(word for word, count in Counter(words).items() if count > 1)
            raise UserError(f"{origin}: lists the word {twice!r} twice")
        self.vocab_size = len(words)
        self.unk_id: int | None = self._id_of[UNKNOWN]
        self._id_of.unk_id = self._id_of[UNKNOWN]
        self.eos_id = self._id_of.pop(END)  # the word "<eos>" inside a text is unknown, not an end
        self._cut = cutter(rule)

    @property
    def has_unspaced_words(self) -> bool:
        """Whether words stand beside each other without white space, and follow from all that is around them."""
        return self._rule.words == "jieba"

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        last_end = "\n" if self._rule.line_ends else ""
        with _Limit(self._rule) as limit:
            return join_documents((self._encode(limit.on(text).removesuffix(last_end)) for text in texts), self)

    def encode(self, text: str) -> np.ndarray:
        with _Limit(self._rule) as limit:
            return self._encode(limit.on(text))

    def _encode(self, text: str) -> np.ndarray:
        if not self._rule.line_ends:
            return self._encode_line(text)
        eos = np.array([self.eos_id])
        parts = [part for line in text.split("\n") for part in (self._encode_line(line), eos)]
        return np.concatenate(parts[:-1])

    def _encode_line(self, line: str) -> np.ndarray:
        return np.array(list(map(self._id_of.__getitem__, self._cut(line))), dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        glue = "" if self.has_unspaced_words else " "  # jieba cuts without loss, spaces are words
        lines: list[list[str]] = [[]]
        for token in np.asarray(ids).tolist():
            if token != self.eos_id:
                lines[-1].append(self._words[token])
            elif self._rule.line_ends:
                lines.append([])
        return "\n".join(glue.join(line) for line in lines)

    def num_lost(self, texts: list[str]) -> int:
        """Characters, white space aside, that lie between the words of a pattern."""
        if self._rule.words != "regex" or self._rule.pattern is None:
            return 0
        lines = (line for text in texts for line in self._rule.lines_of(text))
        word = _regex(self._rule)
        with _Limit(self._rule) as limit:
            return sum(num_letters(word.sub("", limit.on(line))) for line in lines)

    def word_starts(self) -> np.ndarray | None:
        return np.ones(self.vocab_size, dtype=bool)

    def to_json(self) -> str:
        return json.dumps({"hvdlm": "word", **asdict(self._rule), "vocabulary": self._words}, ensure_ascii=False) + "\n"


def _jieba_segmenter() -> Any:
    """jieba, without its cache.

    jieba keeps its dictionary as /tmp/jieba.cache, which whoever writes it first controls and several ranks
    write at once. Reading the dictionary itself takes a second and prints nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which says that it is old
        return _loaded(require("jieba", "words: jieba"))


@cache
def _loaded(jieba: Any) -> Any:
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


def _jieba_cut(segmenter: Any) -> Cut:
    def cut(text: str) -> Iterator[str]:
        for part in re.split(f"({UNKNOWN})", text):
            yield from [part] if part == UNKNOWN else segmenter.cut(part)

    return cut


LEADING_FLAGS = re.compile(r"\(\?([aimsux]+)\)(?:\s+(?=\(\?[aimsux]+\)))?")  # such as (?i)


def _regex(rule: WordRule) -> re.Pattern[str]:
    """The word <unk>, or the pattern, whose flags do not reach what stands before it; re.error for what is none."""
    pattern, flags = rule.pattern or DEFAULT_PATTERN, ""
    re.compile(pattern)  # by itself: "a)|(b" would else be one
    while found := LEADING_FLAGS.match(pattern):
        flags, pattern = flags + found[1], pattern[found.end() :]
    flags = "".join(sorted(set(flags)))
    end = "\n" if "x" in flags else ""  # of a comment
    return re.compile(f"{UNKNOWN}|(?{flags}:{pattern}{end})")


def _regex_cut(rule: WordRule) -> Cut:
    pattern = _regex(rule)
    return lambda text: (word for match in pattern.finditer(text) if (word := match[0]))


class SlowPatternError(UserError):
    """A pattern that does not come to an end with a text: a mistake in the settings, whatever text shows it."""


class _Limit:
    """Within it a pattern of the user's may compute for PATTERN_S a MiB of text; some, as (a+)+$ on aaaa!, never end.

    `re` is ended by a signal alone, which the main thread alone gets: elsewhere there is no limit. The clock runs with
    the processor, so that neither a busy machine nor a job that was suspended counts.
    """

    def __init__(self, rule: WordRule) -> None:
        self._pattern, self._text, self._limit_s = rule.pattern, "", PATTERN_S
        self._left = 0  # characters that may come before the clock starts anew
        self._former: Any = None
        is_of_user = rule.words == "regex" and rule.pattern is not None
        self._is_on = is_of_user and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> _Limit:
        if self._is_on:
            self._former = signal.signal(signal.SIGVTALRM, self._end)
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_on:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._former or signal.SIG_DFL)  # None: of no Python

    def on(self, text: str, num_characters: int | None = None) -> str:
        """The text, which meets the pattern next; `num_characters` if it is the beginning of so many."""
        if self._is_on:
            length = len(text) if num_characters is None else num_characters
            self._text, self._left = text, self._left - length
            if self._left < 0:
                self._left = LIMITED_CHARACTERS - length
                self._limit_s = PATTERN_S * max(1, length / LIMITED_CHARACTERS)
                signal.setitimer(signal.ITIMER_VIRTUAL, self._limit_s)
        return text

    def _end(self, number: int, frame: object) -> None:
        raise SlowPatternError(
            f"tokenizer.pattern {self._pattern!r}: takes more than {self._limit_s:.3g} s for a text such as "
            f"{self._text[:SHOWN_CHARACTERS]!r}; a repeat inside a repeat, such as (a+)+, may try without end: leave "
            "one of them out"
        )


CUTTERS: dict[str, Callable[[WordRule], Cut]] = {
    "whitespace": lambda rule: str.split,
    "regex": _regex_cut,
    "jieba": lambda rule: _jieba_cut(_jieba_segmenter()),
}


def cutter(rule: WordRule) -> Cut:
    """The function from a text to its words.

    >>> list(cutter(WordRule("regex"))("don't <unk>!"))
    ['don', "'", 't', '<unk>', '!']
    """
    return CUTTERS[rule.words](rule)


class PartOfText(NamedTuple):
    """A stretch of a text, and the words that the whole text has there."""

    text: str
    words: Callable[[], Iterable[str]]


Parts = Callable[[str, int], Iterator[PartOfText]]  # of a text, each of so many characters at least, the last of fewer
SPACE = re.compile(r"\s")
# No word of jieba's goes on behind such a character, but "\r\n" is one, and <unk> too.
AFTER_MARK = re.compile(r"(?<=[^\u3400-\u9fffa-zA-Z0-9+#&._%\-<\r])")


def parts_finder(rule: WordRule) -> Parts:
    """How a text is parted between words, so that a sample of its parts has words of the text and no others.

    >>> [part.text for part in parts_finder(WordRule("regex", "[^|]+"))("a b|c d|e", 2)]
    ['a b', '|c d', '|e']
    """
    if rule.words == "regex" and not rule.line_ends:
        return _parts_of_matches(rule)
    if rule.words == "jieba" and not rule.line_ends:
        return _parts_of_jieba(_jieba_segmenter())
    cut = cutter(rule)
    behind = re.compile(r"(?<=\n)") if rule.line_ends else SPACE

    def words_of(text: str) -> list[str]:
        with _Limit(rule) as limit:
            return [word for line in rule.lines_of(text) for word in cut(limit.on(line))]

    def parts(text: str, size: int) -> Iterator[PartOfText]:
        start = 0
        while len(text) - start > size and (found := behind.search(text, start + size)):
            yield PartOfText(text[start : found.start()], partial(words_of, text[start : found.start()]))
            start = found.start()
        if start < len(text):
            yield PartOfText(text[start:], partial(words_of, text[start:]))

    return parts


def _parts_of_matches(rule: WordRule) -> Parts:
    """What a pattern matches may depend on all that is around it, so the whole text is searched once."""
    pattern = _regex(rule)

    def parts(text: str, size: int) -> Iterator[PartOfText]:
        matches, start = pattern.finditer(text), 0
        while start < len(text):
            stop, words = len(text), list[str]()
            with _Limit(rule) as limit:
                limit.on(text[start : start + SHOWN_CHARACTERS], len(text) - start)  # the next match may be the last
                for found in matches:
                    words.append(found[0])
                    if found.end() - start >= size and len(text) - start > size:
                        stop = found.end()
                        break
            yield PartOfText(text[start:stop], partial(filter, None, words))
            start = stop

    return parts


def _parts_of_jieba(segmenter: Any) -> Parts:
    cut = _jieba_cut(segmenter)

    def ends(text: str, size: int) -> Iterator[int]:
        start = 0
        while len(text) - start > size:
            found = AFTER_MARK.search(text, start + size, start + 2 * size)
            if found is None:  # a long stretch without a mark is cut into words once
                found = AFTER_MARK.search(text, start + 2 * size)
                stop = found.end() if found else len(text)
                for end in _ends_of_words(segmenter, text, start, stop):
                    if end - start >= size:
                        start = end
                        yield start
                start = stop
            else:
                start = found.end()
            yield start

    def parts(text: str, size: int) -> Iterator[PartOfText]:
        for start, stop in itertools.pairwise([0, *ends(text, size), len(text)]):
            if start < stop:
                yield PartOfText(text[start:stop], partial(cut, text[start:stop]))

    return parts


def _ends_of_words(segmenter: Any, text: str, start: int, stop: int) -> Iterator[int]:
    """Ends of words of jieba's dictionary: what is before and behind them it cuts as if they were not there.

    Not so between single characters, which it joins by a model of their neighbours.
    """
    for word in segmenter.cut(text[start:stop], HMM=False):
        start += len(word)
        if len(word) > 1 and not word[0].isascii():
            yield start


def count_words(texts: Iterable[str], rule: WordRule, vocab_size: int, min_frequency: int) -> WordTokenizer:
    """The most frequent words of the texts, in order of frequency."""
    counts: Counter[str] = Counter()
    cut = cutter(rule)
    for text in texts:
        with _Limit(rule) as limit:
            for part in rule.lines_of(limit.on(text)):
                counts.update(cut(part))
    return of_counts(counts, rule, vocab_size, min_frequency)


def of_counts(counts: Mapping[str, int], rule: WordRule, vocab_size: int, min_frequency: int) -> WordTokenizer:
    """The same of words that are counted already."""
    words = Counter({word: count for word, count in counts.items() if word not in (UNKNOWN, END)})
    return WordTokenizer(most_frequent(words, vocab_size - 2, min_frequency), rule)


def read_vocabulary(path: Path, rule: WordRule) -> WordTokenizer:
    """The words of a file, one a line, in its order; <unk> and <eos> come first unless it holds them."""
    words = [line for line in LINE_END.split(_text_of(path)) if line]
    if not words:
        raise UserError(f"{path}: holds no word, so every word would be unknown")
    unmet = [word for word in words if word.split() != [word]] if rule.words == "whitespace" else []
    if unmet:
        told = (
            f"{path}: {len(unmet):,} of {counted(len(words), 'word')} hold white space, so no text has them, such as "
        )
        if len(unmet) == len(words):
            raise UserError(
                f"{told}{unmet[0][:SHOWN_CHARACTERS]!r}; a vocabulary has one word a line, and nothing else"
            )
        log.warning("%s%r", told, unmet[0][:SHOWN_CHARACTERS])
    return WordTokenizer(words, rule, str(path))


def _text_of(path: Path) -> str:
    """What a vocabulary's file holds; UserError for what is no list of words."""
    try:
        content = read_bytes(path, limit=MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read this vocabulary ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be a vocabulary: {error}") from None
    cure = remedy(content[:HEAD_BYTES], "a vocabulary")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        cure = cure or "; save the vocabulary as UTF-8"
        raise UserError(f"{path}: byte {error.start} is not UTF-8{cure}") from None
    if "\0" in text:
        raise UserError(f"{path}: holds NUL, as no list of words does{cure or '; save the vocabulary as UTF-8'}")
    if text.lstrip()[:1] in ("{", "[") and _is_json(text):
        raise UserError(f"{path}: is JSON{cure}; tokenizer.vocabulary names a file with one word a line")
    return text


def _is_json(text: str) -> bool:
    """Whether a text that begins as an object or an array is one, and not empty."""
    try:
        return bool(json.loads(text))
    except (ValueError, RecursionError):
        return False
