"""What is told of a mesh before a run is what the run then holds; what cannot be is refused in one line."""

import json
import re

import pytest
import torch
from harness import make_config

from hvdlm.cli.command import main
from hvdlm.compute.held import Held
from hvdlm.config import to_yaml
from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.parallel.axes import axes_of
from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.imagined import imagined_axes
from hvdlm.parallel.link import measured_link
from hvdlm.parallel.mesh import Mesh, meshes_of
from hvdlm.parallel.prediction import Machine, StepShape, predicted
from hvdlm.perf import mesh_table
from hvdlm.perf.mesh_table import PlanOptions, measured_by, planned, to_text
from hvdlm.session.metrics import METRICS
from hvdlm.train.rehearsal import rehearse
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

MODEL = "model={family: transformer, layers: 4, width: 32, heads: 4, kv_heads: 2, activation: swiglu}"
PLACE = Place(0, 1, 1)
MANY_FLOPS = 1e10


@pytest.fixture
def of(data_dir, tmp_path):
    """(config, source, manifest) with overrides."""

    def of(*overrides):
        config = make_config(data_dir, tmp_path / "run", MODEL, "train.global_batch=4", *overrides)
        return config, TokenStream(data_dir, "train"), read_manifest(data_dir)

    return of


@pytest.mark.parametrize(
    "overrides",
    [
        ["sync=tree", "train.micro_batch=1", "model.dropout=0.1"],
        ["sync=tree", "train.global_batch=6", "model.activation_checkpointing=true"],
        ["sync=tree", "ema.decay=0.9"],
        ["sync=tree", "task=mlm", "model.causal=false"],
        ["sync=allreduce", "train.precision=bf16"],
    ],
)
def test_a_step_without_values_holds_what_a_real_one_holds(of, overrides):
    config, source, manifest = of(*overrides)
    found = rehearse(config, source, manifest, Mesh(), 0)
    with Held() as held:
        learner = GradientLearner(config, source, manifest, axes_of(SerialWorld(), config.parallel), PLACE)
        learner.run(0, 1)
        held.most = held.now
        learner.run(1, 2)
    learner.close()
    assert found.total == pytest.approx(held.most, rel=0.01)


@pytest.mark.parametrize("mesh", [mesh for mesh in meshes_of(4) if mesh.cuts_model and mesh.tensor < 4], ids=str)
def test_parameters_of_every_rank_are_those_that_it_builds(of, mesh):
    overrides = [f"parallel.{axis}={getattr(mesh, axis)}" for axis in ("pipeline", "tensor")]
    config, source, manifest = of(*overrides, "sync=tree", "train.micro_batch=1")
    for rank in (0, mesh.size - 1):
        found = rehearse(config, source, manifest, mesh, rank)
        learner = GradientLearner(config, source, manifest, imagined_axes(mesh, rank), PLACE)
        parameters = list(learner.model.parameters())
        tied = learner.model.tied_weight
        copied = 0 if tied is None or isinstance(tied, torch.nn.Parameter) else tied.nbytes
        assert found.parameters == sum(p.numel() for p in parameters)
        assert found.weights == sum(p.nbytes for p in parameters) + copied
        assert found.optimizer == pytest.approx(8 * found.parameters, rel=0.01)  # AdamW's two, and a count of steps
        learner.close()


@pytest.mark.parametrize("name", ["adafactor", "muon", "sgd"])
def test_the_optimizer_keeps_what_it_is_told_to_keep(of, name):
    config, source, manifest = of(f"optim.name={name}", "sync=allreduce")
    found = rehearse(config, source, manifest, Mesh(), 0)
    learner = GradientLearner(config, source, manifest, axes_of(SerialWorld(), config.parallel), PLACE)
    learner.run(0, 1)
    states = learner.optimizer.state.values()
    real = sum(value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor))
    learner.close()
    assert found.optimizer == real


def test_zero_shares_the_optimizer_and_nothing_else(of):
    whole, shared = (
        rehearse(*of(f"parallel.zero={zero}", "sync=tree", "train.micro_batch=1"), Mesh(data=4), 1) for zero in (0, 1)
    )
    assert shared.optimizer == pytest.approx(whole.optimizer / 4, rel=0.1)
    assert shared.weights == whole.weights


def test_more_open_micro_batches_hold_more(of):
    """GPipe keeps all, 1F1B as many as stages follow, and recomputing a block keeps its input alone."""
    mesh, common = (
        Mesh(pipeline=2),
        ["parallel.pipeline=2", "train.global_batch=6", "train.micro_batch=1", "sync=allreduce"],
    )
    gpipe, usual, frugal = (
        rehearse(*of(*common, *more), mesh, 0).passes
        for more in (["parallel.schedule=gpipe"], [], ["model.activation_checkpointing=true"])
    )
    assert gpipe > 1.5 * usual > 1.5 * frugal


