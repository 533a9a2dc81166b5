"""What the lines of an output depend on: parts of a start that any of it differs from are not gone on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hvdlm import __version__
from hvdlm.checkpoint import weights_digest
from hvdlm.inference.infer.lines import Source, is_json
from hvdlm.inference.infer.parts import CHECKPOINT, INPUT
from hvdlm.inference.infer.wanted import Wanted
from hvdlm.inference.load import Loaded
from hvdlm.models import LanguageModel
from hvdlm.train.config import RunConfig
from hvdlm.train.parts import extension_digests


def made_by(source: Source, loaded: Loaded, wanted: Wanted) -> dict[str, Any]:
    """All of it, flat, by names that messages tell."""
    found: dict[str, Any] = {
        INPUT: source.sha256,
        "input as": "JSON lines" if is_json(source.path) else "lines of text",
    }
    for name, told in OF_LOADED.items():
        found |= told(getattr(loaded, name))
    return {**found, **wanted.settings, "hvdlm": __version__, "torch": torch.__version__}


def _computing(model: LanguageModel) -> dict[str, Any]:
    """Sums of other hardware, or of another number of threads, may be rounded otherwise."""
    device = model.device
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": device.type, "threads": torch.get_num_threads()}


def _saved(state: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of what a model is loaded from."""
    return {CHECKPOINT: weights_digest(state), "tokenizer": state["tokenizer_digest"]}


def _configured(config: RunConfig) -> dict[str, Any]:
    """Settings with what was set anew, and digests of the files of --import that give them a meaning."""
    extensions = {Path(file).name: digest for file, digest in extension_digests(config).items()}
    return {"extensions": extensions, **_flat(config.model_dump(mode="json"), "config.")}


def _flat(section: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Settings by dotted names.

    >>> _flat({"a": 1, "b": {"c": 2, "d": {}}})
    {'a': 1, 'b.c': 2, 'b.d': {}}
    """
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{at}{key}.") if isinstance(value, dict) and value else {at + key: value}
    return found


# What is told of each field of a model that is loaded; a message tells the first that differs.
OF_LOADED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "state": _saved,
    "model": _computing,
    "task": lambda task: {},  # made by the config
    "config": _configured,
    "vocabulary": lambda vocabulary: _flat(asdict(vocabulary), "vocabulary."),
    "ends": lambda ends: {"ends": sorted(ends)},
    "changes": lambda changes: {"changes": list(changes)},
}
