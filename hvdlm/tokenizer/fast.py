"""The fast encoder: the ids of a byte-level BPE by gigatoken, used after a proof on real text."""

from __future__ import annotations

import logging

import numpy as np

from hvdlm.host import memory_bytes
from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.interface import Tokenizer, insert_eos

log = logging.getLogger("hvdlm")

# Where two encoders are most likely to part: cutting rules of Unicode, white space, special names, digits.
NASTY = (
    "",
    "<|endoftext|>",
    "a<|endoftext|>b </s><s> [SEP] <unk>",
    "e\u0301 a\u0308\u0323 \u0915\u094d\u0937\u093f กำ",  # combining marks
    "你好,世界。日本語のテキスト 한국어 𠀀𪚥",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "a\rb\r\nc\n\r\n\n d\x0b\x0c\x85\u2028\u2029e",
    "\x00\x01\x1f\x7f\ufeff\ufffd\uffff\U0010ffff",
    " " * 300 + "x" + "\t" * 50 + "\n" * 200 + " \u00a0\u2003\u3000\u200b ",
    "0123456789 3.14159 1,000,000 ١٢٣ ²³ ½ Ⅷ " + "7" * 400,
    "I'm you'RE he'Ll DON'T we’ve 'tis ''s",
    "x" * 3000 + "ſ K İ ǅ ß ﬃ",
    "#!/usr/bin/env python\n\tdef f(x):\n\t\treturn {**x, '_': -1e-9}  # ~/`^|\\\n",
)

# gigatoken keeps what it has seen without a limit: 120 MB of random words took 760 MB. Beyond this it starts anew.
CACHE_BYTES = 256 << 20


class FastTokenizer:
    """A BackendTokenizer whose `encode_documents` runs in gigatoken; all else is the same object's.

    `threads`: 1 encodes on the calling thread, as ranks are usually one a core; more uses gigatoken's pool
    (all cores, or RAYON_NUM_THREADS).
    """

    def __init__(self, exact: BackendTokenizer, *, threads: int = 1) -> None:
        import gigatoken

        self._exact, self._threads = exact, threads
        self._make = lambda: gigatoken.Tokenizer.from_json(exact.plain_json)
        self._encoder = self._make()
        self._resident = memory_bytes("VmRSS")
        self.kind, self.vocab_size = exact.kind, exact.vocab_size
        self.eos_id, self.unk_id = exact.eos_id, exact.unk_id
        self.encode, self.decode, self.to_json = exact.encode, exact.decode, exact.to_json

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if memory_bytes("VmRSS") - self._resident > CACHE_BYTES:
            self._encoder = self._make()
            self._resident = memory_bytes("VmRSS")
        rows = self._encoder.encode_batch(texts, parallel=self._threads > 1).layout
        offsets = np.asarray(rows.offsets.data)
        return insert_eos(np.asarray(rows.content.data)[offsets[0] : offsets[-1]], np.diff(offsets), self)


def may_be_fast(tokenizer: Tokenizer) -> bool:
    """Whether there is a fast encoder for this kind at all."""
    return isinstance(tokenizer, BackendTokenizer) and tokenizer.is_byte_level


def make_fast(tokenizer: Tokenizer, sample: list[str], *, threads: int = 1) -> Tokenizer:
    """The fast encoder of this vocabulary, if it proves to give the same ids; else `tokenizer` and a warning.

    `sample` is text of the job; it costs as long as `tokenizer` takes to encode it, so a megabyte will do.
    Kinds that have no fast encoder come back as they are.
    """
    if not isinstance(tokenizer, BackendTokenizer) or not tokenizer.is_byte_level:
        return tokenizer
    try:
        fast = FastTokenizer(tokenizer, threads=threads)
        difference = _first_difference(tokenizer, fast, [*NASTY, *sample])
    except ImportError:
        reason = "gigatoken is not installed; pip install 'hvdlm[text]'"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        reason = f"gigatoken cannot take this vocabulary ({str(error).strip() or type(error).__name__})"
    else:
        if difference is None:
            return fast
        reason = f"gigatoken encodes {difference[:80]!r} differently"
    log.warning("the slower tokenizers library encodes: %s", reason)
    return tokenizer


def _first_difference(exact: Tokenizer, fast: Tokenizer, texts: list[str]) -> str | None:
    """The first text whose ids are not the same."""
    ids, counts = exact.encode_documents(texts)
    fast_ids, fast_counts = fast.encode_documents(texts)
    if np.array_equal(ids, fast_ids) and np.array_equal(counts, fast_counts):
        return None
    ends, fast_ends = np.cumsum(counts), np.cumsum(fast_counts)
    pairs = zip(np.split(ids, ends[:-1]), np.split(fast_ids, fast_ends[:-1]), texts, strict=True)
    return next(text for own, other, text in pairs if not np.array_equal(own, other))
