"""A page from a template of jinja: one that ends in .html.j2 escapes what is put into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def render(folder: str, template: str, filters: Mapping[str, Callable[..., Any]], facts: Mapping[str, Any]) -> str:
    """A template of a folder of perf/, with filters of its own; what it asks for must be among the facts."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hvdlm.perf", folder),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**facts)
