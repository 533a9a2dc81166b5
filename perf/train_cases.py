"""What `hvdlm bench train` compares: workloads, variants, and the config and environment of a job of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.host import physical_cores
from hvdlm.launch.plan import fresh_environment
from hvdlm.train.config import RunConfig

SEQ_LEN = 256
MANY_STEPS = 1_000_000  # so that the schedule never ends
LIMIT, CONSTANT = "limit", "limit, constant data"
PEERS = ("stock-horovod", "stock-ddp")
GPT_TINY = {"family": "transformer", "layers": 4, "heads": 4, "width": 128}
GPT_SMALL = {"family": "transformer", "layers": 6, "heads": 6, "width": 384}
# A user's own settings of these would make the peers no longer stock.
NOT_STOCK = ("HOROVOD_", "OMPI_MCA_mpi_yield_when_idle", "MALLOC_", "GLIBC_TUNABLES")


@dataclass(frozen=True)
class BenchWorkload:
    """A model with its batch; `micro_batch` sequences of 256 tokens a rank and step."""

    model: dict
    precision: str = "fp32"
    vocab_size: int = 65
    micro_batch: int = 8


WORKLOADS = {
    "tiny": BenchWorkload(GPT_TINY),
    "small": BenchWorkload(GPT_SMALL),
    "small-bf16": BenchWorkload(GPT_SMALL, "bf16"),
    "vocab50k": BenchWorkload(GPT_SMALL, "bf16", vocab_size=50304, micro_batch=4),
    "lstm": BenchWorkload({"family": "lstm", "layers": 2, "width": 256}),
}


@dataclass(frozen=True)
class Variant:
    """What is compared: the program of a `CellSpec`, its sync section, and what a compression adds to that."""

    program: str
    sync: dict
    compressed: Callable[[str], dict] | None = None
    is_stock: bool = False  # gets none of our settings of the environment

    def environment(self) -> dict[str, str]:
        """Stock is without tuning: Open MPI waits by spinning, as it does where nobody asks it not to."""
        own = fresh_environment()
        if not self.is_stock:
            return own
        kept = {name: value for name, value in own.items() if not name.startswith(NOT_STOCK)}
        return {**kept, "OMPI_MCA_mpi_yield_when_idle": "0"}


VARIANTS = {
    LIMIT: Variant("alone", {"kind": "allreduce"}),
    "horovod": Variant("horovod", {"kind": "horovod"}, lambda name: {"compression": name}),
    "allreduce": Variant("mpi", {"kind": "allreduce"}, lambda name: {"compress": {"name": name}}),
    "tree": Variant("mpi", {"kind": "tree"}),
    **{peer: Variant(peer, {"kind": "auto"}, is_stock=True) for peer in PEERS},
}


@dataclass(frozen=True)
class TrainBenchOptions:
    """What is measured, and for how long."""

    out: Path
    workloads: tuple[str, ...]
    variants: tuple[str, ...]
    ranks: int
    rounds: int
    block_seconds: float
    starts: int

    @property
    def threads(self) -> int:
        """Of a rank."""
        return max(1, physical_cores() // self.ranks)

    def data_of(self, workload: BenchWorkload) -> Path:
        return self.out / f"data-{workload.vocab_size}"


def variant_of(name: str) -> Variant:
    """A variant by its name, with `+NAME` of a compression where it takes one; UserError lists them.

    >>> variant_of("tree").program, variant_of("allreduce+int8").sync
    ('mpi', {'kind': 'allreduce', 'compress': {'name': 'int8'}})
    """
    kind, plus, compression = name.partition("+")
    found = VARIANTS.get(kind)
    if found and not plus:
        return found
    if found and found.compressed:
        return replace(found, sync=found.sync | found.compressed(compression))
    raise UserError(f"--variants {name}: there is none of this name; choose from {', '.join(VARIANTS)}")


def run_config(workload: BenchWorkload, options: TrainBenchOptions, *, run_dir: Path, ranks: int, sync: dict) -> dict:
    """The RunConfig of a job as plain values."""
    train = {name: getattr(workload, name) for name in ("micro_batch", "precision")}
    train |= {"global_batch": workload.micro_batch * ranks, "steps": MANY_STEPS}
    train |= {"device": "cpu", "threads": options.threads}
    data = {"path": str(options.data_of(workload)), "seq_len": SEQ_LEN}
    values = {"run_dir": str(run_dir), "seed": 1, "sync": sync, "model": workload.model, "data": data, "train": train}
    return validate(RunConfig, values, Path("bench")).model_dump(mode="json")
