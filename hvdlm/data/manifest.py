"""`manifest.json`: what a data folder contains. It is written last, so a folder without one is no data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hvdlm.errors import UserError
from hvdlm.files import read_text, write_text_durably
from hvdlm.tokenizer import Tokenizer, digest, dtype_for

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
MAX_BYTES = 1 << 30  # of a manifest: millions of shards
SPLITS = ("train", "val", "test")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShardEntry(_Entry):
    """A shard as the manifest knows it."""

    file: str = Field(pattern=r"^\w[\w.-]*\.h5$")  # beside the manifest: never a path
    num_tokens: int
    num_documents: int
    num_bytes: int  # size of the file
    checksum: str  # sha256 of the file


class SplitEntry(_Entry):
    """A split: its shards in reading order, and totals."""

    shards: tuple[ShardEntry, ...]
    num_tokens: int
    num_documents: int
    text_bytes: int  # UTF-8 bytes of the documents, for bits per byte
    unigram_loss: float | None  # nats per token under the train split's smoothed token frequencies
    digest: str  # of the tokens alone, however they lie in files: see verify.stream_digest


class Manifest(_Entry):
    """What a data folder contains."""

    format_version: Literal[1]
    tokenizer_digest: str
    tokenizer_kind: str
    vocab_size: int
    eos_id: int
    dtype: Literal["uint16", "uint32"]
    splits: dict[str, SplitEntry]
    num_tokens: int
    num_documents: int
    statistics: dict[str, int]
    plan: str  # digest of input and config: the same plan gives the same bytes

    @property
    def train_digest(self) -> str:
        """Names the training tokens: the same tokens have the same name, in whatever shards and wherever."""
        return self.splits["train"].digest


def manifest_of(
    tokenizer: Tokenizer,
    shards: Mapping[str, Sequence[ShardEntry]],
    *,
    text_bytes: Mapping[str, int] | None = None,
    statistics: Mapping[str, int] | None = None,
    plan: str = "",
) -> Manifest:
    """The manifest of shards just written, by split; `verify.read_back` adds their digests and unigram losses.

    `text_bytes` are UTF-8 bytes by split; the number of documents is always among the statistics.
    """
    by_split = {split: tuple(shards.get(split, ())) for split in SPLITS}
    splits = {
        split: SplitEntry(
            shards=entries,
            num_tokens=sum(entry.num_tokens for entry in entries),
            num_documents=sum(entry.num_documents for entry in entries),
            text_bytes=(text_bytes or {}).get(split, 0),
            unigram_loss=None,
            digest="",
        )
        for split, entries in by_split.items()
    }
    num_documents = sum(entry.num_documents for entry in splits.values())
    return Manifest(
        format_version=FORMAT_VERSION,
        tokenizer_digest=digest(tokenizer),
        tokenizer_kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        dtype=dtype_for(tokenizer.vocab_size).name,
        splits=splits,
        num_tokens=sum(entry.num_tokens for entry in splits.values()),
        num_documents=num_documents,
        statistics=dict(sorted({**(statistics or {}), "documents": num_documents}.items())),
        plan=plan,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare a folder complete; nothing may be written after this."""
    write_text_durably(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data folder; UserError if there is none or it is not one of ours."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(read_text(path, limit=MAX_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path}: there is none, so this is no finished data set; run `hvdlm preprocess`") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; made by another version?"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: is no manifest ({error}); rerun `hvdlm preprocess`") from None
