"""Ranks that share a model train to what one process does: bit for bit by pipeline, nearly by tensor."""

from typing import Literal

import meshes
import pytest
import torch
from harness import make_config

from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.optim import OPTIMIZERS
from hvdlm.parallel.axes import axes_of
from hvdlm.parallel.mesh import Mesh
from hvdlm.parallel.pipeline import BACKWARD, FORWARD, TIED_GRADIENT, Key, Layout, Pipeline
from hvdlm.parallel.telling import mesh_lines, mesh_warning
from hvdlm.session.stop import Wish
from hvdlm.tasks import Sums
from hvdlm.tasks.language_model import LanguageModelling, LmConfig, objective
from hvdlm.train.interval import IntervalMeter
from hvdlm.train.step import GradientLearner
from hvdlm.train.trained import in_words, trained_of
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

MODEL = "model={family: transformer, layers: 5, width: 32, heads: 4, dropout: 0.1}"
STEPS = 5


@pytest.fixture(autouse=True)
def made_late(monkeypatch):
    """As large weights are, where a rank has a part of a model."""
    monkeypatch.setattr("hvdlm.models.unmade.LARGE", 64)


@pytest.fixture
def trained(data_dir, tmp_path):
    """(weights by name, norms, losses) after some steps on so many threads as ranks."""
    source, manifest = TokenStream(data_dir, "train"), read_manifest(data_dir)

    def trained(size, *overrides, task=None):
        config = make_config(data_dir, tmp_path, MODEL, "sync=tree", "optim.clip=0.5", *overrides)
        config = config if task is None else config.model_copy(update={"task": task})

        def on_rank(world):
            axes = axes_of(world, config.parallel)
            with meshes.BUILDING:
                learner = GradientLearner(config, source, manifest, axes, Place(0, 1, 1))
            learner.agree()
            results = learner.run(0, STEPS)
            weights = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
            norms = [float(r.grad_norm) for r in results]
            sums = torch.stack([r.sums for r in results])
            learner.close()
            return weights, norms, sums, learner.shared.cuts

        return run_on_threads(size, on_rank)

    return trained


def whole(found):
    """The model's weights, put together of what the ranks hold."""
    return meshes.whole([meshes.Held(held, cuts) for held, _, _, cuts in found])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("size", "micro_batch", "parallel"),
    [
        *((2, 2, "pipeline: 2"), (3, 2, "pipeline: 3"), (4, 2, "pipeline: 4"), (4, 2, "pipeline: 2")),
        *((4, 12, "pipeline: 4"), (3, 2, "pipeline: 3, schedule: gpipe")),
        *((size, 2, f"pipeline: {size}, schedule: zero_bubble") for size in (2, 3)),
        (2, 2, "pipeline: 2, schedule: interleaved, chunks: 2"),
        (4, 3, "pipeline: 2, schedule: interleaved, chunks: 2"),
    ],
)
def test_stages_give_the_weights_of_one_process_bit_for_bit(trained, size, micro_batch, parallel, tied):
    same = f"model.tie_embeddings={str(tied).lower()}", f"train.micro_batch={micro_batch}", "train.global_batch=12"
    ((weights, norms, sums, _),) = trained(1, *same)
    found = trained(size, *same, f"parallel={{{parallel}}}")
    assert all(each[1] == norms for each in found)
    assert torch.equal(sum(each[2] for each in found), sums)
    assert {name: bool(torch.equal(weights[name], part)) for name, part in whole(found).items()} == dict.fromkeys(
        weights, True
    )


@pytest.mark.parametrize(
    ("size", "parallel"),
    [
        (2, "tensor: 2"),
        (3, "tensor: 3, sequence: true"),
        (4, "tensor: 2, sequence: true, pipeline: 2"),
        (4, "tensor: 2"),
    ],
)
def test_tensor_ranks_give_the_weights_of_one_process_nearly(trained, size, parallel):
    same = "train.micro_batch=3", "train.global_batch=12", "data.seq_len=31"
    ((weights, norms, sums, _),) = trained(1, *same)
    found = trained(size, *same, f"parallel={{{parallel}}}")
    assert all(each[1] == found[0][1] for each in found)
    assert found[0][1] == pytest.approx(norms, rel=1e-5)
    torch.testing.assert_close(sum(each[2] for each in found), sums, rtol=1e-6, atol=0)
    for name, part in whole(found).items():
        torch.testing.assert_close(part, weights[name], rtol=1e-5, atol=1e-5)
    for held, _, _, cuts in found[1:]:  # what tensor ranks hold alike stays alike
        for name, part in held.items():
            if cuts[name].is_whole and name in found[0][0]:
                assert torch.equal(part, found[0][0][name]), name


