"""Who reads what and where documents go, fixed by input and config alone: this module knows no rank."""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from hvdlm import __version__
from hvdlm.config import Section, by_name, choice_of
from hvdlm.data.manifest import SPLITS
from hvdlm.files import sha256_of
from hvdlm.records import fields as records
from hvdlm.tokenizer import TokenizerConfig

from .clean import CleanConfig
from .documents import ErrorPolicy, Part, ReadOptions, Stamp, TableConfig, stamp_of, stat_of
from .filters import FilterConfig
from .pii import PiiConfig
from .readers import FORMATS, can_split
from .readers.parallel import files_of
from .splits import SplitConfig, SplitInputs, SplitPlan

MIN_UNIT_BYTES = 4 << 20
MAX_UNIT_BYTES = 64 << 20
UNITS_WANTED = 4096  # enough to balance any cluster, few enough to list
LIBRARIES = (
    "tokenizers numpy h5py gigatoken ftfy trafilatura jieba tiktoken sentencepiece datasketch xxhash orjson "
    "pyarrow zstandard"
)  # the libraries whose version may change a shard


class DedupConfig(Section):
    """The `dedup` section: of documents that are the same, the first in input order stays.

    Of predefined splits val and test lose nothing: a document of train that stands there too is dropped.
    """

    exact: bool = Field(False, description="drop documents whose cleaned text was there before")
    near: bool = Field(False, description="drop near-duplicates by MinHash (implies exact)")
    threshold: float = Field(0.8, ge=0.1, lt=1, description="Jaccard similarity of word 5-grams that counts as near")
    num_hashes: int = Field(112, ge=16, le=512, description="MinHash values a document; more are surer and slower")

    @property
    def is_on(self) -> bool:
        return self.exact or self.near


class PreprocessConfig(Section):
    """A preprocess config: raw text in, tokenized shards out."""

    input: str | list[str] | SplitInputs = Field(
        description="file, folder, glob, list of these, or python-stdlib; predefined splits are named one by one"
    )
    format: Annotated[str, choice_of(["auto", *FORMATS])] = Field(
        "auto",
        description="auto goes by suffix (.txt .md .jsonl .json .csv .tsv .parquet .arrow .feather .html .warc .wet "
        ".tokens, also .gz .bz2 .xz .zst); of .txt, paragraphs cuts at blank lines, separated at `separator` and "
        "lines at line ends",
    )
    text_key: str = Field("text", description="key (json) or column (tables) of the text; a.b is b inside a")
    id_key: str | None = Field(None, description="key or column of a document's id, kept in the shards")
    label_key: str | None = Field(None, description="key or column of a document's label, kept in the shards")
    fields: dict[str, Annotated[records.FieldConfig, BeforeValidator(by_name(records.FieldConfig.short))]] = Field(
        {}, description="of labelled records, in place of text_key: what each holds, NAME: TYPE or as below"
    )
    separator: str | None = Field(None, description="what stands between documents of format: separated")
    table: TableConfig = TableConfig()
    encoding: str = Field("utf-8", description="of text files; any name that Python knows, such as gb18030")
    errors: ErrorPolicy = Field("strict", description="of wrong bytes: strict makes a bad record, replace puts U+FFFD")
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="a bad record ends the job, or is reported and counted"
    )
    output: Path = Field(strict=False, description="folder for manifest, shards and tokenizer.json")
    layout: Literal["shards", "mpio"] = Field("shards", description="mpio: one file a split, written by parallel HDF5")
    tokenizer: TokenizerConfig = TokenizerConfig()
    split: SplitConfig = SplitConfig()
    clean: CleanConfig = CleanConfig()
    pii: PiiConfig = PiiConfig()
    filter: FilterConfig = FilterConfig()
    dedup: DedupConfig = DedupConfig()
    dropped: bool = Field(
        False, description="also write OUTPUT/dropped.jsonl: where each dropped document was, and why"
    )
    shard_tokens: int = Field(64_000_000, ge=1, description="tokens after which the next shard begins")
    seed: int = Field(0, description="decides which documents are validation and test")

    @model_validator(mode="before")
    @classmethod
    def _keep_train_whole(cls, values: Any) -> Any:
        """Of predefined splits nothing is cut out of train unless that is asked for."""
        if isinstance(values, dict) and isinstance(values.get("input"), dict | SplitInputs):
            split = values.get("split", {})
            return {**values, "split": {"val": 0.0, **split}} if isinstance(split, dict) else values
        return values

    @model_validator(mode="after")
    def _check(self) -> PreprocessConfig:
        self.splits.check()
        self._check_fields()
        if "train" not in self.splits.sources and self.tokenizer.is_learnt:
            raise ValueError(
                f"tokenizer: a {self.tokenizer.kind} vocabulary is learnt from input.train, and there is none; set "
                "tokenizer.path to the tokenizer.json of the data that the model is trained on"
            )
        try:
            "a".encode(self.encoding)  # raises for what Python knows but is no encoding of text, such as base64
            codecs.getincrementaldecoder(self.encoding)("surrogateescape").decode(b"a")  # idna, punycode: for names
        except (LookupError, ValueError):
            raise ValueError(f"encoding {self.encoding!r} is no text encoding that Python knows") from None
        if (self.separator is not None) != (self.format == "separated"):
            raise ValueError("format: separated and separator go together")
        return self

    def _check_fields(self) -> None:
        """ValueError for fields, or for what would not leave them as they are."""
        records.check(self.fields)
        if self.fields and self.text_key != "text":
            raise ValueError("text_key: is of texts without fields; set fields.NAME.key of the field of type text")
        if self.fields and self.dedup.near:
            raise ValueError("dedup.near: compares texts alone, and records may differ in all else; use dedup.exact")
        if self.format == "parallel" and not self.is_utf8:
            raise ValueError(f"encoding: parallel files are read as UTF-8, not {self.encoding}; convert them (iconv)")
        worded = next((name for name, found in records.entries(self.fields).items() if found.words), None)
        for section in (self.clean, self.pii) if worded else ():
            changed = [key for key, value in section if value != type(section).model_fields[key].default]
            if changed:
                what = "clean" if section is self.clean else "pii"
                told = f"{what}.{changed[0]}: would move characters of {worded!r}"
                raise ValueError(f"{told}, which labels or spans count; leave it out")

    @property
    def splits(self) -> SplitPlan:
        return SplitPlan.of(self.input, self.split)

    @property
    def compares_texts(self) -> bool:
        """Whether it is known of documents which are the same."""
        return self.dedup.is_on or len(self.splits.sources) > 1

    @property
    def is_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name == "utf-8"

    @property
    def read_options(self) -> ReadOptions:
        return ReadOptions(
            self.format,
            self.text_key,
            self.id_key,
            self.label_key,
            self.separator,
            self.encoding,
            self.errors,
            self.table,
            records.FieldReader(self.fields) if self.fields else None,
        )


