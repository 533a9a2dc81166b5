"""What belongs to the recurrent and convolutional families alone: weight dropout, initial weights, scans, presets."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import ROOT
from pydantic import ValidationError
from torch.autograd import gradcheck

from hvdlm.compute.draws import draws_for
from hvdlm.config import load
from hvdlm.errors import UserError
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.convolutional import ConvConfig
from hvdlm.models.min_gru import LinearRecurrence, MinGruConfig, scan
from hvdlm.models.recurrent import GruConfig, LstmConfig, RnnConfig
from hvdlm.optim import lr_at
from hvdlm.train.config import RunConfig
from hvdlm.train.recurrent_state import RecurrentState
from hvdlm.world.serial import SerialWorld

RECURRENT = [RnnConfig, GruConfig, LstmConfig]
FAMILIES = [*RECURRENT, MinGruConfig, ConvConfig]


def build(config):
    return build_model(config, Vocabulary(50, 49), seed=0)


def draws(*samples, step=0):
    return draws_for(0, step, np.array(samples))


def loss_of(model, ids, draws):
    hidden, _ = model(ids[:, :-1], None, draws)
    return F.cross_entropy(model.head(hidden).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def used_weight(model, draws):
    """The hidden-to-hidden weight that a forward pass uses in the layer that `model` has."""
    seen = []
    hook = model.layers[0].register_forward_pre_hook(
        lambda layer, _: seen.append(dict(zip(layer._flat_weights_names, layer._flat_weights, strict=True)))
    )
    model(torch.zeros(len(draws.keys), 2, dtype=torch.int64), None, draws)
    hook.remove()
    return seen[0]["weight_hh_l0"].detach()


@pytest.mark.parametrize("config", RECURRENT)
def test_dropped_weights_change_from_step_to_step_and_are_equal_within_one(config):
    model = build(config(layers=1, width=64, weight_dropout=0.3)).train()
    own = model.layers[0].weight_hh_l0.detach()
    first, rank, again = (used_weight(model, draws(*samples)) for samples in ((0, 1), (7,), (0, 1)))
    assert torch.equal(first, rank) and torch.equal(first, again)
    later = used_weight(model, draws(0, 1, step=1))
    assert not torch.equal(later, first)
    dropped = first == 0
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=4.5 * math.sqrt(0.21 / own.numel()))
    assert float((dropped & (later == 0)).double().mean()) == pytest.approx(0.09, abs=0.02)
    assert torch.allclose(first[~dropped], own[~dropped] / 0.7)
    assert model.layers[0]._flat_weights[1] is model.layers[0].weight_hh_l0  # the layer has its own weight again


@pytest.mark.parametrize("config", RECURRENT)
def test_dropped_weights_are_what_the_layer_computes_with(config):
    """The same as a layer whose weight is set to the dropped one, which has no dropout."""
    dropping, plain = build(config(layers=1, width=16, weight_dropout=0.5)), build(config(layers=1, width=16))
    ids = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    kept = used_weight(dropping, draws(0, 1, 2))
    plain.layers[0].weight_hh_l0.data.copy_(kept)
    assert torch.equal(dropping(ids, None, draws(0, 1, 2))[0], plain(ids)[0])
    assert not torch.equal(dropping(ids)[0], plain(ids)[0])  # none without draws
    for model in (dropping, plain):
        loss_of(model, ids, draws(0, 1, 2)).backward()
    found, expected = (model.layers[0].weight_hh_l0.grad for model in (dropping, plain))
    assert torch.allclose(found, torch.where(kept != 0, expected * 2, 0.0), atol=1e-5)  # of the raw weights
    assert float(found.abs().max()) > 0


@pytest.mark.parametrize("config", [LstmConfig, ConvConfig])
def test_micro_batches_have_the_gradients_of_the_whole_batch_with_draws_of_a_step(config):
    options = {"weight_dropout": 0.5} if config is LstmConfig else {}
    model = build(config(layers=2, width=16, embed_word_dropout=0.3, dropout=0.2, **options))
    ids = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(0))
    gradients = []
    for size in (6, 2):
        model.zero_grad()
        for first in range(0, 6, size):
            loss_of(model, ids[first : first + size], draws(*range(first, first + size), step=3)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*gradients, strict=True))


def test_a_dropped_word_is_dropped_wherever_it_stands_in_a_step():
    model = build(LstmConfig(layers=1, width=16, embed_word_dropout=0.5))
    ids = torch.arange(50).repeat(3, 2)
    plain, first, other = (model._embedded(ids, by) for by in (None, draws(0, 1, 2), draws(5, 6, 7)))
    assert torch.equal(first, other)
    assert torch.equal(first[:, :50], first[:, 50:]) and torch.equal(first[0], first[2])
    kept = first[0, :50].abs().sum(-1) > 0
    assert 10 < int(kept.sum()) < 40
    assert torch.allclose(first[0, :50][kept], plain[0, :50][kept] * 2)
    assert not torch.equal(first, model._embedded(ids, draws(0, 1, 2, step=1)))
    loss_of(model, ids, draws(0, 1, 2)).backward()  # the output's weights, which are tied, are not dropped
    assert float(model.embed.weight.grad.abs().sum(-1).min()) > 0


@pytest.mark.parametrize("config", RECURRENT)
def test_all_weights_can_begin_uniform(config):
    model = build(config(layers=1, width=64, init_range=0.1, tie_embeddings=False, head_bias=True))
    for name, parameter in model.state_dict().items():
        assert 0.08 < float(parameter.abs().max()) <= 0.1, name
        assert float(parameter.mean()) == pytest.approx(0, abs=0.1 / math.sqrt(3 * parameter.numel()) * 4.5), name


def test_the_forget_gate_can_begin_open():
    """Zeros in, the past is kept by sigmoid(3)."""
    model = build(LstmConfig(layers=2, width=8, forget_bias=3.0, init_range=1e-9))
    _, state = model(torch.zeros(1, 1, dtype=torch.int64), tuple(torch.ones_like(p) for p in model.initial_state(1)))
    assert [float(cell.detach().mean()) for cell in state[1::2]] == pytest.approx(
        [1 / (1 + math.exp(-3))] * 2, rel=1e-4
    )


def test_the_gru_is_the_variant_that_resets_after_the_product():
    model = build(GruConfig(layers=1, width=4))
    layer, x, h = model.layers[0], torch.randn(1, 1, 4), torch.randn(1, 4)
    of_x, of_h = (
        F.linear(x[:, 0], layer.weight_ih_l0, layer.bias_ih_l0),
        F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0),
    )
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = of_x.chunk(3, -1), of_h.chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    assert torch.allclose(model.run_layer(0, x, (h,), None)[1][0], (1 - update) * new + update * h, atol=1e-6)


@pytest.mark.parametrize("time", [1, 2, 3, 16, 17, 100])
def test_a_scan_is_the_recurrence(time):
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, time, 3, generator=random), torch.rand(2, time, 3, generator=random)
    hidden, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for place in range(time):
        hidden = a[:, place].double() * hidden + b[:, place].double()
        expected.append(hidden)
    assert torch.allclose(scan(a, b).double(), torch.stack(expected, dim=1), rtol=1e-6)


def test_a_scan_keeps_its_digits_over_long_windows():
    """Gates that forget much: sums of their logarithms would have no digits left behind the point."""
    a, b = torch.full((1, 4096, 1), 1e-3), torch.ones(1, 4096, 1)
    assert torch.allclose(scan(a, b)[0, 10:], torch.tensor(1 / (1 - 1e-3)), rtol=1e-6)


@pytest.mark.parametrize("time", [1, 4, 7])
def test_the_gradient_of_the_recurrence_is_that_of_finite_differences(time):
    random = torch.Generator().manual_seed(0)
    shapes = (2, time, 3), (2, time, 3), (2, 3)
    inputs = [torch.rand(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert gradcheck(LinearRecurrence.apply, inputs)


@pytest.mark.parametrize("config", FAMILIES)
def test_gradients_are_those_of_finite_differences(config):
    """Of every weight but the embedding's, in float64, with dropout."""
    small = {"expansion": 1, "kernel": 2} if config is MinGruConfig else {}
    model = build(config(layers=1, width=3, embed_width=2, dropout=0.3, embed_word_dropout=0.3, **small)).double()
    ids = torch.tensor([[1, 2, 1, 3], [4, 1, 0, 2]])
    names = [name for name, _ in model.named_parameters() if "embed" not in name]

    def loss(*values):
        changed = dict(zip(names, values, strict=True))
        hidden, _ = torch.func.functional_call(model, changed, (ids, None, draws(0, 1)))
        return hidden.square().sum()

    assert gradcheck(loss, [model.get_parameter(name).detach().requires_grad_() for name in names], atol=1e-4)