@pytest.mark.parametrize(("size", "parallel"), [(2, "tensor: 2"), (4, "tensor: 4"), (4, "tensor: 2, pipeline: 2")])
def test_tensor_ranks_in_blocks_give_the_weights_of_one_process_in_blocks_bit_for_bit(trained, size, parallel):
    same = "train.micro_batch=3", "train.global_batch=12", "model.bias=true"
    ((weights, norms, sums, _),) = trained(1, *same, "parallel={tensor_blocks: 4}")
    found = trained(size, *same, f"parallel={{{parallel}, tensor_blocks: 4}}")
    assert all(each[1] == norms for each in found)
    assert torch.equal(sum(each[2] for each in found), sums)
    assert {name: bool(torch.equal(weights[name], part)) for name, part in whole(found).items()} == dict.fromkeys(
        weights, True
    )


def test_rules_and_rates_by_layer_are_those_of_the_whole_model(trained):
    """A rule for the last layer finds nothing on the first stage; a layer's depth is that of the whole model."""
    rules = "optim.groups=[{match: blocks.4, lr_scale: 0.5}, {match: embed, weight_decay: 0}]"
    same = "train.micro_batch=2", "train.global_batch=12", "optim.layer_decay=0.7", rules, "freeze=[blocks.4.norm]"
    ((weights, norms, _, _),) = trained(1, *same)
    found = trained(2, *same, "parallel={pipeline: 2}")
    assert all(each[1] == norms for each in found)
    parts = whole(found)
    assert [name for name in weights if not torch.equal(weights[name], parts[name])] == []


def test_adapters_and_frozen_weights_lie_on_stages_too(trained):
    same = "train.micro_batch=2", "train.global_batch=12", "lora={rank: 2}", "ema={decay: 0.9}"
    ((weights, norms, _, _),) = trained(1, *same)
    found = trained(2, *same, "parallel={pipeline: 2}")
    assert all(each[1] == norms for each in found)
    parts = whole(found)
    assert [name for name in weights if not torch.equal(weights[name], parts[name])] == []


ALL_BUT_THE_LAST = "false", "[embed,blocks]"
THE_LAST = "false", "[blocks.3,blocks.4,^norm,^head]"  # gradients go through it
BETWEEN = "false", "[blocks.1,blocks.2]"
ALL_BUT_WHAT_IS_TIED = "true", "[blocks,^norm]"
THE_FIRST = "true", "[embed,blocks.0,blocks.1]"


@pytest.mark.parametrize(
    ("size", "parallel", "tied", "frozen"),
    [
        (4, "pipeline: 4", *ALL_BUT_THE_LAST),
        (3, "pipeline: 3, schedule: zero_bubble", *ALL_BUT_THE_LAST),
        (2, "pipeline: 2, schedule: interleaved, chunks: 2", *ALL_BUT_THE_LAST),
        (4, "pipeline: 2, zero: 1", *ALL_BUT_THE_LAST),
        (3, "pipeline: 3, schedule: zero_bubble", *THE_LAST),
        (4, "pipeline: 2, zero: 1", *THE_LAST),
        (2, "pipeline: 2, schedule: interleaved, chunks: 2", *BETWEEN),
        (4, "pipeline: 4", *BETWEEN),
        (3, "pipeline: 3, schedule: zero_bubble", *ALL_BUT_WHAT_IS_TIED),
        (4, "pipeline: 2, zero: 1", *ALL_BUT_WHAT_IS_TIED),
        (3, "pipeline: 3, schedule: gpipe", *THE_FIRST),
    ],
)
def test_a_stage_may_have_nothing_to_train(trained, size, parallel, tied, frozen):
    same = "train.micro_batch=2", "train.global_batch=12", f"model.tie_embeddings={tied}", f"freeze={frozen}"
    ((weights, norms, _, _),) = trained(1, *same)
    found = trained(size, *same, f"parallel={{{parallel}}}")
    assert all(each[1] == norms for each in found)
    parts = whole(found)
    assert [name for name in weights if not torch.equal(weights[name], parts[name])] == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lets_a_stage_have_nothing_to_train(trained, name):
    same = "train.micro_batch=6", "train.global_batch=12", f"optim.name={name}", "freeze=[embed,blocks.0,blocks.1]"
    ((weights, _, _, _),) = trained(1, *same)
    parts = whole(trained(3, *same, "parallel={pipeline: 3}"))
    assert [name for name in weights if not torch.equal(weights[name], parts[name])] == []


@pytest.mark.parametrize(("stages", "chunks"), [(2, 1), (4, 1), (2, 4)])
def test_each_message_of_a_step_has_a_tag_of_its_own(stages, chunks):
    """Two ranks may have as many under way as there are; the order in which they come tells nothing."""
    layout = Layout([range(n, n + 1) for n in range(stages * chunks)], chunks)
    pipeline = Pipeline(SerialWorld(), layout)
    kinds = FORWARD, BACKWARD, TIED_GRADIENT
    keys = [Key(kind, stage, n) for kind in kinds for stage in range(stages * chunks) for n in range(100)]
    tags = {pipeline._tag(key) for key in keys}
    assert len(tags) == len(keys)
    assert max(tags) < 1 << 15


