"""What is wrong with a config, in one line of the product's own words: place, key, remedy."""

from __future__ import annotations

import difflib
import functools
import math
import re
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hvdlm.config.reading import fault_of, is_collection
from hvdlm.config.sections import Section, has_names, is_section, items_of, options_of, sections_of, union_of
from hvdlm.config.words import choices, demand, one_of
from hvdlm.config.written import Written
from hvdlm.numerals import LARGEST, LARGEST_FLOAT, is_too_large, number, truth

Key = tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where the values of a config come from: a file with its nodes, if it is YAML, and overrides by their keys."""

    path: Path
    node: yaml.Node | None
    overrides: Mapping[Key, str]

    def of(self, key: Key) -> str:
        """Where the value of `key` stands: the last override that set it or a part of it, or else `FILE:LINE`."""
        given = [text for set_, text in self.overrides.items() if _is_within(key, set_) or _is_within(set_, key)]
        return _overrides(given[-1:]) or self._in_file(key)

    def of_rule(self, key: Key, message: str) -> str:
        """What breaks a rule about the whole section `key`: the overrides in it whose keys the message names."""
        above = [text for set_, text in self.overrides.items() if _is_within(key, set_)]
        named = [text for set_, text in self.overrides.items() if _is_within(set_, key) and _names(message, set_, key)]
        return _overrides(named or above[-1:]) or self._in_file(key)

    def of_missing(self, key: Key) -> str:
        """Where `key` should be: in the override that is the section, or that began it where the file has none."""
        section = key[:-1]
        whole = any(_is_within(section, set_) for set_ in self.overrides)
        if whole or self._find(section)[1] < len(section):
            given = [
                text for set_, text in self.overrides.items() if _is_within(section, set_) or _is_within(set_, section)
            ]
            if given:
                return _overrides(given[-1:])
        return self.of(key)

    def _in_file(self, key: Key) -> str:
        line, _ = self._find(key)
        return f"{self.path}:{line}" if line else str(self.path)

    def _find(self, key: Key) -> tuple[int | None, int]:
        """The line of the deepest part of `key` that the file holds, and how many parts it holds."""
        node, line = self.node, None
        for depth, part in enumerate(key):
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if pair[0].value == part), None)
                if pair is None:
                    return line, depth
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
                node = node.value[int(part)]
                line = node.start_mark.line + 1
            else:
                return line, depth
        return line, len(key)


def _overrides(texts: Sequence[str]) -> str:
    return f"override{'s' if len(texts) > 1 else ''} {' and '.join(map(repr, texts))}" if texts else ""


def _is_within(key: Key, section: Key) -> bool:
    return key[: len(section)] == section


def _names(message: str, key: Key, section: Key) -> bool:
    """Whether a message about `section` names a key: by what it is called there, or in the whole config."""
    words = {".".join(key), ".".join(key[len(section) :])}
    return any(re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", message) for word in words if word)


def explain(model: type[Section], error: ValidationError, values: dict[str, Any], origin: Origin) -> str:
    """One line for the first problem, and how many more there are; `values` are those before they were read."""
    found = [_Problem.of(model, details, values) for details in error.errors(include_url=False)]
    # Of a key that takes text or a section, pydantic tells what is wrong with either: what was meant is looked into.
    above = {problem.key[:depth] for problem in found for depth in range(len(problem.key))}
    problems = [problem for problem in found if problem.key not in above or problem.key == ()]
    problems.sort(key=lambda problem: problem.kind != "extra_forbidden")  # a misspelt key is often the missing one
    first, keys = problems[0], {problem.key for problem in problems}
    text = _strange_keys(model, problems, origin) if first.kind == "extra_forbidden" else _text(first, origin)
    more = len(keys) - (len(_siblings(problems)) if first.kind == "extra_forbidden" and first.tag else 1)
    return text + (f" (and {more} more)" if more > 0 else "")


@dataclass(frozen=True)
class _Problem:
    """One of pydantic's, at the key that the user wrote: pydantic adds tags and types of unions to it."""

    key: Key
    section: type[Section]  # the innermost that the key names
    tag: Key  # the key that chose the section, if one did
    kind: str
    message: str
    given: Any

    @classmethod
    def of(cls, model: type[Section], details: ErrorDetails, values: dict[str, Any]) -> _Problem:
        key, section, tag = _place(model, tuple(str(part) for part in details["loc"]), details["type"])
        kind, given = details["type"], _at(values, key, details["input"])
        if kind.startswith("union_tag"):
            given = details["ctx"].get("tag")
            if given is None or not isinstance(_at(values, key, None), str):
                key = (*key, details["ctx"]["discriminator"].strip("'"))
        if kind == "missing" and key and key[-1].isdigit():  # a list that is too short
            kind, key = "too_short", key[:-1]
            given = _at(values, key, details["input"])
        return cls(key, section, tag, kind, details["msg"].removeprefix("Value error, "), given)

    @property
    def name(self) -> str:
        return ".".join(self.key)


