"""What a vocabulary's file is, by its first bytes: people give files any name."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

RANKS, JSON, MODEL = "a rank file of tiktoken", "a tokenizer.json", "a .model of sentencepiece"
READERS = {RANKS: "kind: tiktoken", JSON: "kind: bpe", MODEL: "kind: sentencepiece"}
HEAD_BYTES = 1 << 16
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


def kind_of(head: bytes) -> str | None:
    """RANKS, JSON, MODEL, or None for something else.

    >>> kind_of(b"IQ== 0\\nIg== 1\\n"), kind_of(b' {"version": "1.0"'), kind_of(b"\\n\\x0e\\n\\x05<unk>")
    ('a rank file of tiktoken', 'a tokenizer.json', 'a .model of sentencepiece')
    """
    if re.match(rb"\s*[A-Za-z0-9+/]+=* [0-9]+\r?(\n|$)", head):
        return RANKS
    if head.lstrip().startswith(b"{"):
        return JSON
    if re.match(rb"\n.\n", head, re.DOTALL):  # the first piece, and its text
        return MODEL
    return None


def part_of(content: dict[str, Any]) -> str:
    """What a JSON file of a vocabulary is that is no tokenizer.json, as the end of a message; "" if it is not known.

    >>> part_of({"a": 0, "b": 1})
    '; it is a vocab.json, a part of one: name the tokenizer.json of this vocabulary'
    """
    if "model" in content:
        return ""
    if {"tokenizer_class", "added_tokens_decoder", "bos_token", "eos_token"} & content.keys():
        return "; it tells of special tokens alone: name the tokenizer.json of this vocabulary"
    if content.keys() >= {"config", "vocab"}:
        return "; it is a tekken.json of mistral-common: name the tokenizer.json of this vocabulary"
    if content and all(type(number) is int for number in content.values()):
        return "; it is a vocab.json, a part of one: name the tokenizer.json of this vocabulary"
    return ""


def within(path: Path) -> str:
    """What to give instead of a folder, as the end of a message; "" for what is none or holds no vocabulary."""
    names = ("tokenizer.json", "tokenizer.model")
    found = next((path / name for name in names if (path / name).is_file()), None)
    return f"; give {found}" if found else ""


def remedy(head: bytes, expected: str) -> str:
    """What to do with a file that is not `expected`, as the end of a message; "" where nothing is known."""
    if not head.strip():
        return "; it is empty: copy it again"
    if not head.strip(b"\0"):
        return "; it holds nothing but zeros: copy it again"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or head[:2] in (b"{\0", b"\0{"):
        return "; it is UTF-16: save it as UTF-8"
    if head.startswith(_COMPRESSED):
        return "; it is compressed: unpack it"
    if head.startswith(b"version https://git-lfs"):
        return "; it is a pointer of Git LFS: fetch the file itself (git lfs pull)"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "; it is a web page: download the file itself"
    found = kind_of(head)
    if found == expected:
        return "; copy it again"
    return f"; it begins as {found}, which tokenizer.{READERS[found]} reads" if found else ""