def test_ranks_of_one_replica_read_the_same_examples_and_those_of_others_do_not(data_dir, tmp_path):
    source, manifest = TokenStream(data_dir, "train"), read_manifest(data_dir)
    config = make_config(data_dir, tmp_path, MODEL, "sync=tree", "train.micro_batch=2", "parallel={pipeline: 2}")

    def on_rank(world):
        axes = axes_of(world, config.parallel)
        with meshes.BUILDING:
            learner = GradientLearner(config, source, manifest, axes, Place(0, 1, 1))
        read = [learner.examples.read(step, part, 0).ids for step, part in learner.sync.work(0, 3)]
        learner.close()
        return axes.place.data, torch.stack(read).tolist()

    found = run_on_threads(4, on_rank)
    of_replica = dict(found)
    assert of_replica[0] != of_replica[1]
    assert all(read == of_replica[data] for data, read in found)


def test_a_step_that_leaves_a_message_behind_is_noticed():
    pipeline = Pipeline(SerialWorld(), Layout([range(1), range(1, 2)]))
    pipeline._receives[Key(FORWARD, 1, 0)] = SerialWorld().post_receive(torch.zeros(1), 0, 0)
    with pytest.raises(AssertionError, match="a schedule that is not complete"):
        pipeline._settle()


@pytest.mark.parametrize("name", ["adafactor", "lamb", "lars", "muon"])
def test_optimizers_of_whole_matrices_are_refused_where_matrices_are_cut(data_dir, tmp_path, name):
    """What they make of a part depends on the number of ranks; stages have whole ones."""
    for parallel in ("tensor: 2", "zero: 1"):
        with pytest.raises(UserError, match=f"cuts within matrices, and optim.name: {name} needs them whole"):
            make_config(data_dir, tmp_path, f"optim.name={name}", f"parallel={{{parallel}}}")
    make_config(data_dir, tmp_path, f"optim.name={name}", "parallel={pipeline: 2}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sync={kind: allreduce, compress: {name: topk}}",), "sync.compress: goes with whole models alone"),
        (("sync=local_sgd",), "sync: local_sgd: goes with whole models alone"),
        (("model.window=8", "data.order=contiguous"), "data.order: contiguous: goes with whole models alone"),
        (("train.compile=true",), "train.compile: true: goes with whole models alone"),
        (("model={family: lstm}",), "share a transformer without an encoder, not this lstm"),
    ],
)
def test_what_needs_whole_models_is_refused_in_a_line(data_dir, tmp_path, words, told):
    with pytest.raises(UserError, match=told) as caught:
        make_config(data_dir, tmp_path, *words, "parallel={pipeline: 2}")
    assert "\n" not in str(caught.value)


class OwnConfig(LmConfig):
    """A task of somebody's own, as docs/extending.md describes: it asks for all logits, and for the hidden vectors."""

    kind: Literal["own"] = "own"  # type: ignore[assignment]
    like = "lm"
    passes: int = 1

    def build(self, context):
        return Own(self, context)


class Own(LanguageModelling):
    def __init__(self, config, context):
        super().__init__(context)
        self._passes = config.passes

    def loss(self, model, batch, state, draws):
        hidden, state = model(batch.inputs, state, draws)
        for _ in range(1, self._passes):
            hidden = hidden + model(batch.inputs, None, draws)[0]
        aim, nll = objective(model.head(hidden), batch.targets, self.objective)
        targets = (batch.targets != IGNORED).sum()
        return Sums(aim + 0.01 * hidden.square().sum(), torch.stack((nll.double(), targets.double()))), state


@pytest.mark.parametrize("parallel", ["tensor: 2", "tensor: 2, sequence: true", "pipeline: 2"])
def test_a_task_of_ones_own_trains_alike(trained, parallel):
    same = "train.micro_batch=2", "train.global_batch=12"
    ((_, norms, sums, _),) = trained(1, *same, task=OwnConfig())
    found = trained(2, *same, f"parallel={{{parallel}}}", task=OwnConfig())
    assert found[0][1] == pytest.approx(norms, rel=1e-4)
    assert torch.allclose(found[0 if "tensor" in parallel else 1][2], sums, rtol=1e-5)


def test_a_task_that_passes_twice_is_refused_by_stages_before_any_update(trained):
    with pytest.raises(UserError, match="goes through the model twice for a loss, which stages cannot; set parallel"):
        trained(2, "parallel.pipeline=2", task=OwnConfig(passes=2))


