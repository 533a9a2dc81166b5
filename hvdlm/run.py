"""The train config: one section for each part that reads it. What is not said has a default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hvdlm.batches import DataConfig
from hvdlm.checkpoint import CheckpointConfig
from hvdlm.config import Section
from hvdlm.models import ModelConfig, TransformerConfig
from hvdlm.optim import OptimConfig
from hvdlm.runlog import LogConfig
from hvdlm.sync import SyncConfig
from hvdlm.world import WorldKind


class TrainConfig(Section):
    """The `train` section. `global_batch` and `micro_batch` count sequences."""

    steps: int = Field(ge=1, description="optimizer steps")
    global_batch: int = Field(ge=1, description="sequences a step, over all ranks")
    micro_batch: int = Field(ge=1, description="sequences a rank puts through the model at once")
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_every: int = Field(100, ge=1, description="steps between validations; the last step always has one")
    eval_tokens: int = Field(0, ge=0, description="validate on the first so many tokens of each corpus; 0 is all")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0, description="torch threads a rank; 0 shares the node's cores fairly")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
        return self


class RunConfig(Section):
    """Everything that `hvdlm train` does, in one file."""

    run_dir: Path = Field(strict=False, description="folder of this run; an existing one is resumed")
    seed: int = 0
    data: DataConfig
    model: ModelConfig = TransformerConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    sync: SyncConfig = SyncConfig()
    world: WorldKind = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
