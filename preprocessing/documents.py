"""What the stages hand on: files, parts of files, documents. Readers turn parts into documents."""

from __future__ import annotations

import glob
import logging
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.tables import counted

from .compression import COMPRESSIONS

if TYPE_CHECKING:
    from hvdlm.records.fields import FieldReader, Record

log = logging.getLogger("hvdlm")

ErrorPolicy = Literal["strict", "replace"]
NOT_UTF8 = "is not UTF-8; set encoding, or errors: replace"

# A longer document is cut into pieces, so that memory is bounded whatever the input holds: readers/cutting.py.
MAX_DOCUMENT_BYTES = 4 << 20

# What programs leave among data: their marks and notes, what they have not finished.
MARKERS = (
    *("_SUCCESS", "_metadata", "_common_metadata", "Thumbs.db", "desktop.ini"),
    *("dataset_dict.json", "dataset_info.json", "dataset_infos.json"),
)
UNFINISHED = ".incomplete"
# Of Hugging Face's datasets: tables as save_to_disk names them, and what may lie beside them or such as its cache has.
HF_TABLE, HF_NOTE = re.compile(r"data-\d{5}-of-\d{5}\.arrow|dataset\.arrow"), "dataset_info.json"
HF_CACHE = re.compile(r"cache-\w+\.arrow")
HF_BESIDE = re.compile(HF_CACHE.pattern + r"|state\.json|tmp\w{8}|.*\.lock")
HF_INDICES = re.compile(r"indices(?:-\d{5}-of-\d{5})?\.arrow")

# The sources of the running interpreter: tens of MB of real text on every machine, nothing to download.
BUILTIN_CORPORA: dict[str, tuple[str, tuple[str, ...]]] = {
    "python-stdlib": ("**/*.py", ("site-packages", "__pycache__"))
}


Stamp = tuple[int, int]  # of a file: size in bytes, time of the last change in ns


@dataclass(frozen=True)
class Part:
    """Bytes [start, stop) of a file; `stop` is None for all of one that cannot be split."""

    path: str
    start: int
    stop: int | None


class TableConfig(Section):
    """The `table` section: how rows of csv and tsv are written."""

    delimiter: str | None = Field(None, description="character between cells; default: a comma in csv, a tab in tsv")
    quote: str | None = Field(
        "auto", description='character around cells, or none where quotes are text; auto: " in csv, none in tsv'
    )
    escape: str | None = Field(None, description="character that makes the next one text, such as a backslash")
    header: list[str] | None = Field(None, description="names of the columns in files whose first row is data")

    @model_validator(mode="after")
    def _check(self) -> TableConfig:
        quote = None if self.quote in ("none", None) else '"' if self.quote == "auto" else self.quote
        given = [value for value in (self.delimiter, quote, self.escape) if value is not None]
        if any(len(value) != 1 or value in "\r\n\0" for value in given) or len(set(given)) < len(given):
            hint = '; a tab is "\\t", in double quotes' if "\\t" in given else ""
            hint += "; a quote doubled inside quotes needs no escape" if self.escape == quote is not None else ""
            raise ValueError(f"delimiter, quote and escape are different single characters, not {given}{hint}")
        return self


@dataclass(frozen=True)
class ReadOptions:
    """How files become documents."""

    format: str = "auto"
    text_key: str = "text"
    id_key: str | None = None
    label_key: str | None = None
    separator: str | None = None
    encoding: str = "utf-8"
    errors: ErrorPolicy = "strict"
    table: TableConfig = field(default_factory=TableConfig)
    fields: FieldReader | None = None  # of labelled records

    @property
    def keys(self) -> dict[str, str | None]:
        """What a record is asked for, by the settings that name it; with fields these stand for the text."""
        text = {} if self.fields else {"text_key": self.text_key}
        fields = self.fields.asked if self.fields else {}
        return {**text, "id_key": self.id_key, "label_key": self.label_key, **fields}


class Document(NamedTuple):
    """A text and where it came from; readers give it whole, and behind them it is a piece of a long one."""

    text: str
    position: int  # of its first byte in the uncompressed file, or its number from 0 in a table or archive
    id: str | None = None
    label: str | None = None
    part: int = 0  # number of its part in the unit
    piece: int = 0  # number of this piece of a long text, from 0
    raw: tuple[Any, ...] = ()  # of a labelled record: what stands under the keys of its fields
    record: Record | None = None  # and what is made of it
    place: str = ""  # for a message, where the position alone does not tell it


class LongDocument(NamedTuple):
    """A text that a reader gives bit by bit, as UTF-8; `chunks` are to be taken before the reader goes on."""

    chunks: Iterator[bytes]
    position: int
    id: str | None = None
    label: str | None = None
    first: int = 0  # number of the piece that the chunks begin with: see `cutting.cut`
    stop: int | None = None  # the byte of the text from which on no piece begins
    is_verbatim: bool = False  # whether the chunks are the file's own bytes, so that each has its place there


class BadRecord(NamedTuple):
    """Something in the input that is no document: reported, counted, skipped or fatal by `on_error`."""

    place: str  # PATH, PATH: byte N, PATH: row N
    reason: str  # what is wrong, and the remedy if there is one
    position: int | None = None  # of its first byte in the uncompressed file, where a line number would help
    wrong_byte: int | None = None  # position of the first byte that is no character of the encoding


def record_limit() -> int:
    """Bytes of a page or a record that a reader must hold as a whole, before it is text."""
    return 8 * MAX_DOCUMENT_BYTES