MESHES = ["pipeline: 2", "pipeline: 2, schedule: zero_bubble", "tensor: 2", "pipeline: 2, tensor: 2"]


@pytest.mark.parametrize(
    ("parallel", "frozen"),
    [*((parallel, "[embed]") for parallel in MESHES), ("pipeline: 2", "[embed,blocks.0,blocks.1,blocks.2]")],
)
def test_what_a_run_says_of_itself_is_of_the_whole_model(data_dir, tmp_path, parallel, frozen):
    """The lines on what is trained, and the noise scale, are those of one process; what is sent is counted."""
    source, manifest = TokenStream(data_dir, "train"), read_manifest(data_dir)
    words = "optim.layer_decay=0.8", f"freeze={frozen}", "train.micro_batch=2", "train.global_batch=8", "sync=tree"

    def said(size, *more):
        config = make_config(data_dir, tmp_path, MODEL, "model.tie_embeddings=false", *words, *more)

        def on_rank(world):
            axes = axes_of(world, config.parallel)
            with meshes.BUILDING:
                learner = GradientLearner(config, source, manifest, axes, Place(0, 1, 1))
            learner.agree()
            world.barrier()  # a meter draws from torch's one generator, as weights do
            meter = IntervalMeter(learner, 5)
            interval = meter.agree(0, 3, learner.run(0, 3), wish=Wish.NONE)
            lines = in_words(world.gather(trained_of(learner.model, learner.groups, learner.cuts)))
            sent = learner.bytes_sent
            learner.close()
            return lines, interval.live["noise_scale"], sent

        return run_on_threads(size, on_rank)

    ((lines, noise, sent),) = said(1)
    assert len(lines) > 5 and sent == 0
    on_mesh = said(4 if "," in parallel and "tensor" in parallel else 2, f"parallel={{{parallel}}}")
    for rank, (found, scale, sent) in enumerate(on_mesh):
        assert sorted(found) == sorted(lines)
        assert scale == pytest.approx(noise, rel=1e-3)
        if rank == 1 and "blocks" in frozen:
            assert sent == 0, "no gradient goes to a stage that is frozen"
        else:
            assert sent >= 3 * 8 * 32 * 32 * 4, "the stream of three steps of 8 sequences of 32 tokens, 32 wide"


@pytest.mark.parametrize(
    ("words", "parallel", "told"),
    [
        ("lora={}", "pipeline: 2, tensor: 2", "lora: goes with whole layers alone; .*, or set parallel.tensor: 1$"),
        ("lora={}", "tensor_blocks: 4", "or set parallel.tensor_blocks: 0$"),
        ("train.compile=true", "pipeline: 2", "or set parallel.pipeline: 1$"),
        ("train.compile=true", "pipeline: 2, tensor: 2", "or set parallel.pipeline: 1 and parallel.tensor: 1$"),
    ],
)
def test_a_refusal_names_what_to_change_alone(data_dir, tmp_path, words, parallel, told):
    with pytest.raises(UserError, match=told):
        make_config(data_dir, tmp_path, words, f"parallel={{{parallel}}}")
    make_config(data_dir, tmp_path, words)


def test_waiting_counts_what_tensor_ranks_exchange_inside_layers(data_dir, tmp_path):
    source, manifest = TokenStream(data_dir, "train"), read_manifest(data_dir)
    config = make_config(data_dir, tmp_path, MODEL, "sync=tree", "parallel.tensor=2")

    def on_rank(world):
        axes = axes_of(world, config.parallel)
        with meshes.BUILDING:
            learner = GradientLearner(config, source, manifest, axes, Place(0, 1, 1))
        learner.agree()
        before_s = learner.axes.tensor.exchange_s
        (result,) = learner.run(0, 1)
        inside_s = learner.axes.tensor.exchange_s - before_s
        learner.close()
        return inside_s, result

    for inside_s, result in run_on_threads(2, on_rank):
        assert 0 < inside_s < result.comm_s < result.step_s


def test_the_start_tells_where_neighbours_are():
    """Tensor ranks meet in every layer: over two hosts that is a warning; stages may be anywhere."""
    mesh, layout = Mesh(2, 1, 2), Layout([range(3), range(3, 5)])
    by_host, in_turn = ["a", "a", "b", "b"], ["a", "b", "a", "b"]
    lines = mesh_lines(mesh, layout, "1f1b", by_host)
    assert lines[0].endswith("neighbours on two hosts: pipeline 2 of 2, tensor 0 of 2")
    assert lines[1] == "schedule 1f1b, layers by stage 0: 0-2; 1: 3-4"
    assert mesh_warning(mesh, by_host) == ""
    assert mesh_lines(mesh, layout, "1f1b", in_turn)[0].endswith("pipeline 0 of 2, tensor 2 of 2")
    assert "2 of 2 neighbours are on two hosts" in mesh_warning(mesh, in_turn)