def test_predictions_are_those_of_the_formulas():
    machine = Machine(flops_per_s=1e9, alpha_s=0.0, beta_s=1e-9)
    shape = StepShape([3e9] * 4, stream_bytes=1000, global_batch=8)

    def of(mesh, **parallel):
        return predicted(shape, mesh, ParallelConfig(**parallel), machine, 10**9)

    assert of(Mesh()) == (96.0, 0.0, 0.0, 0.0)
    by_stage = of(Mesh(pipeline=4), pipeline=4)
    assert by_stage.step_s == pytest.approx((8 + 3) * 3 + 6 * 1e-6)  # its messages: three there, three back
    assert by_stage.idle == pytest.approx(3 / 11, rel=1e-5)
    by_data = of(Mesh(data=2))
    assert (by_data.step_s, by_data.data_s) == (49.0, 1.0)  # twice half of 10^9 bytes
    by_tensor = of(Mesh(tensor=2), tensor=2)
    assert by_tensor.tensor_s == pytest.approx(8 * 4 * 4 * 1e-6)  # micro-batches, layers, sums in each
    assert by_tensor.step_s == pytest.approx(48 + by_tensor.tensor_s)


def test_meshes_are_compared_and_what_cannot_be_is_named(of):
    config, _, _ = of("sync=tree", "train.micro_batch=4")
    found = planned(config, PlanOptions(ranks=4, flops=MANY_FLOPS))
    kept = {(row["pipeline"], row["data"], row["tensor"]) for row in found["meshes"]}
    assert kept == {(4, 1, 1), (2, 1, 2)}
    assert "is not a multiple of micro_batch 4 x 4 ranks" in found["refused"]["pipeline 1 x data 4 x tensor 1"]
    assert "cannot share model.kv_heads or heads 2" in found["refused"]["pipeline 1 x data 1 x tensor 4"]
    times = [row["step_s"] for row in found["meshes"]]
    assert times == sorted(times)
    assert found["best"] == found["meshes"][0]["overrides"]
    assert to_text(found).endswith(found["best"])


MESH = "pipeline 2 x data 2 x tensor 1"


