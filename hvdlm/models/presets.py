"""`preset: NAME` of a family: shapes of published models, which fill what a config does not say itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvdlm.models.interface import FamilyConfig

Presets = Mapping[str, Mapping[str, Any]]


def filled(values: Any, presets: Presets) -> Any:
    """What a config says, and the values of its preset, which are saved like those that were said."""
    name = values.get("preset") if isinstance(values, dict) else None
    return {**presets[name], **values} if isinstance(name, str) and name in presets else values


def departures(config: FamilyConfig, preset: str, names: Mapping[str, Any]) -> tuple[str, ...]:
    """A remark if a config says something else than its preset, whose fields are `names`."""
    given, fills = config.model_dump(), type(config).model_validate({"preset": preset}).model_dump()
    other = [f"{name}: {given[name]} (not {fills[name]})" for name in names if given[name] != fills[name]]
    return (f"model.preset: {preset} but for {', '.join(other)}, as the config says",) if other else ()
