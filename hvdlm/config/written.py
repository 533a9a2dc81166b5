"""A YAML text as its author wrote it: scalars stay text until it is known what their keys want.

YAML 1.1 makes 2026-11-26 a date, `no` a bool, 012 ten, 1:30 ninety and 1e3 a text, whatever the key is about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml

from hvdlm.errors import UserError
from hvdlm.files import open_stream

MAX_BYTES = 4 << 20  # of a config: room for a list of 50,000 input files
MAX_VALUES = 1_000_000  # with every alias written out: ten lines can stand for a billion values
STANDARD = "tag:yaml.org,2002:"
MERGE = STANDARD + "merge"
SCALARS = {STANDARD + name for name in ["str", "int", "float", "bool", "null", "timestamp", "merge", "value"]}

# plain and quoted: in a YAML text; typed: behind the `=` of an override
Style = Literal["plain", "quoted", "typed"]


class Written(str):
    """A scalar as it was written, without its quotes."""

    style: Style

    def __new__(cls, text: str, style: Style) -> Written:
        written = super().__new__(cls, text)
        written.style = style
        return written


class Fault(Exception):
    """What is wrong with a YAML text, and in which line."""

    def __init__(self, message: str, mark: yaml.Mark | None) -> None:
        super().__init__(message)
        self.line = mark.line + 1 if mark else 0


def read(path: Path) -> tuple[yaml.Node, dict[str, Any]]:
    """The nodes of a YAML file, which know their lines, and its mapping; UserError with the file and the line."""
    try:
        return _mapping_of(_decoded(path))
    except Fault as fault:
        raise UserError(f"{path}:{fault.line or ''}: {fault}".replace(":: ", ": ")) from None


def _decoded(path: Path) -> str:
    try:
        with open_stream(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read this config ({error.strerror})") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(path)!r}: cannot read this config ({error})") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES >> 20} MiB: no config, or the wrong file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the config as UTF-8") from None


def _mapping_of(text: str) -> tuple[yaml.Node, dict[str, Any]]:
    node = compose(text)
    if node is None:
        raise Fault("is empty; a config is a mapping of keys to values", None)
    values = values_of(node, "plain")
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else f"the text {values[:40]!r}"
        raise Fault(f"a config is a mapping of keys to values, this is {found}", None)
    return node, values


def compose(text: str) -> yaml.Node | None:
    """The node of a YAML text, None for an empty one; Fault if it is none."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context or "cannot be read"
        if "\\t" in problem:
            problem += "; indent with blanks, not tabs"
        if "but found another document" in problem:
            problem = "a second document begins; a config is one"
        raise Fault(f"not valid YAML: {problem}", error.problem_mark or error.context_mark) from None
    except yaml.reader.ReaderError as error:
        mark = yaml.Mark("", 0, text[: error.position].count("\n"), 0, "", 0)
        raise Fault(f"not valid YAML: the character U+{error.character:04X} may not stand there", mark) from None
    except yaml.YAMLError as error:
        raise Fault(f"not valid YAML: {str(error).splitlines()[0]}", None) from None
    except RecursionError:
        raise Fault("not valid YAML: it is nested too deeply", None) from None
    except (ValueError, OverflowError):
        raise Fault("not valid YAML: an escape such as \\UFFFFFFFF is no character", None) from None


def values_of(node: yaml.Node, style: Style) -> Any:
    """Dicts, lists and `Written` scalars of a node; an unquoted scalar has `style`.

    Raises Fault for what a config cannot hold.
    """
    return _Values(style).of(node)[0]


class _Values:
    """Converts each node once, however often aliases name it; counts values as if all were written out."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._known: dict[int, tuple[Any, int] | None] = {}

    def of(self, node: yaml.Node) -> tuple[Any, int]:
        """The value of a node, and how many there are in it."""
        if id(node) in self._known:
            known = self._known[id(node)]
            if known is None:
                raise Fault("an alias stands within what it names", node.start_mark)
            return known
        self._known[id(node)] = None
        try:
            value, count = self._convert(node)
        except RecursionError:
            raise Fault("is nested too deeply", node.start_mark) from None
        if count > MAX_VALUES:
            raise Fault(f"aliases make more than {MAX_VALUES:,} values of it", node.start_mark)
        self._known[id(node)] = value, count
        return value, count

    def _convert(self, node: yaml.Node) -> tuple[Any, int]:
        if isinstance(node, yaml.ScalarNode):
            self._check_tag(node, SCALARS)
            return Written(node.value, self._style if node.style is None else "quoted"), 1
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, {STANDARD + "seq"})
            parts = [self.of(part) for part in node.value]
            return [value for value, _ in parts], 1 + sum(count for _, count in parts)
        assert isinstance(node, yaml.MappingNode)
        self._check_tag(node, {STANDARD + "map"})
        return self._mapping(node)

    def _mapping(self, node: yaml.MappingNode) -> tuple[dict[str, Any], int]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        total = 1
        for key_node, value_node in node.value:
            value, count = self.of(value_node)
            total += count
            if key_node.tag == MERGE:
                for source in value if isinstance(value, list) else [value]:
                    if not isinstance(source, dict):
                        raise Fault("<<: takes an alias of a mapping", key_node.start_mark)
                    merged = {**source, **merged}
                continue
            key = self._key(key_node)
            if key in own:
                raise Fault(f"key {key!r} is given twice, first in line {lines[key]}", key_node.start_mark)
            own[key], lines[key] = value, key_node.start_mark.line + 1
        return {**merged, **own}, total

    @staticmethod
    def _key(node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise Fault("a key is a word, this is a list or a mapping", node.start_mark)
        return str(node.value)

    @staticmethod
    def _check_tag(node: yaml.Node, tags: set[str]) -> None:
        if node.tag not in tags:
            raise Fault(f"the tag {node.tag.replace(STANDARD, '!!')} means nothing in a config", node.start_mark)
