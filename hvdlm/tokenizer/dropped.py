"""Characters that a vocabulary of the `tokenizers` library lets fall: no token stands for them, not even unk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from hvdlm.tokenizer.interface import code_points, num_letters

SPACE_MARK = "▁"  # how Metaspace writes a space
WHITE_SPACE = (" ", r"\s", r"\s+")  # patterns
LACKING = "\U0010ffff\x00lacking"  # no text holds it
NO_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}  # of no UTF-8
BY_CHARACTER = ("BertNormalizer", "Nmt", "Precompiled", "StripAccents")  # normalizers that take some away
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # of a BPE
UNSEEN, STAYS, GONE = 0, 1, 2  # what is known of a character


class Vanishing:
    """Counts the characters of which `normalize` leaves nothing but white space, each by itself."""

    def __init__(self, normalize: Callable[[str], str]) -> None:
        self._normalize = normalize
        self._state = np.full(0x110000, UNSEEN, dtype=np.uint8)

    def count(self, text: str) -> int:
        """White space, of which nothing else can be left, aside."""
        if text.isascii() and not text.encode().translate(None, self._staying):  # a tenth of the time of what follows
            return 0
        codes = code_points(text)
        states = self._state.take(codes)
        if states.min(initial=STAYS) == UNSEEN:
            unseen = np.unique(codes[states == UNSEEN])
            self._state[unseen] = [GONE if self._is_gone(chr(code)) else STAYS for code in unseen.tolist()]
            states = self._state.take(codes)
        return int(np.count_nonzero(states == GONE))

    @cached_property
    def _staying(self) -> bytes:
        """The characters of ASCII that stay."""
        return bytes(code for code in range(128) if not self._is_gone(chr(code)))

    def _is_gone(self, character: str) -> bool:
        return not character.isspace() and not num_letters(self._normalize(character))


class Dropped:
    """Counts what a text loses under a tokenizer.json (`content`), which `backend` has loaded.

    A BPE without an unknown token drops the characters it does not know, but for those that it can spell in bytes.
    A pre_tokenizer or a normalizer may take text away by a rule. White space does not count: many do without it.
    """

    def __init__(self, content: dict[str, Any], backend: Any) -> None:
        self._backend = backend
        rules = [rule for rule in steps(content, "normalizer") if rule.get("type") != "Prepend"]  # that adds alone
        self._normalizers = [(_normalizer(rule), _removes(rule)) for rule in rules]
        by_character = any(rule.get("type") in BY_CHARACTER for rule in rules)
        self._vanishing = Vanishing(self._of_character) if by_character else None
        self._cuts_away = any(map(_removes, steps(content, "pre_tokenizer")))
        self._removes = self._cuts_away or any(removes for _, removes in self._normalizers)
        self._drops = _drops(content)
        self._spaces: set[int] = set()
        self._twin = _load(self._with_unknown(content)) if self._drops else backend
        self._lacking = self._twin.token_to_id(LACKING)
        names = [entry["content"] for entry in content.get("added_tokens") or [] if not entry["special"]]  # of texts
        self._added = set(map(self._twin.token_to_id, names))
        self._known = _known_anywhere(content) if self._drops else set()
        self._told = {*self._added, *self._spaces, self._lacking}  # ids whose places in a text matter

    def _with_unknown(self, content: dict[str, Any]) -> dict[str, Any]:
        """The vocabulary with an unknown token, which then stands wherever a character would be dropped.

        So what a character needs is told by the library itself: by its place in a word, within an added token, or in
        bytes. The marks of a space are added too, as some are put where a text has none.
        """
        vocab = {token: number for number, token in enumerate(content["model"]["vocab"])}  # without holes
        rules = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")], ensure_ascii=False)
        marks = [SPACE_MARK] * (SPACE_MARK in rules or "Metaspace" in rules)
        marks += [byte_alphabet()[ord(" ")]] * ("ByteLevel" in rules)
        for (before, after), mark in itertools.product(forms_of(content["model"]), marks):
            if before + mark + after not in vocab:
                self._spaces.add(len(vocab))
                vocab[before + mark + after] = len(vocab)
        vocab[LACKING] = len(vocab)
        model = {**content["model"], "vocab": vocab, "unk_token": LACKING, "fuse_unk": False}
        return {**content, "model": model}

    def count(self, texts: list[str]) -> int:
        """Characters of these texts; 0 without a look where the vocabulary drops none."""
        return sum(map(self._count, texts)) if self._drops or self._removes or self._vanishing else 0

    def _of_character(self, character: str) -> str:
        """What normalizers leave of a character; itself where `_num_removed` counts it as a rule's of its own."""
        found = character
        for normalizer, removes in self._normalizers:
            before, found = found, normalizer.normalize_str(found)
            if removes and num_letters(found) < num_letters(before):
                return character
        return character if character == SPACE_MARK else found.replace(SPACE_MARK, "")

    def _count(self, text: str) -> int:
        is_less = self._removes or (self._vanishing is not None and self._vanishing.count(text) > 0)
        if not is_less and not self._drops:
            return 0
        lost = 0
        kept = [0]  # bounds of what is no added token
        without: set[int] = set()  # places in the text
        end = len(text)  # where a prefix is spelt in bytes, the library's places run behind it
        is_known = not is_less and self._known >= set(text)  # most texts: a look at the ids takes as long as they
        if not is_known and (self._drops or self._added):
            encoding = self._twin.encode(text, add_special_tokens=False)
            ids = encoding.ids
            for place in itertools.compress(range(len(ids)), map(self._told.__contains__, ids)):
                number, (first, last) = ids[place], encoding.token_to_chars(place)
                if number in self._added:
                    kept += [first, last]
                elif number == self._lacking or (number in self._spaces and text[first:last] == SPACE_MARK):
                    without.update(range(first, last))
                    lost += first >= end
            lost += sum(not text[place].isspace() for place in without if place < end)
        if is_less:
            bounds = zip(kept[::2], [*kept[1::2], len(text)], strict=True)
            lost += sum(self._num_removed(text[first:last]) for first, last in bounds)
        return lost

    def _num_removed(self, text: str) -> int:
        removed = self._vanishing.count(text) if self._vanishing else 0
        for normalizer, removes in self._normalizers:
            before, text = text, normalizer.normalize_str(text)
            removed += removes and num_letters(before) - num_letters(text)
        if self._cuts_away:
            is_seen = bytearray(len(text))  # bytes of one character may lie in two pieces
            for _, (first, last) in self._backend.pre_tokenizer.pre_tokenize_str(text):
                is_seen[first:last] = b"\1" * (last - first)
            removed += sum(not text[place].isspace() for place, seen in enumerate(is_seen) if not seen)
        return removed


