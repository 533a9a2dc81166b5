"""What tensor ranks exchange: its derivatives, how often they meet, lookups and losses over a shared vocabulary."""

import threading
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hvdlm.checkpoint.boxes import Cut
from hvdlm.compute.draws import draws_for
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.lora import LoraConfig, add_lora
from hvdlm.models.transformer import TransformerConfig
from hvdlm.parallel.exchange import added, enter, leave, leave_in_parts, part_of, scattered, summed, together
from hvdlm.parallel.tensor import cut_tensor
from hvdlm.parallel.tensor_layers import ColumnLinear, VocabEmbedding
from hvdlm.partition import slice_of
from hvdlm.tasks.language_model import ObjectiveConfig, objective_at
from hvdlm.world.threads import run_on_threads

BUILDING = threading.Lock()  # weights come from torch's one generator


def model_of(vocab_size=65, **options):
    shape = {"layers": 2, "width": 16, "heads": 4, "bias": True}
    with BUILDING:
        return build_model(TransformerConfig(**{**shape, **options}), Vocabulary(vocab_size, 0), seed=3)


def rows_of(rank, size, *shape):
    """Numbers of a rank's own, float64."""
    total = torch.Size(shape).numel()
    return torch.sin(torch.arange(total, dtype=torch.float64) * (1.3 + rank) + rank).view(shape)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_layers_between_enter_and_leave_have_the_derivatives_of_their_sum(size):
    x = rows_of(7, 1, 2, 3, 4).requires_grad_()

    def on_rank(world):
        weight = rows_of(world.rank, size, 5, 4)

        def alike(x):
            return leave(F.linear(enter(x, world), weight).tanh(), world)

        return torch.autograd.gradcheck(alike, (x.detach().clone().requires_grad_(),))

    assert all(run_on_threads(size, on_rank))


@pytest.mark.parametrize("time", [1, 3, 7])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_of_a_sequence_have_the_derivatives_of_the_whole(size, time):
    def on_rank(world):
        cut = Cut((5 * size, 4), 0, (slice_of(world.rank, size, 5 * size),))
        column = nn.Linear(4, 5 * size, dtype=torch.float64)
        with torch.no_grad():
            column.weight.copy_(rows_of(1, 1, 5 * size, 4))
            column.bias.copy_(rows_of(2, 1, 5 * size))
        layer = ColumnLinear(column, cut, world, shares_time=True)
        layer.time = time

        def alike(x):
            part = part_of(enter(x, world), world).exp()
            return together(leave_in_parts(layer(part).tanh(), world), world, time)

        return torch.autograd.gradcheck(alike, (rows_of(7, 1, 2, time, 4).requires_grad_(),))

    assert all(run_on_threads(size, on_rank))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_sums_are_the_same_bits_on_all_ranks_and_touch_nothing(size, dtype):
    def on_rank(world):
        x = rows_of(world.rank, size, 2, 7, 3).to(dtype)
        before = x.clone()
        total, mine = summed(x, world), scattered(x, world)
        assert torch.equal(x, before)
        wide = torch.float32 if dtype == torch.bfloat16 else dtype
        return total, mine, x.to(wide)

    found = run_on_threads(size, on_rank)
    expected = torch.stack([x for _, _, x in found]).sum(0).to(dtype)
    for total, _, _ in found:
        assert torch.equal(total, found[0][0])
        torch.testing.assert_close(total, expected)
    assert torch.equal(torch.cat([mine for _, mine, _ in found], dim=1), found[0][0])


def test_a_gradient_that_others_hold_too_is_left_as_it_is():
    def on_rank(world):
        shared = torch.ones(2, 5, 3)
        for function in (enter, leave, leave_in_parts):
            x = torch.zeros(2, 5, 3, requires_grad=True)
            out = function(x, world)
            gradient = shared[:, : out.shape[1]]
            out.backward(gradient)
            assert torch.equal(shared, torch.ones(2, 5, 3))

    run_on_threads(2, on_rank)


