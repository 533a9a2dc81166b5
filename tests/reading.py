"""What the tests of readers share: files written in any compression, and read from any place."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import zstandard

from hvdlm.preprocessing.documents import BadRecord, Document, Part, ReadOptions
from hvdlm.preprocessing.readers import read_documents
from hvdlm.records.fields import FieldConfig, FieldReader

STRICT = ReadOptions()
# Formats of labelled records alone; the files of parallel are all the one that ends with "a" or ".gz".
LABELLED = {
    "conll": {"text": "text", "tags": "labels"},
    "conllu": {"text": "text", "upos": "labels"},
    "squad": {"text": "text", "question": "pair", "answers": "span"},
    "parallel": {"text": {"type": "text", "key": ""}, "other": {"type": "pair", "key": ""}},
}


def fields_for(name: str) -> FieldReader | None:
    fields = {key: {"type": kind} if isinstance(kind, str) else kind for key, kind in LABELLED.get(name, {}).items()}
    return FieldReader({key: FieldConfig(**kind) for key, kind in fields.items()}) if fields else None


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}

Found = Document | BadRecord


def write_packed(path: Path, content: bytes) -> Path:
    """Write in the compression that the suffix names, if it names one."""
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
    return path


def read(path: Path, options: ReadOptions = STRICT, start: int = 0, stop: int | None = None) -> list[Found]:
    return list(read_documents(Part(str(path), start, stop), options))


def only_bad(path: Path, options: ReadOptions = STRICT) -> BadRecord:
    """What is wrong with a file that holds nothing else."""
    (found,) = read(path, options)
    assert isinstance(found, BadRecord), found
    return found