def _drops(content: dict[str, Any]) -> bool:
    """Whether a vocabulary is a BPE that lets characters fall."""
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model["vocab"], dict) or model.get("unk_token") is not None:
        return False
    return not spells_all(content)


def spells_all(content: dict[str, Any]) -> bool:
    """Whether a vocabulary has tokens for every text: all bytes, in each form that their place in a word asks for."""
    model = content["model"]
    kind, vocab = model.get("type", "BPE"), model["vocab"]
    tokens = set(vocab if isinstance(vocab, dict) else (token for token, _ in vocab))
    possible = set(range(256)) - NO_BYTES
    if kind not in ("BPE", "Unigram"):
        return False
    if model.get("byte_fallback") and tokens >= {f"<0x{byte:02X}>" for byte in possible}:
        return True
    is_byte_level = any(rule.get("type") == "ByteLevel" for part in ENCODING for rule in steps(content, part))
    alphabet = byte_alphabet()
    return is_byte_level and all(
        before + alphabet[byte] + after in tokens for byte in possible for before, after in forms_of(model)
    )


def check_affixes(model: dict[str, Any]) -> None:
    """ValueError where what a BPE writes before or behind a character is no text."""
    for key in AFFIXES:
        if not isinstance(model.get(key) or "", str):
            raise ValueError(f"{key} {model[key]!r} is no text")


def forms_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """What a BPE writes before and behind a character: by whether it continues a word, and whether it ends one."""
    prefix, suffix = (model.get(key) or "" for key in AFFIXES)
    return list(dict.fromkeys(itertools.product(("", prefix), ("", suffix))))


def _known_anywhere(content: dict[str, Any]) -> set[str]:
    """Characters that a BPE keeps wherever they stand; none where a rule puts others in their place."""
    model = content["model"]
    cuts = steps(content, "pre_tokenizer")
    if content.get("normalizer") is not None or any(rule.get("type") == "ByteLevel" for rule in cuts):
        return set()
    forms = forms_of(model)
    known = {token for token in model["vocab"] if len(token) == 1}
    return {c for c in known if all(before + c + after in model["vocab"] for before, after in forms)} | set(" \n\t\r")


def _load(content: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(json.dumps(content))
    backend.encode_special_tokens = True
    return backend


def _normalizer(rule: dict[str, Any]) -> Any:
    empty = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    return _load({"version": "1.0", "added_tokens": [], "normalizer": rule, "model": empty}).normalizer


def _removes(rule: dict[str, Any]) -> bool:
    """Whether a rule takes text away, other than white space."""
    kind = rule.get("type")
    if kind == "Replace":  # a blank in place of letters stands for them no more than nothing does
        return not rule["content"].strip() and not _is_white_space(rule["pattern"])
    if kind == "CharDelimiterSplit":
        return not rule["delimiter"].isspace()
    return rule.get("behavior") == "Removed" and (rule.get("invert", False) or not _is_white_space(rule.get("pattern")))


def _is_white_space(pattern: Any) -> bool:
    return isinstance(pattern, dict) and not set(pattern.values()).isdisjoint(WHITE_SPACE)


KEYS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}  # of a Sequence
ENCODING = ("normalizer", "pre_tokenizer")


def steps(content: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The rules of a `normalizer`, `pre_tokenizer` or `decoder`, those of a Sequence one by one."""

    def flat(rule: dict[str, Any]) -> list[dict[str, Any]]:
        return [step for inner in rule[KEYS[part]] for step in flat(inner)] if KEYS[part] in rule else [rule]

    return [] if content.get(part) is None else flat(content[part])


def byte_alphabet() -> list[str]:
    """How ByteLevel writes each byte, in their order: printable ones as themselves, others from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]
