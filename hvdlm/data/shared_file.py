"""One shard file written by all ranks at once, through parallel HDF5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hvdlm.data.manifest import ShardEntry
from hvdlm.data.shards import (
    BLOCK_BYTES,
    LIBVER,
    ShardLabels,
    block_checksums,
    check_ids,
    extent,
    lay_out,
    map_tokens,
    seal,
)
from hvdlm.errors import UserError
from hvdlm.files import reserve
from hvdlm.world.interface import World

# A single MPI-IO call of 2 GiB or more fails or corrupts (HDF5 before 1.12.3, Open MPI#7045).
CALL_BYTES = 512 << 20


@dataclass(frozen=True)
class SharedSizes:
    """How large the datasets of a shared file are; the same on all ranks."""

    num_tokens: int
    num_documents: int
    columns: Mapping[str, tuple[np.dtype, int]]  # type and length of each


def check_parallel(world: World) -> None:
    """UserError where several ranks cannot write one file."""
    if world.size > 1 and not (h5py.get_config().mpi and world.mpi_communicator() is not None):
        raise UserError.shared(
            "layout: mpio needs MPI ranks and an h5py built against parallel HDF5 (`hvdlm doctor` shows both); "
            "use layout: shards"
        )


def write_shared(
    path: Path, world: World, labels: ShardLabels, sizes: SharedSizes, pieces: Iterable[tuple[str, int, np.ndarray]]
) -> ShardEntry:
    """Write a shard file of all ranks; each brings (dataset, start, array) of its own. Collective.

    One rank lays the file out, for what HDF5 leaves in the gaps of a structure depends on the driver that makes it.
    Data go by independent calls, so a rank with nothing to write keeps nobody waiting. Then ranks read back the blocks
    of others for the checksums, and the file is renamed.
    """
    aside = path.with_name(f".{path.name}.aside")

    def begin() -> None:
        with h5py.File(aside, "w", libver=LIBVER) as file:
            lay_out(file, sizes.num_tokens, sizes.num_documents, labels, sizes.columns)
            file.flush()
            num_bytes = extent(file)
        # HDF5 cannot close a file that could not be written, and its ranks would wait for each other for ever.
        reserve(aside, num_bytes)

    world.on_root(begin)
    file = h5py.File(aside, "r+", libver=LIBVER, **_driver(world))
    with world.together():
        try:
            for name, start, array in pieces:
                if name == "tokens":
                    check_ids(array, labels, path)
                _write(file[name], start, array)
        finally:
            file.close()  # collective
    with world.together():
        with h5py.File(aside, "r", locking=False) as file:
            tokens = map_tokens(aside, file["tokens"])
        blocks = range((world.rank + 1) % world.size, -(-tokens.nbytes // BLOCK_BYTES), world.size)
        mine = list(zip(blocks, block_checksums(tokens, blocks), strict=True))
    checksums = dict(pair for pairs in world.gather(mine) for pair in pairs)

    def finish() -> ShardEntry:
        with h5py.File(aside, "r+", libver=LIBVER) as file:
            file["block_crc32"][:] = [checksums[block] for block in range(len(checksums))]
        return seal(aside, path, sizes.num_tokens, sizes.num_documents)

    return world.on_root(finish)


def _driver(world: World) -> dict[str, Any]:
    return {"driver": "mpio", "comm": world.mpi_communicator()} if world.size > 1 else {}


def _write(dataset: h5py.Dataset, start: int, array: np.ndarray) -> None:
    array = array.astype(dataset.dtype, copy=False)
    per_call = CALL_BYTES // array.itemsize
    for first in range(0, array.size, per_call):
        dataset[start + first : start + min(first + per_call, array.size)] = array[first : first + per_call]
