"""Text as JSON lines, {"text": …, "id": …, "label": …} a document: train.jsonl, val.jsonl, test.jsonl."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.data.bridges.foreign import refuse_no_lines
from hvdlm.data.bridges.interface import ConvertOptions, SourceCorpus, TokenSplit, reader_of, split_files, write_array
from hvdlm.errors import UserError
from hvdlm.json_members import written_members
from hvdlm.tables import counted
from hvdlm.tokenizer import FastTokenizer, Tokenizer, make_fast
from hvdlm.tokenizer.interface import dtype_for
from hvdlm.tokenizer.loss import num_lost

log = logging.getLogger("hvdlm")

KEEPS_COLUMNS = True
SUFFIX: str | None = ".jsonl"
BATCH_BYTES = 1 << 20  # text that meets the tokenizer at once
BATCH_TOKENS = 1 << 18
SHOWN_KEYS = 8
COLUMNS = {"id": "doc_ids", "label": "doc_labels"}
RECORD_MARK = b"\x1e"
# How a line of JSON over several lines begins: an array, brackets alone, or a member of an object. Its name is a loop
# without a choice, so that a long one is gone through once.
SEVERAL_LINES = re.compile(rb'\[|[][{}]+,?\Z|"[^"\\]*(?:\\.[^"\\]*)*"\s*:', re.DOTALL)
ONE_A_LINE = "write one object a line (jq -c)"


def is_there(source: Path) -> bool:
    return bool(split_files(source, ".jsonl"))


def read(source: Path, tokenizer: Tokenizer, work: Path, options: ConvertOptions) -> dict[str, TokenSplit]:
    return {
        split: _read_split(path, tokenizer, work / f"{split}.ids")
        for split, path in split_files(source, ".jsonl").items()
    }


def _read_split(path: Path, tokenizer: Tokenizer, spool: Path) -> TokenSplit:
    """Tokens go to a spool file, since the lengths of all documents come before the first token."""
    dtype = dtype_for(tokenizer.vocab_size)
    lengths = [np.empty(0, np.int64)]
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS.values()}
    text_bytes, lost, others = 0, 0, Counter[str]()
    refuse_no_lines(path)
    with spool.open("wb") as file:
        for records in _batches(path, others):
            texts = [record["text"] for record in records]
            try:
                ids, of_documents = tokenizer.encode_documents(texts)
            except UserError as error:
                raise UserError(f"{_place_of_misfit(records, tokenizer, path)}: {error}") from None
            write_array(file, ids, dtype)
            lengths.append(of_documents)
            text_bytes += sum(len(text.encode()) for text in texts)
            lost += num_lost(tokenizer, texts, ids)
            for key, name in COLUMNS.items():
                columns[name] += [record[key] for record in records]
    if lost:
        log.warning("%s: %s no token stands for, and are lost", path, counted(lost, "character"))
    if others:
        told = ", ".join(f"{key!r} of {counted(count, 'record')}" for key, count in others.most_common(SHOWN_KEYS))
        log.warning("%s: left out: %s%s", path, told, " and others" if len(others) > SHOWN_KEYS else "")
    kept = {name: values for name, values in columns.items() if any(values)}
    read_tokens, all_lengths = reader_of(spool, dtype), np.concatenate(lengths)
    return TokenSplit(path, all_lengths, read_tokens, dtype.name, tokenizer.vocab_size, text_bytes, kept)


def _place_of_misfit(records: list[dict[str, str]], tokenizer: Tokenizer, path: Path) -> str:
    """Of the first text that the vocabulary cannot encode."""
    for record in records:
        try:
            tokenizer.encode_documents([record["text"]])
        except UserError:
            return record["place"]
    return str(path)


def _batches(path: Path, others: Counter[str]) -> Iterator[list[dict[str, str]]]:
    """Records of a file; `others` counts the keys that have no place in a data set."""
    records: list[dict[str, str]] = []
    held = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            records.append(_record(line, f"{path}:{number}", others))
            held += len(line)
            if held >= BATCH_BYTES:
                yield records
                records, held = [], 0
    if records:
        yield records


class _Number(str):
    """A number of JSON as it is written, which is no text."""

    __slots__ = ()


def _record(line: bytes, place: str, others: Counter[str]) -> dict[str, str]:
    """The texts of a line by their keys; UserError that says what is wrong with it."""
    try:
        value: Any = json.loads(line.decode("utf-8-sig").rstrip(), parse_int=_Number, parse_float=_Number)
    except RecursionError:
        raise UserError(f"{place}: is nested too deeply; mend or remove this line") from None
    except UnicodeDecodeError as error:
        fault = f"byte {error.start} of it is not UTF-8"
        raise UserError(f"{place}: {fault}; mend it, or preprocess with encoding") from None
    except json.JSONDecodeError as error:
        fault = f"{error.msg}, character {error.pos}"
        rest = error.doc[error.pos :] if error.msg == "Extra data" else ""
        raise UserError(f"{place}: is no JSON object ({fault}); {_cure(line, rest)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: is {_kind(value)}, not a JSON object; {_cure(line)}")
    if "text" not in value:
        keys = ", ".join(map(repr, list(value)[:SHOWN_KEYS])) or "none"
        raise UserError(f'{place}: has no key "text" (it has: {keys}); name it so, or preprocess with text_key')
    text = value["text"]
    if not isinstance(text, str) or isinstance(text, _Number):
        raise UserError(f'{place}: "text" is {_kind(text)}, no text; mend or remove this line')
    try:
        names = {key: _name(value.get(key), key, line) for key in COLUMNS}
        "".join([text, *names.values()]).encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: has half a surrogate pair, which is no character; mend or remove it") from None
    except RecursionError:
        raise UserError(f"{place}: its id or label is nested too deeply; mend or remove this line") from None
    others.update(value.keys() - {"text", *COLUMNS})
    return {"text": text, "place": place, **names}


def _kind(value: Any) -> str:
    """What a value of JSON is called."""
    kinds = {_Number: "a number", str: "a text", list: "an array", dict: "an object", bool: "true or false"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _cure(line: bytes, rest: str = "") -> str:
    """What to do about a line that is no JSON object, or in which `rest` follows one."""
    stripped = line.strip()
    if not stripped.strip(b"\0"):
        return "it is nothing but zeros, so copy the file again"
    if stripped.startswith(RECORD_MARK):
        return "it begins with the mark of a JSON text sequence (RFC 7464); take it away (tr -d '\\036')"
    if b"\r" in stripped:
        return "carriage returns alone end its lines; preprocess it, or end them by line feeds"
    if SEVERAL_LINES.match(stripped) or rest.lstrip(", \t").startswith("{"):
        return f"preprocess it with format: json, or {ONE_A_LINE}"
    return "mend or remove this line"


def _name(value: Any, key: str, line: bytes) -> str:
    """An id or a label as it is written; what is nested stays JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    members = written_members(line.decode("utf-8-sig").strip())
    assert members is not None, "an object"
    return members[key]


