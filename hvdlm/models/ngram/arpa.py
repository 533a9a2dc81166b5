"""N-gram models as ARPA text (Stolcke 2002; read by KenLM, SRILM and speech decoders), plain or gzipped.

    \\data\\                     the number of n-grams of each order
    \\2-grams:                  log10 of p(last word | others), the words, log10 of the backoff weight
    \\end\\

An end of text is </s> where it is the last word of an n-gram and <s> where it is the first; the unknown word is <unk>.
"""

from __future__ import annotations

import gzip
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hvdlm.files import naming, replace_durably
from hvdlm.models.ngram.kneser_ney import BackoffTable

if TYPE_CHECKING:
    from hvdlm.tokenizer import Tokenizer

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ZERO = -99.0  # log10 of a probability that is none
BLOCK = 1 << 16  # n-grams that are written at a time
NO_WORD = re.compile("[ \t\n\r\v\f\0\ufffd\ud800-\udfff]")  # what readers cut words at, and what is no text


def names_of(tokenizer: Tokenizer) -> list[str]:
    """A word for each id, without white space and of one id alone; a space is written as SentencePiece does, ▁.

    An id whose text cannot be such a word (a part of a character, one that another id has) is <token:ID>.
    """
    names: list[str] = []
    taken = {BEGIN, END, UNKNOWN, ""}
    for token in range(tokenizer.vocab_size):
        if token == tokenizer.eos_id:
            name = END
        elif token == tokenizer.unk_id:
            name = UNKNOWN
        else:
            name = tokenizer.decode(np.array([token])).replace(" ", "▁")
            if name in taken or NO_WORD.search(name):
                name = f"<token:{token}>"
        taken.add(name)
        names.append(name)
    return names


def write_arpa(path: Path, tables: Sequence[BackoffTable], names: Sequence[str], eos_id: int, *, begins: bool) -> None:
    """Write a model; the file appears whole or not at all.

    `begins`: n-grams begin at ends of text and do not reach across, which is what <s> means; without it an end of text
    is </s> everywhere.
    """
    with _written_aside(path) as file:
        sizes = [len(table.keys) + (number == 1) for number, table in enumerate(tables, 1)]  # <s> is one more
        head = ["\\data\\", *(f"ngram {number}={size}" for number, size in enumerate(sizes, 1)), ""]
        file.write("\n".join(head).encode())
        for number in range(1, len(tables) + 1):
            file.write(f"\n\\{number}-grams:\n".encode())
            if number == 1:
                backoff = tables[0].log_backoffs[eos_id] / math.log(10) if begins else 0.0
                file.write(f"{ZERO:g}\t{BEGIN}\t{backoff:.9g}\n".encode())
            for lines in _lines(tables, number, names, eos_id if begins else None):
                file.write(lines.encode())
        file.write(b"\n\\end\\\n")


def _lines(tables: Sequence[BackoffTable], order: int, names: Sequence[str], begin_id: int | None) -> Iterator[str]:
    """The lines of one order, block by block."""
    table = tables[order - 1]
    for first in range(0, len(table.keys), BLOCK):
        places = np.arange(first, min(first + BLOCK, len(table.keys)))
        ids = ids_at(tables, order, places)
        words = [[names[token] for token in column] for column in ids.T.tolist()]
        if order > 1 and begin_id is not None:
            words[0] = [BEGIN if token == begin_id else name for token, name in zip(ids[:, 0], words[0], strict=True)]
        probs = (table.log_probs[places] / math.log(10)).tolist()
        backoffs = table.log_backoffs[places] / math.log(10)
        if order == 1 and begin_id is not None and begin_id in range(first, first + BLOCK):
            backoffs[begin_id - first] = 0.0  # which is that of <s>
        grams = map(" ".join, zip(*words, strict=True))
        if order < len(tables):
            rows = zip(probs, grams, backoffs.tolist(), strict=True)
            yield "".join(f"{prob:.9g}\t{gram}\t{backoff:.9g}\n" for prob, gram, backoff in rows)
        else:
            yield "".join(f"{prob:.9g}\t{gram}\n" for prob, gram in zip(probs, grams, strict=True))


def ids_at(tables: Sequence[BackoffTable], order: int, places: np.ndarray) -> np.ndarray:
    """The ids (n, order) of n-grams of one order at these places (n,)."""
    vocab_size = len(tables[0].keys)
    columns = []
    for table in reversed(tables[:order]):
        places, ids = np.divmod(table.keys[places], vocab_size)
        columns.append(ids)
    return np.stack(columns[::-1], 1)


@contextmanager
def _written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that gets its name when it is complete; gzipped where the name ends so, without a date."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            with aside.open("wb") as raw:
                if path.suffix == ".gz":
                    with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                        yield packed  # type: ignore[misc]
                else:
                    yield raw
            replace_durably(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