def _place(model: type[Section], loc: Key, kind: str) -> tuple[Key, type[Section], Key]:
    """The user's key in pydantic's `loc`, the innermost section that it names, and the key of that section's tag."""
    key: list[str] = []
    tag: Key = ()
    by_name: dict[str, type[Section]] = {}
    options: list[type[Section]] = []
    items: list[type[Section]] = []
    is_name = False  # of a mapping: one that the user chose, whatever it is
    for part in loc:
        if part in by_name:
            model, by_name = by_name[part], {}
        elif part in model.model_fields and not is_name:
            field = model.model_fields[part]
            union, options, items, is_name = union_of(field), sections_of(field), items_of(field), has_names(field)
            key.append(part)
            if union:
                tag, by_name = (*key, union.tag), union.by_name
            elif len(options) == 1 and not items and not _takes_more(field):
                model, tag = options[0], ()
        elif part.isdigit() or is_name:
            key.append(part)
            is_name = False
            if len(items) == 1:
                model, tag = items[0], ()
        elif len(options) == 1 and part == options[0].__name__:
            model, tag = options[0], ()
        elif part == loc[-1] and kind == "extra_forbidden":
            key.append(part)
    return tuple(key), model, tag


def _takes_more(field: FieldInfo) -> bool:
    """Whether a value other than a section is one, too."""
    return any(not is_section(option) and option is not types.NoneType for option in options_of(field.annotation))


def _at(values: Any, key: Key, default: Any) -> Any:
    """What the user wrote for a key."""
    for part in key:
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list | tuple) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return default
    return values


def _siblings(problems: Sequence[_Problem]) -> list[_Problem]:
    """The keys unknown to the same section."""
    first = problems[0]
    return [other for other in problems if other.kind == first.kind and other.key[:-1] == first.key[:-1]]


def _strange_keys(model: type[Section], problems: Sequence[_Problem], origin: Origin) -> str:
    """A key that its section does not have: misspelt, another choice's, or one of another section."""
    first = problems[0]
    valid = sorted(first.section.model_fields)
    place = origin.of(first.key)
    known = first.section.other_names.get(first.key[-1])
    is_of_another = first.tag and not known and first.key in set(_keys_of(model))
    nearest = [known] if known else [] if is_of_another else difflib.get_close_matches(first.key[-1], valid, n=1)
    near = [".".join((*first.key[:-1], name)) for name in nearest]
    is_chosen_late = first.tag in origin.overrides and not place.startswith("override")
    if first.tag and not near and (is_of_another or is_chosen_late):
        return _of_another_choice(problems, origin, valid, is_chosen_late=is_chosen_late)
    near = near or _elsewhere(model, first.key)
    hint = f"did you mean {one_of([*map(repr, near)])}?" if near else f"valid keys: {', '.join(valid)}"
    return f"{place}: unknown key {first.name!r}; {hint}"


def _of_another_choice(problems: Sequence[_Problem], origin: Origin, valid: list[str], *, is_chosen_late: bool) -> str:
    """Keys that the section would have if its choice was another one."""
    first = problems[0]
    place, names = origin.of(first.key), ", ".join(problem.key[-1] for problem in _siblings(problems))
    chosen, section = first.section.model_fields[first.tag[-1]].default, ".".join(first.tag[:-1])
    has = ", ".join(name for name in valid if name != first.tag[-1]) or "none"
    fault = (
        f"{place}: {names} of {section} {'is no key' if names == first.key[-1] else 'are no keys'} of"
        f" {first.tag[-1]}: {chosen}, which has {has}"
    )
    if not is_chosen_late:
        return fault
    return (
        f"override {origin.overrides[first.tag]!r}: {fault}; take them out of the file, or replace the section:"
        f" '{section}={{{first.tag[-1]}: {chosen}, …}}'"
    )


def _elsewhere(model: type[Section], key: Key) -> list[str]:
    """Keys of that name in other sections: the only one, or all where the user named no section."""
    found = [".".join(other) for other in _keys_of(model) if other[-1] == key[-1]]
    return found if len(found) == 1 or len(key) == 1 else []


def _keys_of(model: type[Section], above: Key = ()) -> Iterator[Key]:
    """All keys that a config may have, but those of the items of lists, which are set as a whole."""
    found: dict[Key, None] = {}
    for name, field in model.model_fields.items():
        key = (*above, name)
        found[key] = None
        for section in () if items_of(field) else sections_of(field):
            found |= dict.fromkeys(_keys_of(section, key))
    yield from found


