"""The `model` section of a run that begins with other weights: what is unsaid of it is as theirs is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvdlm import checkpoint
from hvdlm.config.reading import fit
from hvdlm.errors import UserError
from hvdlm.exchange import is_folder, read_section
from hvdlm.models import MODELS
from hvdlm.models.presets import filled


def completed(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `model` section of a config's values, filled by that of what it begins with; None where there is none.

    Where both say something else of the architecture the run is refused when it begins. UserError for a folder of
    Hugging Face's whose config.json our model cannot be.
    """
    init, said = (values.get(key) or {} for key in ("init", "model"))
    source = init.get("from") if isinstance(init, Mapping) else None
    if not isinstance(said, dict) or not isinstance(source, str | Path) or _is_complete(said):
        return None
    theirs = _section_of(Path(source), values.get("run_dir"))
    family = theirs.get("family") if theirs else None
    if theirs is None or family not in MODELS or said.get("family", family) != family:
        return None
    return {**theirs, **filled(fit(MODELS[family], said), MODELS[family].presets)}


def _is_complete(said: Mapping[str, Any]) -> bool:
    """Whether nothing is unsaid, as in what a run has written itself: its source may be gone then."""
    section = MODELS.get(str(said.get("family")))
    return section is not None and said.keys() >= section.model_fields.keys()


def _section_of(source: Path, run_dir: Any) -> dict[str, Any] | None:
    """That of the run's own checkpoints, once it has some; before, that of the source."""
    own = _noted(Path(run_dir)) if isinstance(run_dir, str | Path) else None
    if own is not None:
        return own
    return read_section(source) if is_folder(source) else _noted(source)


def _noted(place: Path) -> dict[str, Any] | None:
    """That of a run's newest readable checkpoint, or of a checkpoint; whether the weights are sound is seen later."""
    try:
        steps = reversed(checkpoint.complete_steps(place))
    except (OSError, ValueError):  # no path at all
        return None
    for path in (*(checkpoint.path_of(place, step) for step in steps), place):
        try:
            return checkpoint.read_state(path)["config"]["model"]
        except (UserError, KeyError):
            continue
    return None
