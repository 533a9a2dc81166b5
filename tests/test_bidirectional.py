"""Recurrent layers that read both ways: each row from its own ends, whatever stands behind it."""

import numpy as np
import pytest
import torch
from harness import make_config
from torch import nn

from hvdlm.compute.draws import Draws, draws_for
from hvdlm.errors import UserError
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.recurrent import GruConfig, LstmConfig, RnnConfig

SHAPE = {"bidirectional": True, "layers": 2, "width": 16, "embed_width": 10}
CONFIGS = [
    RnnConfig(**SHAPE, nonlinearity="relu"),
    GruConfig(**SHAPE),
    LstmConfig(**SHAPE),
    LstmConfig(**{**SHAPE, "layers": 3}, variational=True, forget_bias=1.0, init_range=0.3),
]
LENGTHS = torch.tensor([7, 3, 1, 0, 5])


def build(config):
    return build_model(config, Vocabulary(50, 49), seed=0)


def but(config, **changes):
    return config.model_copy(update=changes)


def ids_of(*shape):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(0))


def draws(*samples, step=0):
    return draws_for(0, step, np.array(samples))


@pytest.fixture(params=CONFIGS, ids=lambda config: config.family)
def model(request):
    return build(request.param)


def test_it_is_torchs_own_layer_over_packed_sequences(model):
    """With the same weights; of these there are as many as in one of torch's that reads both ways."""
    config, ids, lengths = CONFIGS[0], ids_of(4, 7), torch.tensor([7, 3, 1, 5])
    first = model.layers[0]
    options = {"nonlinearity": config.nonlinearity} if isinstance(first, nn.RNN) else {}
    num = len(model.layers) // 2
    theirs = type(first)(10, 8, num, batch_first=True, bidirectional=True, **options)
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            end = f"l{number // 2}" + ("_reverse" if number % 2 else "")
            for name, parameter in layer.named_parameters():
                theirs.get_parameter(name.replace("l0", end)).copy_(parameter)
    x = nn.utils.rnn.pack_padded_sequence(model.embed(ids), lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(x)[0], batch_first=True)
    hidden, state = model(ids, lengths=lengths)
    assert state is None and hidden.shape == (4, 7, model.hidden_width)
    assert torch.allclose(hidden, expected, atol=1e-6)


def test_a_row_is_the_same_alone_and_beside_longer_ones(model):
    """Padded = alone, whatever stands there, for each length from 0 on; padding is 0, and never NaN."""
    ids = ids_of(5, 7)
    hidden, _ = model(ids, lengths=LENGTHS)
    assert hidden.isfinite().all()
    is_there = torch.arange(7) < LENGTHS.unsqueeze(1)
    assert torch.equal(model(torch.where(is_there, ids, 3), lengths=LENGTHS)[0], hidden)
    assert (hidden[~is_there] == 0).all()
    for row, length in enumerate(LENGTHS.tolist()):
        if length:
            alone, _ = model(ids[row : row + 1, :length])
            assert torch.allclose(alone[0], hidden[row, :length], atol=1e-6)


def test_each_position_sees_both_sides(model):
    ids = ids_of(2, 7)
    before, _ = model(ids)
    for place in (0, 6):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % 50
        assert (before - model(changed)[0]).abs().amax(-1).min() > 0


def test_padding_has_no_gradient(model):
    ids = ids_of(5, 7).clamp(max=48)
    is_there = torch.arange(7) < LENGTHS.unsqueeze(1)
    model(torch.where(is_there, ids, 49), lengths=LENGTHS)[0].square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())
    assert not model.embed.weight.grad[49].any()


DROPOUTS = {"dropout": 0.4, "embed_word_dropout": 0.3, "weight_dropout": 0.3}


@pytest.mark.parametrize("config", [but(config, **DROPOUTS) for config in CONFIGS], ids=lambda c: c.family)
def test_draws_follow_the_sample_and_not_its_batch_nor_its_padding(config):
    model, ids = build(config).train(), ids_of(5, 7)
    drawn, _ = model(ids, None, draws(*range(5)), lengths=LENGTHS)
    assert not torch.equal(drawn, model(ids, lengths=LENGTHS)[0])
    assert not torch.equal(drawn, model(ids, None, draws(*range(5), step=1), lengths=LENGTHS)[0])
    for row in (0, 1, 4):
        length = int(LENGTHS[row])
        alone, _ = model(ids[row : row + 1, :length], None, draws(row))
        assert torch.allclose(alone[0], drawn[row, :length], atol=1e-6)


def test_no_two_dropouts_have_the_same_draws(monkeypatch):
    made, plain = [], Draws.uniform_bits
    monkeypatch.setattr(
        Draws,
        "uniform_bits",
        lambda self, site, *of: made.append((tuple(self.keys.tolist()), site)) or plain(self, site, *of),
    )
    build(but(CONFIGS[2], **DROPOUTS))(ids_of(2, 5), None, draws(0, 1))
    assert len(set(made)) == len(made) == 3 + 2 * 2 + 1  # between and around layers, weights either way, words


def test_the_forget_gates_of_both_ways_can_begin_open():
    model = build(CONFIGS[3])
    for layer in model.layers:
        assert layer.bias_ih_l0[8:16].tolist() == [1.0] * 8 and not layer.bias_hh_l0[8:16].any()
        assert float(layer.bias_ih_l0[:8].detach().abs().max()) <= 0.3


def test_it_has_no_head_of_its_own_and_gives_as_many_values_as_width():
    for config in CONFIGS:
        model = build(config)
        assert model.hidden_width == 16 and not list(model.head.parameters())
        assert config.tasks == ("classify", "tag", "span") and not config.predicts_tokens
        assert but(config, bidirectional=False).tasks == ("lm", "seq2seq", "classify", "tag", "span")


def test_it_continues_no_text():
    for config in CONFIGS:
        assert not config.carries_state and but(config, bidirectional=False).carries_state
        with pytest.raises(UserError, match=r"bidirectional: true sees both sides .* cannot continue a text"):
            build(config).initial_state(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("width=15", r"width 15 is odd; with bidirectional: true half of it is read either way"),
        (
            "width=16",
            r"task: lm is nothing for this model \(lstm\), .*; model.bidirectional: false makes it one for lm",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(settings, message, tmp_path):
    options = ("model={family: lstm, bidirectional: true}", f"model.{settings}", "task=lm")
    with pytest.raises(UserError, match=message):
        make_config(tmp_path / "data", tmp_path / "run", *options)
