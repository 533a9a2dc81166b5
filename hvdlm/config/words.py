"""What values a key takes, in words, from its JSON schema: for messages and for the reference of a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}


def resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of a section that `schema` refers to."""
    reference = schema.get("$ref") or schema["allOf"][0]["$ref"]  # older pydantic wraps it
    return defs[reference.rpartition("/")[2]]


def one_of(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf", [schema])


def choices(schema: dict[str, Any]) -> list[str]:
    """The names that a key may hold; nothing where it takes more than names."""
    return [name for option in alternatives(schema) for name in option.get("enum", ())]


def named(schema: dict[str, Any]) -> dict[str, Any] | None:
    """What stands under each name of a mapping of sections."""
    each = schema.get("additionalProperties")
    return each if isinstance(each, dict) and "$ref" in each else None


def in_words(schema: dict[str, Any]) -> str:
    """What one alternative of a key takes.

    >>> in_words({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
    'number > 0 and <= 1'
    """
    if "$ref" in schema or "allOf" in schema:
        return "keys as below"
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return one_of(schema["enum"])
    if schema["type"] == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        return f"list of {f'{len(items)}: ' if 'prefixItems' in schema else ''}{in_words(items[0])}"
    if schema["type"] == "object":
        return f"names with a {'section' if named(schema) else 'value'} each"
    if schema.get("format") == "path":
        return "path"
    bounds = [f"{sign} {_figure(schema[key])}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([TYPES[schema["type"]], *" and ".join(bounds).split()])


def _figure(bound: float) -> str:
    """
    >>> _figure(1_000_000), _figure(0.5)
    ('1000000', '0.5')
    """
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def demand(schema: dict[str, Any]) -> str:
    """What a key must be, as a message says it.

    >>> demand({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'an integer >= 1 or null'
    """
    words = (in_words(option).replace("keys as below", "a section") for option in alternatives(schema))
    return " or ".join(re.sub("^(integer|number|list|path)", _with_article, text) for text in words)


def _with_article(match: re.Match[str]) -> str:
    return f"{'an' if match[1] == 'integer' else 'a'} {match[1]}"
