"""The vocabulary of a job: loaded, or learnt from a sample that all ranks draw; and its fastest exact encoder."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hvdlm import tokenizer as tokenizers
from hvdlm.errors import UserError
from hvdlm.partition import fraction_of
from hvdlm.records.encoder import pieces_of as word_pieces
from hvdlm.tables import counted
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import END, UNKNOWN
from hvdlm.tokenizer.word import of_counts, parts_finder
from hvdlm.world.interface import World

from .documents import BadRecord, Document, Part, ReadOptions, find_files, one_line
from .fence import found_in, reason_of
from .pipeline import Pipeline
from .plan import PreprocessConfig, Unit, make_units, sample_units

log = logging.getLogger("hvdlm")

PartsFinder = Callable[[str, int], Iterable[Any]]
SAMPLE_PIECE = 8192  # characters of a document that enter the tokenizer's sample or not: a book is many draws
CUTS = (  # where a piece may end, the best first: what begins the next one belongs to no word of this one
    re.compile(r"(?<=\S)[^\S\n]*\n"),  # at a line's end: a word of `pattern` may hold blanks
    re.compile(r"(?<=\S)\s"),  # before white space: byte-level pieces begin with the space
    re.compile(r"(?<=[^\w\s])(?=\w)"),  # behind punctuation, where words are not spaced
    re.compile(r"(?=\w)"),  # before a character, never before its combining marks
)
PROOF_UNITS = 8  # units whose beginnings prove the fast encoder
PROOF_BYTES = 64 << 10  # of text in all of them


def make_vocabulary(config: PreprocessConfig, units: list[Unit], world: World) -> str:
    """The content of tokenizer.json, the same at any number of ranks; on all of them. Collective.

    It is learnt from the input of the train split alone.
    """
    of_train = [unit for unit in units if unit.split == "train"]
    sample = _sample(config, of_train, world) if config.tokenizer.is_learnt else Sample()
    return world.on_root(lambda: _make(config, sample).to_json())


@dataclass
class Sample:
    """What a vocabulary is learnt from: texts in input order, or words for a vocabulary of these."""

    texts: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    num_characters: int = 0
    first_bad: str = ""  # of the records that were passed over


def _make(config: PreprocessConfig, sample: Sample) -> Tokenizer:
    section = config.tokenizer
    if section.is_learnt:
        if not sample.num_characters:
            remedy = f"raise tokenizer.sample_mb (now {section.sample_mb:g})"
            if sample.first_bad:
                remedy = f"of the bad records mend the first: {one_line(sample.first_bad)}"
            told = config.splits.told("train")
            raise UserError(f"{told}: no document of its sample is left to learn a vocabulary from; {remedy}")
        log.info("learning a %s vocabulary from %.1f MB", section.kind, sample.num_characters / 1e6)
    try:
        if section.is_learnt and section.has_words:
            made: Tokenizer = of_counts(sample.words, section.word_rule, section.vocab_size, section.min_frequency)
        else:
            made = tokenizers.TOKENIZERS[section.kind].make(section, lambda: iter(sample.texts))
    except BaseException as error:
        raise UserError(
            f"tokenizer: a {section.kind} vocabulary cannot be made of this input ({reason_of(error)}); "
            "set another vocab_size or kind"
        ) from None
    if section.fills_vocab_size and made.vocab_size < section.vocab_size:
        log.warning("the text has only enough for a vocabulary of %d ids", made.vocab_size)
    if section.is_learnt and not section.fills_vocab_size and made.vocab_size == section.vocab_size:
        _tell_left_out(config, sample, made)
    return made


def _tell_left_out(config: PreprocessConfig, sample: Sample, made: Tokenizer) -> None:
    """Of words or characters, which are counted, how many had no place."""
    section = config.tokenizer
    counts = sample.words if section.has_words else Counter(itertools.chain.from_iterable(sample.texts))
    specials = {UNKNOWN, END}
    found = sum(count >= section.min_frequency for part, count in counts.items() if part not in specials)
    if found > made.vocab_size - len(specials):
        what = "words" if section.has_words else "characters"
        text = "tokenizer.vocab_size %s: has the most frequent of %s %s, the others are unknown to it"
        log.info(text, f"{made.vocab_size:,}", f"{found:,}", what)


def _sample(config: PreprocessConfig, units: list[Unit], world: World) -> Sample:
    """On rank 0 what all ranks drew; elsewhere nothing."""
    chosen, fraction = sample_units(units, config.tokenizer.sample_mb * 1e6)
    pipeline = Pipeline(config, is_quiet=True)
    parts_of = parts_finder(config.tokenizer.word_rule) if config.tokenizer.has_words else None
    drawn: list[tuple[int, list[str]]] = []
    words: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    num_characters, splits = 0, config.splits
    with world.together():
        for unit in chosen[world.rank :: world.size]:
            drawn.append((unit.number, []))
            for document in pipeline.documents(unit, Counter()):
                if splits.is_predefined and splits.of_document(document.text.encode(), "train", config.seed) != "train":
                    continue  # what is held out shall not name words
                for text, pieces in _all_texts(document, config):
                    if parts_of is None:
                        drawn[-1][1].extend(p for p in pieces_of(text) if _is_drawn(p, config, fraction))
                        continue
                    for part in _parts(text, pieces, parts_of):
                        if _is_drawn(text if pieces else part.text, config, fraction):
                            num_characters += len(part.text)
                            words.update(part.words())
            bad += [(unit.number, told) for told in list(pipeline.first_bad.values())[:1]]
    mine = json.dumps([drawn, words, num_characters, min(bad, default=None)]).encode()
    received = world.exchange_bytes([mine, *[b""] * (world.size - 1)])
    if world.rank:
        return Sample()
    sample, by_unit, bad = Sample(), [], []
    for found, counts, number, first_bad in map(json.loads, received):
        by_unit += found
        bad += [first_bad] if first_bad else []
        sample.words.update(counts)
        sample.num_characters += number
    sample.texts = [piece for _, pieces in sorted(by_unit) for piece in pieces]
    sample.num_characters += sum(map(len, sample.texts))
    sample.first_bad = min(bad, default=(0, ""))[1]
    return sample


def _all_texts(document: Document, config: PreprocessConfig) -> list[tuple[str, list[str] | None]]:
    """That of a document, and those of its record which are encoded too; each with its words, where these are apart."""
    record = document.record
    if record is None:
        return [(document.text, None)]
    pairs = [name for name, field in config.fields.items() if field.type == "pair"]
    words = None if record.words is None else word_pieces(document)
    return [(document.text, words), *((record.values[name][0], None) for name in pairs)]


def _parts(text: str, pieces: list[str] | None, parts_of: PartsFinder) -> Iterator[Any]:
    """Parts of a text whose words are counted; of one that is encoded piece by piece those of each piece."""
    for piece in [text] if pieces is None else pieces:
        yield from parts_of(piece, SAMPLE_PIECE)


def _is_drawn(piece: str, config: PreprocessConfig, fraction: float) -> bool:
    return fraction_of(piece.encode(), config.seed + 1) < fraction


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces of SAMPLE_PIECE to twice so many characters, by the text alone; most cut no word.

    >>> [len(piece) for piece in pieces_of("word " * 2000)]
    [8194, 1806]
    """
    start = 0
    while len(text) - start > SAMPLE_PIECE:
        end = _end_of_piece(text, start + SAMPLE_PIECE)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _end_of_piece(text: str, first: int) -> int:
    last = min(first + SAMPLE_PIECE, len(text))
    cuts = CUTS[:2] if last == len(text) else CUTS  # the document's end is as good as white space
    return next((match.start() for cut in cuts if (match := cut.search(text, first, last))), last)