@dataclass(frozen=True)
class Unit:
    """A piece of work for one rank: parts of the input of one split, in order."""

    number: int
    parts: tuple[Part, ...]
    num_bytes: int
    split: str = "train"  # whose input it is; `SplitPlan.of_document` has the last word


@dataclass(frozen=True)
class WorkPlan:
    """What all ranks agree on before the first unit."""

    config: PreprocessConfig
    units: list[Unit]
    digest: str
    work: Path  # folder of the spool
    todo: tuple[int, ...] = ()  # units without a spool file at the start, the largest first
    spools: tuple[Path, ...] = ()  # once all units are done
    listed: Mapping[str, Stamp] = field(default_factory=dict)  # every input file as it was at the start

    @property
    def halt(self) -> Path:
        """Exists once some rank has failed or was asked to stop; the next start removes it."""
        return self.work / ".halt"

    def spool(self, unit: int) -> Path:
        """The last of a unit's spool files: it is there once the unit is done."""
        return self.work / f"unit-{unit:06d}.npz"

    def segment(self, unit: int, number: int) -> Path:
        """A spool file before the last one of a unit with more text than one shall hold."""
        return self.work / f"unit-{unit:06d}.part-{number:05d}.npz"

    def segments(self, unit: int) -> list[Path]:
        """Those that are there."""
        return sorted(self.work.glob(f"unit-{unit:06d}.part-*.npz"))

    def files(self, unit: int) -> list[Path]:
        """All that is kept of a unit, marks of dedup among it; last the file that says that it is finished."""
        return sorted(self.work.glob(f"unit-{unit:06d}.*"), key=lambda path: path == self.spool(unit))

    def with_held_out_first(self) -> tuple[list[Path], int]:
        """`spools`, those of predefined val and test splits before all others, and how many they are."""
        is_train = {path: self.units[unit_of(path)].split == "train" for path in self.spools}
        return sorted(self.spools, key=is_train.__getitem__), sum(not found for found in is_train.values())

    def find_spools(self) -> tuple[Path, ...]:
        """The spool files of all units, in the order of the input."""
        by_unit: dict[str, list[Path]] = {}
        for path in sorted(self.work.glob("unit-*.part-*.npz")):
            by_unit.setdefault(path.name.split(".")[0], []).append(path)
        return tuple(
            path
            for unit in self.units
            for path in [*by_unit.get(f"unit-{unit.number:06d}", []), self.spool(unit.number)]
        )


