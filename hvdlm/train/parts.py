"""What a config and a data folder say together: the vocabulary, the task, and whose files it takes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hvdlm.config import Section
from hvdlm.data.fields import FieldEntry
from hvdlm.data.manifest import TOKENIZER, Manifest
from hvdlm.models import Vocabulary
from hvdlm.tasks import Task, TaskContext
from hvdlm.tokenizer import Tokenizer, load
from hvdlm.tokenizer.word_starts import word_starts
from hvdlm.train.config import RunConfig

log = logging.getLogger("hvdlm")

EXTENSION = "hvdlm_extension_"  # how the modules of --import are named
SHA256 = "hvdlm_sha256"  # an attribute of theirs: the digest of the file as it was run


def vocabulary_of(manifest: Manifest) -> Vocabulary:
    return Vocabulary(manifest.vocab_size, manifest.eos_id, manifest.bos_id)


def model_vocabulary(config: RunConfig, vocabulary: Vocabulary) -> Vocabulary:
    """What the model is built for: the data's ids and those of the task behind them."""
    return Vocabulary(vocabulary.size + config.task.extra_ids, vocabulary.eos_id, vocabulary.bos_id)


def build_task(
    config: RunConfig,
    vocabulary: Vocabulary,
    fields: Mapping[str, FieldEntry] | None = None,
    tokenizer: Callable[[], Tokenizer] | None = None,
) -> Task:
    """`tokenizer` is asked for where the task must know what ids stand for; by default it is that of the data.

    `fields` are those of the data's records.
    """
    starts = None
    if config.task.needs_word_starts:
        starts = word_starts(tokenizer() if tokenizer else load(config.data.corpora[0].path / TOKENIZER))
    return config.task.build(TaskContext(vocabulary, config.objective, config.noise, starts, fields or {}))


def extensions_of(config: RunConfig) -> list[str]:
    """The files of --import that define its model, task or sync."""
    return list(extension_digests(config))


def is_imported(part: Section) -> bool:
    """Whether a section of the config is of a file of --import."""
    return type(part).__module__.startswith(EXTENSION)


def extension_digests(config: RunConfig) -> dict[str, str]:
    """The same files, and their digests."""
    names = {type(part).__module__ for part in (config.model, config.task, config.sync) if is_imported(part)}
    modules = [sys.modules[name] for name in names]
    return dict(sorted((str(module.__file__), getattr(module, SHA256)) for module in modules))


def remark_edited(config: RunConfig, state: dict, checkpoint: Path) -> None:
    """Say which of them are not the files, by name, that a checkpoint with this state was trained with."""
    known = state.get("extensions", {})
    if isinstance(known, list):  # noted without digests once
        return
    before = {Path(file).name: digest for file, digest in known.items()}
    for file, digest in extension_digests(config).items():
        if before.get(Path(file).name, digest) != digest:
            log.warning("%s: was edited since %s; see that the weights still mean the same", file, checkpoint.name)
