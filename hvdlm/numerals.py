"""Numbers and truth as people write them, in configs, overrides and options."""

from __future__ import annotations

import re
from decimal import Decimal

LARGEST = 2**63 - 1  # of a whole number: what is counted and drawn with it has 64 bits
LARGEST_FLOAT = 3.4028234e38  # of float32, in which training computes
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_OTHER_BASE = re.compile(r"[-+]?0(x[0-9a-f_]+|o[0-7_]+|b[01_]+)", re.ASCII | re.IGNORECASE)
_DECIMAL = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(e[-+]?[0-9]{1,6})?", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan|infinity)", re.IGNORECASE)


def truth(text: str) -> bool | None:
    """YAML's words for true and false; `1` is none."""
    return TRUTH.get(text.lower())


def whole_number(text: str) -> int | None:
    """The whole number of at most 64 bits that a text stands for, or None.

    >>> [whole_number(text) for text in ("1e3", "1_000", "10.0", "0x10", "012", "1.5", "1e30", "1,000", "1:30")]
    [1000, 1000, 10, 16, 12, None, None, None, None]
    """
    if _OTHER_BASE.fullmatch(text):
        found = int(text.replace("_", ""), 0)
    elif len(text) <= 40 and _DECIMAL.fullmatch(text):
        number = Decimal(text.replace("_", ""))
        if number.copy_abs() > LARGEST or number != number.to_integral_value():
            return None
        found = int(number)
    else:
        return None
    return found if abs(found) <= LARGEST else None


def is_too_large(text: str) -> bool:
    """Whether a text stands for a whole number, or one with a fraction, beyond those of 64 bits.

    >>> [is_too_large(text) for text in ("9223372036854775808", "-1e30", "0x1_0000_0000_0000_0000", "7", "ten")]
    [True, True, True, False, False]
    """
    if _OTHER_BASE.fullmatch(text):
        return whole_number(text) is None
    return _DECIMAL.fullmatch(text) is not None and Decimal(text.replace("_", "")).copy_abs() > LARGEST


def number(text: str) -> float | None:
    """The number that a text stands for, or None; inf and nan are read, for the message that refuses them."""
    if _DECIMAL.fullmatch(text):
        return float(text.replace("_", ""))
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    whole = whole_number(text)
    return None if whole is None else float(whole)
