"""What a config and a data folder say together: the vocabulary, the task, and whose files it takes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hvdlm.data.manifest import TOKENIZER, Manifest
from hvdlm.models import Vocabulary
from hvdlm.tasks import Task, TaskContext
from hvdlm.tokenizer import Tokenizer, load
from hvdlm.tokenizer.word_starts import word_starts
from hvdlm.train.config import RunConfig

EXTENSION = "hvdlm_extension_"  # how the modules of --import are named


def vocabulary_of(manifest: Manifest) -> Vocabulary:
    return Vocabulary(manifest.vocab_size, manifest.eos_id, manifest.bos_id)


def model_vocabulary(config: RunConfig, vocabulary: Vocabulary) -> Vocabulary:
    """What the model is built for: the data's ids and those of the task behind them."""
    return Vocabulary(vocabulary.size + config.task.extra_ids, vocabulary.eos_id, vocabulary.bos_id)


def build_task(config: RunConfig, vocabulary: Vocabulary, tokenizer: Callable[[], Tokenizer] | None = None) -> Task:
    """`tokenizer` is asked for where the task must know what ids stand for; by default it is that of the data."""
    starts = None
    if config.task.needs_word_starts:
        starts = word_starts(tokenizer() if tokenizer else load(config.data.corpora[0].path / TOKENIZER))
    return config.task.build(TaskContext(vocabulary, config.objective, config.noise, starts))


def extensions_of(config: RunConfig) -> list[str]:
    """The files of --import that define its model, task or sync."""
    modules = {type(part).__module__ for part in (config.model, config.task, config.sync)}
    return sorted(str(sys.modules[name].__file__) for name in modules if name.startswith(EXTENSION))
