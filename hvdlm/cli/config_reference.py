"""A config's JSON schema as commented YAML: every key with its default, meaning, choices and range.

It is itself a config once the required keys have values. What may stand in place of a default (another kind of sync, a
section that is null by default, an item of a list) follows as comments that can be taken in.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from hvdlm.config.words import alternatives, in_words, named, one_of, resolved

COMMENT_COLUMN = 32
SHORT = 36  # of a range, which then stays on one line
NO_BREAK = "\0"  # a blank at which no line ends


@dataclass(frozen=True)
class _Line:
    """A key with its value and what is said of it; without a key a remark of its own."""

    code: str
    remark: str = ""

    def rendered(self, width: int) -> str:
        if not self.remark:
            return self.code.rstrip()
        is_key = bool(self.code.strip(" #"))
        start = f"{self.code:<{COMMENT_COLUMN - 1}} # " if is_key else f"{self.code}# "
        follow = f"{'':{COMMENT_COLUMN}}# " if is_key else start
        lines = textwrap.wrap(
            self.remark, width, initial_indent=start, subsequent_indent=follow, break_on_hyphens=False
        )
        return "\n".join(lines).replace(NO_BREAK, " ")


def commented_yaml(schema: dict[str, Any], width: int) -> str:
    """The YAML of a schema as `BaseModel.model_json_schema` gives it; comments are wrapped at `width` columns."""
    head = f"{_about(schema)} Keys without a value are required; the others have their defaults."
    lines = [_Line("", head), *_keys(schema, schema.get("$defs", {}))]
    return "\n".join(line.rendered(width) for line in lines)


def _keys(section: dict[str, Any], defs: dict[str, Any]) -> Iterator[_Line]:
    """Sections stand apart from what is before and after them."""
    after_section = False
    for name, field in section["properties"].items():
        is_section = not {"$ref", "allOf", "discriminator"}.isdisjoint(field)
        if is_section or after_section:
            yield _Line("")
        yield from _key(name, field, defs, is_required=name in section.get("required", ()))
        after_section = is_section


def _key(name: str, field: dict[str, Any], defs: dict[str, Any], *, is_required: bool) -> Iterator[_Line]:
    if "discriminator" in field:
        yield from _union(name, field, defs)
    elif "$ref" in field or "allOf" in field:
        part = resolved(field, defs)
        yield from (*_remark(_about(part)), _Line(f"{name}:"))
        yield from _shifted("  ", _keys(part, defs))
    else:
        value = "" if is_required else f" {_flow(field.get('default'))}"
        words = ["required:" if is_required else "", field.get("description", ""), _range(field)]
        yield _Line(f"{name}:{value}", " ".join(filter(None, words)))
        yield from _shifted("# ", _section_within(name, field, defs))


def _union(name: str, field: dict[str, Any], defs: dict[str, Any]) -> Iterator[_Line]:
    """The keys of the default, then those of the others as comments."""
    tag = field["discriminator"]["propertyName"]
    parts = [resolved(option, defs) for option in field["oneOf"]]
    kinds = [part["properties"][tag]["const"] for part in parts]
    chosen = field["default"][tag]
    yield from (_Line("", f"{tag} is {one_of(kinds)}; each has its own keys."), _Line(f"{name}:"))
    for kind, part in sorted(zip(kinds, parts, strict=True), key=lambda pair: pair[0] != chosen):
        prefix, about = "  " if kind == chosen else "  # ", _about(part)
        if kind != chosen:
            yield from (_Line(""), _Line("  ", f"or {kind}: {about}" if about else f"or {kind}:"))
        yield _Line(f"{prefix}{tag}: {kind}", about if kind == chosen else "")
        yield from _shifted(prefix, (line for line in _keys(part, defs) if not line.code.startswith(f"{tag}:")))


def _section_within(name: str, field: dict[str, Any], defs: dict[str, Any]) -> Iterator[_Line]:
    """The keys of a section that a field may hold instead of its default, alone, by a name or as an item of a list."""
    for option in alternatives(field):
        if "$ref" in option:
            yield _Line(f"{name}:")
            yield from _shifted("  ", _keys(resolved(option, defs), defs))
        elif "$ref" in option.get("items", {}):
            yield _Line(f"{name}:")
            keys = list(_keys(resolved(option["items"], defs), defs))
            yield replace(keys[0], code=f"  - {keys[0].code}")
            yield from _shifted("    ", iter(keys[1:]))
        elif each := named(option):
            yield from (_Line(f"{name}:"), _Line("  NAME:"))
            yield from _shifted("    ", _keys(resolved(each, defs), defs))


def _shifted(prefix: str, lines: Iterator[_Line]) -> Iterator[_Line]:
    return (replace(line, code=prefix + line.code) if line.code or line.remark else line for line in lines)


def _remark(text: str) -> list[_Line]:
    return [_Line("", text)] if text else []


def _about(section: dict[str, Any]) -> str:
    """The first paragraph of a section's docstring, without the words that name it."""
    text = section.get("description", "").split("\n\n")[0].replace("\n", " ")
    text = re.sub(r"^(The )?`[^`]*`( section)?[.:;]\s*", "", text).strip()
    return text[:1].upper() + text[1:]


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _range(field: dict[str, Any]) -> str:
    """What values a field takes, in brackets; nothing for a switch or a null, whose default says it.

    >>> _range({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None}).replace(NO_BREAK, " ")
    '[integer >= 1]'
    """
    options = [option for option in alternatives(field) if option.get("type") not in ("null", "boolean")]
    words = " or ".join(map(in_words, options))
    return f"[{words}]".replace(" ", NO_BREAK if len(words) < SHORT else " ") if words else ""
