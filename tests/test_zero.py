"""ZeRO-1: slices of the optimizer give the weights, moments and norms of whole ones, and fit any number of ranks."""

import gc
import math
import random
import threading

import pytest
import torch
from harness import STATE, make_config
from torch import nn

from hvdlm import checkpoint
from hvdlm.checkpoint.boxes import Cut
from hvdlm.checkpoint.parts import files_of, shares_of, table_of, write_parts
from hvdlm.checkpoint.store import begin, commit
from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.optim import OPTIMIZERS, OptimConfig, build_optimizer
from hvdlm.optim.norm import ROW, block_squares, square, total_of
from hvdlm.parallel.axes import axes_of
from hvdlm.sync import SYNCS, build_sync, zero
from hvdlm.sync.flat import FlatLayout
from hvdlm.sync.interface import ring_bytes
from hvdlm.train.guard import Verdict
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

BUILDING = threading.Lock()  # weights come from torch's one generator
SIZES = {"one": (1,), "seven": (7,), "number": (), "prime": (13,), "matrix": (20, 31), "cube": (5, 3, 37)}
SYNCED = ["tree", "allreduce"]
BY_ELEMENT = [name for name, choice in OPTIMIZERS.items() if choice.by_element]


class Odd(nn.Module):
    """Parameters of sizes that nothing divides, one of which nobody uses, and one that is not trained."""

    def __init__(self):
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        for name, shape in SIZES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=draws)))
        self.unused = nn.Parameter(torch.ones(300))
        self.frozen = nn.Parameter(torch.ones(300), requires_grad=False)

    def forward(self, x):
        """Of x (20,), a scalar."""
        hidden = torch.tanh(x @ self.matrix).sum() * self.seven.sum() * self.number + self.prime.square().sum()
        return (hidden * self.one).sum() + (self.cube * self.cube.roll(1) * x[0] * self.frozen[0]).sum()


def steps_of(world, *, shares, sync="tree", steps=3, micro_batches=60, **optim):
    """The model and the sync after some steps, and their norms; micro-batch m is the same whoever computes it."""
    model = Odd()
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, **optim))
    made = build_sync(SYNCS[sync](), model, optimizer, world, shares=shares)
    passes, norms = micro_batches // world.size, []
    for step in range(steps):
        made.begin(step, passes)
        for number in range(world.rank * passes, (world.rank + 1) * passes):
            x = torch.randn(20, generator=torch.Generator().manual_seed(1000 * step + number))
            (model(x) / micro_batches).backward()
            made.accumulated()
        made.reduce()
        norms.append(made.squares(lambda _, gradient: square(gradient)))
        made.step()
        made.zero_grad()
    return model, made, norms


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def filled(pieces_by_rank):
    """The tensors of pieces by key, put together; what nobody has stays NaN."""
    found = {}
    for piece in (piece for pieces in pieces_by_rank for piece in pieces):
        room = found.setdefault(piece.key, torch.full(piece.shape, torch.nan))
        place = tuple(slice(o, o + n) for o, n in zip(*piece.box, strict=True))
        assert torch.isnan(room[place]).all(), f"{piece.key}: twice"
        room[place] = piece.tensor
    return found


