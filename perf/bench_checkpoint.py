"""`hvdlm bench checkpoint`: how long training stands still for a save, and how fast it is durable, beside its limits.

All ways write the same tensors to the same disk in turn: a plain copy, a plain write with fsync, ours, torch.save,
torch's distributed checkpoints (DCP), plain and asynchronous. What is read afterwards lies in memory still.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvdlm.checkpoint.boxes import Piece, whole
from hvdlm.checkpoint.folder import path_of
from hvdlm.checkpoint.reading import Checkpoint
from hvdlm.checkpoint.saver import Saver
from hvdlm.checkpoint.soundness import damage
from hvdlm.host import keep_freed_memory
from hvdlm.tables import figure, table
from hvdlm.world.serial import SerialWorld

SHAPE = 3072, 768  # of a layer's matrix in GPT-2, 9.4 MB
BLOCK = 16 << 20
RECORD = {"config": {}, "data_digest": "", "tokenizer_digest": "", "vocab_size": 1, "eos_id": 0}  # what one must say


@dataclass(frozen=True)
class CheckpointBenchOptions:
    out: Path  # on the disk that is measured
    megabytes: int = 1500
    rounds: int = 5


def bench(options: CheckpointBenchOptions) -> dict[str, Any]:
    """Seconds of each way, every round; ratios are of medians, and of the least, which a busy machine changes less."""
    keep_freed_memory()
    count = max(1, round(options.megabytes * 1e6 / (4 * SHAPE[0] * SHAPE[1])))
    tensors = {f"layer{n}": torch.rand(SHAPE) for n in range(count)}
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    options.out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.out) as folder, _group(Path(folder)):
        ways = _Ways(tensors, Path(folder)).all()
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                shutil.rmtree(Path(folder) / "it", ignore_errors=True)
                (Path(folder) / "it").mkdir()
                os.sync()
                found = way()
                if number:  # the first warms up
                    for part, spent in found.items():
                        seconds.setdefault(f"{name}{part}", []).append(spent)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    least = {name: min(each) for name, each in seconds.items()}
    return {
        "bytes": num_bytes,
        "rounds": options.rounds,
        "seconds": {name: [round(spent, 4) for spent in each] for name, each in seconds.items()},
        "medians": {name: round(spent, 4) for name, spent in medians.items()},
        "blocked_to_memcpy": round(medians["hvdlm, blocked"] / medians["memcpy"], 3),
        "durable_to_raw": round(medians["raw write, fsync"] / medians["hvdlm, durable"], 3),
        "blocked_to_memcpy_least": round(least["hvdlm, blocked"] / least["memcpy"], 3),
        "durable_to_raw_least": round(least["raw write, fsync"] / least["hvdlm, durable"], 3),
    }


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class _Ways:
    """What is timed: each is carried out once, in folder/it, and tells the seconds of its parts."""

    def __init__(self, tensors: dict[str, Tensor], folder: Path) -> None:
        self._tensors, self._target = tensors, folder / "it"
        self._pieces = [Piece(name, tensor, SHAPE, whole(SHAPE)) for name, tensor in tensors.items()]
        self._saver, self._room = Saver(self._target, SerialWorld()), [torch.zeros(SHAPE) for _ in tensors]

    def all(self) -> dict[str, Callable[[], dict[str, float]]]:
        return {
            "memcpy": lambda: {"": _timed(lambda: self._copy(self._tensors.values()))},
            "hvdlm": self._ours,
            "raw write, fsync": lambda: {"": _timed(self._write_raw)},
            "torch.save, fsync": lambda: {"": _timed(self._torch_save)},
            "DCP": self._dcp,
            "DCP async": self._dcp_async,
        }

    def _copy(self, tensors: Iterable[Tensor]) -> None:
        for into, tensor in zip(self._room, tensors, strict=True):
            into.copy_(tensor)

    def _ours(self) -> dict[str, float]:
        path = path_of(self._target, 1)
        blocked = _timed(lambda: self._saver.begin(1, self._pieces, {}, dict(RECORD)))
        durable, checked = _timed(lambda: self._saver.finish(lambda: None)), _timed(lambda: damage(path))
        # What is read is a map of the file: as a model does, copy it.
        loaded = _timed(lambda: self._copy(Checkpoint(path).read("").values()))
        return {", blocked": blocked, ", durable": durable, ", checked": checked, ", loaded": loaded}

    def _write_raw(self) -> None:
        with (self._target / "raw").open("xb", buffering=0) as file:
            for tensor in self._tensors.values():
                data: Any = tensor.view(-1).view(torch.uint8).numpy()
                for start in range(0, len(data), BLOCK):
                    file.write(data[start : start + BLOCK])
            os.fsync(file.fileno())

    def _torch_save(self) -> None:
        with (self._target / "torch.pt").open("wb") as file:
            torch.save(self._tensors, file)
            file.flush()
            os.fsync(file.fileno())

    def _dcp(self) -> dict[str, float]:
        import torch.distributed.checkpoint as checkpoint

        where: dict[str, Any] = {"checkpoint_id": self._target / "dcp", "no_dist": True}
        saved = _timed(lambda: checkpoint.save(dict(self._tensors), **where))
        into = dict(zip(self._tensors, self._room, strict=True))
        return {"": saved, ", loaded": _timed(lambda: checkpoint.load(into, **where))}

    def _dcp_async(self) -> dict[str, float]:
        import torch.distributed.checkpoint as checkpoint

        start = time.perf_counter()
        future: Any = checkpoint.async_save(dict(self._tensors), checkpoint_id=self._target / "dcp")
        blocked = time.perf_counter() - start
        future.result()
        return {", blocked": blocked, ", durable": time.perf_counter() - start - blocked}


class _group:
    """A process group of one, which DCP's asynchronous way asks for."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "group"

    def __enter__(self) -> None:
        warnings.simplefilter("ignore")  # of DCP, about a world of one
        logging.getLogger("torch").setLevel(logging.ERROR)
        torch.distributed.init_process_group("gloo", init_method=f"file://{self._file.resolve()}", rank=0, world_size=1)

    def __exit__(self, *exc: object) -> None:
        torch.distributed.destroy_process_group()


def to_text(found: dict[str, Any]) -> str:
    rows = []
    for name, spent in found["seconds"].items():
        median = found["medians"][name]
        rows.append(
            [name, figure(median), figure(min(spent)), figure(max(spent)), figure(found["bytes"] / median / 1e9)]
        )
    lines = [
        f"{found['bytes'] / 1e6:,.0f} MB, medians of {found['rounds']} rounds in turn",
        table(["", "s", "least", "most", "GB/s"], rows),
        f"training stands still {found['blocked_to_memcpy']:.2f} times as long as a memcpy of the same bytes"
        f" ({found['blocked_to_memcpy_least']:.2f} of the least)",
        f"durable at {found['durable_to_raw']:.2f} of the rate of a raw write with fsync"
        f" ({found['durable_to_raw_least']:.2f} of the least)",
    ]
    return "\n".join(lines)
