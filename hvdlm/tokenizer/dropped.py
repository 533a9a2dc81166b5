"""Characters that a vocabulary of the `tokenizers` library lets fall: no token stands for them, not even unk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from hvdlm.tokenizer.interface import num_letters

SPACE_MARK = "▁"  # how Metaspace writes a space
WHITE_SPACE = (" ", r"\s", r"\s+")  # patterns


class Dropped:
    """Counts what a text loses under a tokenizer.json (`content`), which `backend` has loaded.

    A BPE without an unknown token drops the characters it does not know, but for those that it can spell in bytes.
    A pre_tokenizer or a normalizer may take text away by a rule. White space does not count: many do without it.
    """

    def __init__(self, content: dict[str, Any], backend: Any) -> None:
        self._backend, model = backend, content["model"]
        normalizers, cuts = steps(content, "normalizer"), steps(content, "pre_tokenizer")
        self._removes = any(map(_removes, [*normalizers, *cuts]))
        is_byte_level = any(rule["type"] == "ByteLevel" for rule in [*normalizers, *cuts])
        spelt = byte_alphabet() if is_byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
        has_bytes = (is_byte_level or model.get("byte_fallback")) and model["vocab"].keys() >= set(spelt)
        self._drops = model.get("type", "BPE") == "BPE" and model.get("unk_token") is None and not has_bytes
        self._is_known = cache(_knowledge(model, spelt, is_byte_level)) if self._drops else None

    def count(self, texts: list[str]) -> int:
        """Characters of these texts; 0 without a look where the vocabulary drops none."""
        return sum(map(self._count, texts)) if self._drops or self._removes else 0

    def _count(self, text: str) -> int:
        normalizer, cut = self._backend.normalizer, self._backend.pre_tokenizer
        seen = text if normalizer is None else normalizer.normalize_str(text)
        lost = 0
        if self._removes:
            if cut is not None:
                seen = "".join(seen[first:last] for _, (first, last) in cut.pre_tokenize_str(seen))
            lost = max(0, num_letters(text) - num_letters(seen))
        if self._is_known is not None:
            lost += sum(count for character, count in Counter(seen).items() if not self._is_known(character))
        return lost


def _knowledge(model: dict[str, Any], spelt: list[str], is_byte_level: bool) -> Callable[[str], bool]:
    """Whether a BPE keeps a character; `spelt`: how each byte is written."""
    vocab, in_bytes = model["vocab"], is_byte_level or model.get("byte_fallback")
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""

    def is_known(character: str) -> bool:
        if character.isspace() or character == SPACE_MARK:
            return True
        if not is_byte_level and not vocab.keys().isdisjoint((character, prefix + character, character + suffix)):
            return True
        return bool(in_bytes) and all(spelt[byte] in vocab for byte in character.encode(errors="surrogatepass"))

    return is_known


def _removes(rule: dict[str, Any]) -> bool:
    """Whether a rule takes text away, other than white space."""
    if rule["type"] == "Replace":
        return rule["content"] == "" and not _is_white_space(rule["pattern"])
    if rule["type"] == "CharDelimiterSplit":
        return not rule["delimiter"].isspace()
    return rule.get("behavior") == "Removed" and not _is_white_space(rule.get("pattern"))


def _is_white_space(pattern: Any) -> bool:
    return isinstance(pattern, dict) and not set(pattern.values()).isdisjoint(WHITE_SPACE)


def steps(content: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The rules of a `normalizer` or `pre_tokenizer`, those of a Sequence one by one."""
    key = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[part]

    def flat(rule: dict[str, Any]) -> list[dict[str, Any]]:
        return [step for inner in rule[key] for step in flat(inner)] if rule["type"] == "Sequence" else [rule]

    return [] if content.get(part) is None else flat(content[part])


def byte_alphabet() -> list[str]:
    """How ByteLevel writes each byte, in their order: printable ones as themselves, others from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]