def test_a_sum_of_neighbours_goes_on_to_the_sum_of_all():
    parts = [torch.randn(50) for _ in range(8)]
    for size in (2, 4):
        each = 8 // size
        halves = [added(parts[rank * each : (rank + 1) * each]) for rank in range(size)]
        assert torch.equal(added(halves), added(parts))


class Counting:
    """A world that counts who meets how often."""

    def __init__(self, world):
        self._world, self.counts = world, Counter()

    def __getattr__(self, name):
        found = getattr(self._world, name)
        if name not in ("exchange_rows", "gather_rows"):
            return found

        def counted(rows):
            self.counts[name] += 1
            return found(rows)

        return counted


def meetings(layers, *, shares_time=False, **options):
    """By rank how often it meets others forward and in all, of one pass with so many layers."""

    def on_rank(world):
        world = Counting(world)
        model = model_of(layers=layers, **options)
        cut_tensor(model, world, shares_time=shares_time)
        hidden, _ = model(torch.arange(8).view(1, 8), None, draws_for(1, 2, torch.arange(1).numpy()))
        forward = Counter(world.counts)
        hidden.sum().backward()
        return forward, Counter(world.counts)

    found = run_on_threads(2, on_rank)
    assert all(each == found[0] for each in found)
    return found[0]


def of_a_block(**options):
    few, many = meetings(2, **options), meetings(3, **options)
    return dict(many[0] - few[0]), dict(many[1] - few[1])


def test_a_block_adds_up_twice_on_the_way_there_and_twice_back():
    forward, both = of_a_block()
    assert forward == {"exchange_rows": 2, "gather_rows": 2}  # a sum is one of each
    assert both == {"exchange_rows": 4, "gather_rows": 4}


def test_a_block_on_parts_of_sequences_gathers_and_scatters_twice():
    forward, both = of_a_block(shares_time=True)
    assert forward == {"exchange_rows": 2, "gather_rows": 2}
    assert both == {"exchange_rows": 4, "gather_rows": 6}  # what was gathered is gathered again


@pytest.mark.parametrize("shares_time", [False, True])
def test_what_is_computed_again_meets_as_often_on_all_ranks(shares_time):
    _, both = of_a_block(shares_time=shares_time, activation_checkpointing=True, dropout=0.1)
    _, plain = of_a_block(shares_time=shares_time)
    assert both["exchange_rows"] in (plain["exchange_rows"] + 1, plain["exchange_rows"] + 2)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_each_id_is_looked_up_by_who_has_it(size):
    table = nn.Embedding(13, 4)

    def on_rank(world):
        cut = Cut((13, 4), 0, (slice_of(world.rank, size, 13),))
        layer = VocabEmbedding(table, cut, world, shares_time=False)
        found = layer(torch.arange(13).view(1, 13))
        (found * torch.arange(13).view(1, 13, 1)).sum().backward()
        return found.detach(), layer.weight.grad

    found = run_on_threads(size, on_rank)
    assert all(torch.equal(each[0][0], table.weight) for each in found)
    assert torch.equal(torch.cat([each[1] for each in found])[:, 0], torch.arange(13.0))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("vocab_size", [65, 257, 50_257])