def moments_of(sync, model):
    """What a checkpoint would keep of the optimizer, where one rank has it whole."""
    pieces, _ = checkpoint.pieces_of(model, sync.optimizer, {})
    return {key: tensor for key, tensor in filled([pieces]).items() if key.startswith(checkpoint.OPTIMIZER)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()


@pytest.mark.parametrize("name", BY_ELEMENT)
def test_slices_of_any_sizes_give_the_bits_of_whole_parameters(name, monkeypatch):
    monkeypatch.setattr(zero, "PIECE_FLOATS", 1)  # several pieces, each the least
    model, whole_sync, norms = steps_of(SerialWorld(), shares=False, name=name, weight_decay=0.3)
    for size in (1, 2, 3, 4, 5):

        def on_rank(world):
            own, sync, found = steps_of(world, shares=True, name=name, weight_decay=0.3)
            return weights_of(own), sync.pieces({}, tells_whole=True), found

        ranks = run_on_threads(size, on_rank)
        for weights, _, found in ranks:
            assert_same(weights, weights_of(model))
            for step, squares in enumerate(norms):
                assert_same(found[step], squares)
        assert_same(filled(pieces for _, pieces, _ in ranks), moments_of(whole_sync, model))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_an_allreduce_may_stop_at_the_owners(size):
    """Sums over ranks have another order in an allreduce of more than two; there all else is the same too."""

    def on_rank(world):
        own, _, norms = steps_of(world, shares=False, sync="allreduce")
        sliced, _, found = steps_of(world, shares=True, sync="allreduce")
        return own, norms, sliced, found

    for own, norms, sliced, found in run_on_threads(size, on_rank):
        for step, squares in enumerate(norms):
            for name in squares:
                torch.testing.assert_close(found[step][name], squares[name], rtol=1e-4, atol=1e-12)
        for name, weights in weights_of(own).items():
            if size > 1 or name != "unused":  # an allreduce of one leaves it without a gradient, so that it decays not
                torch.testing.assert_close(weights_of(sliced)[name], weights)


def test_what_travels_is_what_an_allreduce_sends(monkeypatch):
    """But for the norm's blocks: 8 bytes for the 2 x 4 x 256 of weights and gradients."""
    monkeypatch.setitem(SIZES, "matrix", (20, 20_000))

    def on_rank(world):
        return [steps_of(world, shares=True, sync=sync, micro_batches=16)[1].bytes_sent for sync in SYNCED]

    least = 3 * ring_bytes([torch.empty(20 * 20_000)], 4)
    assert all(least < sent < 1.02 * least for each in run_on_threads(4, on_rank) for sent in each)


def saved(path, step, pieces_by_rank):
    aside, tables, facts = begin(path, step), {}, []
    for rank, pieces in enumerate(pieces_by_rank):
        files = files_of(shares_of(pieces), rank, len(pieces_by_rank))
        tables |= {number: table_of(shares) for number, shares in files.items()}
        facts += write_parts(aside, files)
    return commit(path, step, aside, tables, facts, STATE)


def test_the_state_of_any_number_of_ranks_is_read_by_any_other(tmp_path):
    model, whole_sync, _ = steps_of(SerialWorld(), shares=False, steps=1)
    expected = moments_of(whole_sync, model)
    assert expected["optimizer/number/step"].shape == expected["optimizer/number/exp_avg"].shape == ()
    paths = [saved(tmp_path, 9, [checkpoint.pieces_of(model, whole_sync.optimizer, {})[0]])]
    for size in (1, 2, 3, 4, 5):
        pieces = run_on_threads(
            size, lambda world: steps_of(world, shares=True, steps=1)[1].pieces({}, tells_whole=True)
        )
        paths.append(saved(tmp_path, size, pieces))
    for path in paths:
        for size in (1, 2, 3, 4, 5):

            def on_rank(world, path=path):
                model, sync, _ = steps_of(world, shares=True, steps=0)
                assert not sync.pieces({}, tells_whole=True)
                sync.load_optimizer(checkpoint.Checkpoint(path), model, {})
                assert all(not state["step"].dim() for state in sync.optimizer.state.values())
                return sync.pieces({}, tells_whole=True)

            assert_same(filled(run_on_threads(size, on_rank)), expected)
        fresh, unsliced, _ = steps_of(SerialWorld(), shares=False, steps=0)
        checkpoint.load_optimizer(path, fresh, unsliced.optimizer)
        assert_same(moments_of(unsliced, fresh), expected)


def test_the_state_of_another_model_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, 1, [steps_of(SerialWorld(), shares=True, steps=1)[1].pieces({}, tells_whole=True)])
    monkeypatch.setitem(SIZES, "prime", (17,))
    model, sync, _ = steps_of(SerialWorld(), shares=True, steps=0)
    with pytest.raises(UserError, match=r"step_00000001: prime/exp_avg is \(13,\), this config says \(17,\)"):
        sync.load_optimizer(checkpoint.Checkpoint(path), model, {})