def _text(problem: _Problem, origin: Origin) -> str:
    if problem.kind == "value_error" or problem.kind == "assertion_error":
        place = origin.of_rule(problem.key, problem.message)
        return f"{place}: {problem.name + ': ' if problem.key else ''}{problem.message}"
    field = problem.section.model_fields.get(next((part for part in reversed(problem.key) if not part.isdigit()), ""))
    is_missing = problem.kind in ("missing", "union_tag_not_found")
    is_required = field is not None and field.is_required()
    is_null = problem.given is None or (isinstance(problem.given, Written) and problem.given in ("~", "null"))
    if problem.kind.startswith("union_tag"):
        return _wrong_choice(problem, origin)
    if problem.given == "" and (is_required or problem.kind in ("path_type", "string_too_short")):
        return f"{origin.of(problem.key)}: {problem.name}: must not be empty"
    if is_missing or (is_null and is_required):
        return f"{origin.of_missing(problem.key)}: the key {problem.name!r} is required"
    return f"{origin.of(problem.key)}: {_wrong_value(problem)}"


def _wrong_choice(problem: _Problem, origin: Origin) -> str:
    """A section of several kinds that does not say its kind, or a wrong one."""
    union = next(filter(None, (union_of(f) for n, f in problem.section.model_fields.items() if n in problem.key[-2:])))
    names = list(union.by_name)
    place = origin.of(problem.key)
    if problem.given is None:
        return f"{origin.of_missing(problem.key)}: the key {problem.name!r} is required: {one_of(names)}"
    return f"{place}: {problem.name}: must be {one_of(names)}, got {_shown(problem.given)}{_near(problem.given, names)}"


def _wrong_value(problem: _Problem) -> str:
    name = next(part for part in reversed(problem.key) if not part.isdigit())
    union = union_of(problem.section.model_fields[name]) if name in problem.section.model_fields else None
    got = f"got {_shown(problem.given)}"
    if isinstance(problem.given, Written) and is_collection(problem.given) and (fault := fault_of(problem.given)):
        return f"{problem.name}: {fault}, {got}" + ("; in single quotes, \\ is itself" if "escape" in fault else "")
    if problem.kind in ("model_type", "model_attributes_type") or name not in problem.section.model_fields or union:
        return _no_section(problem, union.tag if union else "", got)
    wanted = _schema_of(problem.section)["properties"][name]
    if problem.key[-1].isdigit():  # one item of a list
        wanted = _item(wanted, int(problem.key[-1]))
    words = demand(wanted)
    if "section" in words:  # a list of them, or a mapping
        field = problem.section.model_fields[name]
        keys = ", ".join(f"{name}: …" for name in sections_of(field)[0].model_fields)
        example = f"{{NAME: {{{keys}}}}}" if has_names(field) else f"[{{{keys}}}]"
        words = f"{'sections by name' if has_names(field) else 'a list of sections'}, such as {example}"
    return f"{problem.name}: must be {words}, {got}{_near(problem.given, choices(wanted))}{_hint(problem.given, words)}"


@functools.cache
def _schema_of(section: type[Section]) -> dict[str, Any]:
    return section.model_json_schema()


def _item(schema: dict[str, Any], place: int) -> dict[str, Any]:
    for option in schema.get("anyOf", [schema]):
        if option.get("type") == "array":
            prefix = option.get("prefixItems", ())
            return prefix[min(place, len(prefix) - 1)] if prefix else option["items"]
    return schema


def _no_section(problem: _Problem, tag: str, got: str) -> str:
    keys = [name for name in problem.section.model_fields if name != problem.key[-1]]
    example = f"{problem.name}.{tag or (keys[0] if keys else 'KEY')}"
    return f"{problem.name}: is a section, whose keys are set one by one, such as {example}=…, {got}"


def _near(given: Any, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, names, n=1) if isinstance(given, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _hint(given: Any, wanted: str) -> str:
    if not isinstance(given, Written) or not _is_no_text(given):
        return ""
    if given.style == "quoted":
        return "; leave the quotes out"
    if wanted.startswith("an integer"):
        least = "" if ">" in wanted else f"from {-LARGEST} "
        return f"; whole numbers here go {least}to {LARGEST}" if is_too_large(given.strip()) else ""
    is_beyond = not wanted.startswith("true") and LARGEST_FLOAT < abs(number(given.strip()) or 0) < math.inf
    return f"; numbers here end at {LARGEST_FLOAT:.9g}" if is_beyond else ""


def _is_no_text(written: Written) -> bool:
    text = written.strip()
    return truth(text) is not None or number(text) is not None or is_too_large(text)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, Written) and value.style != "quoted" and _is_no_text(value):
        return str(value)[:60]
    return _repr.repr(str(value) if isinstance(value, str) else value)
