"""What a config and a data folder say together: the vocabulary, the task."""

from __future__ import annotations

from typing import Protocol

from hvdlm.models import Vocabulary
from hvdlm.tasks import Task, TaskContext
from hvdlm.train.config import RunConfig


class HasIds(Protocol):
    """A manifest, or what else knows the ids of its tokenizer."""

    vocab_size: int
    eos_id: int
    bos_id: int | None


def vocabulary_of(found: HasIds) -> Vocabulary:
    return Vocabulary(found.vocab_size, found.eos_id, found.bos_id)


def model_vocabulary(config: RunConfig, vocabulary: Vocabulary) -> Vocabulary:
    """What the model is built for: the data's ids and those of the task behind them."""
    return Vocabulary(vocabulary.size + config.task.extra_ids, vocabulary.eos_id, vocabulary.bos_id)


def build_task(config: RunConfig, vocabulary: Vocabulary) -> Task:
    return config.task.build(TaskContext(vocabulary, config.objective, config.noise))
