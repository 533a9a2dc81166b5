"""The errors that people meet most on this stack, by their exact text, with cause and cure."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KnownError:
    """An error of another program: `pattern` is found in one line of what it prints, and `example` is such a line."""

    name: str
    title: str
    pattern: str
    example: str
    cause: str
    cure: str
    source: str


@functools.cache
def known_errors() -> tuple[KnownError, ...]:
    """All of them, from known_errors.yaml; read when first asked for, since nearly every command starts without."""
    import yaml

    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return tuple(KnownError(**values) for values in yaml.safe_load(text))


def explain(text: str) -> list[KnownError]:
    """The known errors that a log shows, in the order in which they first appear.

    >>> [known.name for known in explain("noise\\nOSError: [Errno 28] No space left on device\\n")]
    ['no-space']
    """
    found = [(match.start(), known) for known in known_errors() if (match := re.search(known.pattern, text))]
    return [known for _, known in sorted(found, key=lambda pair: pair[0])]


def to_text(found: list[KnownError]) -> str:
    """Cause and cure of each, for a terminal."""
    return "\n".join(f"{known.title}\n  cause: {known.cause}\n  cure:  {known.cure}" for known in found)


def to_markdown() -> str:
    """All known errors as a table for the documentation."""
    rows = [f"| `{known.example}` | {known.cause} | {known.cure} |".replace("||", "| |") for known in known_errors()]
    return "\n".join(["| what is printed | cause | cure |", "|---|---|---|", *rows]) + "\n"
