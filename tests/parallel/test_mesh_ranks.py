"""Every mesh of 2, 3, 4, 6 and 8 ranks trains to what one process does, and each goes on where another one stopped."""

import hashlib
from itertools import product

import pytest
import torch
from harness import make_config
from saved import tensors_in

from hvdlm import checkpoint
from hvdlm.checkpoint import Saver
from hvdlm.parallel.mesh import Mesh
from hvdlm.session.metrics import read_metrics
from hvdlm.train import setup
from hvdlm.world.serial import SerialWorld

COMMON = (
    "data.seq_len=16",
    "optim.clip=0.5",
    "sync=tree",
    "model={family: transformer, width: 32, heads: 8, layers: 2}",
    "train.micro_batch=2",
    "train.eval_tokens=500",
)
KINDS = {
    "dropout": ("model.dropout=0.1", "model.residual_dropout=0.1"),
    "untied and recomputed": ("model.tie_embeddings=false", "model.activation_checkpointing=true", "model.dropout=0.1"),
    "one micro-batch": (),
    "bf16": ("train.precision=bf16",),
    "zero": ("model.bias=true",),
}


def meshes_of(size):
    return [Mesh(p, d, t) for p, d, t in product(range(1, size + 1), repeat=3) if p * d * t == size]


def parallel_of(mesh, **more):
    values = {"pipeline": mesh.pipeline, "data": mesh.data, "tensor": mesh.tensor, **more}
    return f"parallel={{{', '.join(f'{key}: {str(value).lower()}' for key, value in values.items())}}}"


def same_for(kind, mesh):
    """What a run on a mesh has in common with that of one process."""
    batch = 2 * (mesh.data if mesh.data > 4 else 6 if mesh.data == 3 else 4)
    options = (*COMMON, *KINDS[kind], f"train.global_batch={batch}", f"model.layers={max(2, mesh.pipeline)}")
    if kind == "one micro-batch":
        options += (f"train.micro_batch={batch // mesh.data}",)
        if mesh.size < 6 and mesh.tensor == 1:
            return (*options, "train.steps=20")
    return (*options, f"train.steps={4 if mesh.size < 6 else 2}")


@pytest.fixture
def alone(data_dir, made_once):
    """The folder of a run of one process; each is made once."""

    def alone(*overrides):
        name = hashlib.blake2b(repr(overrides).encode(), digest_size=8).hexdigest()
        return made_once(
            f"mesh-alone-{name}", lambda folder: setup.train(make_config(data_dir, folder, *overrides), SerialWorld())
        )

    return alone


