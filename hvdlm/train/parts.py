"""What a config and a data folder say together: the vocabulary, the task."""

from __future__ import annotations

from hvdlm.data.manifest import Manifest
from hvdlm.models import Vocabulary
from hvdlm.tasks import Task, TaskContext
from hvdlm.train.config import RunConfig


def vocabulary_of(manifest: Manifest) -> Vocabulary:
    return Vocabulary(manifest.vocab_size, manifest.eos_id, manifest.bos_id)


def model_vocabulary(config: RunConfig, vocabulary: Vocabulary) -> Vocabulary:
    """What the model is built for: the data's ids and those of the task behind them."""
    return Vocabulary(vocabulary.size + config.task.extra_ids, vocabulary.eos_id, vocabulary.bos_id)


def build_task(config: RunConfig, vocabulary: Vocabulary) -> Task:
    return config.task.build(TaskContext(vocabulary, config.objective, config.noise))
