"""Rank files of tiktoken: the vocabularies of GPT-2 to GPT-4o."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import logging
import unicodedata
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from hvdlm.errors import UserError
from hvdlm.files import read_bytes
from hvdlm.tables import counted
from hvdlm.tokenizer.backend import is_of_library, reason_of
from hvdlm.tokenizer.file_kinds import HEAD_BYTES, RANKS, kind_of, remedy, within
from hvdlm.tokenizer.interface import END_OF_TEXT, MAX_BYTES, MOST_IDS, join_documents, num_letters, require
from hvdlm.tokenizer.published import AUTO, NONE, PublisherConfig, config_beside, end_of
from hvdlm.tokenizer.word_starts import of_bytes

log = logging.getLogger("hvdlm")

NormalForm = Literal["NFC", "NFD", "NFKC", "NFKD"]  # of Unicode
BEGIN_OF_TEXT = "<|begin_of_text|>"

# How a text is cut before its pieces are merged (tiktoken_ext/openai_public.py, MIT).
PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
PATTERNS["llama3"] = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS["qwen"] = PATTERNS["llama3"].replace("{1,3}", "")
PROBE = "ab A1 + x\n\n é中\t--  .\r\n"  # where a pattern that can match nothing does


@dataclass(frozen=True)
class Published:
    """What a rank file does not say: how it cuts text, which ids end and begin one, how many ids there are in all."""

    pattern: str
    num_ranks: int
    eos_id: int
    vocab_size: int
    bos_id: int | None = None  # of BEGIN_OF_TEXT
    normal_form: NormalForm | None = None  # into which it brings a text first


# By the name of the file; of those with equal ranks the first is taken where the name tells none.
# tiktoken_ext/openai_public.py; models/llama3 and llama4/tokenizer.py of meta-llama/llama-models (special tokens behind
# the ranks, from <|begin_of_text|> and <|end_of_text|> on); tokenization_qwen.py of Qwen (three and 205 more; NFC).
PUBLISHED = {
    "r50k_base": Published("gpt2", 50256, 50256, 50257),
    "gpt2": Published("gpt2", 50256, 50256, 50257),
    "p50k_base": Published("gpt2", 50280, 50256, 50281),
    "p50k_edit": Published("gpt2", 50280, 50256, 50284),
    "cl100k_base": Published("cl100k", 100256, 100257, 100277),
    "o200k_base": Published("o200k", 199998, 199999, 200019),
    "o200k_harmony": Published("o200k", 199998, 199999, 201088),
    "llama3": Published("llama3", 128000, 128001, 128256, bos_id=128000),
    "llama4": Published("o200k", 200000, 200001, 202048, bos_id=200000),
    "qwen": Published("qwen", 151643, 151643, 151851, normal_form="NFC"),
}


@dataclass(frozen=True)
class Extras:
    """What a publisher has beside the ranks; by default eos is the id after the last of them, and the last."""

    eos_id: int | None = None
    vocab_size: int | None = None
    bos_id: int | None = None
    normal_form: NormalForm | None = None


class TiktokenTokenizer:
    """`ranks` is the content of a rank file (a token in base64 and its rank, a line)."""

    kind = "tiktoken"
    unk_id: int | None = None

    def __init__(self, ranks: str, pattern: str, origin: str = "tokenizer.json", extras: Extras = Extras()) -> None:
        tiktoken = require("tiktoken", f"{origin}: kind: tiktoken")
        self._ranks, self._pattern, self._extras, self._origin = ranks, pattern, extras, origin
        self._may_lose = pattern not in PATTERNS and pattern not in PATTERNS.values()  # those match every text
        if self._may_lose and _matches_nothing(pattern):  # the library panics, at every text
            raise UserError(f"{origin}: pattern {pattern!r} also matches nothing, so pieces would be empty")
        rank_of = _parse(ranks, origin)
        self._bytes_of = {rank: token for token, rank in rank_of.items()}
        top = max(self._bytes_of)
        self.eos_id = top + 1 if extras.eos_id is None else extras.eos_id
        self.bos_id = extras.bos_id
        ends = [self.eos_id] if self.bos_id is None else [self.eos_id, self.bos_id]
        self.vocab_size = max(top, *ends) + 1 if extras.vocab_size is None else extras.vocab_size
        is_apart = len(set(ends)) == len(ends) and self._bytes_of.keys().isdisjoint(ends)
        if not is_apart or min(ends) < 0 or max(top, *ends) >= self.vocab_size:
            raise UserError(
                f"{origin}: eos_id {self.eos_id} or bos_id {self.bos_id} is a rank or the other, "
                f"or vocab_size {self.vocab_size} too small"
            )
        self._form = extras.normal_form
        if self._form is not None and self._form not in get_args(NormalForm):
            raise UserError(f"{origin}: normal_form {self._form!r} is none of Unicode's")
        try:
            self._encoding = tiktoken.Encoding(
                "hvdlm",
                pat_str=PATTERNS.get(pattern, pattern),
                mergeable_ranks=rank_of,
                special_tokens={END_OF_TEXT: self.eos_id},
            )
        except ValueError as error:
            raise UserError(f"{origin}: pattern {pattern!r} is not a regular expression ({error})") from None

    def num_lost(self, texts: list[str], ids: np.ndarray | None = None) -> int:
        """Characters, white space aside, that lie between the matches of a pattern that is none of PATTERNS.

        `ids`: those of the texts, where they are there already; mostly their bytes are all of the texts.
        """
        if not self._may_lose:
            return 0
        texts = list(map(self._normalized, texts))
        if ids is not None and self._num_bytes.take(ids).sum() == sum(len(text.encode()) for text in texts):
            return 0
        return sum(num_letters(text) - num_letters(self.decode(self._encode(text))) for text in texts)

    @cached_property
    def _num_bytes(self) -> np.ndarray:
        """Of each id (int64)."""
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        sizes[list(self._bytes_of)] = list(map(len, self._bytes_of.values()))
        return sizes

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_documents((self._encode(self._normalized(text)) for text in texts), self)

    def encode(self, text: str) -> np.ndarray:
        return self._encode(self._normalized(text)).astype(np.int64)

    def _normalized(self, text: str) -> str:
        return text if self._form is None else unicodedata.normalize(self._form, text)

    def _encode(self, text: str) -> Any:
        """Ids (uint32) of a normalized text; UserError of one that the library refuses, as it backtracks too far."""
        try:
            return self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise UserError(
                f"{self._origin}: pattern {self._pattern!r} cannot cut a text ({reason_of(error)}); shorten its "
                "longest run of blanks or of one character (clean.whitespace), or leave the text out"
            ) from None

    def decode(self, ids: np.ndarray) -> str:
        tokens = (self._bytes_of.get(token, b"") for token in np.asarray(ids).tolist())  # eos has no bytes
        return b"".join(tokens).decode(errors="replace")

    def word_starts(self) -> np.ndarray | None:
        return of_bytes(self._bytes_of.get(number, b" ") for number in range(self.vocab_size))

    def to_json(self) -> str:
        own = {name: value for name, value in asdict(self._extras).items() if value is not None}
        return json.dumps({"hvdlm": "tiktoken", "pattern": self._pattern, "ranks": self._ranks, **own}) + "\n"


def _matches_nothing(pattern: str) -> bool:
    """Whether a pattern of the user's own is known to match an empty string; False where only the library reads it."""
    regex = require("regex", "a pattern of kind: tiktoken")  # tiktoken needs it too
    try:
        return any(found.start() == found.end() for found in regex.finditer(pattern, PROBE))
    except regex.error:
        return False