def check_same(run_dir, expected_dir, mesh, kind):
    """Weights, moments, losses and norms."""
    found, expected = (tensors_in(checkpoint.resolve(each)) for each in (run_dir, expected_dir))
    assert found.keys() == expected.keys(), mesh
    rows, expected_rows = (read_metrics(each / "metrics.jsonl") for each in (run_dir, expected_dir))
    for split, name in (("train", "loss"), ("train", "grad_norm"), ("val", "loss")):
        ours, theirs = ([row[name] for row in each if row.get("split") == split] for each in (rows, expected_rows))
        assert len(ours) > 0
        close = {"loss": 1e-6, "grad_norm": 1e-5}[name] if kind != "bf16" or mesh.tensor == 1 else 2e-2
        assert ours == pytest.approx(theirs, rel=close), (mesh, split, name)
    if mesh.tensor == 1:
        assert [key for key, tensor in found.items() if not torch.equal(tensor, expected[key])] == [], mesh
    elif kind != "bf16":
        for key, tensor in found.items():
            torch.testing.assert_close(
                tensor, expected[key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{mesh} {k}: {m}"
            )


def kinds_of(place, mesh):
    """Those that the mesh of this number among those of its size is tried with: all, or in turn some."""
    names = list(KINDS)
    few = 1 if mesh.size > 4 else 2 if mesh.tensor > 1 else len(names)
    return {names[(place + each) % len(names)] for each in range(few)}


@pytest.fixture
def check_meshes(world, data_dir, tmp_path, alone):
    """Train on each mesh of the world's size that is tried with this kind, and compare with one process."""

    def check_meshes(kind):
        for place, mesh in enumerate(meshes_of(world.size)):
            if kind not in kinds_of(place, mesh):
                continue
            more = {"zero": 1} if kind == "zero" else {}
            if mesh.tensor > 1 and place % 2:
                more["sequence"] = True
            same, run_dir = same_for(kind, mesh), tmp_path / f"{place}"
            setup.train(make_config(data_dir, run_dir, *same, parallel_of(mesh, **more)), world)
            world.barrier()  # rank 0 has written all
            check_same(run_dir, alone(*same), mesh, kind)

    return check_meshes


@pytest.mark.on_ranks(2, 3, 4)
@pytest.mark.parametrize("kind", KINDS)
def test_every_mesh_trains_as_one_process(check_meshes, kind):
    """Bit for bit where no layer is cut."""
    check_meshes(kind)


@pytest.mark.long
@pytest.mark.on_ranks(6, 8)
@pytest.mark.parametrize("kind", KINDS)
def test_every_larger_mesh_does_so_too(check_meshes, kind):
    check_meshes(kind)


PAIRS = [mesh for size in (1, 2, 4) for mesh in meshes_of(size)]


def resumable(mesh):
    """Settings of a mesh: with those of tensor ranks, and ZeRO where replicas are."""
    more = {"zero": 1} if mesh.data > 1 else {}
    return parallel_of(mesh, **more, **({"sequence": True} if mesh.tensor > 2 else {}))


@pytest.fixture
def saved_after(world, data_dir, tmp_path):
    """Go on from a checkpoint, or begin, with a mesh of some of the ranks; train to a step and save; all in a folder.

    Where a mesh has fewer ranks than the world all groups of so many do the same, in folders of their own; that of the
    first is returned.
    """

    def saved_after(step, mesh, come_from=None):
        groups = [list(range(first, first + mesh.size)) for first in range(0, world.size, mesh.size)]
        part = world.split(groups, "part")
        name = f"{mesh}-{step}-{come_from.parents[1].name if come_from else ''}".replace(" ", "")
        folders = [tmp_path / f"{name}-{number}" for number in range(len(groups))]
        options = (*COMMON, *KINDS["dropout"], "train.global_batch=8", "model.layers=4", resumable(mesh))
        config = make_config(data_dir, folders[world.rank // mesh.size], *options)
        learner, _ = setup.build_learner(config, part)
        first = learner.restore(come_from) if come_from else 0
        learner.agree()
        learner.run(first, step)
        tensors, scalars = learner.collect()
        saver = Saver(config.run_dir, part)
        pieces, of_optimizer = learner.pieces(tensors)
        assert saver.begin(step, pieces, of_optimizer, {"engine": scalars}) == ""
        saver.finish(lambda: None)
        learner.close()
        part.close()
        world.barrier()
        return checkpoint.path_of(folders[0], step)

    return saved_after


def differing(found, expected, *, nearly):
    left, right = tensors_in(found), tensors_in(expected)
    assert left.keys() == right.keys()
    equal = (lambda one, two: torch.allclose(one, two, rtol=1e-5, atol=1e-5)) if nearly else torch.equal
    return [key for key in left if not equal(left[key], right[key])]


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("writer", PAIRS, ids=str)
def test_what_a_mesh_saves_every_mesh_reads_and_goes_on(world, saved_after, writer):
    """Nothing is changed by reading and saving; then steps are those of the mesh that wrote it, where none cuts layers
    to the bit."""
    middle = saved_after(2, writer)
    end = saved_after(4, writer)
    for reader in PAIRS:
        again = saved_after(2, reader, middle)
        assert differing(again, middle, nearly=False) == [], (writer, reader)
        is_cut = max(writer.tensor, reader.tensor) > 1
        assert differing(saved_after(4, reader, middle), end, nearly=is_cut) == [], (writer, reader)
