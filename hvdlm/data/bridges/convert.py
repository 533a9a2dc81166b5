"""Data sets to and from other tools' formats: FORMATS names them, `convert` goes from any to any.

Every format gives and takes documents' lengths and pieces of tokens (interface.py), so that none knows another.
What cannot come back exactly is an error unless the loss is allowed.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from hvdlm.data.bridges import folder, jsonl, megatron, nanogpt
from hvdlm.data.bridges.interface import ENDINGS, Bridge, ConvertOptions, SourceCorpus, TokenSplit, split_files
from hvdlm.data.manifest import OTHER_NAMES, SPLITS, TOKENIZER
from hvdlm.errors import UserError
from hvdlm.files import replace_durably, sync_folder, write_text_durably
from hvdlm.tables import counted, table
from hvdlm.tokenizer import AUTO, NONE, Tokenizer, load
from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.published import CONFIG

log = logging.getLogger("hvdlm")

# In the order in which a source is tried: .bin alone is nanoGPT's, with .idx Megatron's.
FORMATS: dict[str, Bridge] = {"hvdlm": folder, "megatron": megatron, "nanogpt": nanogpt, "jsonl": jsonl}

COMPRESSIONS = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4", ".zip", ".7z", ".tar", ".tgz")


def convert(
    source: Path, destination: Path, *, to: str, tokenizer: Path | None = None, options: ConvertOptions | None = None
) -> dict:
    """Write `source` (a folder, a file or a prefix) as the folder `destination`; returns what it holds by split.

    `tokenizer` is a tokenizer.json, needed where none stands beside the source. The destination appears whole or
    not at all. UserError for a source that is damaged, of no known format, or would not come back exactly.
    """
    options = options or ConvertOptions()
    if destination.exists():
        raise UserError(f"{destination}: exists already; remove it or give another destination")
    name = format_of(source)
    named = tokenizer or _tokenizer_beside(source)
    vocabulary = load(named, bos=None if name == "hvdlm" else AUTO)
    aside = destination.with_name(f".{destination.name}.{os.getpid()}")
    spool = aside / ".spool"
    try:
        spool.mkdir(parents=True)
        _tell_left_out(source, name)
        corpus = SourceCorpus(source, name, vocabulary, FORMATS[name].read(source, vocabulary, spool, options))
        if name != "hvdlm" and not _begins_with_bos(corpus):
            corpus = replace(corpus, tokenizer=load(named, bos=NONE))
        _check_columns(corpus, to, options)
        _write_tokenizer(aside, corpus.tokenizer, to)
        FORMATS[to].write(aside, corpus, options)
        shutil.rmtree(spool)
        written = FORMATS[to].totals(aside, corpus.tokenizer)
        _check_totals(corpus, written, destination, options)
        _publish(aside, destination)
    except OSError as error:
        raise UserError(f"{error.filename or destination}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    splits = {
        split: {"num_tokens": found.num_tokens, "num_documents": written.get(split, (0, None))[0]}
        for split, found in corpus.splits.items()
    }
    return {"source": str(source), "from": name, "output": str(destination), "to": to, "splits": splits}


def to_text(facts: dict) -> str:
    """What `convert` returns, for people."""
    rows = [
        [f"  {split}", counted(found["num_tokens"], "token"), counted(found["num_documents"], "document")]
        for split, found in facts["splits"].items()
    ]
    head = f"{facts['output']}: {facts['to']}, from {facts['from']} {facts['source']}"
    return "\n".join([head, table([], rows)]).rstrip()


def _write_tokenizer(aside: Path, tokenizer: Tokenizer, to: str) -> None:
    """For other tools the plain file of the tokenizers library, where it is one: its ends stand in a file beside it."""
    if to == "hvdlm" or not isinstance(tokenizer, BackendTokenizer):
        write_text_durably(aside / TOKENIZER, tokenizer.to_json())
        return
    text, config = tokenizer.published()
    write_text_durably(aside / TOKENIZER, text)
    write_text_durably(aside / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def _check_columns(corpus: SourceCorpus, to: str, options: ConvertOptions) -> None:
    """Of documents' ids and labels, for which not every format has a place."""
    kept = sorted({column for split in corpus.splits.values() for column in split.columns})
    if not kept or FORMATS[to].KEEPS_COLUMNS:
        return
    if not options.is_lossy:
        raise UserError(
            f"{corpus.source}: has {' and '.join(kept)}, for which {to} has no place; --lossy leaves them out"
        )
    num_documents = sum(len(split.lengths) for split in corpus.splits.values() if split.columns)
    log.warning("%s: %s of %s are left out", corpus.source, " and ".join(kept), counted(num_documents, "document"))


