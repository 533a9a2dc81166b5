"""The vocabulary of a job: loaded, or learnt from a sample that all ranks draw; and its fastest exact encoder."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator

from hvdlm import tokenizer as tokenizers
from hvdlm.errors import UserError
from hvdlm.partition import fraction_of
from hvdlm.tables import counted
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.word import Border, border_finder
from hvdlm.world.interface import World

from .documents import BadRecord, Document, Part, ReadOptions, find_files
from .fence import found_in, reason_of
from .pipeline import Pipeline
from .plan import PreprocessConfig, Unit, make_units, sample_units

log = logging.getLogger("hvdlm")

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
    """The content of tokenizer.json, the same at any number of ranks; on all of them. Collective."""
    texts = _sample(config, units, world) if config.tokenizer.is_learnt else []
    return world.on_root(lambda: _make(config, texts).to_json())


def _make(config: PreprocessConfig, texts: list[str]) -> Tokenizer:
    section = config.tokenizer
    if section.is_learnt:
        if not texts:
            raise UserError(f"input {config.input!r}: no document of its sample is left to learn a vocabulary from")
        log.info("learning a %s vocabulary from %.1f MB", section.kind, sum(map(len, texts)) / 1e6)
    try:
        made = tokenizers.TOKENIZERS[section.kind].make(section, lambda: iter(texts))
    except BaseException as error:
        raise UserError(
            f"tokenizer: a {section.kind} vocabulary cannot be made of this input ({reason_of(error)}); "
            "set another vocab_size or kind"
        ) from None
    if section.fills_vocab_size and made.vocab_size < section.vocab_size:
        log.warning("the text has only enough for a vocabulary of %d ids", made.vocab_size)
    return made


def _sample(config: PreprocessConfig, units: list[Unit], world: World) -> list[str]:
    """On rank 0 the training text in input order, drawn by all ranks; elsewhere nothing."""
    chosen, fraction = sample_units(units, config.tokenizer.sample_mb * 1e6)
    pipeline = Pipeline(config, is_quiet=True)
    border = border_finder(config.tokenizer.word_rule) if config.tokenizer.has_words else None
    drawn: list[tuple[int, list[str]]] = []
    with world.together():
        for unit in chosen[world.rank :: world.size]:
            pieces = (
                piece for document in pipeline.documents(unit, Counter()) for piece in pieces_of(document.text, border)
            )
            drawn.append((unit.number, [p for p in pieces if fraction_of(p.encode(), config.seed + 1) < fraction]))
    received = world.exchange_bytes([json.dumps(drawn).encode(), *[b""] * (world.size - 1)])
    if world.rank:
        return []
    by_unit = sorted(pair for part in received for pair in json.loads(part))
    return [piece for _, pieces in by_unit for piece in pieces]


def pieces_of(text: str, border: Border | None = None) -> Iterator[str]:
    """A text in pieces of SAMPLE_PIECE characters or more that cut no word, by the text alone.

    Words are what `border` parts; without it what stands between white space, up to twice a piece.

    >>> [len(piece) for piece in pieces_of("word " * 2000)]
    [8194, 1806]
    """
    start = 0
    while len(text) - start > SAMPLE_PIECE:
        end = border(text, start, start + SAMPLE_PIECE) if border else _end_of_piece(text, start + SAMPLE_PIECE)
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
