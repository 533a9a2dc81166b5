"""The fast encoder: the ids of a byte-level BPE by gigatoken, for what is known to give the exact ids.

Two encoders part where a vocabulary has a rule that only one follows, and where they know different versions
of Unicode. So vocabularies outside a closed list of rules are left to the exact library, and so is each text
with a character or an added token on which the two may part. The rest is proven on real text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from hvdlm.host import memory_bytes
from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.dropped import byte_alphabet, steps
from hvdlm.tokenizer.interface import Tokenizer, code_points, insert_ends
from hvdlm.tokenizer.tiktoken_ranks import PATTERNS

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


KNOWN_PATTERNS = tuple(PATTERNS[name] for name in ("llama3", "qwen", "o200k"))  # on which the encoders were compared
MOST_ADDED = 64  # added tokens that are looked for in each text
CHECK_CHARACTERS = 1 << 16  # of text looked through at once; more would leave the cache

# Where a text may be parted, before a line or a word: every known pattern cuts there, and no other cut of it moves. A
# line end behind white space would not do, as GPT-2's pattern leaves the last of a run to what follows; nor one before
# a slash, which o200k's joins with it and the punctuation before.
VISIBLE = r"[\w!-~、。，！？；：「」『』“”‘’（）《》…]"
CUT = re.compile(rf"(?<={VISIBLE}\n)(?=\w)|(?= {VISIBLE})")

UNASSIGNED = ("Cn", "Cs")  # categories of code points that are no characters, and of halves of them
PROVEN, UNSEEN, APART = 0, 1, 2  # what is known of a character
NEARBY_CHARACTERS = 16  # beside a character that is tried, or parted from the others
MOST_PIECES = 4  # around characters that were tried for CHECK_CHARACTERS of text
# Of a character in its probe; and more for a pattern that tells large from small letters, or knows 's by either.
SURROUNDINGS = "a{0}a 1{0}1 !{0}! {0} {0}\na'{0}a"
MORE_SURROUNDINGS = "A{0}a{0}A1{0}a'{0}ea'l{0}a"
SPLIT_AT = "a1!A \n'"  # the probe's vocabulary joins these with every byte, so that each cut shows in the ids


class FastTokenizer:
    """A BackendTokenizer whose `encode_documents` runs in gigatoken; all else is the same object's.

    What may tell the two apart is encoded by the exact one: a text with an added token, and words with a character
    that is of another class to gigatoken or that this Python does not know, or, where the vocabulary asks for
    NFC, that are not in it. (An NFC text of assigned characters is NFC in every later Unicode.)

    `threads`: 1 encodes on the calling thread, as ranks are usually one a core; more uses gigatoken's pool
    (all cores, or RAYON_NUM_THREADS).
    """

    def __init__(self, exact: BackendTokenizer, *, threads: int = 1) -> None:
        import gigatoken

        self._exact, self._threads = exact, threads
        content = exact.plain
        self._needs_nfc = content.get("normalizer") is not None
        self._added = added_tokens(content)
        plain = json.dumps({**content, "normalizer": None, "added_tokens": []})
        self._make = lambda: gigatoken.Tokenizer.from_json(plain)
        self._encoder = self._make()
        self._characters = Characters(content["pre_tokenizer"])
        self.wrong: str | None = None  # a text of the job that the two were found to encode differently
        self._unproven: list[str] = []  # text around characters that were just tried
        self._resident = memory_bytes("VmRSS")
        self.kind, self.vocab_size = exact.kind, exact.vocab_size
        self.eos_id, self.bos_id, self.unk_id = exact.eos_id, exact.bos_id, exact.unk_id
        self.encode, self.decode, self.to_json = exact.encode, exact.decode, exact.to_json

    @property
    def exact(self) -> BackendTokenizer:
        """The encoder that this one is held to."""
        return self._exact

    def word_starts(self) -> np.ndarray | None:
        return self._exact.word_starts()

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        is_fast = np.fromiter(self._are_same(texts), dtype=bool, count=len(texts))
        if self._unproven:
            self._prove()
        if is_fast.all():
            return insert_ends(*self._encode_fast(texts), self)
        pieces: list[tuple[bool, str]] = []  # whether it is for the fast encoder
        firsts = []  # of each text's pieces
        for text, is_whole in zip(texts, is_fast.tolist(), strict=True):
            firsts.append(len(pieces))
            pieces += [(True, text)] if is_whole else self._parted(text)
        ids, lengths = self._encode_fast([piece for is_fast, piece in pieces if is_fast])
        fast = iter(np.split(ids, np.cumsum(lengths)))
        exact = self._exact.encode_each([piece for is_fast, piece in pieces if not is_fast])
        parts = [next(fast if is_fast else exact) for is_fast, _ in pieces]
        return insert_ends(np.concatenate(parts), np.add.reduceat(list(map(len, parts)), firsts), self)

    def _parted(self, text: str) -> list[tuple[bool, str]]:
        """A text that is not for the fast encoder as a whole: stretches that are, and the others."""
        if self._has_added(text) or (self._needs_nfc and self._has_added(unicodedata.normalize("NFC", text))):
            return [(False, text)]
        is_apart = self._characters.are_apart(text)
        if self._needs_nfc:
            cuts = _cuts(text, 0, len(text))
        else:
            cuts = _cuts_around(text, np.flatnonzero(is_apart).tolist())
        starts = np.unique([0, *cuts])
        are_fast = ~np.logical_or.reduceat(is_apart, starts)
        if self._needs_nfc:
            pieces = map(text.__getitem__, map(slice, starts, [*starts[1:], len(text)]))
            are_fast &= [unicodedata.is_normalized("NFC", piece) for piece in pieces]
        changes = np.flatnonzero(np.diff(are_fast, prepend=~are_fast[:1]))
        bounds = [*starts[changes].tolist(), len(text)]
        stretches = map(text.__getitem__, map(slice, bounds, bounds[1:]))
        return list(zip(are_fast[changes].tolist(), stretches, strict=True))

    def _has_added(self, text: str) -> bool:
        return any(token in text for token in self._added)

    def _are_same(self, texts: list[str]) -> Iterator[bool]:
        """`_is_same` of each text, several short ones at once: what a joined text lacks, none of its parts has."""
        first = held = 0
        for last, text in enumerate(texts, 1):
            held += len(text)
            if held >= CHECK_CHARACTERS or last == len(texts):
                group = texts[first:last]
                others = "".join(itertools.filterfalse(str.isascii, group))
                are_all = not (self._added and self._has_added("".join(group))) and self._is_same(others)
                yield from [True] * len(group) if are_all else map(self._is_same, group)
                first, held = last, 0

    def _is_same(self, text: str) -> bool:
        """Whether both encoders give this text the same ids."""
        if self._has_added(text):
            return False
        if text.isascii():
            return True
        is_same = self._characters.are_same(text)
        self._unproven += around(text, self._characters.take_first_tried())
        return is_same and (not self._needs_nfc or unicodedata.is_normalized("NFC", text))

    def _prove(self) -> None:
        """Compare both encoders on real text around the characters that were just tried."""
        pieces, self._unproven = self._unproven, []
        pieces = list(itertools.compress(pieces, self._are_same(pieces)))
        if pieces and self.wrong is None:
            ids, counts = insert_ends(*self._encode_fast(pieces), self)
            self.wrong = _first_difference(self._exact, pieces, ids, counts)

    def _encode_fast(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in one array, and how many each has."""
        if memory_bytes("VmRSS") - self._resident > CACHE_BYTES:
            self._encoder = self._make()
            self._resident = memory_bytes("VmRSS")
        rows = self._encoder.encode_batch(texts, parallel=self._threads > 1).layout
        offsets = np.asarray(rows.offsets.data)
        return np.asarray(rows.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)


