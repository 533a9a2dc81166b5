"""Which meshes `hvdlm tune --meshes` tries: what can be and has room on this machine, predicted-fastest first."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from hvdlm.config import to_yaml
from hvdlm.errors import UserError
from hvdlm.host import free_bytes
from hvdlm.launch.words import import_words
from hvdlm.parallel.mesh import AXES, Mesh, meshes_of
from hvdlm.tables import counted, figure
from hvdlm.train.config import RunConfig
from hvdlm.train.parts import extensions_of

from .job import JobFailed, run_job
from .mesh_table import PlanOptions, is_on_gpu, planned
from .search import Candidate, SearchSpace, micro_batch_choices, on_mesh


def with_meshes(space: SearchSpace, config: RunConfig, ranks: int) -> SearchSpace:
    """The space with all meshes of so many ranks; the config's own is the base, whatever is told of it."""
    own, meshes = config.parallel.mesh(ranks), meshes_of(ranks)
    base = replace(space.base, mesh=own)
    batch = config.train.global_batch
    choices: dict[Mesh | None, tuple[int, ...]] = {
        mesh: micro_batch_choices(max(1, batch // mesh.data)) for mesh in meshes
    }
    candidates = [one for mesh in meshes for one in on_mesh(base, mesh, choices[mesh])]
    flops, room_gb = _speed(config, own), _room_gb(config, ranks)
    predicted: dict[Candidate, float] = {}
    left_out: dict[Candidate, str] = {}
    for candidate in dict.fromkeys([base, *candidates]):
        try:
            row = _plan(config, candidate, flops)
        except UserError as error:
            left_out[candidate] = f"cannot be: {error}"
            continue
        if row["memory_gb"] > room_gb:
            needed, here = figure(row["memory_gb"]), f"{counted(ranks, 'rank')} here have {figure(room_gb)} each"
            left_out[candidate] = f"no room: it needs {needed} GB a rank, and {here}"
        else:
            predicted[candidate] = row["step_s"]
    left_out.pop(base, None)
    fastest_first = dict(sorted(predicted.items(), key=lambda item: item[1]))
    return replace(space, base=base, micro_batches=choices, predicted_s=fastest_first, left_out=left_out)


def _speed(config: RunConfig, mesh: Mesh) -> float:
    """FLOP/s of a rank, measured by a process of its own, for a GPU is held until a process ends.

    UserError where the config's own mesh cannot be planned whatever its micro-batch, and so no other.
    """
    with tempfile.TemporaryDirectory(prefix="hvdlm-tune-") as folder:
        path = Path(folder) / "plan.yaml"
        path.write_text(to_yaml(config))
        axes = ",".join(f"{axis}={getattr(mesh, axis)}" for axis in AXES)
        words = [str(path), "train.micro_batch=1", "train.ramp=null", "--mesh", axes, "--json"]
        try:
            told = run_job(1, ["plan", *words, *import_words(extensions_of(config))])
        except JobFailed as error:
            raise UserError(f"--meshes: {error}") from None
    return json.loads(told.splitlines()[-1])["flops_per_s"]


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