def find_files(sources: list[str]) -> list[tuple[str, int]]:
    """(path, size in bytes) of every input file, as `find_stamps` finds them."""
    return [(path, size) for path, (size, _) in find_stamps(sources).items()]


def find_stamps(sources: list[str], key: str = "input") -> dict[str, Stamp]:
    """Every input file by its path, sorted by path within a source, each file once.

    A source is a file, a folder (all files below it), a glob, or the name of a built-in corpus; `key` of the config
    names them.
    """
    found: dict[str, str] = {}
    for source in sources:
        paths = _expand(source)
        if not paths:
            there = Path(source)
            why = "no file in this folder" if there.is_dir() else "is no regular file" if there.exists() else ""
            raise UserError(f"{key} {source!r}: {why or 'no such file, folder or match'}")
        for path in paths:  # by their real paths: links and other spellings lead to the same files
            found.setdefault(os.path.realpath(path), path)
    _remark_copies(set(found.values()))
    return {path: stamp_of(stat_of(path)) for path in found.values()}


def _remark_copies(paths: set[str]) -> None:
    """Of files that may hold what others of the input hold: one that was unpacked, a cache that a glob finds."""
    arrow = [Path(path) for path in paths if path.endswith(".arrow")]
    of_tables = {path.parent for path in arrow if HF_TABLE.fullmatch(path.name)}
    caches = [str(path) for path in arrow if HF_CACHE.fullmatch(path.name) and path.parent in of_tables]
    packed = {path: path[: -len(suffix)] for suffix in COMPRESSIONS for path in paths if path.endswith(suffix)}
    unpacked = [path for path, plain in packed.items() if plain in paths]
    for copies, others in ((unpacked, "unpacked file"), (caches, "tables of Hugging Face's datasets")):
        if copies:
            log.warning(
                "%s may hold once more what the %s beside it has, such as %s; if so, name one of them alone",
                *(counted(len(copies), "file"), others, one_line(min(copies))),
            )


def stat_of(path: str) -> os.stat_result:
    """Of a file that was listed; UserError if it has gone."""
    try:
        return Path(path).stat()
    except OSError as error:
        raise UserError(f"{path}: was listed, and cannot be found any more ({error.strerror})") from None


def stamp_of(stat: os.stat_result) -> Stamp:
    return stat.st_size, stat.st_mtime_ns


def _expand(source: str) -> list[str]:
    if source in BUILTIN_CORPORA and not Path(source).exists():
        pattern, excluded = BUILTIN_CORPORA[source]
        root = Path(sysconfig.get_path("stdlib"))
        return sorted(
            str(p) for p in root.glob(pattern) if p.is_file() and not set(p.relative_to(root).parts) & set(excluded)
        )
    if Path(source).is_dir():
        return _files_of(Path(source))
    if Path(source).is_file():
        return [source]
    return sorted(p for p in glob.glob(source, recursive=True) if Path(p).is_file())  # noqa: PTH207 - any pattern


def _files_of(folder: Path) -> list[str]:
    """All files below a folder, but for those that are no data; one line tells of these."""
    taken: list[Path] = []
    passed: list[Path] = []
    of_folders: dict[Path, list[Path]] = {}
    for path in _files_below(folder):
        of_folders.setdefault(path.parent, []).append(path)
    for paths in of_folders.values():
        is_of_datasets = _are_of_datasets([path.name for path in paths])
        for path in paths:
            is_noted = path.name in MARKERS or (is_of_datasets and _lies_beside(path))
            is_data = path.is_file() and not is_noted and not _is_hidden(path.relative_to(folder))
            (taken if is_data else passed).append(path)
    if passed:
        log.info(
            "%s: passed over %s (hidden, unfinished, no regular file, or a program's own), such as %s",
            one_line(str(folder)),
            counted(len(passed), "file"),
            one_line(str(min(passed))),
        )
    return sorted(map(str, taken))


def _are_of_datasets(names: list[str]) -> bool:
    """Whether tables of Hugging Face's datasets are among the files of a folder; others may use its names for data."""
    is_noted = HF_NOTE in names and any(name.endswith(".arrow") and not HF_BESIDE.fullmatch(name) for name in names)
    return is_noted or any(map(HF_TABLE.fullmatch, names))


def _lies_beside(path: Path) -> bool:
    """Whether a file beside tables of Hugging Face's datasets is none of them; UserError if it changes what they are.

    save_to_disk leaves state.json, map and filter cache-*.arrow with the same rows again.
    """
    if HF_INDICES.fullmatch(path.name):
        raise UserError(f"{path}: selects rows of the tables beside it; save these again after flatten_indices()")
    return bool(HF_BESIDE.fullmatch(path.name))


def _files_below(folder: Path) -> Iterator[Path]:
    """Everything but folders, through links too; a folder that may not be read is an error, not left out."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot read this folder ({error.strerror})")

    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = {name: os.path.realpath(Path(root) / name) for name in sorted(folders)}
        folders[:] = [name for name, path in real.items() if path not in seen]  # links may lead in a circle
        seen.update(real.values())
        for name in names:
            path = Path(root) / name
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path}: is a link that leads nowhere; remove it")
            yield path


def one_line(name: str) -> str:
    """A file's name, or a place in it, as messages show it: it may hold line ends, or bytes that are no UTF-8."""
    return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def _is_hidden(path: Path) -> bool:
    """Whether a file or a folder above it begins with a dot, such as .git, or was not finished."""
    return any(part.startswith(".") or part.endswith(UNFINISHED) for part in path.parts)