def _cuts(text: str, start: int, stop: int) -> list[int]:
    """Where the text may be parted in [start, stop), in ascending order."""
    return [found.start() for found in CUT.finditer(text, start, min(len(text), stop + 1)) if found.start() < stop]


def _cuts_around(text: str, places: list[int]) -> list[int]:
    """The nearest cuts before and behind each of these places, which ascend; each cut once."""
    found: set[int] = set()
    end = 0  # of the stretch between two cuts that the last place is in
    for place in places:
        if place < end:
            continue
        near = max(end, place - NEARBY_CHARACTERS)
        found.update((_cuts(text, near, place + 1) or _cuts(text, end, near))[-1:])
        behind = CUT.search(text, place + 1)
        end = behind.start() if behind else len(text)
        found.add(end)
    return sorted(found - {len(text)})


def around(text: str, places: list[int]) -> Iterator[str]:
    """The text around each of these places, in ascending order; once where they are near each other."""
    end = 0
    for place in places:
        if place + NEARBY_CHARACTERS > end:  # else it stands well within the piece before
            end = place + 2 * NEARBY_CHARACTERS
            yield text[max(0, place - NEARBY_CHARACTERS) : end]


class Characters:
    """The characters that both encoders cut alike; `rule`: the pre_tokenizer.

    Those that are not settled since long are tried when a text first has them. One that is unassigned to this
    Python's Unicode is never trusted: its normal form may differ too.
    """

    def __init__(self, rule: dict[str, Any]) -> None:
        self._rule = rule
        tells_case = any(word in json.dumps(rule) for word in ("(?i:", "{Lu}"))
        self._surroundings = SURROUNDINGS + MORE_SURROUNDINGS * tells_case
        self._state = np.full(0x110000, UNSEEN, dtype=np.uint8)
        self._state[:128] = PROVEN
        self._proven_latin = bytes(range(128))
        self._probes: tuple[Any, Any] | None = None
        self._first_tried: list[int] = []

    def are_same(self, text: str) -> bool:
        with contextlib.suppress(UnicodeEncodeError):  # most texts of Europe: a third of the time of what follows
            if not text.encode("latin-1").translate(None, self._proven_latin):
                return True
        codes = code_points(text)
        is_ascii = codes < 128
        if np.count_nonzero(is_ascii) > len(codes) // 2:  # to choose is cheaper than to look up, where it leaves few
            codes = codes[~is_ascii]
        states = self._state.take(codes)
        if states.max(initial=PROVEN) == PROVEN:
            return True
        unseen = np.unique(codes[states == UNSEEN])
        if len(unseen):
            tried = self._try(unseen)
            self._proven_latin = np.flatnonzero(self._state[:256] == PROVEN).astype(np.uint8).tobytes()
            self._first_tried = sorted(map(text.index, map(chr, tried[:: 1 + len(tried) // MOST_PIECES])))
        return bool(self._state.take(codes).max() == PROVEN)

    def are_apart(self, text: str) -> np.ndarray:
        """Of each character (bool), whether encoders may part on it; `are_same` was asked before."""
        return self._state.take(code_points(text)) != PROVEN

    def take_first_tried(self) -> list[int]:
        """Where the last text had characters that were tried for it, of many a few; once."""
        places, self._first_tried = self._first_tried, []
        return places

    def _try(self, codes: np.ndarray) -> list[int]:
        """Find out about new characters; those for which both encoders were asked, in ascending order."""
        known = [code for code in codes.tolist() if unicodedata.category(chr(code)) not in UNASSIGNED]
        settled = [code for code in known if is_settled(chr(code))]
        self._state[codes] = APART
        self._state[settled] = PROVEN
        odd = sorted(set(known).difference(settled))
        self._state[odd] = np.where(self.agree(odd), PROVEN, APART)
        return odd

    def agree(self, codes: list[int]) -> list[bool]:
        """Whether both encoders cut alike around each of these characters."""
        texts = [self._surroundings.format(chr(code)) for code in codes]
        if not texts:
            return []
        exact, fast = self._find_probes()
        rows = fast.encode_batch(texts, parallel=False).layout
        bounds, ids = itertools.pairwise(np.asarray(rows.offsets.data)), np.asarray(rows.content.data)
        found = exact.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids == ids[slice(*bound)].tolist() for encoding, bound in zip(found, bounds, strict=True)]

    def _find_probes(self) -> tuple[Any, Any]:
        if self._probes is None:
            import gigatoken
            from tokenizers import Tokenizer as Backend

            text = json.dumps({"version": "1.0", "pre_tokenizer": self._rule, "model": _probe_model()})
            self._probes = Backend.from_str(text), gigatoken.Tokenizer.from_json(text)
        return self._probes


def is_settled(character: str) -> bool:
    """Whether a character is in the class that it had in Unicode 3.2 (2002), and is no form of an ASCII letter.

    Both encoders know these; a test tries every one of them in both, as that takes seconds.
    """
    category = unicodedata.category(character)
    forms = character.casefold() + character.lower() + character.upper()
    is_same = category == unicodedata.ucd_3_2_0.category(character) and category not in UNASSIGNED
    return is_same and not any(map(str.isascii, forms))


def _probe_model() -> dict[str, Any]:
    """A BPE that joins SPLIT_AT with every byte before or after it."""
    alphabet = byte_alphabet()
    vocab = {token: number for number, token in enumerate(alphabet)}
    merges = []
    for own in (alphabet[ord(character)] for character in SPLIT_AT):
        for pair in (pair for other in alphabet for pair in ((own, other), (other, own))):
            if "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(pair)
    return {"type": "BPE", "vocab": vocab, "merges": merges}


def added_tokens(content: dict[str, Any]) -> list[str]:
    """The added tokens that a text can spell, but for those that hold another one."""
    names = {entry["content"] for entry in content.get("added_tokens") or [] if not entry["special"]}
    names |= {unicodedata.normalize("NFC", name) for name in names}
    kept: list[str] = []
    for name in sorted(names, key=len):
        if not any(shorter in name for shorter in kept):
            kept.append(name)
    return kept


def uncovered(content: dict[str, Any]) -> str | None:
    """The first rule of a tokenizer.json on which the two encoders were not compared, or None."""
    model, normalizers, cuts = content["model"], steps(content, "normalizer"), steps(content, "pre_tokenizer")
    if any(rule["type"] != "NFC" for rule in normalizers):
        return f"normalizer {_names(normalizers)}"
    if not _is_known_cut(cuts):
        return f"pre_tokenizer {_names(cuts)}"
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            return f"{key} {model[key]!r}"
    if model.get("unk_token") is not None:
        return "an unk_token"
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if len(set(merges)) != len(merges):
        return "a merge listed twice"
    if not model["vocab"].keys() >= set(byte_alphabet()):
        return "a byte without a token"
    if len(added_tokens(content)) > MOST_ADDED:
        return f"more than {MOST_ADDED} added tokens"
    return None


def _names(rules: list[dict[str, Any]]) -> str:
    return ", ".join(rule["type"] for rule in rules) or "none"


def _is_known_cut(steps: list[dict[str, Any]]) -> bool:
    """ByteLevel with GPT-2's pattern in it, or a known Split and ByteLevel without."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return False
    if len(steps) == 1:
        return bool(steps[-1].get("use_regex", True))
    split = steps[0]
    return (
        len(steps) == 2
        and split["type"] == "Split"
        and split["pattern"].get("Regex") in KNOWN_PATTERNS
        and split["behavior"] == "Isolated"
        and not split.get("invert")
        and not steps[-1].get("use_regex", True)
    )


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
    rule = uncovered(tokenizer.plain)
    if rule is not None:
        log.warning("the slower tokenizers library encodes: the fast encoder is not proven for %s", rule)
        return tokenizer
    try:
        fast = FastTokenizer(tokenizer, threads=threads)
        texts = [*NASTY, *sample]
        difference = _first_difference(tokenizer, texts, *fast.encode_documents(texts)) or fast.wrong
    except ImportError:
        reason = "gigatoken is not installed; pip install 'hvdlm[text]'"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        told = str(error).strip() or type(error).__name__
        reason = f"gigatoken cannot take this vocabulary ({told.splitlines()[0]})"  # a guide to its options follows
    else:
        if difference is None:
            return fast
        reason = f"gigatoken encodes {difference[:80]!r} differently"
    log.warning("the slower tokenizers library encodes: %s", reason)
    return tokenizer


def _first_difference(exact: Tokenizer, texts: list[str], fast_ids: np.ndarray, fast_counts: np.ndarray) -> str | None:
    """The first text that has not these ids: as documents, and how many of each."""
    ids, counts = exact.encode_documents(texts)
    if np.array_equal(ids, fast_ids) and np.array_equal(counts, fast_counts):
        return None
    ends, fast_ends = np.cumsum(counts), np.cumsum(fast_counts)
    pairs = zip(np.split(ids, ends[:-1]), np.split(fast_ids, fast_ends[:-1]), texts, strict=True)
    return next(text for own, other, text in pairs if not np.array_equal(own, other))