def test_the_loss_of_a_shared_vocabulary_is_that_of_all_logits(vocab_size, size):
    config = ObjectiveConfig(label_smoothing=0.1, z_loss=0.01)
    hidden = rows_of(3, 1, 2, 5, 16) * 3
    targets = torch.tensor([[0, vocab_size - 1, vocab_size // size, IGNORED, vocab_size // 2], [1, 2, 3, 4, IGNORED]])
    how = {"layers": 1, "head_bias": True, "tie_embeddings": False, "logit_softcap": 9.0}

    whole = model_of(vocab_size, **how).double()
    with torch.no_grad():
        whole.head.weight.mul_(20)
    x = hidden.clone().requires_grad_()
    logits = whole.head(x)
    smoothed = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=0.1, reduction="sum"
    )
    log_z = logits.logsumexp(-1)[targets != IGNORED]
    aim = smoothed + 0.01 * log_z.square().sum()
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    aim.backward()

    def on_rank(world):
        model = model_of(vocab_size, **how).double()
        with torch.no_grad():
            model.head.weight.mul_(20)
        cuts = cut_tensor(model, world, shares_time=False).cuts
        mine = hidden.clone().requires_grad_()
        found = objective_at(model, mine, targets, config)
        found[0].backward()
        of_weight = cuts["head.weight"].of(whole.head.weight.grad)
        torch.testing.assert_close(model.head.weight.grad, of_weight, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mine.grad, x.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(model.head(hidden), logits.detach(), rtol=1e-10, atol=1e-12)
        return [float(part.detach()) for part in found]

    for found in run_on_threads(size, on_rank):
        assert found == pytest.approx([float(aim.detach()), float(nats.detach())], rel=1e-10)


@pytest.mark.parametrize("size", [2, 3])
def test_weights_begin_as_the_serial_ones(size):
    whole = dict(model_of(activation="swiglu", qk_norm=True).named_parameters())

    def on_rank(world):
        model = model_of(activation="swiglu", qk_norm=True)
        cuts = cut_tensor(model, world, shares_time=False).cuts
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, cuts[name].of(whole[name]) if name in cuts else whole[name]), name
        return [name for name, _ in model.named_parameters()]

    assert all(names == list(whole) for names in run_on_threads(size, on_rank))


def test_heads_of_a_rank_are_serial_heads():
    """Queries, keys and values are one matrix; rows of it in blocks would give the first rank queries alone (MP1)."""
    whole = model_of(heads=4, kv_heads=2, positions={"kind": "none"}, qk_norm=True)
    x = torch.randn(2, 5, 16)
    attention = whole.blocks[0].attention
    parts = attention.qkv(x).split([16, 8, 8], -1)
    expected = [attention.by_head(part) for part in parts]

    def on_rank(world):
        model = model_of(heads=4, kv_heads=2, positions={"kind": "none"}, qk_norm=True)
        cut_tensor(model, world, shares_time=False)
        own = model.blocks[0].attention
        sizes = [heads * own.head_width for heads in (own.heads, own.kv_heads, own.kv_heads)]
        return [own.by_head(part.detach()) for part in own.qkv(x).split(sizes, -1)]

    found = run_on_threads(2, on_rank)
    for number, heads in enumerate(expected):
        torch.testing.assert_close(torch.cat([of_rank[number] for of_rank in found], dim=1), heads.detach())


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_masks_of_parts_are_the_parts_of_the_mask(size):
    draws = draws_for(1, 2, torch.arange(3).numpy())
    whole = draws.uniform_bits(4, (7, 6, 5))
    parts = [slice_of(rank, size, 7) for rank in range(size)]
    found = [draws.uniform_bits(4, (len(part), 6, 5), start=part.start * 30) for part in parts]
    assert torch.equal(torch.cat(found, dim=1), whole)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"heads": 8, "kv_heads": 2}, 3, r"parallel.tensor: 3 ranks cannot share model.kv_heads or heads 2"),
        ({"mlp_width": 2}, 3, r"parallel.tensor: 3 ranks cannot share model.mlp_width 2"),
        ({"vocab_size": 2}, 3, r"parallel.tensor: 3 ranks cannot share a vocabulary of 2"),
        ({"encoder_layers": 1}, 2, r"parallel.tensor: 2: only model.family: transformer without an encoder"),
    ],
)
def test_what_ranks_cannot_share_is_refused(options, size, message):
    with pytest.raises(UserError, match=message):
        run_on_threads(size, lambda world: cut_tensor(model_of(**options), world, shares_time=False))


@pytest.mark.parametrize("num_blocks", [0, 4])
def test_adapters_are_refused_and_not_lost(num_blocks):
    def on_rank(world):
        model = model_of()
        add_lora(model, LoraConfig(rank=2))
        cut_tensor(model, world, shares_time=False, num_blocks=num_blocks)

    with pytest.raises(UserError, match="leave lora out"):
        run_on_threads(2, on_rank)