def test_a_range_of_what_is_held_lies_where_it_is_in_the_whole():
    draw = random.Random(2)
    for _ in range(500):
        shape = tuple(draw.randint(1, 7) for _ in range(draw.randint(1, 3)))
        dim = draw.randrange(len(shape))
        ends = sorted(draw.randint(0, shape[dim]) for _ in range(4))
        cut = draw.choice([Cut(shape), Cut(shape, dim, (range(*ends[:2]), range(*ends[2:])))])
        tensor = torch.arange(math.prod(shape)).view(shape)
        held = cut.of(tensor).reshape(-1)
        first = draw.randint(0, held.numel())
        elements = range(first, draw.randint(first, held.numel()))
        flat = torch.full((len(elements),), -1)
        for view, box in cut.parts_of_range(flat, elements):
            assert view.shape == box.shape and box.numel
            view.copy_(tensor[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))])
        assert torch.equal(flat, held[elements.start : elements.stop])


def test_every_parameter_and_every_slice_begins_at_a_block():
    parameters = list(Odd().parameters())
    for size in (1, 2, 3, 5, 64):
        layout = FlatLayout(parameters, size, align=256)
        assert not any(start % 256 for start in layout.starts) and layout.padded % (256 * size) == 0
        width, seen = layout.padded // size, dict.fromkeys(range(len(parameters)), 0)
        flat = layout.zeros()
        layout.collect(flat)
        for rank in range(size):
            for part in layout.sections(range(rank * width, (rank + 1) * width)):
                assert part.elements.start == seen[part.number] and part.place % 256 == 0
                seen[part.number] = part.elements.stop
        assert seen == {number: parameter.numel() for number, parameter in enumerate(parameters)}


