"""Where the structure of a JSON value (RFC 8259) ends or breaks, told block by block."""

from __future__ import annotations

import re
from enum import Enum

MAX_DEPTH = 1 << 11  # of brackets that are open; the libraries that read JSON take half as many
IN_STRING = re.compile(rb'["\\]')  # sought again and again: a repeated group would take memory for each escape
REST_OF_SCALAR = re.compile(rb'[^][{}",:\s]*')
SCALARS = re.compile(rb"-?[0-9][0-9.eE+-]*|-?Infinity|NaN|true|false|null")  # or nearly so
BLANKS = re.compile(rb"\s*")


class Expects(Enum):
    """What may come next; in words for the user."""

    VALUE = "value"
    FIRST_VALUE = "value or closing bracket"
    KEY = "key in double quotes"
    FIRST_KEY = "key in double quotes, or closing brace"
    COLON = "colon"
    NEXT = "comma or closing bracket"
    REST_OF_KEY = "end of the key"
    REST_OF_STRING = "end of the string"
    REST_OF_SCALAR = "end of the number or word"


CLOSES = {b"}": ord("{"), b"]": ord("[")}
MAY_CLOSE = {b"}": (Expects.FIRST_KEY, Expects.NEXT), b"]": (Expects.FIRST_VALUE, Expects.NEXT)}
KEYS = (Expects.KEY, Expects.FIRST_KEY)
SIGNS = {Expects.NEXT: b",", Expects.COLON: b":"}


class Structure:
    """One value, followed from its first byte on.

    `at` is the next byte to look at, `token` where the last string began (or the byte behind the first), both in the
    data that were given last.
    """

    def __init__(self, at: int) -> None:
        self.expects = Expects.VALUE
        self.at, self.token = at, at + 1
        self.is_whole = False
        self._open = bytearray()  # brackets

    def follow(self, data: bytes) -> bool:
        """Goes on to the value's end or that of the data; False where the structure is broken."""
        while not self.is_whole:
            if self.expects in (Expects.REST_OF_KEY, Expects.REST_OF_STRING, Expects.REST_OF_SCALAR):
                if not self._ends(data):
                    return True
                continue
            blanks = BLANKS.match(data, self.at)
            assert blanks, "any number"
            self.at = blanks.end()
            if self.at == len(data):
                return True
            if not self._takes(data):
                return False
        return True

    def shift(self, num_bytes: int) -> None:
        """The next data begin so many bytes later."""
        self.at -= num_bytes
        self.token = max(0, self.token - num_bytes)

    def _ends(self, data: bytes) -> bool:
        """Whether the string or scalar under way ends in the data."""
        if self.expects is Expects.REST_OF_SCALAR:
            scalar = REST_OF_SCALAR.match(data, self.at)
            assert scalar, "any number of characters"
            self.at = scalar.end()
            if self.at < len(data):
                self._after_value()
            return self.at < len(data)
        if not self._string_ends(data):
            return False
        if self.expects is Expects.REST_OF_KEY:
            self.expects = Expects.COLON
        else:
            self._after_value()
        return True

    def _string_ends(self, data: bytes) -> bool:
        while found := IN_STRING.search(data, self.at):
            if found[0] == b'"':
                self.at = found.end()
                return True
            if found.end() == len(data):  # the backslash waits for what it takes along
                self.at = found.start()
                return False
            self.at = found.end() + 1
        self.at = len(data)
        return False

    def _takes(self, data: bytes) -> bool:
        """Whether the next character may come next; it is passed if so."""
        char, expects = data[self.at : self.at + 1], self.expects
        if char in CLOSES:
            if expects not in MAY_CLOSE[char] or self._open[-1] != CLOSES[char]:
                return False
            self._open.pop()
            self._after_value()
        elif expects in SIGNS:
            if char != SIGNS[expects]:
                return False
            is_key = expects is Expects.NEXT and self._open[-1] == CLOSES[b"}"]
            self.expects = Expects.KEY if is_key else Expects.VALUE
        elif not self._begins(char, data):
            return False
        self.at += 1
        return True

    def _begins(self, char: bytes, data: bytes) -> bool:
        """Whether a key or a value, which is due, may begin so."""
        is_key = self.expects in KEYS
        if char == b'"':
            self.token = self.at
            self.expects = Expects.REST_OF_KEY if is_key else Expects.REST_OF_STRING
        elif is_key or char in b",:":
            return False
        elif char in b"{[":
            if len(self._open) == MAX_DEPTH:
                return False
            self._open += char
            self.expects = Expects.FIRST_KEY if char == b"{" else Expects.FIRST_VALUE
        else:
            self.expects = Expects.REST_OF_SCALAR
            word = REST_OF_SCALAR.match(data, self.at)
            assert word, "any number of characters"
            return word.end() == len(data) or bool(SCALARS.fullmatch(word[0]))
        return True

    def _after_value(self) -> None:
        self.expects = Expects.NEXT
        self.is_whole = not self._open
