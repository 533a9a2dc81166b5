"""Words as tokens: closed vocabularies in the convention of PTB and WikiText."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hvdlm.errors import UserError
from hvdlm.files import read_text
from hvdlm.tokenizer.char import most_frequent
from hvdlm.tokenizer.interface import END, MAX_BYTES, UNKNOWN, join_documents, num_letters, require

PATTERN_S = 20.0  # of the processor; a sound pattern takes a second or two
LIMITED_CHARACTERS, SHOWN_CHARACTERS = 1 << 20, 40
DEFAULT_PATTERN = r"\w+|[^\w\s]"
Cut = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class WordRule:
    """How a text becomes words; `line_ends`: each line end is a word too, <eos>."""

    words: str = "whitespace"
    pattern: str | None = None
    line_ends: bool = False


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
        glue = "" if self._rule.words == "jieba" else " "  # jieba cuts without loss, spaces are words
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
        lines = (line for text in texts for line in (text.split("\n") if self._rule.line_ends else [text]))
        word = _regex(self._rule)
        with _Limit(self._rule) as limit:
            return sum(num_letters(word.sub("", limit.on(line))) for line in lines)

    def to_json(self) -> str:
        return json.dumps({"hvdlm": "word", **asdict(self._rule), "vocabulary": self._words}, ensure_ascii=False) + "\n"


def _jieba_cut() -> Cut:
    """jieba's cut, without its cache.

    jieba keeps its dictionary as /tmp/jieba.cache, which whoever writes it first controls and several ranks
    write at once. Reading the dictionary itself takes a second and prints nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which says that it is old
        segmenter = require("jieba", "words: jieba").Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True

    def cut(text: str) -> Iterator[str]:
        for part in re.split(f"({UNKNOWN})", text):
            yield from [part] if part == UNKNOWN else segmenter.cut(part)

    return cut


def _regex(rule: WordRule) -> re.Pattern[str]:
    return re.compile(f"{UNKNOWN}|(?:{rule.pattern or DEFAULT_PATTERN})")


def _regex_cut(rule: WordRule) -> Cut:
    pattern = _regex(rule)
    return lambda text: (match[0] for match in pattern.finditer(text))


class SlowPatternError(UserError):
    """A pattern that does not come to an end with a text: a mistake in the settings, whatever text shows it."""


class _Limit:
    """Within it a pattern of the user's may compute for PATTERN_S on a few texts; some, as (a+)+$ on aaaa!, never end.

    `re` is ended by a signal alone, which the main thread alone gets: elsewhere there is no limit. The clock runs with
    the processor, so that neither a busy machine nor a job that was suspended counts.
    """

    def __init__(self, rule: WordRule) -> None:
        self._pattern, self._text, self._left = rule.pattern, "", LIMITED_CHARACTERS
        is_of_user = rule.words == "regex" and rule.pattern is not None
        self._is_on = is_of_user and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> _Limit:
        if self._is_on:
            signal.signal(signal.SIGVTALRM, self._end)
            self._renew()
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_on:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def on(self, text: str) -> str:
        """The text, which meets the pattern next."""
        if self._is_on:
            self._text, self._left = text, self._left - len(text)
            if self._left < 0:
                self._renew()
        return text

    def _renew(self) -> None:
        self._left = LIMITED_CHARACTERS
        signal.setitimer(signal.ITIMER_VIRTUAL, PATTERN_S)

    def _end(self, number: int, frame: object) -> None:
        raise SlowPatternError(
            f"tokenizer.pattern {self._pattern!r}: takes more than {PATTERN_S:g} s for a text such as "
            f"{self._text[:SHOWN_CHARACTERS]!r}; a repeat inside a repeat, such as (a+)+, may try without end: leave "
            "one of them out"
        )


CUTTERS: dict[str, Callable[[WordRule], Cut]] = {
    "whitespace": lambda rule: str.split,
    "regex": _regex_cut,
    "jieba": lambda rule: _jieba_cut(),
}


def cutter(rule: WordRule) -> Cut:
    """The function from a text to its words.

    >>> list(cutter(WordRule("regex"))("don't <unk>!"))
    ['don', "'", 't', '<unk>', '!']
    """
    return CUTTERS[rule.words](rule)


# The first border of words at `least` or behind it, in a text that is cut into words from `start` on; else its end.
Border = Callable[[str, int, int], int]
SPACE, AFTER_MARK = re.compile(r"\s"), re.compile(r"(?<=[^\w\s])(?=\w)")


def border_finder(rule: WordRule) -> Border:
    """Where a text may be parted so that its parts have its words.

    >>> border_finder(WordRule("regex", "[^|]+"))("a b|c d|e", 0, 1)
    3
    """
    if rule.line_ends:
        return lambda text, start, least: text.find("\n", least) + 1 or len(text)
    if rule.words == "regex":
        return _regex_border(rule)
    breaks = (SPACE,) if rule.words == "whitespace" else (SPACE, AFTER_MARK)  # which jieba's words do not hold
    cut = None if rule.words == "whitespace" else cutter(rule)

    def border(text: str, start: int, least: int) -> int:
        stop = len(text) if cut is None else 2 * least - start  # to jieba a search in vain is not worth a whole text
        found = next((match.start() for each in breaks if (match := each.search(text, least, stop))), None)
        if found is not None or cut is None:
            return len(text) if found is None else found
        ends = itertools.accumulate(map(len, cut(text[start:])), initial=start)
        return next(end for end in ends if end >= least)

    return border


def _regex_border(rule: WordRule) -> Border:
    pattern = _regex(rule)

    def border(text: str, start: int, least: int) -> int:
        with _Limit(rule) as limit:
            limit.on(text[start : start + SHOWN_CHARACTERS])
            ends = (found.end() for found in pattern.finditer(text, start))
            return next((end for end in ends if end >= least), len(text))

    return border


def count_words(texts: Iterable[str], rule: WordRule, vocab_size: int, min_frequency: int) -> WordTokenizer:
    """The most frequent words of the texts, in order of frequency."""
    counts: Counter[str] = Counter()
    cut = cutter(rule)
    for text in texts:
        with _Limit(rule) as limit:
            for part in limit.on(text).split("\n") if rule.line_ends else [limit.on(text)]:
                counts.update(cut(part))
    for special in (UNKNOWN, END):
        counts.pop(special, None)
    return WordTokenizer(most_frequent(counts, vocab_size - 2, min_frequency), rule)


def read_vocabulary(path: Path, rule: WordRule) -> WordTokenizer:
    """The words of a file, one a line, in its order; <unk> and <eos> come first unless it holds them."""
    try:
        lines = read_text(path, limit=MAX_BYTES).split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot read this vocabulary ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the vocabulary as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be a vocabulary: {error}") from None
    words = [line.rstrip("\r") for line in lines]
    if not any(words):
        raise UserError(f"{path}: holds no word, so every word would be unknown")
    return WordTokenizer([word for word in words if word], rule, str(path))
