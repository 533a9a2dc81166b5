"""TASKS: a kind is a file and a line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from hvdlm.config import by_name, tagged_union
from hvdlm.tasks.classify import ClassifyConfig
from hvdlm.tasks.elbo import ElboConfig
from hvdlm.tasks.interface import TaskConfig
from hvdlm.tasks.language_model import LmConfig
from hvdlm.tasks.masked import MlmConfig
from hvdlm.tasks.seq2seq import Seq2seqConfig
from hvdlm.tasks.span import SpanConfig
from hvdlm.tasks.tag import TagConfig

TASKS: dict[str, type[TaskConfig]] = {
    "lm": LmConfig,
    "mlm": MlmConfig,
    "elbo": ElboConfig,
    "classify": ClassifyConfig,
    "tag": TagConfig,
    "span": SpanConfig,
    "seq2seq": Seq2seqConfig,
}

# `task: mlm` or `task: {kind: mlm, …}`.
AnyTaskConfig = Annotated[TaskConfig, tagged_union(TASKS, "kind"), BeforeValidator(by_name("kind"))]