def work_name(digest: str) -> str:
    """The folder of a plan's spool: what another version of something began is not continued."""
    return hashlib.sha256(json.dumps([digest, versions()]).encode()).hexdigest()[:16]


def unit_of(spool: Path) -> int:
    """The unit that a spool file belongs to.

    >>> unit_of(Path("unit-000012.part-00003.npz"))
    12
    """
    return int(spool.name.split(".")[0].removeprefix("unit-"))


def units_of(inputs: Mapping[str, Mapping[str, Stamp]], options: ReadOptions) -> list[Unit]:
    """`make_units` of each split's files, one split after the other."""
    units: list[Unit] = []
    for split, files in inputs.items():
        of_split = make_units([(path, size) for path, (size, _) in files.items()], options)
        units += [replace(unit, number=len(units) + unit.number, split=split) for unit in of_split]
    return units


def make_units(files: list[tuple[str, int]], options: ReadOptions) -> list[Unit]:
    """Cut (path, size) files into units of similar bytes, in input order.

    Small files share a unit; a large file that can be split is shared by several.
    """
    total = sum(size for _, size in files)
    unit_bytes = min(max(total // UNITS_WANTED, MIN_UNIT_BYTES), MAX_UNIT_BYTES)
    units: list[Unit] = []
    parts: list[Part] = []
    filled = 0
    for part, size in _parts(files, unit_bytes, options):
        parts.append(part)
        filled += size
        if filled >= unit_bytes:
            units.append(Unit(len(units), tuple(parts), filled))
            parts, filled = [], 0
    if parts:
        units.append(Unit(len(units), tuple(parts), filled))
    return units


def _parts(files: list[tuple[str, int]], unit_bytes: int, options: ReadOptions) -> Iterator[tuple[Part, int]]:
    for path, size in files:
        if size <= unit_bytes or not can_split(path, options):
            yield Part(path, 0, None), size
            continue
        for start in range(0, size, unit_bytes):
            stop = min(start + unit_bytes, size)
            yield Part(path, start, stop), stop - start


def plan_digest(config: PreprocessConfig, listed: Mapping[str, Stamp]) -> str:
    """Names everything the output depends on; a changed input or config is another plan.

    Not `on_error`: with either there is the same output, or none. So what was done before an error stays.
    """
    stamps = [(path, *stamp) for path, stamp in listed.items()]
    stamps += [(sha256_of(path), 0, 0) for path in config.tokenizer.files]
    if config.format == "parallel":
        options = config.read_options
        stamps += [(path, *stamp_of(stat_of(path))) for one in listed for path in files_of(one, options) if path != one]
    unnamed = {"output", "on_error", *(() if config.fields else ("fields",))}
    content = {"config": config.model_dump(mode="json", exclude=unnamed), "files": stamps}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
    """What makes the shards: goes into provenance.json."""
    found = {"hvdlm": __version__, "python": platform.python_version()}
    for name in LIBRARIES.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def sample_units(units: list[Unit], sample_bytes: float) -> tuple[list[Unit], float]:
    """Units spread evenly over the input, about 8 times the sample, and the fraction to keep of them."""
    total = sum(unit.num_bytes for unit in units)
    chosen = units[:: max(1, int(total / (8 * sample_bytes)))]
    return chosen, min(1.0, sample_bytes / max(1, sum(unit.num_bytes for unit in chosen)))


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: documents whose first token is in [start, start + shard_tokens) of the split."""

    split: str
    number: int  # counts the split's shards from 0
    window: int  # start = window * shard_tokens; a document longer than a shard leaves windows empty
    units: tuple[int, ...]  # those that hold its documents, in order


def shard_plans(windows_of_unit: Iterable[dict[str, list[int]]]) -> list[ShardPlan]:
    """Shards from the windows that each unit's documents start in (unit by unit, in order)."""
    units_of: dict[tuple[str, int], list[int]] = {}
    for unit, windows_of_split in enumerate(windows_of_unit):
        for split, windows in windows_of_split.items():
            for window in windows:
                units_of.setdefault((split, window), []).append(unit)
    plans = []
    for split in SPLITS:
        windows = sorted(window for name, window in units_of if name == split)
        plans += [ShardPlan(split, n, w, tuple(units_of[split, w])) for n, w in enumerate(windows)]
    return plans


def windows_of(doc_lengths: np.ndarray, first_token: int, shard_tokens: int) -> np.ndarray:
    """The shard window each document starts in (int64), given the split's token offset of the first."""
    starts = first_token + np.concatenate([[0], np.cumsum(doc_lengths)[:-1]]).astype(np.int64)
    return starts[: len(doc_lengths)] // shard_tokens
