"""A tokenizer of ours as tokenizer.json and tokenizer_config.json, which AutoTokenizer of transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from hvdlm.errors import UserError
from hvdlm.tokenizer import Tokenizer, digest
from hvdlm.tokenizer.backend import BackendTokenizer, token_ids
from hvdlm.tokenizer.dropped import byte_alphabet
from hvdlm.tokenizer.interface import END, END_OF_TEXT, UNKNOWN
from hvdlm.tokenizer.published import NAMED_EOS, before_text

AROUND = ("post_processor", "truncation", "padding")  # in a tokenizer.json: what is done to ids afterwards
MASK, PAD = "mask_token", "pad_token"
# What transformers calls a special token, and the names it may have in a vocabulary.
ROLES = {
    "unk_token": (UNKNOWN, "[UNK]"),
    PAD: ("<pad>", "[PAD]"),
    MASK: ("[MASK]", "<mask>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
}


class TokenizerFiles(NamedTuple):
    """Contents of both files, and token -> id."""

    content: dict[str, Any]  # tokenizer.json
    config: dict[str, Any]  # tokenizer_config.json
    ids: dict[str, int]

    @property
    def special_ids(self) -> dict[str, int]:
        """Tokens by name that stand for themselves alone."""
        names = [entry["content"] for entry in self.content.get("added_tokens") or [] if entry["special"]]
        return {name: self.ids[name] for name in names if name}

    def id_of(self, role: str) -> int | None:
        """That of a special token, such as pad_token; None where there is none."""
        return self.ids.get(self.config.get(role, ""))


def files_if_any(tokenizer: Tokenizer) -> TokenizerFiles:
    """`tokenizer_files`, which are empty for a kind that has none."""
    try:
        return tokenizer_files(tokenizer)
    except UserError:
        return TokenizerFiles({}, {}, {})


def tokenizer_files(tokenizer: Tokenizer, *, needs: str | None = None, with_ends: bool = False) -> TokenizerFiles:
    """The same ids for every text; UserError for a kind that the library of tokenizers cannot be.

    The special token that it `needs`, MASK or PAD, stands behind the last id of a vocabulary that has none; if there
    are holes between its ids it gets none. With `with_ends` an end of text stands behind each text, as behind the texts
    of labelled records.
    """
    if tokenizer.kind in OWN_KINDS and not isinstance(tokenizer, BackendTokenizer):
        content, named_eos = OWN_KINDS[tokenizer.kind](tokenizer), None
    elif isinstance(tokenizer, BackendTokenizer):
        text, published = tokenizer.published()
        content, named_eos = json.loads(text), published.get(NAMED_EOS)
    else:
        raise UserError(
            f"its tokenizer is of kind {tokenizer.kind}, for which transformers has no file that gives the same ids;"
            f" bpe, unigram, wordpiece, {', '.join(OWN_KINDS)} and any tokenizer.json have one"
        )
    ids = token_ids(content)
    if needs is not None and ids.keys().isdisjoint(ROLES[needs]) and max(ids.values()) + 1 == len(ids):
        name, number = ROLES[needs][0], len(ids)
        content = {**content, "added_tokens": [*(content.get("added_tokens") or []), _special(number, name)]}
        ids[name] = number
    config = _config(tokenizer, ids)
    begin = None if tokenizer.bos_id is None else (config["bos_token"], tokenizer.bos_id)
    if with_ends:
        content = {**content, "post_processor": _template(begin, (config["eos_token"], tokenizer.eos_id))}
    elif begin is not None and before_text(content.get("post_processor")) != [config["bos_token"]]:
        content = {**content, "post_processor": _template(begin, None)}
    if named_eos is not None:
        config[NAMED_EOS] = named_eos
    return TokenizerFiles(content, config, ids)


def encodes_alike(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether they are one vocabulary: the same ids for every text, whatever is put before and after it.

    Special tokens behind the last id of the other one do not count, as those that an export adds: no text of ours has
    them.
    """
    shared = min(one.vocab_size, other.vocab_size)
    try:
        first, second = (_of_texts(tokenizer, shared) for tokenizer in (one, other))
    except UserError:  # of a kind without such a file
        return digest(one) == digest(other)
    return first == second


def _of_texts(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """What a tokenizer.json says of the ids below `size`, as the library itself writes it."""
    from tokenizers import Tokenizer as Backend  # which a run on bytes never needs

    content = json.loads(Backend.from_str(json.dumps(tokenizer_files(tokenizer).content)).to_str())
    added = [entry for entry in content["added_tokens"] if entry["id"] < size or not entry["special"]]
    return {**content, **dict.fromkeys(AROUND), "added_tokens": added}


def _config(tokenizer: Tokenizer, ids: dict[str, int]) -> dict[str, Any]:
    names = {number: token for token, number in ids.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": names[tokenizer.eos_id],
        PAD: names[tokenizer.eos_id],  # where there is none of its own: what is padded is masked
    }
    if tokenizer.bos_id is not None:
        config["bos_token"] = names[tokenizer.bos_id]
    return config | {role: token for role, known in ROLES.items() for token in known if token in ids}


def _template(begin: tuple[str, int] | None, end: tuple[str, int] | None) -> dict[str, Any]:
    """Name and id of what stands before a text, and before both of a pair; and of what stands behind each text."""

    def piece(name: str | None, number: int) -> list[dict[str, Any]]:
        return [] if name is None else [{"SpecialToken": {"id": name, "type_id": number}}]

    first, last = (None if one is None else one[0] for one in (begin, end))
    texts = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    single = [*piece(first, 0), texts[0], *piece(last, 0)]
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in filter(None, (begin, end))}
    pair = [*single, texts[1], *piece(last, 1)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _special(number: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": True}


def _content(model: dict[str, Any], added: list[dict[str, Any]], rule: dict[str, Any], decoder: str) -> dict[str, Any]:
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    back = {"type": decoder, **(byte_level if decoder == "ByteLevel" else {})}
    return {"version": "1.0", **parts, "added_tokens": added, "pre_tokenizer": rule, "decoder": back, "model": model}


def _of_bytes(tokenizer: Tokenizer) -> dict[str, Any]:
    """A BPE that merges nothing."""
    model: dict[str, Any] = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
        "vocab": {character: byte for byte, character in enumerate(byte_alphabet())},
        "merges": [],
    }
    rule = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _content(model, [_special(tokenizer.eos_id, END_OF_TEXT)], rule, "ByteLevel")


def _of_characters(tokenizer: Tokenizer) -> dict[str, Any]:
    """Words of one character each."""
    characters = json.loads(tokenizer.to_json())["characters"]
    tokens = [UNKNOWN, END, *characters]
    model = {"type": "WordLevel", "vocab": {token: n for n, token in enumerate(tokens)}, "unk_token": UNKNOWN}
    rule = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return _content(model, [_special(n, token) for n, token in enumerate(tokens[:2])], rule, "Fuse")


OWN_KINDS: dict[str, Callable[[Tokenizer], dict[str, Any]]] = {"byte": _of_bytes, "char": _of_characters}
