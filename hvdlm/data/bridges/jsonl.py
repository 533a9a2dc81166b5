"""Text as JSON lines, {"text": …, "id": …, "label": …} a document: train.jsonl, val.jsonl, test.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.data.bridges.interface import ConvertOptions, SourceCorpus, TokenSplit, reader_of, split_files, write_array
from hvdlm.errors import UserError
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import dtype_for

KEEPS_COLUMNS = True
BATCH_BYTES = 1 << 20  # text that meets the tokenizer at once
BATCH_TOKENS = 1 << 18
COLUMNS = {"id": "doc_ids", "label": "doc_labels"}


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
    text_bytes = 0
    with spool.open("wb") as file:
        for records in _batches(path):
            ids, of_documents = tokenizer.encode_documents([record["text"] for record in records])
            write_array(file, ids, dtype)
            lengths.append(of_documents)
            text_bytes += sum(len(record["text"].encode()) for record in records)
            for key, name in COLUMNS.items():
                columns[name] += [record[key] for record in records]
    kept = {name: values for name, values in columns.items() if any(values)}
    read_tokens, all_lengths = reader_of(spool, dtype), np.concatenate(lengths)
    return TokenSplit(path, all_lengths, read_tokens, dtype.name, tokenizer.vocab_size, text_bytes, kept)


def _batches(path: Path) -> Iterator[list[dict[str, str]]]:
    records: list[dict[str, str]] = []
    held = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            records.append(_record(line, f"{path}:{number}"))
            held += len(line)
            if held >= BATCH_BYTES:
                yield records
                records, held = [], 0
    if records:
        yield records


def _record(line: bytes, place: str) -> dict[str, str]:
    try:
        value: Any = json.loads(line)
        text = value["text"]
        if not isinstance(text, str):
            raise TypeError
        text.encode()  # a lone surrogate is no text
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f'{place}: not a JSON object with "text" in valid characters; mend or remove this line'
        ) from None
    return {"text": text, **{key: "" if value.get(key) is None else str(value[key]) for key in COLUMNS}}


def write(folder: Path, corpus: SourceCorpus, options: ConvertOptions) -> None:
    for name, split in corpus.splits.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for first, texts in _texts(split, corpus.tokenizer, options):
                for document, text in enumerate(texts, first):
                    columns = {key: split.columns.get(name) for key, name in COLUMNS.items()}
                    labels = {key: values[document] for key, values in columns.items() if values and values[document]}
                    file.write(json.dumps({"text": text, **labels}, ensure_ascii=False) + "\n")


def _texts(split: TokenSplit, tokenizer: Tokenizer, options: ConvertOptions) -> Iterator[tuple[int, list[str]]]:
    """(number of the first document, texts) in batches; UserError for one that would come back as other ids."""
    offsets = split.offsets()
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
        if not options.is_lossy:
            _check_texts(split, first, documents, texts, tokenizer)
        yield first, texts
        first = last


def _check_texts(
    split: TokenSplit, first: int, documents: list[np.ndarray], texts: list[str], tokenizer: Tokenizer
) -> None:
    ids, lengths = tokenizer.encode_documents(texts)
    for number, (document, again) in enumerate(
        zip(documents, np.split(ids, np.cumsum(lengths)[:-1]), strict=True), first
    ):
        if not np.array_equal(document, again):
            raise UserError(
                f"{split.file}: document {number} has other ids than its text has, so it would not come back from "
                "jsonl; convert to megatron, or pass --lossy"
            )