@pytest.mark.parametrize(
    ("config", "seen"),
    [
        (ConvConfig(), 61),
        (ConvConfig(preset="tcn", kernel=3, layers=4), 61),
        (ConvConfig(preset="gcnn", kernel=4, layers=8), 25),
        (ConvConfig(layers=2, kernel=2, dilation=3, convolutions=1), 5),
        (ConvConfig(layers=1, kernel=1), 1),
    ],
)
def test_a_position_sees_its_receptive_field_and_no_more(config, seen):
    assert config.receptive_field == seen
    model = build(config.model_copy(update={"width": 8}))
    ids = torch.randint(50, (1, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, places = model(ids)[0][0, -1], range(70 - seen - 2, 70 - seen + 2)
        for place in filter(lambda place: 0 <= place < 70, places):
            changed = ids.clone()
            changed[0, place] = (ids[0, place] + 1) % 50
            is_equal = torch.allclose(model(changed)[0][0, -1], before, rtol=0, atol=0)
            assert is_equal == (place < 70 - seen), place


def test_a_preset_fills_what_is_not_said_and_what_differs_is_told():
    tcn = ConvConfig(preset="tcn", width=8)
    assert (tcn.activation, tcn.convolutions, tcn.dilation, tcn.weight_norm) == ("relu", 2, 2, True)
    assert ConvConfig(**tcn.model_dump()) == tcn
    assert tcn.remarks == ConvConfig().remarks == ()
    mixed = ConvConfig(preset="tcn", activation="glu")
    assert (mixed.activation, mixed.convolutions) == ("glu", 2)
    assert mixed.remarks == ("model.preset: tcn but for activation: glu (not relu), as the config says",)


def test_a_stack_that_sees_too_far_is_refused():
    with pytest.raises(ValidationError, match="a token would see more than 1,048,576 others; lower one of them"):
        ConvConfig(layers=1000, dilation=64)


def test_weight_norm_begins_as_the_plain_convolution_and_learns_lengths():
    normed, plain = (build(ConvConfig(layers=2, width=8, weight_norm=on)) for on in (True, False))
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(normed(ids)[0], plain(ids)[0], atol=1e-6)
    roles = normed.parameter_roles()
    assert {roles[name] for name, _ in normed.named_parameters() if name.endswith("length")} == {"vector"}
    for convolution in normed.layers[0].convolutions:
        convolution.linear.weight.data.mul_(2)
    assert torch.allclose(normed(ids)[0], plain(ids)[0], atol=1e-6)  # directions alone


def test_the_ptb_lstm_decays_as_zaremba_s():
    """4 epochs at 1.0 a window of 20 (20 a token), then half as much with each; 2,323 steps an epoch of PTB."""
    config = load(RunConfig, ROOT / "configs/ptb-lstm.yaml")
    for epoch in range(13):
        rates = {lr_at(2323 * epoch + step, 13 * 2323, config.optim) for step in (0, 1, 1000, 2321, 2322)}
        assert rates == {20 * 0.5 ** max(0, epoch + 1 - 4)}


def test_a_carried_state_of_another_version_is_refused_in_words():
    state = RecurrentState(build(LstmConfig(layers=1, width=8)), 4, SerialWorld())
    saved = state.gather()
    state.load(saved)
    with pytest.raises(UserError, match=r"of another version of hvdlm \(tensors of \[\(2, 8\)\] a stream, not"):
        state.load([torch.zeros(4, 2, 8)])
    with pytest.raises(UserError, match="begin a new run with these weights"):
        state.load([*saved, saved[0]])


def test_a_preset_is_no_other_architecture_than_its_keys():
    tcn = ConvConfig(preset="tcn")
    keys = {key: getattr(tcn, key) for key in ("activation", "convolutions", "dilation", "weight_norm")}
    assert ConvConfig(**keys).architecture == tcn.architecture != ConvConfig().architecture


def test_min_gru_is_its_formula():
    """One block without a convolution: h = (1 - z) h + z g(v), step by step in float64."""
    model = build(MinGruConfig(layers=1, width=4, kernel=1)).double()
    block, x = model.layers[0], torch.randn(2, 6, 4, dtype=torch.float64)
    hidden, expected = torch.zeros(2, 8, dtype=torch.float64), []
    for place in range(6):
        gate, value = block.gates(block.norm1(x[:, place])).chunk(2, -1)
        z, g = torch.sigmoid(gate), torch.where(value >= 0, value + 0.5, torch.sigmoid(value))
        hidden = (1 - z) * hidden + z * g
        added = x[:, place] + block.out(hidden)
        expected.append(added + block.mlp(block.norm2(added)))
    found, (after, _) = block(x, tuple(part.double() for part in model.initial_state(2)), None)
    assert torch.allclose(found, torch.stack(expected, dim=1), atol=1e-5)
    assert torch.allclose(after.double(), hidden, atol=1e-5)
