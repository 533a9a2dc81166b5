"""What the publisher of a vocabulary puts before and after a text.

Read from the tokenizer.json (its post_processor) and from the tokenizer_config.json of transformers beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import read_json
from hvdlm.tokenizer.interface import END, END_OF_TEXT

log = logging.getLogger("hvdlm")

AUTO, NONE = "auto", "none"  # values of tokenizer.bos that are no token
CONFIG = "tokenizer_config.json"
NAMED_EOS = "hvdlm_eos"  # in it, as `data convert` writes it: a tokenizer.eos that was set, so it is not weighed again
# Of texts, the first that is there; the last two are DeepSeek's and Cohere's.
ENDS = (
    *(END_OF_TEXT, "<|end_of_text|>", "</s>", END, "[SEP]", "[EOS]"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<EOS_TOKEN>",
)
TURN_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>", "<|end|>", "<|return|>"),
    "<|END_OF_TURN_TOKEN|>",
)


@dataclass(frozen=True)
class PublisherConfig:
    """What a tokenizer_config.json says of the ends of a text; None where it says nothing. `ids` of added tokens."""

    path: Path
    adds_bos: bool | None = None
    bos: str | None = None
    eos: str | None = None
    named_eos: str | None = None  # wins over every rule
    ids: Mapping[str, int] = field(default_factory=dict)


def config_beside(path: Path) -> PublisherConfig:
    """The tokenizer_config.json beside a vocabulary; UserError if it cannot be understood."""
    beside = path.parent / CONFIG
    if not beside.is_file():
        return PublisherConfig(beside)
    try:
        found = read_json(beside)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        adds_bos = found.get("add_bos_token")
        if adds_bos is not None and not isinstance(adds_bos, bool):
            raise ValueError(f"add_bos_token: {adds_bos!r} is neither true nor false")
        ids = {entry["content"]: int(number) for number, entry in (found.get("added_tokens_decoder") or {}).items()}
        bos, eos, named_eos = (_token(found, key) for key in ("bos_token", "eos_token", NAMED_EOS))
        return PublisherConfig(beside, adds_bos, bos, eos, named_eos if named_eos == eos else None, ids)
    except OSError as error:
        raise UserError(f"{beside}: cannot read it ({error.strerror})") from None
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{beside}: is no {CONFIG} ({error}); mend it or move it away") from None


def _token(content: dict[str, Any], key: str) -> str | None:
    """A special token's name: a text, or an object that has it as `content`."""
    value = content.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{key}: {value!r} is no token")
    return name


def bos_of(content: dict[str, Any], config: PublisherConfig, origin: str) -> str | None:
    """The token that the publisher of a tokenizer.json puts before each text, or None.

    tokenizer_config.json wins with `add_bos_token`; else it is what post_processor puts there. Several tokens (the
    language and the task of Whisper, for one) are no beginning of text: none is taken, and a warning says so.
    """
    if config.adds_bos is False:
        return None
    if config.adds_bos and config.bos is not None:
        return config.bos
    before = before_text(content.get("post_processor"))
    if len(before) > 1:
        log.warning("%s: puts %s before a text; documents get none, tokenizer.bos names one", origin, " ".join(before))
    return before[0] if len(before) == 1 else None


def before_text(rule: Any) -> list[str]:
    """The special tokens that a post_processor puts before a single text; ValueError for one of another shape.

    >>> before_text({"type": "BertProcessing", "sep": ["[SEP]", 102], "cls": ["[CLS]", 101]})
    ['[CLS]']
    """
    try:
        tokens = _before_text(rule)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"post_processor: {error!r}") from None
    for token in tokens:
        if not isinstance(token, str):
            raise ValueError(f"post_processor: {token!r} is no token")
    return tokens


def _before_text(rule: Any) -> list[Any]:
    if rule is None:
        return []
    if rule["type"] == "Sequence":
        return [token for step in rule["processors"] for token in _before_text(step)]
    if rule["type"] in ("BertProcessing", "RobertaProcessing"):
        return [rule["cls"][0]]
    tokens: list[Any] = []
    for piece in rule["single"] if rule["type"] == "TemplateProcessing" else ():
        if "SpecialToken" not in piece:
            break
        tokens += rule["special_tokens"][piece["SpecialToken"]["id"]]["tokens"]
    return tokens


def eos_of(tokens: Collection[str], config: PublisherConfig) -> str | None:
    """The token that ends a document where it is not the first of ENDS that is there.

    The eos_token of a tokenizer_config.json counts if it ends texts (ENDS), or if nothing else is known to: that of
    a chat model ends a turn, and its vocabulary has the end of texts as well.
    """
    if config.named_eos in tokens:
        return config.named_eos
    known = [token for token in ENDS if token in tokens]
    if config.eos not in tokens or (known and config.eos not in known):
        return None
    return None if known and config.eos == known[0] else config.eos


def end_of(tokens: Collection[str], config: PublisherConfig) -> str | None:
    """The token that ends a document, or None where none is known."""
    return eos_of(tokens, config) or next((token for token in ENDS if token in tokens), None)


def tell_ends(origin: str, bos: str | None, eos: str, tokens: Collection[str] = ()) -> None:
    """One line where there was something to choose: a beginning of text, or several ends."""
    others = [token for token in (*ENDS, *TURN_ENDS) if token in tokens and token != eos]
    if bos is None and not others:
        return
    begins = f"begin with {bos!r} and " if bos is not None else ""
    also = f"; it also has {', '.join(others)}" if others else ""
    log.info("%s: documents %send with %r%s (tokenizer.bos, tokenizer.eos)", origin, begins, eos, also)
