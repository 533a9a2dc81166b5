"""Every mesh of 2, 3, 4, 6 and 8 ranks trains to what one process does, and each goes on where another one stopped."""

import hashlib
from functools import partial
from itertools import product

import pytest
import torch
from harness import STATE, make_config, run_values, write_config
from labelled import make_data, run_of
from saved import tensors_in

from hvdlm import checkpoint
from hvdlm.checkpoint import Saver
from hvdlm.parallel.mesh import Mesh
from hvdlm.session.metrics import read_metrics
from hvdlm.train import setup
from hvdlm.world.sends import VARIABLE
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
    "one micro-batch": ("ema.decay=0.9",),
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
TWO_BY_TWO = [Mesh(2, 2, 1), Mesh(2, 1, 2), Mesh(1, 2, 2)]


def resumable(mesh):
    """Settings of a mesh: with those of tensor ranks, and ZeRO where replicas are."""
    more = {"zero": 1} if mesh.data > 1 else {}
    return parallel_of(mesh, **more, **({"sequence": True} if mesh.tensor > 2 else {}))


def save(learner, step):
    """As the loop does; returns the checkpoint."""
    tensors, scalars = learner.collect()
    saver = Saver(learner.config.run_dir, learner.world)
    pieces, of_optimizer = learner.pieces(tensors)
    saver.begin(step, pieces, of_optimizer, {**STATE, "engine": scalars})
    saver.finish(lambda: None)
    return checkpoint.path_of(learner.config.run_dir, step)


@pytest.fixture
def saved_by(world, data_dir, tmp_path):
    """Train on a mesh, from a checkpoint of step 2 or from the beginning; its checkpoints of steps 2 and 4.

    Where a mesh has fewer ranks than the world each group of so many does the same, in a folder of its own; the first
    one's is returned.
    """

    def saved_by(name, mesh, come_from=None):
        groups = [list(range(first, first + mesh.size)) for first in range(0, world.size, mesh.size)]
        part, mine = world.split(groups, "part"), world.rank // mesh.size
        same = (*COMMON, *KINDS["dropout"], "train.global_batch=8", "model.layers=4", "ema.decay=0.9")
        options = (*same, resumable(mesh))
        learner, _ = setup.build_learner(make_config(data_dir, tmp_path / f"{name}-{mine}", *options), part)
        if come_from is None:
            learner.run(0, 2)
        else:
            assert learner.restore(come_from) == 2
            learner.agree()
        middle = save(learner, 2)
        learner.run(2, 4)
        end = save(learner, 4)
        learner.close()
        part.close()
        return world.broadcast((middle, end))

    return saved_by


def differing(found, expected, *, nearly):
    left, right = tensors_in(found), tensors_in(expected)
    assert left.keys() == right.keys()
    equal = partial(torch.allclose, rtol=1e-5, atol=1e-5) if nearly else torch.equal
    return [key for key in left if not equal(left[key], right[key])]


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize(
    "writer", [pytest.param(mesh, marks=[] if mesh in TWO_BY_TWO else pytest.mark.long, id=str(mesh)) for mesh in PAIRS]
)
def test_what_a_mesh_saves_every_mesh_reads_and_goes_on_with(saved_by, writer):
    """Nothing changes by reading and saving; then come the same steps, to the bit where no mesh cuts layers."""
    middle, end = saved_by("first", writer)
    for number, reader in enumerate(PAIRS):
        again, later = saved_by(f"then-{number}", reader, middle)
        assert differing(again, middle, nearly=False) == [], reader
        assert differing(later, end, nearly=max(writer.tensor, reader.tensor) > 1) == [], reader


@pytest.fixture
def weights_after(world, data_dir, tmp_path):
    """What this rank holds of the weights after some steps, by name, with its cut."""

    def weights_after(mesh, *overrides, **parallel):
        same = (*COMMON, *KINDS["dropout"], "train.global_batch=8", parallel_of(mesh, **parallel), *overrides)
        learner, _ = setup.build_learner(make_config(data_dir, tmp_path, *same), world)
        learner.run(0, 4)
        cuts = learner.shared.cuts
        found = {name: (cuts[name], p.detach().clone()) for name, p in learner.model.named_parameters()}
        learner.close()
        return found

    return weights_after


@pytest.mark.on_ranks(4, kind="horovod")
def test_horovod_adds_up_between_replicas_what_mpi_does(weights_after):
    """While stages meet over MPI."""
    by_horovod, by_mpi = (weights_after(Mesh(2, 2, 1), f"sync={sync}") for sync in ("horovod", "allreduce"))
    for name, (_, weight) in by_horovod.items():
        torch.testing.assert_close(weight, by_mpi[name][1], rtol=1e-6, atol=1e-6)


@pytest.mark.on_ranks(4, kind="horovod")
@pytest.mark.parametrize(("sync", "close"), [("tree", 0), ("allreduce", 1e-6)])
def test_replicas_share_an_optimizers_state_over_horovod(weights_after, sync, close):
    sharing, whole = (weights_after(Mesh(2, 2, 1), f"sync={sync}", zero=zero) for zero in (1, 0))
    for name, (_, weight) in sharing.items():
        torch.testing.assert_close(weight, whole[name][1], rtol=close, atol=close)


def test_horovod_adds_up_between_replicas_of_tensor_ranks_too(job, data_dir, tmp_path, alone):
    """In a job, whose mesh tells Horovod of its groups when it starts."""
    mesh = Mesh(1, 2, 2)
    same, config = same_for("dropout", mesh), write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path))
    job(4, "train", config, *same, parallel_of(mesh), "world=horovod", "sync=horovod")
    check_same(tmp_path, alone(*same), mesh, "dropout")


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("mesh", TWO_BY_TWO[:2], ids=str)
def test_late_and_synchronous_messages_change_nothing(weights_after, monkeypatch, mesh):
    expected = weights_after(mesh)
    monkeypatch.setenv(VARIABLE, "synchronous:10")
    for name, (cut, weight) in weights_after(mesh).items():
        assert torch.equal(weight, expected[name][1]), (name, cut)


@pytest.fixture
def trained_alike(world, tmp_path):
    """Train on records on a mesh, and on rank 0 alone, with one config; the two folders."""

    def trained_alike(mesh, records, *overrides, **sections):
        train = {"global_batch": 24, "micro_batch": 6, "steps": 4, "eval_every": 4, "device": "cpu"}
        same = ("sync=tree", "model.layers=2", "model.dropout=0.1", "optim.clip=0.5", *overrides)
        sections = {**sections, "train": train}
        folders = tmp_path / "mesh", tmp_path / "alone"
        setup.train(run_of(records, folders[0], *same, parallel_of(mesh), **sections), world)
        world.on_root(lambda: setup.train(run_of(records, folders[1], *same, **sections), SerialWorld()))
        return folders

    return trained_alike


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("mesh", TWO_BY_TWO, ids=str)
def test_a_task_over_records_trains_on_a_mesh(world, tmp_path, trained_alike, mesh):
    """Classes, whose head stands on the last stage and is whole on each tensor rank."""
    data = make_data(tmp_path / "records", world)
    check_same(*trained_alike(mesh, data, task={"kind": "classify", "label": "label"}), mesh, "records")


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("mesh", TWO_BY_TWO, ids=str)
def test_masked_tokens_train_on_a_mesh(data_dir, world, trained_alike, mesh):
    check_same(*trained_alike(mesh, data_dir, "data.seq_len=16", task={"kind": "mlm"}), mesh, "mlm")
