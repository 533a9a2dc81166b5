"""A training run of a benchmark: from nothing, in a folder of its own, under an mpirun of its own."""

from __future__ import annotations

import json
import shutil
from typing import Any

from hvdlm.config import to_yaml
from hvdlm.launch.words import import_words
from hvdlm.train.config import RunConfig
from hvdlm.train.parts import extensions_of

from .job import run_job

OTHER_ENDS = ("tokens", "epochs", "minutes", "target_loss", "patience")  # of training, but its steps


def train_afresh(settings: RunConfig, ranks: int) -> dict[str, Any]:
    """What `hvdlm train` tells. The run's folder is emptied before, and loses its checkpoints; raises JobFailed."""
    shutil.rmtree(settings.run_dir, ignore_errors=True)
    settings.run_dir.mkdir(parents=True)
    path = settings.run_dir / "bench.yaml"
    path.write_text(to_yaml(settings))
    words = ["train", str(path), "--json", *import_words(extensions_of(settings))]
    summary = json.loads(run_job(ranks, words).splitlines()[-1])
    shutil.rmtree(settings.run_dir / "checkpoints")
    return summary
