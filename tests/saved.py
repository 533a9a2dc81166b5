"""Checkpoints as tests look at them, and change them as whoever edits weights would."""

import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from hvdlm.checkpoint import Checkpoint, reading
from hvdlm.checkpoint.boxes import Piece, whole
from hvdlm.checkpoint.parts import shares_of, table_of, tensors_of, write_parts
from hvdlm.checkpoint.record import digest_of

PART = "part-0000.safetensors"  # of a small state all that there is

_watched: list[Path] | None = None


def _note(name):
    if _watched is not None and isinstance(name, str | bytes | os.PathLike):
        _watched.append(Path(os.fsdecode(name)))


# For good: Python takes no such hook back. It hears io.open and os.open alike, which to replace os.open does not.
sys.addaudithook(lambda event, args: _note(args[0]) if event == "open" else None)


@contextmanager
def opened_files(monkeypatch):
    """The paths of all files that are opened in the body, by Python or by safetensors."""
    global _watched
    plain = reading.safe_open  # of another language: its opening is no event of Python's
    monkeypatch.setattr(reading, "safe_open", lambda path, **how: _note(path) or plain(path, **how))
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


def tensors_in(path, prefix=""):
    """All tensors of a checkpoint whose keys begin so, by the rest of the key."""
    return Checkpoint(path).read(prefix)


def rewrite(path, change):
    """Change a checkpoint's tensors, by key, in place; sizes and hashes are right afterwards."""
    tensors = tensors_in(path)
    change(tensors)
    for part in path.glob("part-*.safetensors"):
        part.unlink()
    shares = shares_of([Piece(key, t, tuple(t.shape), whole(tuple(t.shape))) for key, t in tensors.items()])
    (facts,) = write_parts(path, {0: shares})
    state = json.loads((path / "state.json").read_text())
    state["files"] = {facts.name: {"bytes": facts.bytes, "sha256": facts.sha256}}
    state["tensors"] = tensors_of({0: table_of(shares)})
    write_record(path, state)


def write_record(path, record):
    """As whoever changes a record would: with a digest that is right, where such a record can have one."""
    with suppress(TypeError, KeyError):
        record["digest"] = digest_of(record)
    (path / "state.json").write_text(json.dumps(record))