@pytest.mark.parametrize("length", [1, ROW - 1, ROW + 1, 150_777])
def test_the_norm_does_not_depend_on_the_number_of_threads(length):
    draws = torch.Generator().manual_seed(0)
    blocks = torch.rand(length, dtype=torch.float64, generator=draws) ** 8
    threads, found = torch.get_num_threads(), set()
    try:
        for num in (1, 2, 3, 4):
            torch.set_num_threads(num)
            found.add(float(total_of(blocks)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    assert found.pop() == pytest.approx(math.fsum(blocks.tolist()), rel=1e-14)


def test_a_block_has_the_same_square_wherever_it_stands():
    gradient = torch.randn(300 * 256 + 5, generator=torch.Generator().manual_seed(0))
    blocks = block_squares(gradient)
    assert float(blocks.sum()) == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)
    for first, end in ((0, 1), (7, 8), (7, 100), (1, 300), (299, 301)):
        assert torch.equal(block_squares(gradient[first * 256 : end * 256]), blocks[first:end])


class One(SerialWorld):
    """One rank of four, of which the others hold what it holds."""

    rank, size = 1, 4

    def exchange_rows(self, rows):
        return rows.clone()

    def gather_rows(self, row):
        return row.expand(4, *row.shape).clone()


def resident():
    """Bytes of all tensors' memory, each once; with what only gradients lead to."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # some lazy modules answer isinstance with a warning
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("sync", SYNCED)
def test_a_rank_holds_its_part_of_the_moments_alone(sync):
    """Weights 4, gradients 4 and moments 8 / 4 bytes a parameter; between steps an allreduce has no gradients."""
    gc.collect()
    before = resident()
    model = nn.Sequential(*(nn.Linear(300, 1000) for _ in range(4)))
    numel = sum(parameter.numel() for parameter in model.parameters())
    optimizer = build_optimizer(model, OptimConfig())
    made = build_sync(SYNCS[sync](), model, optimizer, One(), shares=True)
    del optimizer
    for step in range(2):
        made.begin(step, 1)
        sum(layer(torch.ones(300)).sum() for layer in model).backward()
        made.accumulated()
        assert (resident() - before) / numel <= (4 + 4 + (2 if step else 0) + (4 if sync == "tree" else 0)) * 1.02
        made.reduce()
        made.step()
        assert (resident() - before) / numel <= (4 + 4 + 2) * 1.02
        made.zero_grad()
    gc.collect()
    kept = (resident() - before) / numel
    assert kept == pytest.approx(4 + 2 + (4 if sync == "tree" else 0), rel=0.02)


def test_gradients_that_others_have_parts_of_are_completed():
    names = ["one", "cube", "unused"]

    def on_rank(world):
        model = Odd()
        sync = build_sync(SYNCS["tree"](), model, build_optimizer(model, OptimConfig()), world, shares=world.size > 1)
        sync.begin(0, 12 // world.size)
        for number in range(12 // world.size * world.rank, 12 // world.size * (world.rank + 1)):
            model(torch.full((20,), 0.1 * number)).backward()
            sync.accumulated()
        sync.reduce()
        sync.complete(names, lambda flat: 3 * flat + torch.arange(flat.numel()))
        return sync.squares(lambda _, gradient: square(gradient))

    (expected,) = run_on_threads(1, on_rank)
    for found in run_on_threads(4, on_rank):
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        *(
            (["optim.name=" + name], f"optim.name: {name} needs them whole")
            for name in sorted(OPTIMIZERS.keys() - BY_ELEMENT)
        ),
        *(([f"sync={name}"], "parallel.zero: 1 is for sync: tree") for name in SYNCS.keys() - SYNCED),
        (["sync={kind: allreduce, compress: {name: int8}}"], "without compress and overlap"),
        (["sync={kind: allreduce, overlap: true}"], "without compress and overlap"),
    ],
)
def test_what_needs_whole_parameters_or_sends_otherwise_is_refused(tmp_path, overrides, told):
    with pytest.raises(UserError, match=told):
        make_config(tmp_path, tmp_path, "parallel.zero=1", "optim.clip=0", *overrides)


def test_auto_is_an_allreduce(tmp_path):
    config, model = make_config(tmp_path, tmp_path, "parallel.zero=1", "sync=auto"), Odd()
    sync = build_sync(config.sync, model, build_optimizer(model, config.optim), SerialWorld(), shares=True)
    assert sync.kind == "allreduce"


SMALL = "model={family: transformer, layers: 1, width: 24, heads: 3, dropout: 0.1}"


@pytest.fixture
def learn(data_dir, tmp_path):
    """What `work(learner)` gives on each of so many threads as ranks."""
    source, manifest = TokenStream(data_dir, "train"), read_manifest(data_dir)

    def learn(size, work, *overrides):
        same = "sync=tree", "optim.clip=0.5", "train.micro_batch=1", "data.seq_len=16"
        config = make_config(data_dir, tmp_path, SMALL, *same, *overrides)

        def on_rank(world):
            axes = axes_of(world, config.parallel)
            with BUILDING:
                learner = GradientLearner(config, source, manifest, axes, Place(0, 1, 1))
            learner.agree()
            try:
                return work(learner)
            finally:
                learner.close()

        return run_on_threads(size, on_rank)

    return learn


def trained(learner, first=0, end=20):
    results = learner.run(first, end)
    pieces = [piece for piece in learner.pieces(learner.collect()[0])[0] if piece.share[0] == 0]
    return pieces, [float(result.grad_norm) for result in results], [result.verdict for result in results]


def outcome(ranks):
    """State by key, norms and verdicts; those of all ranks are one."""
    pieces, norms, verdicts = zip(*ranks, strict=True)
    assert len(set(map(str, norms))) == 1  # nan is nan there
    assert all(other == verdicts[0] for other in verdicts)
    return filled(pieces), norms[0], verdicts[0]


GROUPS = "optim.groups=[{match: 'mlp', weight_decay: 0.3, lr_scale: 0.5}]"


@pytest.mark.parametrize(
    ("overrides", "sizes"), [([GROUPS], (1, 2, 3, 4)), (["train.precision=bf16"], (3,))], ids=["groups", "bf16"]
)
def test_twenty_steps_are_those_of_whole_parameters_bit_for_bit(learn, overrides, sizes):
    state, norms, _ = outcome(learn(1, trained, *overrides))
    for size in sizes:
        found, its_norms, _ = outcome(learn(size, trained, *overrides, "parallel.zero=1"))
        assert its_norms == norms, size
        assert_same(found, state)


def test_a_scaled_loss_skipped_steps_a_running_mean_and_frozen_weights_are_as_before(learn):
    overrides = "train.precision=fp16", "ema.decay=0.9", "freeze=[embed]", "train.global_batch=6"

    def begins_too_large(learner):
        learner.scaler.scale = 2.0**26
        return trained(learner, end=8)

    state, norms, verdicts = outcome(learn(1, begins_too_large, *overrides))
    found, its_norms, its_verdicts = outcome(learn(2, begins_too_large, *overrides, "parallel.zero=1"))
    assert str(its_norms) == str(norms) and its_verdicts == verdicts
    assert {Verdict.APPLY, Verdict.SKIP} <= set(verdicts)
    assert any(key.startswith("engine/ema/") for key in state) and "optimizer/embed.weight/exp_avg" not in state
    assert_same(found, state)


@pytest.mark.parametrize("parallel", ["pipeline: 2, zero: 1", "pipeline: 2, chunks: 2, schedule: interleaved, zero: 1"])
def test_stages_with_slices_give_the_bits_of_one_process(learn, parallel):
    deep = "model.layers=4", "train.global_batch=8"
    state, norms, _ = outcome(learn(1, lambda learner: trained(learner, end=3), *deep))
    ranks = learn(4, lambda learner: trained(learner, end=3), *deep, f"parallel={{{parallel}}}")
    assert all(other == norms for _, other, _ in ranks)
    assert_same(filled(pieces for pieces, _, _ in ranks), state)


@pytest.mark.parametrize("sequence", ["", ", sequence: true"])
def test_tensor_ranks_with_slices_come_near_one_process(learn, sequence):
    state, norms, _ = outcome(learn(1, lambda learner: trained(learner, end=3)))
    ranks = learn(4, lambda learner: trained(learner, end=3), f"parallel={{tensor: 2, zero: 1{sequence}}}")
    assert all(other == pytest.approx(norms, rel=1e-5) for _, other, _ in ranks)
    found = filled(pieces for pieces, _, _ in ranks)
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_with_another_number_of_ranks(learn, tmp_path):
    """The state of two steps at two ranks, each with its slices, is what any other mesh would have come to."""
    expected, norms, _ = outcome(learn(1, lambda learner: trained(learner, end=4)))

    def held(learner):
        return trained(learner, end=2)[0], learner.collect()[1]

    ranks = learn(2, held, "parallel.zero=1")
    path = saved(tmp_path, 2, [pieces for pieces, _ in ranks])
    record = path / "state.json"
    assert record.exists()

    def goes_on(learner):
        assert learner.restore(path) == 2
        return trained(learner, first=2, end=4)

    for size, parallel in ((1, "zero: 0"), (3, "zero: 1"), (4, "zero: 1"), (2, "zero: 0")):
        found, rest, _ = outcome(learn(size, goes_on, f"parallel={{{parallel}}}"))
        assert rest == norms[2:]
        assert_same(found, expected)
