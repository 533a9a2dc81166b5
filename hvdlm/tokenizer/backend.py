"""Vocabularies of the `tokenizers` library: any tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hvdlm.errors import UserError
from hvdlm.tokenizer.dropped import Dropped, byte_alphabet, check_affixes, spells_all, steps
from hvdlm.tokenizer.interface import MOST_IDS, join_documents
from hvdlm.tokenizer.published import ENDS, NAMED_EOS
from hvdlm.tokenizer.word_starts import of_library

BATCH_CHARACTERS = 1 << 20  # of text handed to the library at once
MISFITS = (ValueError, AttributeError, KeyError, TypeError, RecursionError)  # of JSON that is no tokenizer.json
# Names of special tokens in vocabularies that do not list them as added.
WELL_KNOWN = re.compile(
    r"<\|[^|]+\|>|<\uff5c[^\uff5c]+\uff5c>"
    r"|[<\[]/?(s|[bes]o[sdt]|(bos|eos)_token|(start|end)_?of_?\w+|(start|end)|doc(ument)?|pad|unk|cls|sep|mask)[>\]]",
    re.IGNORECASE,
)
UNMATCHABLE = "\U0010ffff\x00"  # before a special token's name: two characters that no text holds together


class BackendTokenizer:
    """A tokenizer.json through the `tokenizers` library; `kind` is its model: bpe, unigram, wordpiece, wordlevel.

    `eos` names the token that ends documents where it is none of the well-known ones, `bos` the one before each.
    """

    def __init__(
        self, text: str, origin: str = "tokenizer.json", eos: str | None = None, bos: str | None = None
    ) -> None:
        from tokenizers import Tokenizer as Backend

        self._text, self._eos, self._bos, self._origin = text, eos, bos, origin
        try:
            content = json.loads(text)
            ids = token_ids(content)
            self.kind = str(content["model"].get("type", "BPE")).lower()
            self.unk_id = _unk_id(content["model"])
            check_affixes(content["model"])
            specials = {entry["content"] for entry in content.get("added_tokens") or [] if entry["special"]}
        except MISFITS as error:
            raise UserError(f"{origin}: not a tokenizer.json ({reason_of(error)})") from None
        self.eos_id, self.bos_id = _eos_id(ids, eos, origin), _bos_id(ids, bos, origin)
        if self.bos_id == self.eos_id:
            raise UserError(f"{origin}: {bos!r} ends documents, so it cannot begin them; set tokenizer.bos or .eos")
        for name, token in (("eos", eos), ("bos", bos)):
            if token is not None and _is_text(token, content):
                raise UserError(
                    f"{origin}: texts need the token {token!r}; add one to added_tokens and name that as {name}"
                )
        self._end = eos if eos is not None else next(token for token in ENDS if token in ids)
        self.vocab_size = max(ids.values()) + 1
        specials |= {token for token, number in ids.items() if number in (self.eos_id, self.bos_id, self.unk_id)}
        shown = {self.unk_id} - {self.eos_id, self.bos_id}
        self._hidden = frozenset(ids[token] for token in specials) - shown
        self._shown_names = [token for token in specials if ids[token] in shown]
        try:
            if self.unk_id in (self.eos_id, self.bos_id) and spells_all(content):
                self.unk_id = None  # as CLIP's, whose end of text is named, but never used, as the unknown token
            self._plain = _without_specials(content, specials)
            self._backend = Backend.from_str(json.dumps(self._plain))
            self._dropped = Dropped(self._plain, self._backend)
            self._verbatim = _verbatim(self._plain)
        except BaseException as error:  # the library raises bare Exception, and its panics are none
            if not is_of_library(error):
                raise
            raise UserError(f"{origin}: not a tokenizer.json ({reason_of(error)})") from None
        for entry in self._plain["added_tokens"]:
            number = self._backend.token_to_id(entry["content"])
            if number != entry["id"]:  # the library numbers by itself: after the vocabulary, without holes
                token = entry["content"].removeprefix(UNMATCHABLE)
                raise UserError(
                    f"{origin}: gives the added token {token!r} the id {entry['id']}, the tokenizers library {number}"
                )
        self._backend.encode_special_tokens = True

    @property
    def plain(self) -> dict[str, Any]:
        """The tokenizer.json that encodes: cuts, pads and draws nothing, and meets no special token in a text."""
        return self._plain

    @property
    def added_names(self) -> list[str]:
        """Names of the added tokens, special ones among them."""
        return [entry["content"].removeprefix(UNMATCHABLE) for entry in self._plain["added_tokens"]]

    @property
    def is_byte_level(self) -> bool:
        """Whether this is a byte-level BPE, which the fast encoder may know."""
        return self.kind == "bpe" and '"ByteLevel"' in json.dumps(self._plain.get("pre_tokenizer"))

    def num_lost(self, texts: list[str]) -> int:
        """Characters, white space aside, that no token stands for."""
        return self._dropped.count(texts)

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_documents(self.encode_each(texts), self)

    def encode_each(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Ids (int64) of each text, without ends; few at once, since the library keeps 500 bytes about each token."""
        first = held = 0
        for last, text in enumerate(texts, 1):
            held += len(text)
            if held >= BATCH_CHARACTERS or last == len(texts):
                for encoding in self._run(self._backend.encode_batch_fast, texts[first:last]):
                    yield np.array(encoding.ids, dtype=np.int64)
                first, held = last, 0

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._run(self._backend.encode, text).ids, dtype=np.int64)

    def _run(self, encode: Callable[..., Any], text: str | list[str]) -> Any:
        """UserError where the library refuses a text, mostly one with a part that no token stands for."""
        try:
            return encode(text, add_special_tokens=False)
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise UserError(
                f"{self._origin}: this {self.kind} vocabulary cannot encode a text ({reason_of(error)}); {_cure(error)}"
            ) from None

    def decode(self, ids: np.ndarray) -> str:
        shown = [token for token in np.asarray(ids).tolist() if token not in self._hidden]  # of few: numpy takes longer
        text, first = "", 0
        for place in [n for n, token in enumerate(shown) if token in self._verbatim] if self._verbatim else ():
            text += self._decode(shown[first:place]) + self._verbatim[shown[place]]
            first = place + 1
        return text + self._decode(shown[first:])

    def _decode(self, ids: list[int]) -> str:
        text = self._backend.decode(ids, skip_special_tokens=False)
        for name in self._shown_names:
            text = text.replace(UNMATCHABLE + name, name)
        return text

    def word_starts(self) -> np.ndarray | None:
        content = json.loads(self._text)
        return of_library(content, token_ids(content))

    def to_json(self) -> str:
        """The file as it was read; wrapped only where eos or bos is remembered, for which it has no place."""
        if self._eos is None and self._bos is None:
            return self._text
        bos = {} if self._bos is None else {"bos": self._bos}  # files without one keep their digest
        return json.dumps({"hvdlm": "tokenizers", "eos": self._eos, **bos, "tokenizer_json": self._text}) + "\n"

    def published(self) -> tuple[str, dict[str, Any]]:
        """For other tools: the file as it was read, and a tokenizer_config.json that tells of its ends.

        `load` of the two beside each other gives this tokenizer again.
        """
        config: dict[str, Any] = {"add_bos_token": self._bos is not None, "eos_token": self._end}
        if self._bos is not None:
            config["bos_token"] = self._bos
        if self._eos is not None:
            config[NAMED_EOS] = self._eos
        return self._text, config


