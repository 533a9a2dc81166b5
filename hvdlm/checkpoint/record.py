"""`state.json`: what a checkpoint says of itself, and how far that can be believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hvdlm.files import read_json, to_json

STATE = "state.json"
SCHEMA = 2  # of what is written; 1 is read too

# A name from a file is never a path: no separator, no dots to climb by.
MOST_LETTERS = 500
Key = Annotated[str, Field(pattern=rf"^[^\x00-\x1f\x7f-\x9f]{{1,{MOST_LETTERS}}}$")]
FileName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}\.safetensors$")]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


MOST_DIMS = 8
Size = Annotated[tuple[Count, ...], Field(max_length=MOST_DIMS, strict=False)]
Placed = Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 20)], Count, Size, Size], Field(strict=False)]


class _Part(BaseModel):
    """Of a file that anybody may have written: exact types, no infinity; what a later version adds is let pass."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class FileFacts(_Part):
    """A file beside state.json."""

    bytes: Count
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TensorFacts(_Part):
    """A tensor of the state: boxes of it as [number of the part, place in it, offset, shape]."""

    shape: tuple[Count, ...] = Field(max_length=MOST_DIMS, strict=False)
    dtype: str = Field(pattern="^[A-Z0-9_]{1,12}$")
    boxes: list[Placed] = Field(min_length=1)


class ScalerFacts(_Part):
    """The loss scale of fp16."""

    scale: float = Field(gt=0)
    quiet: Count


class EngineFacts(_Part):
    """What training goes on with besides tensors."""

    sync: str = ""
    guard: dict[str, int | float] = {}
    left_out: Count = 0
    val_losses: list[float | None] = []  # null: not finite
    scaler: ScalerFacts | None = None


class SettingsFacts(_Part):
    """The sections of a run's config that are looked into before it is validated."""

    model: dict[str, Any] = {}
    optim: dict[str, Any] = {}
    init: dict[str, Any] | None = None


class Record(_Part):
    """The whole file. Every key but these is for people."""

    schema_: Literal[1, 2] = Field(1, alias="schema")  # checkpoints of older versions do not say it
    step: Count
    files: dict[FileName, FileFacts]
    tensors: dict[Key, TensorFacts] = {}  # of schema 1 each file's own
    optimizer_scalars: dict[Key, bool | int | float | None] = {}
    config: SettingsFacts
    data_digest: str
    tokenizer_digest: str
    vocab_size: int = Field(ge=1, le=1 << 32)
    eos_id: Count
    bos_id: Count | None = None
    seconds: float = Field(0.0, ge=0)
    ranks: int = Field(1, ge=1)
    updates: Count = 0  # steps that were not left out
    fault: str = ""  # why what the run has ended with is no result
    engine: EngineFacts = EngineFacts()
    figures: dict[str, str | int | float | None] = {}
    digest: str | None = None  # of all the rest; some checkpoints of schema 1 have none


def digest_of(record: dict[str, Any]) -> str:
    """sha256 of a record's values, however it is laid out; of its files the names alone: they have their own."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    read = json.loads(to_json({**rest, "files": sorted(record["files"])}))  # NaN is null then, and a tuple a list
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint folder, its known keys checked; ValueError or OSError that says what is wrong."""
    if (folder / STATE).is_symlink():
        raise ValueError("it is a link, and must be a file of its own")
    found = read_json(folder / STATE)
    try:
        record = Record.model_validate(found)
        is_changed = (record.digest is not None or record.schema_ > 1) and record.digest != digest_of(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(in_a_line, first['loc'])) or STATE}: {first['msg']}") from None
    except RecursionError:  # which takes fewer levels here than in the parser
        raise ValueError("nested too deeply") from None
    if is_changed:
        raise ValueError("it was changed after it was written: its digest is of other values")
    return found


def in_a_line(name: str | int) -> str:
    """A name that anybody may have written, for a message."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(name)[:MOST_LETTERS])
    return shown if len(str(name)) <= MOST_LETTERS else f"{shown}…"
