"""One training step, the same for `hvdlm train` and for the scaling measurements."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdlm import checkpoint
from hvdlm.batches import IGNORED, MixedStreams, order_over
from hvdlm.errors import UserError
from hvdlm.host import Place, keep_freed_memory
from hvdlm.manifest import Manifest
from hvdlm.models import build_model
from hvdlm.optim import build_optimizer, lr_at, set_lr
from hvdlm.partition import micro_batches_per_rank
from hvdlm.run import RunConfig, TrainConfig
from hvdlm.shards import TokenStream
from hvdlm.sync import build_sync
from hvdlm.world.interface import World


@dataclass(frozen=True)
class StepResult:
    """What a step did, equal on all ranks except the two times."""

    loss: float  # mean nats per token of the global batch
    grad_norm: float  # of the averaged gradient, before clipping
    lr: float
    step_s: float
    data_wait_s: float
    stop: bool  # some rank asked to stop


class Engine:
    """Model, optimizer, sync and data order of one rank, ready to run any step."""

    def __init__(
        self, config: RunConfig, source: TokenStream | MixedStreams, manifest: Manifest, world: World, place: Place
    ) -> None:
        """Builds this rank's part and talks to no other: a rank may fail here. Then `agree_on_weights`."""
        train, seq_len = config.train, config.data.seq_len
        self.world, self.train, self.optim, self.seed = world, train, config.optim, config.seed
        try:
            self.passes = micro_batches_per_rank(train.global_batch, train.micro_batch, world.size)
        except ValueError as error:
            raise UserError(f"{error}; change train.global_batch, train.micro_batch or the number of ranks") from None
        self.device = prepare_device(train, place)
        self.tokens_per_step = train.global_batch * seq_len
        self.batches = order_over(source, seq_len=seq_len, global_batch=train.global_batch, seed=config.seed)
        self.model = build_model(config.model, manifest.vocab_size, config.seed).to(self.device)
        self.sync = build_sync(config.sync, self.model, build_optimizer(self.model, config.optim), world, self.passes)

    def agree_on_weights(self) -> None:
        """Give every rank rank 0's weights and buffers."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            self.world.broadcast_(tensor.data)

    def restore(self, path: Path) -> None:
        """Load weights and optimizer state of a checkpoint; every rank reads the same files."""
        checkpoint.load_model(path, self.model)
        checkpoint.load_optimizer(path, self.model, self.sync.optimizer)

    def run(self, step: int, *, stop: bool = False) -> StepResult:
        """Train on the global batch of `step`; `stop` is this rank's wish, the result has everybody's."""
        start = time.perf_counter()
        windows = self.batches.of_step(step, rank=self.world.rank, size=self.world.size)
        data_wait_s = time.perf_counter() - start
        lr = lr_at(step, self.train.steps, self.optim)
        set_lr(self.sync.optimizer, lr)
        self.model.train()
        loss_sum = self._accumulate(step, windows)
        summary = np.array([float(loss_sum), float(stop)])
        self.world.sum_(summary)
        self.sync.reduce()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip or float("inf"))
        self.sync.step()
        self.sync.zero_grad()
        return StepResult(
            loss=float(summary[0]) / (self.passes * self.world.size),
            grad_norm=float(norm),
            lr=lr,
            step_s=time.perf_counter() - start,
            data_wait_s=data_wait_s,
            stop=bool(summary[1]),
        )

    def _accumulate(self, step: int, windows: np.ndarray) -> Tensor:
        """Backward over the rank's micro-batches of (rank batch, T + 1) windows; the sum of their losses."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        ids = torch.from_numpy(windows).to(self.device)
        for number, micro in enumerate(ids.split(self.train.micro_batch)):
            # Dropout depends on the micro-batch's place in the global batch, never on the rank count.
            torch.manual_seed(_key(self.seed, step, self.world.rank * self.passes + number))
            loss = token_loss(self.model, micro[:, :-1], micro[:, 1:], self.train.precision)
            (loss / self.passes).backward()
            loss_sum += loss.detach()
        return loss_sum


def token_loss(model: nn.Module, inputs: Tensor, targets: Tensor, precision: str, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of a model on (B, T) ids against (B, T) targets, float32 from the logits on."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = model(inputs)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


def _key(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")


def prepare_device(train: TrainConfig, place: Place) -> torch.device:
    """The rank's device, ready: its own GPU where there are enough, the only visible one, or the CPU's threads."""
    if train.device == "cpu" or (train.device == "auto" and not torch.cuda.is_available()):
        keep_freed_memory()
        torch.set_num_threads(train.threads or place.threads)
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    number = 0 if visible == 1 else place.local_rank  # a launcher that binds GPUs shows each rank one
    if 1 != visible < place.local_size:
        raise UserError(
            f"{place.local_size} ranks on this host see {visible} GPUs; start one rank a GPU or set train.device: cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
