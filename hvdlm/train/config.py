"""The train config: one section for each part that reads it. What is not said has a default."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hvdlm.checkpoint import CheckpointConfig
from hvdlm.compute.device import DeviceChoice, Precision
from hvdlm.config import Free, Section
from hvdlm.config.reading import fit
from hvdlm.data.config import DataConfig
from hvdlm.models import ModelConfig
from hvdlm.models.lora import LoraConfig, compiled
from hvdlm.models.transformer import TransformerConfig
from hvdlm.optim import OPTIMIZERS, OptimConfig
from hvdlm.optim.ema import EmaConfig
from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.mesh import Mesh
from hvdlm.session.logs import LogConfig
from hvdlm.sync import AutoConfig, SyncConfig, cannot_share
from hvdlm.tasks import TASKS, AnyTaskConfig
from hvdlm.tasks.language_model import LmConfig, NoiseConfig, ObjectiveConfig
from hvdlm.train.batch_plan import BatchPlan, RampConfig
from hvdlm.train.guard import GuardConfig
from hvdlm.train.init_config import InitConfig
from hvdlm.train.taken_model import completed
from hvdlm.world.connect import WorldKind


class TrainConfig(Section):
    """The `train` section. `global_batch` and `micro_batch` count sequences. The first of the ends that comes holds."""

    steps: Free[int | None] = Field(None, ge=1, description="end: optimizer steps; the schedule's length too")
    tokens: Free[int | None] = Field(None, ge=1, description="end: tokens trained on")
    epochs: Free[float | None] = Field(None, gt=0, le=1e9, description="end: passes over the (longest) corpus")
    minutes: Free[float | None] = Field(None, gt=0, description="end: training time, over all resumptions")
    target_loss: Free[float | None] = Field(None, description="end: a validation loss of at most this")
    patience: Free[int | None] = Field(
        None, ge=1, description="end: so many validations in a row without a better loss"
    )
    global_batch: int = Field(ge=1, le=1_000_000_000, description="sequences a step, over all ranks")
    ramp: RampConfig | None = Field(None, description="begin with smaller batches")
    micro_batch: Free[int] = Field(ge=1, le=1_000_000_000, description="sequences that a rank computes at once")
    batch_tokens: int = Field(
        0,
        ge=0,
        description="of labelled records: a step has as many as pad to so many tokens, at most global_batch; 0: that",
    )
    precision: Precision = Field("fp32", description="of matrix products; parameters and sums stay fp32")
    compile: Free[bool] = Field(False, description="torch.compile the model")
    deterministic: Free[bool] = Field(
        False, description="on a GPU: the same bits from run to run, and of a resumed run, at some cost in speed"
    )
    eval_every: Free[int] = Field(100, ge=1, description="steps between validations; the last step always has one")
    eval_tokens: Free[int] = Field(
        0, ge=0, description="validate on so many tokens of each corpus, spread over its split; 0 is all"
    )
    digest_every: Free[int] = Field(100, ge=0, description="steps between checks that replicas are equal; 0 is never")
    device: Free[DeviceChoice] = Field("auto", description="auto: a GPU a rank where there are any")
    threads: Free[int] = Field(
        0, ge=0, le=4096, description="torch threads a rank; 0: OMP_NUM_THREADS, or a fair share of the node"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
        if self.steps is None and self.tokens is None and self.epochs is None:
            raise ValueError("give one of steps, tokens, epochs: the schedule must know its length")
        return self


class RunConfig(Section):
    """Everything that `hvdlm train` does, in one file."""

    run_dir: Free[Path] = Field(strict=False, description="folder of this run; an existing one is resumed")
    seed: int = Field(0, description="of initial weights, data order and every random draw")
    init: InitConfig | None = Field(None, description="begin with the weights of another run, or with published ones")
    data: DataConfig
    model: ModelConfig = TransformerConfig()
    task: AnyTaskConfig = Field(LmConfig(), description="what it is trained for; unsaid: what the family is for")
    objective: ObjectiveConfig = ObjectiveConfig()
    noise: NoiseConfig = NoiseConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    lora: LoraConfig | None = Field(None, description="train adapters of some layers, and freeze the rest")
    freeze: tuple[str, ...] = Field(
        (), strict=False, description="regular expressions, found in names of parameters that are not trained"
    )
    train: TrainConfig
    guard: Free[GuardConfig] = GuardConfig()
    parallel: Free[ParallelConfig] = ParallelConfig()
    sync: Free[SyncConfig] = AutoConfig()
    world: Free[WorldKind] = Field("auto", description="how ranks talk; auto: by launcher and sync, serial by hand")
    checkpoint: Free[CheckpointConfig] = CheckpointConfig()
    log: Free[LogConfig] = LogConfig()

    @property
    def reads_streams(self) -> bool:
        """Whether it is evaluated in streams whose state goes on, where nobody says otherwise."""
        return self.data.order == "contiguous" or self.model.reads_streams

    @field_validator("task", mode="before")
    @classmethod
    def _kind_of_family(cls, value: Any, info: ValidationInfo) -> Any:
        """Settings of a task whose kind is unsaid are of what the family is for."""
        model = info.data.get("model")  # None where it is faulty itself
        if isinstance(value, dict) and "kind" not in value and model is not None and model.tasks[0] in TASKS:
            return fit(TASKS[model.tasks[0]], {"kind": model.tasks[0], **value})
        return value

    _compile = field_validator("freeze")(compiled)

    @model_validator(mode="before")
    @classmethod
    def _take_model(cls, values: Any) -> Any:
        """What is unsaid of the model is as in the run, or the folder of Hugging Face's, that it begins with."""
        model = completed(values) if isinstance(values, dict) else None
        return values if model is None else {**values, "model": model}

    @model_validator(mode="after")
    def _fit_model(self) -> RunConfig:
        self.__dict__["model"] = self.model.for_sequences(self.data.seq_len)
        return self

    @model_validator(mode="after")
    def _choose_task(self) -> RunConfig:
        family, kinds = self.model.family, self.model.tasks
        if "task" not in self.model_fields_set and kinds[0] in TASKS:
            self.__dict__["task"] = TASKS[kinds[0]](kind=kinds[0])
        if self.task.kind not in kinds and self.task.like not in kinds:
            ours = ", ".join(kind if kind in TASKS else f"{kind} (by a task of --import)" for kind in kinds)
            raise ValueError(
                f"task: {self.task.kind} is nothing for this model ({family}), which can be trained for"
                f" {ours}{self.model.task_remedy}"
            )
        return self

    @model_validator(mode="after")
    def _check_records(self) -> RunConfig:
        kind = self.task.kind
        if self.train.batch_tokens and not self.task.reads_records:
            raise ValueError(f"train.batch_tokens: is for tasks of labelled records, not {kind}; leave it out")
        if not self.task.reads_records:
            return self
        if self.data.order != "random":
            raise ValueError(f"data.order: {self.data.order} is of text; task: {kind} reads records, leave it out")
        if self.train.batch_tokens and (self.guard.nonfinite == "rewind" or self.guard.spike == "rewind"):
            raise ValueError("train.batch_tokens: its steps cannot pass over samples; use guard: skip or stop")
        if self.train.batch_tokens and not self.sync.keeps_replicas_equal:
            raise ValueError(
                f"train.batch_tokens: {self.sync.label} steps alone on parts that may be empty; leave it out"
            )
        if self.train.batch_tokens and self.train.ramp is not None:
            raise ValueError("train.ramp: counts sequences, and train.batch_tokens tokens; leave one out")
        if self.noise.is_on:
            raise ValueError(f"noise: is for task: lm, not {kind}; leave it out")
        return self

    @model_validator(mode="after")
    def _check_compile(self) -> RunConfig:
        if self.train.compile and not self.model.compiles:
            raise ValueError(f"train.compile: no graph can be made of model.family: {self.model.family}; leave it out")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> RunConfig:
        """What would act on nothing is refused."""
        objective, family = self.objective, self.model.family
        if objective.is_on and self.model.own_terms:
            raise ValueError(f"objective: its terms do not go together with {self.model.own_terms}; set one of them")
        said = [f"{name}.{key}" for name in ("objective", "noise") for key, value in getattr(self, name) if value]
        said += [name for name in ("lora", "freeze") if getattr(self, name)]
        if self.model.learner != "gradient" and said:
            raise ValueError(
                f"{', '.join(said)}: for what is trained by gradients, and this {family} is counted; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.data.order == "contiguous":
            self._check_contiguous()
        if self.task.meets_before_backward and not self.sync.steps_together:
            raise ValueError(
                f"task.free_bits is of the mean over a step's whole batch, and {self.sync.label} has no step that all"
                " ranks share; set task.free_bits: 0 or another sync"
            )
        if not self.sync.keeps_replicas_equal:
            if self.train.precision == "fp16":
                raise ValueError(f"train.precision: fp16 scales all ranks alike, {self.sync.label} does not; use bf16")
            if self.ema.decay:
                raise ValueError(f"ema needs equal replicas, {self.sync.label} has none between averages")
        if not self.sync.reduces_before_step:
            if self.optim.clip:
                raise ValueError(
                    f"{self.sync.label} reduces inside the optimizer, where nothing can be clipped; set optim.clip: 0"
                )
            if self.train.precision == "fp16" or self.guard.nonfinite != "stop" or self.guard.spike != "off":
                raise ValueError(
                    f"{self.sync.label} cannot leave a step out; no fp16, guard.nonfinite: stop, guard.spike: off"
                )
        return self

    @model_validator(mode="after")
    def _check_parallel(self) -> RunConfig:
        """What a model that several ranks share cannot do."""
        parallel, family = self.parallel, self.model.family
        if self.model.learner != "gradient" and parallel != ParallelConfig():
            raise ValueError(
                f"parallel: shares what is trained by gradients, and this {family} is counted; leave it out"
            )
        if parallel.zero:
            self._check_zero()
        if parallel.tensor > 1:
            self._check_by_element(f"tensor: {parallel.tensor}", "tensor at 1")
        if parallel.shared_by == 1 and not parallel.tensor_blocks:
            return self
        if not self.model.can_be_cut:
            raise ValueError(
                f"parallel.pipeline, parallel.tensor: share a transformer without an encoder, not this {family}; leave"
                " them at 1 (parallel.zero: 1 is for any)"
            )
        self._check_shared()
        return self

    def _check_shared(self) -> None:
        """What goes with whole models alone, or with whole layers."""
        parallel = self.parallel
        within = ["parallel.tensor: 1"] if parallel.tensor > 1 else []
        within += ["parallel.tensor_blocks: 0"] if parallel.tensor_blocks else []
        among = ["parallel.pipeline: 1"] if parallel.pipeline > 1 else []
        if self.lora is not None and within:
            raise ValueError(f"lora: goes with whole layers alone; leave it out, or set {' and '.join(within)}")
        odd = {
            self.sync.label: not (self.sync.keeps_replicas_equal and self.sync.reduces_before_step),
            "sync.compress": getattr(self.sync, "compress", None) is not None,  # what it carries on is of whole models
            "data.order: contiguous": self.data.order == "contiguous",
            "train.compile: true": self.train.compile,
        }
        if found := next((name for name, is_odd in odd.items() if is_odd), ""):
            remedy = " and ".join(among + within)
            raise ValueError(f"{found}: goes with whole models alone; leave it out, or set {remedy}")

    def _check_zero(self) -> None:
        if self.sync.sharing is None:
            raise ValueError(cannot_share(self.sync))
        self._check_by_element("zero: 1", "zero at 0")

    def _check_by_element(self, what: str, without: str) -> None:
        """Of a part of a matrix some optimizers would make something else, such as another norm, without a word."""
        if not self.optim.is_by_element:
            able = [name for name, choice in OPTIMIZERS.items() if choice.by_element]
            raise ValueError(
                f"parallel.{what} cuts within matrices, and optim.name: {self.optim.name} needs them whole; take"
                f" {', '.join(able[:-1])} or {able[-1]}, or leave parallel.{without}"
            )

    def _check_contiguous(self) -> None:
        if not self.model.carries_state:
            raise ValueError(
                f"data.order: contiguous carries a recurrent state; model.family: {self.model.family} has none;"
                f" take data.order: random{self.model.state_remedy}"
            )
        if self.train.ramp is not None:
            raise ValueError("data.order: contiguous has as many streams as sequences a step; leave out train.ramp")
        sync = self.sync
        if not sync.steps_together:
            raise ValueError(f"data.order: contiguous needs ranks that keep their streams; {sync.label} moves them")
        if self.guard.nonfinite == "rewind" or self.guard.spike == "rewind":
            raise ValueError("data.order: contiguous cannot pass over samples; use guard: skip or stop")
        if self.train.compile:
            raise ValueError("data.order: contiguous does not compile; set train.compile: false")


def check_batch(train: TrainConfig, mesh: Mesh) -> None:
    """UserError if the replicas of a mesh cannot share each step in whole micro-batches; by tokens any can."""
    if not train.batch_tokens:
        BatchPlan(train.global_batch, train.ramp).check(train.micro_batch, mesh)


def total_steps(train: TrainConfig, plan: BatchPlan, epoch_samples: list[float], tokens_per_sample: float) -> int:
    """Steps until the first of `steps`, `tokens` and `epochs` is reached."""
    ends = [train.steps] if train.steps is not None else []
    if train.tokens is not None:
        ends.append(plan.steps_for(math.ceil(train.tokens / tokens_per_sample)))
    if train.epochs is not None:
        ends.append(plan.steps_for(round(train.epochs * max(epoch_samples))))
    return max(1, min(ends))
