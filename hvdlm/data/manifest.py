"""`manifest.json`: what a data folder contains. It is written last, so a folder without one is no data set."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hvdlm.data.fields import FieldEntry, labels_digest
from hvdlm.errors import UserError
from hvdlm.files import read_text, write_text_durably
from hvdlm.tokenizer import MOST_IDS, Tokenizer, digest, dtype_for, load

FormatVersion = Literal[1, 2]
FORMAT_VERSION: FormatVersion = 1  # of text, frozen
RECORDS_VERSION: FormatVersion = 2  # of labelled records: with columns of fields; `tokens` are read alike
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
MAX_BYTES = 1 << 30  # of a manifest: millions of shards
SPLITS = ("train", "val", "test")
# What others call them, for messages: a name is never taken for another one without a word.
OTHER_NAMES = {
    **dict.fromkeys(("training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "dev", "development", "eval"), "val"),
    **dict.fromkeys(("testing", "tst", "heldout", "held_out"), "test"),
}

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Dtype = Literal["uint16", "uint32"]  # of tokens


class _Entry(BaseModel):
    """Of a file that anybody may have written: exact types, no infinity; what a later version adds is let pass."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class ShardEntry(_Entry):
    """A shard as the manifest knows it."""

    file: str = Field(pattern=r"^\w[\w.-]*\.h5$")  # beside the manifest: never a path
    num_tokens: Count
    num_documents: Count
    num_bytes: Count  # size of the file
    checksum: str  # sha256 of the file


class SplitEntry(_Entry):
    """A split: its shards in reading order, and totals."""

    shards: tuple[ShardEntry, ...]
    num_tokens: Count
    num_documents: Count
    text_bytes: Count  # UTF-8 bytes of the documents, for bits per byte
    # nats per token under the train split's smoothed token frequencies; null without tokens here or in train
    unigram_loss: Annotated[float, Field(ge=0)] | None
    digest: str  # of the tokens alone, however they lie in files: see verify.stream_digest
    fields_digest: str = ""  # of labelled records: of all their other columns, likewise; see verify.columns_digest


class Splitting(_Entry):
    """How documents came to their splits: by the input they stand in, or by a hash of their text."""

    kind: Literal["hash", "predefined"]
    inputs: dict[str, tuple[str, ...]] = {}  # of predefined splits: what the config names, by split
    fractions: dict[str, float] = {}  # of the documents of one input, or of input.train, that a hash took out of train


class Manifest(_Entry):
    """What a data folder contains."""

    format_version: FormatVersion
    tokenizer_digest: str
    tokenizer_kind: str
    vocab_size: Annotated[int, Field(ge=1, le=MOST_IDS)]
    eos_id: Count
    bos_id: Count | None = None  # before each document; most vocabularies have none, and then there is no such key
    dtype: Dtype
    splits: dict[str, SplitEntry]
    num_tokens: Count
    num_documents: Count
    statistics: dict[str, int]
    plan: str  # digest of input and config: the same plan gives the same bytes
    splitting: Splitting | None = None  # of folders that `hvdlm preprocess` made; earlier versions told none
    fields: dict[str, FieldEntry] = {}  # of labelled records

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        if not any(split in self.splits for split in SPLITS):
            raise ValueError(f"there is no split train, val or test, only {', '.join(self.splits) or 'none'}")
        for what in ("num_tokens", "num_documents"):
            for name, split in self.splits.items():
                _check_sum(f"splits.{name}.{what}", getattr(split, what), [getattr(s, what) for s in split.shards])
            _check_sum(what, getattr(self, what), [getattr(split, what) for split in self.splits.values()])
        for name in ("eos_id", "bos_id"):
            number = getattr(self, name)
            if number is not None and number >= self.vocab_size:
                raise ValueError(f"{name} {number} is not in a vocabulary of {self.vocab_size}")
        for name, field in self.fields.items():
            if field.labels and labels_digest(field.labels) != field.labels_digest:
                raise ValueError(f"fields.{name}.labels: are not those of its labels_digest {field.labels_digest}")
        if (self.format_version == RECORDS_VERSION) != bool(self.fields):
            raise ValueError(f"format_version {self.format_version} does not go with {len(self.fields)} fields")
        return self

    @property
    def train_digest(self) -> str:
        """Names what is trained on: the same tokens and fields have the same name, in whatever shards and wherever."""
        entry = self.splits["train"]
        return f"{entry.digest}-{entry.fields_digest}" if entry.fields_digest else entry.digest