def is_of_library(error: BaseException) -> bool:
    """Whether a library raised it over what it was given: a panic of Rust is a BaseException, as the wish to stop is.

    A lack of memory is the machine's fault, and no text's or file's.
    """
    is_error = isinstance(error, Exception) and not isinstance(error, MemoryError)
    return is_error or type(error).__name__ == "PanicException"


def reason_of(error: BaseException) -> str:
    """What is wrong, in one line.

    >>> reason_of(KeyError("model")), reason_of(ValueError("line 1\\nline 2"))
    ("no 'model'", 'line 1 line 2')
    """
    return f"no {error.args[0]!r}" if isinstance(error, KeyError) and error.args else " ".join(str(error).split())


def _cure(error: BaseException) -> str:
    """What to do about a text that the library does not take."""
    if "regex" in str(error).lower():
        return "its pre_tokenizer's regular expression is too slow for this text: simplify it, or leave the text out"
    return "it needs an unknown token (unk)"


def _is_text(token: str, content: dict[str, Any]) -> bool:
    """Whether texts need a token: a byte, a character, or what a vocabulary of words or a Unigram has as a piece.

    Of a BPE they need no more than those: bytes and characters replace what merges make.
    """
    model = content["model"]
    is_dict, kind = isinstance(model["vocab"], dict), str(model.get("type", "BPE")).lower()
    if token not in (model["vocab"] if is_dict else dict(model["vocab"])):
        return False  # an added token only
    is_bpe = is_dict and kind == "bpe"
    if is_bpe and '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("normalizer")]):
        return token in byte_alphabet()
    prefix, suffix = (model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    piece = token.removeprefix(prefix).removesuffix(suffix).lstrip("▁#")
    if len(piece or token) == 1 or re.fullmatch("<0x[0-9A-F]{2}>", token) or (not is_bpe and piece.isalnum()):
        return True
    is_added = any(entry["content"] == token for entry in content.get("added_tokens") or [])
    return not is_bpe and not is_added and not WELL_KNOWN.fullmatch(token)


def token_ids(content: dict[str, Any]) -> dict[str, int]:
    """token -> id of the model and the added tokens; the model of a Unigram lists (token, score) by id.

    ValueError for what is no id.
    """
    vocab = content["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {token: number for number, (token, _) in enumerate(vocab)}
    added = [(entry["content"], entry["id"]) for entry in content.get("added_tokens") or []]
    for token, number in (*ids.items(), *added):
        if not isinstance(token, str) or type(number) is not int or not 0 <= number < MOST_IDS:
            raise ValueError(f"{token!r}: {number!r} is no id")
    return ids | dict(added)


def _unk_id(model: dict[str, Any]) -> int | None:
    found = model["vocab"].get(model.get("unk_token")) if isinstance(model["vocab"], dict) else model.get("unk_id")
    if found is not None and type(found) is not int:
        raise ValueError(f"unk_id {found!r} is no id")
    return found


def _eos_id(ids: dict[str, int], eos: str | None, origin: str) -> int:
    if eos is not None and eos not in ids:
        raise UserError(f"{origin}: has no token {eos!r}, which tokenizer.eos names")
    for token in ENDS if eos is None else (eos,):
        if token in ids:
            return ids[token]
    raise UserError(
        f"{origin}: has none of the tokens {', '.join(ENDS)} to end documents with; name one with tokenizer.eos"
    )


def _bos_id(ids: dict[str, int], bos: str | None, origin: str) -> int | None:
    if bos is not None and bos not in ids:
        raise UserError(f"{origin}: has no token {bos!r}, which tokenizer.bos names")
    return None if bos is None else ids[bos]


def _without_specials(content: dict[str, Any], specials: set[str]) -> dict[str, Any]:
    """The same vocabulary in which no text can spell a special token.

    `encode_special_tokens` alone is not enough: it spares the tokens that the file marks as special, and
    a Unigram finds "</s>" in its own vocabulary. So specials get a name that no text holds, ids unchanged.
    """

    def rename(token: str) -> str:
        return UNMATCHABLE + token if token in specials else token

    model = dict(content["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(token), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = rename(model["unk_token"])
    if "merges" in model and not specials.isdisjoint(content["model"]["vocab"]):
        model["merges"] = [merge for merge in model["merges"] if specials.isdisjoint(_tokens_of(merge))]
    added = [
        {**entry, "content": rename(entry["content"]), "special": entry["content"] in specials}
        for entry in content.get("added_tokens") or []
    ]
    prefix = model.get("continuing_subword_prefix")
    if prefix and "merges" in model:  # the library cuts the prefix off without a look, and aborts the process
        wrong = next((merge for merge in model["merges"] if not _tokens_of(merge)[1].startswith(prefix)), None)
        if wrong is not None:
            raise ValueError(f"merge {wrong!r} does not continue with {prefix!r}")
    if model.get("dropout"):
        model["dropout"] = None  # which would cut a text in another way each time
    no_cuts = {"truncation": None, "padding": None, "post_processor": None}
    return {**content, **no_cuts, "added_tokens": added, "model": model}


def _verbatim(content: dict[str, Any]) -> dict[int, str]:
    """Added tokens that the decoder of byte-level vocabularies would take for bytes: id -> text."""
    decoders = steps(content, "decoder")
    if [rule.get("type") for rule in decoders] != ["ByteLevel"]:
        return {}
    own = {entry["id"]: entry["content"] for entry in content["added_tokens"] if not entry["special"]}
    vocab = content["model"]["vocab"]
    return {number: name for number, name in own.items() if not name.isascii() and name not in vocab}


def _tokens_of(merge: str | list[str]) -> tuple[str, str, str]:
    """What a merge rule joins and makes; older files write it as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right
