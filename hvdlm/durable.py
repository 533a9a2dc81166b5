"""Files that appear whole or not at all: written aside, flushed to disk, renamed, their folder flushed too."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def replace_durably(aside: Path, final: Path) -> None:
    """Move a finished file into place so that a crash leaves either nothing or all of it."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: without it a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_durably(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    replace_durably(aside, path)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