def write_rows(path, *starts):
    """Rows of starts (step, ranks, mesh, seconds a step, GB); intervals are of two steps, but the first, of one."""
    rows = []
    for number, (first, ranks, mesh, step_s, gb) in enumerate(starts):
        rows.append({"event": "resumed" if first else "started", "step": first, "ranks": ranks})
        rows[-1] |= {"mesh": mesh} if mesh else {}
        end = starts[number + 1][0] if number + 1 < len(starts) else first + 7
        for step in range(first + 1, end + 1):
            rows.append({"step": step, "split": "train", "tokens": 100 * step})
            if (step - first) % 2:
                slow = 50 if step == first + 1 else 1  # the first step of a start makes what is made once
                rows[-1] |= {"memory_gb": gb, "tokens_per_s": 100 / (step_s * slow)}
    (path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_of_a_run_what_was_measured_stands_beside(of, tmp_path):
    config, _, _ = of("sync=tree", "parallel.pipeline=2")
    write_rows(tmp_path, (0, 4, MESH, 0.25, 0.75))
    found = planned(config, PlanOptions(run=tmp_path, flops=MANY_FLOPS))
    (row,) = found["meshes"]
    assert (row["pipeline"], row["data"], row["measured_gb"]) == (2, 2, 0.75)
    assert row["measured_step_s"] == pytest.approx(0.25)
    ratio = re.search(r"; 0.25 s a step, predicted (\S+) s .(\S+) times that", to_text(found))
    assert "measured: 0.750 GB at most, estimated" in to_text(found)
    assert float(ratio[1]) == pytest.approx(row["step_s"], rel=0.01)
    assert float(ratio[2]) == pytest.approx(0.25 / row["step_s"], rel=0.01)
    write_rows(tmp_path, (0, 4, MESH, 0.25, 0.75), (1, 4, MESH, 0.5, 0.7))
    assert planned(config, PlanOptions(run=tmp_path, flops=MANY_FLOPS))["meshes"][0]["measured_step_s"] == 0.5
    (tmp_path / METRICS).write_text("")
    with pytest.raises(UserError, match="no memory was measured there"):
        planned(config, PlanOptions(run=tmp_path, flops=MANY_FLOPS))


def test_what_was_measured_on_one_mesh_does_not_stand_beside_another(of, tmp_path):
    config, _, _ = of("sync=tree", "parallel.pipeline=2")
    write_rows(
        tmp_path, (0, 2, "", 9.0, 9.0), (5, 2, "pipeline 2 x data 1 x tensor 1", 0.5, 0.9), (20, 4, MESH, 0.25, 0.75)
    )
    every = planned(config, PlanOptions(run=tmp_path, ranks=2, flops=MANY_FLOPS))
    known = {(row["pipeline"], row["data"]): row.get("measured_step_s") for row in every["meshes"]}
    assert known == {(2, 1): pytest.approx(0.5), (1, 2): pytest.approx(9.0), (1, 1): None}
    lines = to_text(every)
    assert "measured (parallel.pipeline=2 parallel.tensor=1): 0.900 GB" in lines
    other = planned(config, PlanOptions(run=tmp_path, mesh=Mesh(tensor=2, data=2), flops=MANY_FLOPS))
    assert "measured_gb" not in other["meshes"][0]
    assert f"nothing on what is planned here, for the run was on 2 ranks; pipeline 2 x data 1 x tensor 1; {MESH}" in (
        to_text(other)
    )


def test_the_command_prints_json_and_refuses_words_that_are_no_mesh(of, tmp_path, capsys):
    config, _, _ = of("sync=tree")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    with pytest.raises(SystemExit) as caught:
        main(["plan", str(path), "--mesh", "tensor=2", "--flops", "1e10", "--json"])
    assert caught.value.code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["best"] == "parallel.pipeline=1 parallel.tensor=2"
    assert found["meshes"][0]["stages"][0]["weights"] > 0
    with pytest.raises(SystemExit) as caught:
        main(["plan", str(path), "--mesh", "tensor=2,nodes=3"])
    assert caught.value.code == 2
    assert "'nodes=3' is not one of pipeline=N, data=N, tensor=N" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", str(path), "--mesh", "tensor=2,tensor=4"])
    assert "has tensor twice" in capsys.readouterr().err


def test_messages_are_measured_between_neighbours_and_what_is_said_wins(of, monkeypatch):
    monkeypatch.setattr(mesh_table, "speed_of_rank", lambda config, ranks: 1e9 * ranks)
    config, _, _ = of()

    def on_rank(world):
        alpha_s, beta_s = measured_link(world)
        return alpha_s, beta_s, measured_by(world, config, PlanOptions(alpha_us=3.0))

    for alpha_s, beta_s, options in run_on_threads(3, on_rank):
        assert 0 < alpha_s < 1 and 0 <= beta_s < 1e-6
        assert (options.flops, options.alpha_us, options.ranks, options.is_measured) == (3e9, 3.0, 3, True)
        assert options.gb_per_s > 0


@pytest.mark.parametrize(
    ("overrides", "mesh", "remedy"),
    [
        (["train.micro_batch=1"], Mesh(data=4), "parallel.zero=1 makes room"),
        (["train.micro_batch=4"], Mesh(), "train.micro_batch=2 makes room"),
        (["train.micro_batch=1", "data.seq_len=256"], Mesh(), "model.activation_checkpointing=true makes room"),
    ],
)
def test_what_has_no_room_is_told_the_change_that_makes_room(of, monkeypatch, overrides, mesh, remedy):
    config, _, _ = of("sync=tree", *overrides)
    monkeypatch.setattr(mesh_table, "memory_bytes", lambda kind: 0)
    before = planned(config, PlanOptions(mesh=mesh, flops=MANY_FLOPS))["meshes"][0]["memory_gb"]
    with pytest.raises(UserError) as caught:
        planned(config, PlanOptions(mesh=mesh, flops=MANY_FLOPS, memory_gb=before * 0.999))
    assert remedy in str(caught.value)
    section, rest = remedy.removesuffix(" makes room").split(".")
    changed = of("sync=tree", *overrides, f"{section}.{rest}")[0]
    assert planned(changed, PlanOptions(mesh=mesh, flops=MANY_FLOPS, memory_gb=before * 0.999))["meshes"][0]["fits"]


def test_where_no_change_makes_room_the_line_says_so(of, monkeypatch):
    config, _, _ = of("sync=tree")
    monkeypatch.setattr(mesh_table, "memory_bytes", lambda kind: 0)
    with pytest.raises(UserError, match="alone makes room: take more ranks"):
        planned(config, PlanOptions(mesh=Mesh(), flops=MANY_FLOPS, memory_gb=1e-6))
    monkeypatch.setattr(mesh_table, "memory_bytes", lambda kind: 10**9)
    with pytest.raises(UserError, match="libraries alone hold 1.* GB; raise it"):
        planned(config, PlanOptions(mesh=Mesh(), flops=MANY_FLOPS, memory_gb=0.5))


def test_on_a_gpu_the_process_is_not_counted(of):
    config, _, _ = of("sync=tree", "train.device=cuda")
    found = planned(config, PlanOptions(mesh=Mesh(), flops=MANY_FLOPS))
    assert found["process_bytes"] == 0
    assert found["meshes"][0]["memory_gb"] * 1e9 == pytest.approx(found["meshes"][0]["stages"][0]["total"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": Mesh(tensor=4)}, "cannot share model.kv_heads or heads 2"),
        (
            {"mesh": Mesh(pipeline=8)},
            "8 stages want 8 layers at least, and the model has 4; take fewer",
        ),
        ({"mesh": Mesh(data=5)}, "is not a multiple of micro_batch"),
        ({"mesh": Mesh(data=2), "ranks": 4}, "has 2 ranks, and --ranks is 4"),
        ({"mesh": Mesh(), "memory_gb": 1e-3}, "0.001 is too little: the least is"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(of, options, message):
    config, _, _ = of("sync=tree")
    with pytest.raises(UserError, match=message) as caught:
        planned(config, PlanOptions(flops=MANY_FLOPS, **options))
    assert "\n" not in str(caught.value)


def test_ranks_that_meet_at_no_fixed_time_are_not_planned(of):
    with pytest.raises(UserError, match=r"sync: async.*take another"):
        rehearse(*of("sync=async", "optim.clip=0"), Mesh(data=2), 0)
