"""Training as the libraries' own pages show it, with none of our settings: what `hvdlm bench train` compares with.

Model, fused AdamW, precision, threads a rank, and the data are ours, so that what differs is how gradients are
combined and how the process is set up. There is no clipping, schedule or log.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hvdlm.data.corpora import open_corpora
from hvdlm.data.orders import OrderSettings, order_over
from hvdlm.models import build_model
from hvdlm.partition import slice_of
from hvdlm.train.config import RunConfig
from hvdlm.train.parts import vocabulary_of
from hvdlm.world.horovod import load_horovod

Distribute = Callable[[nn.Module, torch.optim.Optimizer], tuple[nn.Module, Any]]  # says how the ranks meet


class PlainLoop:
    """A loop of forward, backward and step."""

    def __init__(self, config: RunConfig, rank: int, size: int, distribute: Distribute) -> None:
        torch.set_num_threads(config.train.threads)
        self._rank, self._size, self._is_bf16 = rank, size, config.train.precision == "bf16"
        self._global_batch = config.train.global_batch
        corpora = open_corpora(config.data)
        source, eos_id = corpora.train_source(), corpora.manifest.eos_id
        settings = OrderSettings(config.data.seq_len, self._global_batch, config.seed, eos_id)
        self._batches = order_over(source, settings)
        model = build_model(config.model, vocabulary_of(corpora.manifest), config.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, fused=True)
        self._model, self._optimizer = distribute(model, optimizer)
        self._head = model.head

    def run(self, first: int, end: int) -> dict[str, Any]:
        """Run steps [first, end); this rank's tokens, and the seconds of each step."""
        step_s, tokens = [], 0
        for step in range(first, end):
            start = time.perf_counter()
            windows = torch.from_numpy(self._windows(step))
            tokens += windows[:, 1:].numel()
            self._optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._is_bf16):
                hidden, _ = self._model(windows[:, :-1])
                logits = self._head(hidden)
            F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten()).backward()
            self._optimizer.step()
            step_s.append(time.perf_counter() - start)
        return {"tokens": tokens, "step_s": step_s, "data_wait_s": [], "comm_s": []}

    def _windows(self, step: int) -> np.ndarray:
        mine = slice_of(self._rank, self._size, self._global_batch)
        positions = step * self._global_batch + np.arange(mine.start, mine.stop, dtype=np.int64)
        return self._batches.windows(positions, step)


@contextlib.contextmanager
def stock_horovod(config: RunConfig, rank: int, size: int) -> Iterator[PlainLoop]:
    """As on https://github.com/horovod/horovod: init, DistributedOptimizer, broadcast_parameters."""
    hvd = load_horovod()
    hvd.init()

    def distribute(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        return model, optimizer

    yield PlainLoop(config, rank, size, distribute)
    hvd.shutdown()


@contextlib.contextmanager
def stock_ddp(config: RunConfig, rank: int, size: int) -> Iterator[PlainLoop]:
    """As in torch's tutorial: DistributedDataParallel over gloo; the ranks find one another by a file."""
    meeting = Path(config.run_dir).resolve() / "ddp"  # a relative path would be taken for a host
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    wrap = nn.parallel.DistributedDataParallel
    yield PlainLoop(config, rank, size, lambda model, optimizer: (wrap(model), optimizer))
    torch.distributed.destroy_process_group()


PEERS = {"stock-horovod": stock_horovod, "stock-ddp": stock_ddp}
