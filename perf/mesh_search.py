"""Which meshes `hvdlm tune --meshes` tries: what can be and has room on this machine, predicted-fastest first."""

from __future__ import annotations

from dataclasses import replace

from hvdlm.errors import UserError
from hvdlm.host import free_bytes
from hvdlm.parallel.mesh import Mesh, meshes_of
from hvdlm.tables import counted, figure
from hvdlm.train.config import RunConfig

from .mesh_table import PlanOptions, is_on_gpu, planned, speed_of
from .search import Candidate, SearchSpace, micro_batch_choices, on_mesh


def with_meshes(space: SearchSpace, config: RunConfig, ranks: int) -> SearchSpace:
    """The space with all meshes of so many ranks; the config's own is the base, whatever is told of it."""
    own, meshes = config.parallel.mesh(ranks), meshes_of(ranks)
    base = replace(space.base, mesh=own)
    batch = config.train.global_batch
    choices: dict[Mesh | None, tuple[int, ...]] = {
        mesh: micro_batch_choices(max(1, batch // mesh.data)) for mesh in meshes
    }
    others = [one for mesh in meshes if mesh != own for one in on_mesh(base, mesh, choices[mesh])]
    flops, room_gb = speed_of(config, ranks), _room_gb(config, ranks)
    predicted: dict[Candidate, float] = {}
    left_out: dict[Candidate, str] = {}
    for candidate in [base, *others]:
        try:
            row = _plan(config, candidate, flops)
        except UserError as error:
            left_out[candidate] = f"cannot be: {error}"
            continue
        if row["memory_gb"] > room_gb:
            needs = (
                f"{figure(row['memory_gb'])} GB a rank, and {counted(ranks, 'rank')} here have {figure(room_gb)} each"
            )
            left_out[candidate] = f"no room: it needs {needs}"
        else:
            predicted[candidate] = row["step_s"]
    left_out.pop(base, None)
    fastest_first = dict(sorted(predicted.items(), key=lambda item: item[1]))
    return replace(space, base=base, micro_batches=choices, predicted_s=fastest_first, left_out=left_out)


def _plan(config: RunConfig, candidate: Candidate, flops: float) -> dict:
    """What `hvdlm plan` tells of a mesh."""
    train = config.train.model_copy(update={"micro_batch": candidate.micro_batch})
    options = PlanOptions(mesh=candidate.mesh, flops=flops)
    (row,) = planned(config.model_copy(update={"train": train}), options)["meshes"]
    return row


def _room_gb(config: RunConfig, ranks: int) -> float:
    """What each rank may have: of a GPU all, of this machine's free memory its share."""
    if is_on_gpu(config):
        import torch

        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return free_bytes() / ranks / 1e9