def _parse(ranks: str, origin: str) -> dict[bytes, int]:
    rank_of: dict[bytes, int] = {}
    line_of: dict[int, int] = {}
    for number, line in enumerate(ranks.splitlines(), 1):
        if not line:
            continue
        try:
            text, rank = line.split()
            token, value = base64.b64decode(text, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{origin}:{number}: not a rank file of tiktoken (a token in base64 and its rank)"
            ) from None
        if not 0 <= value < MOST_IDS - 1:
            raise UserError(f"{origin}:{number}: not a rank file of tiktoken (rank {value} is no id)")
        if token in rank_of or value in line_of:
            first = line_of[rank_of.get(token, value)]
            raise UserError(f"{origin}:{number}: not a rank file of tiktoken (token or rank of line {first} again)")
        rank_of[token], line_of[value] = value, number
    missing = sum(bytes([byte]) not in rank_of for byte in range(256))
    if missing:
        raise UserError(f"{origin}: not a rank file of tiktoken ({counted(missing, 'byte')} without a token)")
    return rank_of


def read_ranks(path: Path, pattern: str | None, bos: str = AUTO) -> TiktokenTokenizer:
    """A rank file; its cutting pattern and special tokens are not in it, but told by its name and its size.

    `bos` is the key of TokenizerConfig.
    """
    try:
        content = read_bytes(path, limit=MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read this rank file ({error.strerror}){within(path)}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be a rank file: {error}") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    head = content[:HEAD_BYTES]
    if kind_of(head) != RANKS or not content.isascii():
        raise UserError(f"{path}: not a rank file of tiktoken (a token in base64 and its rank){remedy(head, RANKS)}")
    ranks = content.decode()
    named = PUBLISHED.get(path.name.split(".")[0])
    num_ranks = sum(1 for line in ranks.splitlines() if line)
    published = _published_with(named, num_ranks)
    known = published or named
    if pattern is None and known is None:
        raise UserError(
            f"{path}: a rank file of tiktoken does not say how it cuts text; "
            f"set tokenizer.pattern (--pattern) to {', '.join(PATTERNS)} or a regex"
        )
    if pattern is None:
        assert known is not None
        pattern = known.pattern
    if named and published is None:
        log.warning(
            "%s: has %d ranks, the published file of this name %d; its end of text is the id after the last rank",
            path,
            num_ranks,
            named.num_ranks,
        )
    tokenizer = TiktokenTokenizer(ranks, pattern, str(path))
    config = config_beside(path)
    extras = _extras(tokenizer, published, config)
    extras = replace(extras, bos_id=_bos_id(bos, extras, config, path))
    if extras != Extras(tokenizer.eos_id, tokenizer.vocab_size):  # else the digest is that of earlier versions
        tokenizer = TiktokenTokenizer(ranks, pattern, str(path), extras)
    if published is None or extras.bos_id is not None:
        begins = "" if extras.bos_id is None else f"begin with the id {extras.bos_id} and "
        log.info("%s: documents %send with the id %d", path, begins, tokenizer.eos_id)
    return tokenizer


def _extras(ranks: TiktokenTokenizer, published: Published | None, config: PublisherConfig) -> Extras:
    """As published, or as the added tokens of a tokenizer_config.json say; else the defaults."""
    if published is not None:
        return Extras(published.eos_id, published.vocab_size, published.bos_id, published.normal_form)
    eos = end_of(config.ids, config)
    if eos is None:
        return Extras(ranks.eos_id, ranks.vocab_size)
    last_rank = ranks.eos_id - 1
    return Extras(config.ids[eos], max(last_rank, *config.ids.values()) + 1)


def _bos_id(bos: str, published: Extras, config: PublisherConfig, path: Path) -> int | None:
    names = dict(config.ids) if published.bos_id is None else {BEGIN_OF_TEXT: published.bos_id, **config.ids}
    if bos == AUTO:
        found = config.ids.get(config.bos or "", published.bos_id) if config.adds_bos else published.bos_id
        return None if config.adds_bos is False or found == published.eos_id else found
    if bos != NONE and bos not in names:
        raise UserError(
            f"{path}: has no token {bos!r} that is known, which tokenizer.bos names; a rank file tells of no special "
            f"tokens ({', '.join(names) or 'none is known'}); set tokenizer.bos: none, or use a tokenizer.json"
        )
    return names.get(bos)


def _published_with(named: Published | None, num_ranks: int) -> Published | None:
    if named is not None:
        return named if named.num_ranks == num_ranks else None
    return next((found for found in PUBLISHED.values() if found.num_ranks == num_ranks), None)