def _check_totals(
    corpus: SourceCorpus, written: dict[str, tuple[int, int | None]], destination: Path, options: ConvertOptions
) -> None:
    """UserError unless all documents and tokens went into the files; other documents may be a loss that is allowed.

    `written`: documents and tokens (None where a format has none) by split, as they are found in the files.
    """
    for name, split in corpus.splits.items():
        documents, tokens = written.get(name, (0, 0))
        read = f"{counted(len(split.lengths), 'document')} and {counted(split.num_tokens, 'token')}"
        if tokens not in (None, split.num_tokens) or (documents != len(split.lengths) and not options.is_lossy):
            raise UserError(
                f"{destination}: {name} would hold {documents} documents and {tokens} tokens, its source has {read}; "
                "please report this"
            )


def _begins_with_bos(corpus: SourceCorpus) -> bool:
    """Whether documents are as the vocabulary would write them; ids of other tools are kept as they are."""
    bos_id = corpus.tokenizer.bos_id
    if bos_id is None:
        return True
    counts = np.array([_count_first(split, bos_id) for split in corpus.splits.values()]).reshape(-1, 2)
    num_with, num_documents = counts.sum(0).tolist()
    if num_with < num_documents:
        log.warning(
            "%s: %d of %d documents begin with the beginning-of-text id %d, so the copy has none set",
            *(corpus.source, num_with, num_documents, bos_id),
        )
    return bool(num_with == num_documents)


def _count_first(split: TokenSplit, token: int) -> tuple[int, int]:
    """(documents that begin with `token`, documents); such as are empty, or an end of text alone, tell nothing."""
    starts = split.offsets()[:-1][split.lengths > 1]
    count = first = 0
    for piece in split.pieces():
        inside = starts[slice(*np.searchsorted(starts, [first, first + len(piece)]))] - first
        count += int((piece[inside] == token).sum())
        first += len(piece)
    return count, len(starts)


def _tell_left_out(source: Path, name: str) -> None:
    """What a source holds in other formats too, and files that are not named as a split is: valid.bin."""
    suffix = FORMATS[name].SUFFIX
    others = [other for other, module in FORMATS.items() if other != name and module.is_there(source)]
    if left_out := [other for other in others if suffix != FORMATS[other].SUFFIX]:
        log.warning(
            "%s: is read as %s; what it holds as %s is left out, name its file", source, name, " and ".join(left_out)
        )
    if source.is_file() and (held_out := _held_out_name(source)):
        log.warning("%s: is read as train, as every single file is; give its folder to keep it %s", source, held_out)
    if suffix is None or source.is_file():
        return
    beside, prefix = (source, "") if source.is_dir() else (source.parent, f"{source.name}-")
    taken = set(split_files(source, suffix).values())
    found = sorted(path for path in beside.glob(f"{glob.escape(prefix)}*{suffix}*") if path not in taken)
    if found:
        log.warning(
            "%s: %s left out, such as %s: splits are train, val and test",
            *(source, counted(len(found), f"file of {suffix}", f"files of {suffix}"), found[0].name),
        )


def _held_out_name(source: Path) -> str | None:
    """The split that a file is named after, `val.bin` or `web-valid.jsonl`, unless that is train."""
    word = source.stem.rpartition("-")[2].lower()
    split = OTHER_NAMES.get(word, word)
    return split if split in SPLITS and split != "train" else None


def format_of(source: Path) -> str:
    """Which of FORMATS a source is in; UserError that says what was looked for."""
    for name, module in FORMATS.items():
        if module.is_there(source):
            return name
    if source.is_dir():
        others = sorted(path for path in source.iterdir() if path.suffix in ENDINGS)
        remedy = f"name a file, such as {others[0]}" if others else "hvdlm preprocess reads texts in other formats"
        wanted = "no manifest.json, and no train, val or test as .bin with .idx, .bin alone or .jsonl"
        raise UserError(f"{source}: holds {wanted}; {remedy}")
    if source.is_file():
        remedy = "unpack it" if source.suffix in COMPRESSIONS else "hvdlm preprocess reads texts"
        if folder.is_there(source.parent):
            remedy = f"give the whole data folder, {source.parent}"
        raise UserError(f"{source}: is no .bin, .idx or .jsonl; {remedy}")
    raise UserError(f"{source}: is no file or folder, nor the PREFIX of PREFIX-train.bin or of PREFIX-train.jsonl")


def _tokenizer_beside(source: Path) -> Path:
    path = (source if source.is_dir() else source.parent) / TOKENIZER
    if not path.is_file():
        raise UserError(f"{source}: has no {TOKENIZER} beside it; give the one that its ids belong to (--tokenizer)")
    return path


def _publish(aside: Path, destination: Path) -> None:
    """Flush every file, then give the folder its name."""
    for path in aside.iterdir():
        replace_durably(path, path)
    aside.rename(destination)
    sync_folder(destination.parent)
