"""Every tokenizer is saved as one `tokenizer.json`.

Its digest travels with the shards, so that no consumer can pair shards with another vocabulary.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import read_bytes, read_json
from hvdlm.tokenizer.backend import MISFITS, BackendTokenizer, is_of_library, reason_of, token_ids
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.file_kinds import HEAD_BYTES, JSON, part_of, remedy, within
from hvdlm.tokenizer.interface import MAX_BYTES, Tokenizer
from hvdlm.tokenizer.published import AUTO, ENDS, NONE, PublisherConfig, bos_of, config_beside, eos_of, tell_ends
from hvdlm.tokenizer.sentencepiece_model import SentencePieceTokenizer
from hvdlm.tokenizer.tiktoken_ranks import Extras, TiktokenTokenizer
from hvdlm.tokenizer.word import WordRule, WordTokenizer

log = logging.getLogger("hvdlm")


# "hvdlm" in a tokenizer.json -> the tokenizer of its content; a file of the tokenizers library has no such key.
FORMATS: dict[str, Callable[[dict[str, Any], str], Tokenizer]] = {
    "byte": lambda content, origin: ByteTokenizer.of(content, origin),
    "char": lambda content, origin: CharTokenizer(content["characters"], origin),
    "word": lambda content, origin: WordTokenizer(
        content["vocabulary"], WordRule(content["words"], content["pattern"], content["line_ends"]), origin
    ),
    "tiktoken": lambda content, origin: TiktokenTokenizer(
        content["ranks"],
        content["pattern"],
        origin,
        Extras(*(content.get(name) for name in ("eos_id", "vocab_size", "bos_id", "normal_form"))),
    ),
    "sentencepiece": lambda content, origin: SentencePieceTokenizer(
        base64.b64decode(content["model"]), origin, content.get("bos")
    ),
    "tokenizers": lambda content, origin: BackendTokenizer(
        content["tokenizer_json"], origin, content["eos"], content.get("bos")
    ),
}


def from_json(text: str, origin: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer that `to_json` wrote (how ranks hand it on), or any of the `tokenizers` library."""
    content = _parse(text, origin)
    name = content.get("hvdlm")
    if name is None:
        return BackendTokenizer(text, origin)
    if not isinstance(name, str) or name not in FORMATS:
        raise UserError(f"{origin}: holds a tokenizer of kind {name!r}, this version reads {', '.join(FORMATS)}")
    try:
        return FORMATS[name](content, origin)
    except UserError:
        raise
    except BaseException as error:  # a content of any shape meets any library
        if not is_of_library(error):
            raise
        raise UserError(f"{origin}: not a tokenizer.json of kind {name} ({reason_of(error)})") from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{origin}: not a tokenizer.json{remedy(text[:HEAD_BYTES].encode(), JSON)}")
    return content


def load(path: Path, eos: str | None = None, bos: str | None = None) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`; `eos` and `bos` are the keys of TokenizerConfig.

    Without `bos` it is what the file itself tells: files of ours remember it, others then have none. (As a data
    folder's own file does; its shards have none either.)
    """
    try:
        content = read_bytes(path, limit=MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read this tokenizer ({error.strerror}){within(path)}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be a tokenizer.json: {error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a tokenizer.json{remedy(content[:HEAD_BYTES], JSON)}") from None
    if eos is None and bos is None:
        return from_json(text, str(path))
    parsed = _parse(text, str(path))
    if parsed.get("hvdlm") is None:
        found = _load_foreign(text, parsed, path, eos, bos)
    else:
        found = from_json(json.dumps(_with_ends(parsed, str(path), eos, bos)), str(path))
    _check_unknown(found, path)
    return found


def _check_unknown(tokenizer: Tokenizer, path: Path) -> None:
    """UserError where unknown text would become an end or a beginning of documents."""
    for key, number, ends in (("eos", tokenizer.eos_id, "end"), ("bos", tokenizer.bos_id, "begin")):
        if number is not None and number == tokenizer.unk_id:
            raise UserError(
                f"{path}: its unknown token (id {number}) would also {ends} documents, so unknown text would {ends} "
                f"them anywhere; set tokenizer.{key} to another of its tokens{' or none' if key == 'bos' else ''}, or "
                "use a vocabulary without unknown text"
            )


def _load_foreign(text: str, content: dict[str, Any], path: Path, eos: str | None, bos: str | None) -> Tokenizer:
    """A file of the tokenizers library, with the ends that were asked for or that are its publisher's."""
    is_default = eos is None
    if bos == AUTO and _has_shards(path, text):
        bos = NONE  # what its file tells of a beginning of text, they do without
    config = config_beside(path) if eos is None or bos == AUTO else PublisherConfig(path)
    try:
        tokens = token_ids(content)
        eos = eos_of(tokens, config) if eos is None else eos
        found = bos_of(content, config, str(path)) if bos == AUTO else None if bos in (None, NONE) else bos
    except MISFITS as error:
        raise UserError(f"{path}: not a tokenizer.json ({reason_of(error)}){part_of(content)}") from None
    if bos == AUTO and (found is not None or config.adds_bos) and found not in tokens:
        if config.adds_bos and config.bos is None and found is None:
            raise UserError(f"{config.path}: has add_bos_token: true, but no bos_token; set tokenizer.bos")
        source = f"{config.path}: bos_token" if config.adds_bos else f"{path}: what post_processor puts before texts"
        raise UserError(f"{source} is {found!r}, no token of {path.name}; set tokenizer.bos")
    end = next((token for token in ENDS if token in tokens), "") if eos is None else eos
    if bos == AUTO and found == end:
        found = None  # as GPT-2's: the end of the document before begins this one
    tokenizer = BackendTokenizer(text, str(path), eos, found)
    tell_ends(str(path), found, end, tokens if is_default else ())
    if dropout := content["model"].get("dropout"):
        log.info("%s: its dropout of %g is not used; a text has the same ids each time", path, dropout)
    return tokenizer


def _has_shards(path: Path, text: str) -> bool:
    """Whether the file is that of a data folder, which would remember a bos in it if its shards had one."""
    try:
        found = read_json(path.parent / "manifest.json")["tokenizer_digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return found == digest_of(text)


def _with_ends(content: dict[str, Any], origin: str, eos: str | None, bos: str | None) -> dict[str, Any]:
    """The content of a file of ours with other ends than it remembers."""
    kind = content["hvdlm"]
    if eos is not None and kind != "tokenizers":
        raise UserError(f"{origin}: is of kind {kind}, which has its own end of text; remove tokenizer.eos")
    changed = content if eos is None else {**content, "eos": eos}
    if bos in (None, AUTO):
        return changed
    if bos == NONE:
        return {name: value for name, value in changed.items() if name not in ("bos", "bos_id")}
    if kind not in ("tokenizers", "sentencepiece"):
        raise UserError(f"{origin}: is of kind {kind}, which has no token {bos!r}; remove tokenizer.bos")
    return {**changed, "bos": bos}


def digest(tokenizer: Tokenizer) -> str:
    """16 hex digits that name a vocabulary; stored in every shard."""
    return digest_of(tokenizer.to_json())


def digest_of(text: str) -> str:
    """The same for the content of a tokenizer.json."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