def write(folder: Path, corpus: SourceCorpus, options: ConvertOptions) -> None:
    for name, split in corpus.splits.items():
        encoder = _Encoder(corpus.tokenizer)
        changed = 0
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for first, texts, num_changed in _texts(split, encoder, options):
                changed += num_changed
                for document, text in enumerate(texts, first):
                    columns = {key: split.columns.get(name) for key, name in COLUMNS.items()}
                    labels = {key: values[document] for key, values in columns.items() if values and values[document]}
                    file.write(json.dumps({"text": text, **labels}, ensure_ascii=False) + "\n")
        if changed:
            log.warning("%s: %s would come back with different ids", split.file, counted(changed, "document"))


class _Encoder:
    """Tells whether ids are those of their texts, from the second batch on by the fast encoder where there is one.

    A document of which the fast one has other ids is encoded by the exact one too, whose word counts.
    """

    def __init__(self, exact: Tokenizer) -> None:
        self.exact, self._fast = exact, exact
        self._num_batches = 0

    def changed(self, documents: list[np.ndarray], texts: list[str]) -> list[int]:
        """Numbers of the documents that have other ids than their texts."""
        if self._num_batches == 1:  # one alone is sooner encoded than the fast encoder is proven
            self._fast = make_fast(self.exact, texts)
        self._num_batches += 1
        changed = _changed(documents, texts, self._fast)
        if isinstance(self._fast, FastTokenizer):
            if self._fast.wrong is not None:
                raise UserError(
                    f"gigatoken encodes {self._fast.wrong[:80]!r} otherwise than the tokenizers library; please report "
                    "this, uninstall gigatoken and run the same command again"
                )
            wrong = _changed([documents[n] for n in changed], [texts[n] for n in changed], self.exact)
            changed = [changed[n] for n in wrong]
        return changed


def totals(folder: Path, tokenizer: Tokenizer) -> dict[str, tuple[int, int | None]]:
    """A document is a line; it has no tokens until it meets a tokenizer."""
    found: dict[str, tuple[int, int | None]] = {}
    for name, path in split_files(folder, ".jsonl").items():
        with path.open("rb") as file:
            found[name] = (sum(1 for _ in file), None)
    return found


def _texts(split: TokenSplit, encoder: _Encoder, options: ConvertOptions) -> Iterator[tuple[int, list[str], int]]:
    """(number of the first document, texts, how many would come back as other ids) in batches.

    UserError for one that would, unless losses are allowed.
    """
    offsets, tokenizer = split.offsets(), encoder.exact
    first = 0
    while first < len(split.lengths):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BATCH_TOKENS, side="right")) - 1)
        ids = np.concatenate(
            [np.empty(0, np.int64), *split.pieces(int(offsets[first]), int(offsets[last]))], dtype=np.int64
        )
        ends = (offsets[first + 1 : last] - offsets[first]).tolist()
        documents = np.split(ids, ends)
        texts = [
            tokenizer.decode(document[:-1] if document.size and document[-1] == tokenizer.eos_id else document)
            for document in documents
        ]
        changed = encoder.changed(documents, texts)
        if changed and not options.is_lossy:
            raise UserError(
                f"{split.file}: document {first + changed[0]} has other ids than its text has, so it would not come "
                "back from jsonl; convert to megatron, or pass --lossy"
            )
        yield first, texts, len(changed)
        first = last


def _changed(documents: list[np.ndarray], texts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Numbers of the documents that `tokenizer` gives other ids for their texts."""
    if not texts:
        return []
    try:
        ids, lengths = tokenizer.encode_documents(texts)
    except UserError:  # of one that was decoded to what the vocabulary cannot spell
        if len(texts) == 1:
            return [0]
        return [number for number, text in enumerate(texts) if _changed([documents[number]], [text], tokenizer)]
    pairs = zip(documents, np.split(ids, np.cumsum(lengths)[:-1]), strict=True)
    return [number for number, (document, other) in enumerate(pairs) if not np.array_equal(document, other)]