def with_fast_encoder(tokenizer: Tokenizer, config: PreprocessConfig, units: list[Unit], world: World) -> Tokenizer:
    """The fast encoder where it proves itself on the job's text, the same text on each rank. Collective."""
    if not tokenizers.may_be_fast(tokenizer):
        return tokenizer
    with world.together():
        texts = [text for unit in units[:: -(-len(units) // PROOF_UNITS)] for text in _head(config, unit)]
    fast = tokenizers.make_fast(tokenizer, texts)
    if all(world.gather(fast is not tokenizer)):
        return fast
    if fast is not tokenizer:
        log.warning("the slower tokenizers library encodes: another rank could not use the fast encoder")
    return tokenizer


def _head(config: PreprocessConfig, unit: Unit) -> list[str]:
    """The beginning of a unit as it lies there: cleaning might leave nothing of it."""
    texts: list[str] = []
    left = PROOF_BYTES // PROOF_UNITS
    for text in _texts_of(unit.parts[0], config.read_options):
        texts.append(text[:left])
        left -= len(texts[-1])
        if left <= 0:
            break
    return texts


def sample_of(sources: list[str], megabytes: float, text_key: str = "text", encoding: str = "utf-8") -> list[str]:
    """Documents from everywhere in each source, in input order, of each about its share of `megabytes`.

    What is no document is said once a source; UserError for a source without any.
    """
    options = ReadOptions(text_key=text_key, encoding=encoding)
    texts: list[str] = []
    for source in sources:
        units, fraction = sample_units(make_units(find_files([source]), options), megabytes * 1e6 / len(sources))
        bad: list[BadRecord] = []
        kept: list[str] = []
        first: str | None = None
        for record in (record for unit in units for part in unit.parts for record in found_in(part, options)):
            if isinstance(record, BadRecord):
                bad.append(record)
            elif isinstance(record, Document):
                first = record.text if first is None else first
                if fraction_of(record.text.encode(), 0) < fraction:
                    kept.append(record.text)
        if first is None:
            raise UserError(f"{bad[0].place}: {bad[0].reason}" if bad else f"{source}: holds no text")
        if bad:
            log.warning("%s left out, the first: %s: %s", counted(len(bad), "bad record"), bad[0].place, bad[0].reason)
        texts += kept or [first]  # of a few large documents none may be drawn
    return texts


def _texts_of(part: Part, options: ReadOptions) -> Iterator[str]:
    return (found.text for found in found_in(part, options) if isinstance(found, Document))