def _check_sum(name: str, total: int, parts: list[int]) -> None:
    if total != sum(parts):
        raise ValueError(f"{name} is {total}, its parts have {sum(parts)}")


def manifest_of(  # noqa: PLR0913 - what a manifest tells, each a keyword
    tokenizer: Tokenizer,
    shards: Mapping[str, Sequence[ShardEntry]],
    *,
    text_bytes: Mapping[str, int] | None = None,
    statistics: Mapping[str, int] | None = None,
    plan: str = "",
    splitting: Splitting | None = None,
    fields: Mapping[str, FieldEntry] | None = None,
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
    counts = {**(statistics or {}), "documents": num_documents}
    if tokenizer.bos_id is not None:
        counts["bos_tokens"] = num_documents
    return Manifest(
        format_version=RECORDS_VERSION if fields else FORMAT_VERSION,
        tokenizer_digest=digest(tokenizer),
        tokenizer_kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        bos_id=tokenizer.bos_id,
        dtype=cast(Dtype, dtype_for(tokenizer.vocab_size).name),
        splits=splits,
        num_tokens=sum(entry.num_tokens for entry in splits.values()),
        num_documents=num_documents,
        statistics=dict(sorted(counts.items())),
        plan=plan,
        splitting=splitting,
        fields=dict(fields or {}),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare a folder complete; nothing may be written after this."""
    absent = {name for name in ("bos_id", "splitting", "fields") if getattr(manifest, name) in (None, {})}
    content = manifest.model_dump(mode="json", exclude=absent)
    if manifest.fields:
        told = {name: field.model_dump(mode="json", exclude_defaults=True) for name, field in manifest.fields.items()}
        content["fields"] = told
    else:
        for split in content["splits"].values():
            del split["fields_digest"]
    write_text_durably(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data folder; UserError if there is none or it is not one of ours."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(read_text(path, limit=MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        remedy = (
            "convert these files (`hvdlm data convert`)" if _is_of_other_tools(folder) else "run `hvdlm preprocess`"
        )
        raise UserError(f"{path}: there is none, so this is no finished data set; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        place, found = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path}: {place + ': ' if place else ''}{found}; copy it again or rerun `hvdlm preprocess`;"
            " made by another version?"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: is no manifest ({error}); rerun `hvdlm preprocess`") from None


def need_split(folder: Path, manifest: Manifest, split: str) -> SplitEntry:
    """A split of a data folder; UserError if it has no tokens."""
    entry = manifest.splits.get(split)
    if entry is None or not entry.num_tokens:
        have = ", ".join(name for name, other in manifest.splits.items() if other.num_tokens)
        remedy = "evaluate on it, do not train" if split == "train" else "name one of these"
        raise UserError(
            f"{folder}: has no {split} tokens (it has: {have or 'none'}); {remedy if have else 'it is empty'}, or set "
            "`input` and `split` of the preprocess config"
        )
    return entry


def _is_of_other_tools(folder: Path) -> bool:
    """Whether these are ids of Megatron or nanoGPT: a folder of them, one of them, or the prefix of their names."""
    beside, prefix = (folder, "") if folder.is_dir() else (folder.parent, folder.stem)
    names = [path.name for path in beside.glob(f"{glob.escape(prefix)}*") if path.suffix in (".bin", ".idx")]
    return any(name.endswith(".idx") or any(split in name for split in SPLITS) for name in names)


def tokenizer_of(folder: Path, manifest: Manifest) -> Tokenizer:
    """The tokenizer.json of a data folder; UserError unless the manifest tells of the same."""
    path = folder / TOKENIZER
    tokenizer = load(path)
    if (found := digest(tokenizer)) != manifest.tokenizer_digest:
        raise UserError(
            f"{path}: is tokenizer {found}, the shards were made with "
            f"{manifest.tokenizer_digest}; put theirs back or rerun `hvdlm preprocess`"
        )
    for name in ("vocab_size", "eos_id", "bos_id"):
        if getattr(tokenizer, name) != getattr(manifest, name):
            raise UserError(
                f"{folder / MANIFEST}: {name}: is {getattr(manifest, name)}, {path} has {getattr(tokenizer, name)}; "
                "copy it again or rerun `hvdlm preprocess`"
            )
    return tokenizer
