"""Every family maps (B, T) ids to (B, T, V) logits, looks only back, and starts from its seed alone."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hvdlm.compute.draws import Draws, draws_for
from hvdlm.config import tagged_union
from hvdlm.models import MODELS, build_model, num_parameters
from hvdlm.models.recurrent import LstmConfig
from hvdlm.models.transformer import ROTARY_TABLE, TransformerConfig, rotary, rotate

TRANSFORMER = TransformerConfig(layers=2, heads=2, width=16)
LSTM = LstmConfig(layers=2, width=16)


def but(config, **changes):
    return config.model_copy(update=changes)


def build(config):
    return build_model(config, 50, seed=0)


CONFIGS = [
    TRANSFORMER,
    TransformerConfig(layers=1, heads=4, width=16, tie_embeddings=False, dropout=0.5),
    but(LSTM, dropout=0.5),
    but(LSTM, layers=1, tie_embeddings=False),
]
DROPOUTS = [
    *(but(TRANSFORMER, **{f"{kind}dropout": 0.5}) for kind in ("embed_", "residual_", "attention_", "")),
    but(LSTM, dropout=0.5),
    but(LSTM, dropout=0.5, embed_dropout=0.0, variational=True),
]


def draws(samples, step=0):
    return draws_for(0, step, np.arange(samples))


def loss_of(model, ids, draws=None):
    return F.cross_entropy(model(ids[:, :-1], draws).flatten(0, 1), ids[:, 1:].flatten())


def gradients(model, ids, draws):
    """Loss and gradients."""
    model.zero_grad()
    loss = loss_of(model, ids, draws)
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters()]


@pytest.fixture(params=CONFIGS, ids=lambda config: f"{config.family}-{config.layers}")
def model(request):
    return build(request.param).eval()


def test_every_family_is_tested():
    assert {config.family for config in CONFIGS} == set(MODELS)


def test_a_family_is_registered_under_its_own_name():
    with pytest.raises(ValueError, match="LstmConfig has family: lstm, not gru"):
        tagged_union({"gru": LstmConfig}, "family")


def test_logits_have_the_shape_of_the_interface(model):
    assert model(torch.randint(50, (3, 7))).shape == (3, 7, 50)


def test_a_position_sees_the_ones_before_it_and_none_after(model):
    ids = torch.randint(50, (2, 9))
    before = model(ids)
    for place in (0, 6):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % 50
        after = model(changed)
        assert torch.allclose(before[:, :place], after[:, :place], atol=1e-6)
        assert (before[:, place:] - after[:, place:]).abs().amax(dim=(0, 2)).min() > 0


def test_the_first_loss_is_that_of_a_uniform_guess(model):
    ids = torch.randint(50, (8, 33))
    with torch.no_grad():
        loss = loss_of(model, ids)
    assert float(loss) == pytest.approx(math.log(50), rel=0.02)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_seed_decides_the_weights(config):
    first, again, other = (build_model(config, 50, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_tied_embeddings_count_once():
    tied, untied = (build(but(TRANSFORMER, tie_embeddings=tie)) for tie in (True, False))
    assert num_parameters(untied) - num_parameters(tied) == 50 * 16


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    rotation = rotary(20, 8, torch.device("cpu"))
    turned_q, turned_k = (rotate(x.expand(1, 20, 1, 8), rotation)[0, :, 0] for x in (q, k))
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(20), atol=1e-5)
    dots = turned_q @ turned_k.T
    assert torch.allclose(dots.diagonal(5), dots[0, 5].expand(15), atol=1e-4)


def test_the_kept_rotation_is_the_computed_one_and_no_part_of_the_weights():
    model = build(TRANSFORMER)
    for time in (5, ROTARY_TABLE, ROTARY_TABLE + 3):
        computed = rotary(time, model.head_width, torch.device("cpu"))
        assert all(map(torch.equal, model.rotation(time), computed))
    assert model.cos.shape[0] == ROTARY_TABLE
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("config", DROPOUTS)
def test_dropout_follows_its_draws_alone(config):
    model, ids = build(config).train(), torch.randint(50, (4, 9))
    assert config.is_random
    assert torch.equal(model(ids), model(ids))  # none without draws
    assert not torch.equal(model(ids, draws(4)), model(ids))
    assert torch.equal(model(ids, draws(4)), model(ids, draws(4)))
    assert not torch.equal(model(ids, draws(4)), model(ids, draws(4, step=1)))
    micro = [model(ids[row : row + 1], draws_for(0, 0, np.array([row]))) for row in range(4)]
    assert torch.allclose(torch.cat(micro), model(ids, draws(4)), atol=1e-6)


@pytest.mark.parametrize("config", [DROPOUTS[3], DROPOUTS[4]], ids=lambda config: config.family)
def test_no_two_dropouts_have_the_same_draws(config, monkeypatch):
    sites, plain = [], Draws.uniform_bits
    monkeypatch.setattr(Draws, "uniform_bits", lambda self, site, shape: sites.append(site) or plain(self, site, shape))
    build(config)(torch.randint(50, (4, 9)), draws(4))
    assert sites == list(range({"transformer": 1 + 3 * 2, "lstm": 1 + 2}[config.family]))


@pytest.mark.parametrize("config", [TransformerConfig(), LstmConfig(), TransformerConfig(dropout=0.5, embed_dropout=0)])
def test_a_model_takes_draws_where_some_dropout_is_on(config):
    assert config.is_random == (config.dropout > 0)


def test_each_kind_of_dropout_is_as_dropout_unless_it_is_said():
    ids = torch.randint(50, (4, 9))

    def logits(**kinds):
        return build(but(TRANSFORMER, **kinds))(ids, draws(4))

    kinds = ("embed_dropout", "residual_dropout", "attention_dropout")
    assert torch.equal(logits(dropout=0.3), logits(**dict.fromkeys(kinds, 0.3)))
    assert torch.equal(logits(dropout=0.3, **dict.fromkeys(kinds, 0.0)), logits())
    for kind in kinds:
        assert not torch.equal(logits(dropout=0.3, **{kind: 0.0}), logits(dropout=0.3))


def test_attention_with_dropout_has_the_mean_of_attention_without():
    """Dropped attention weights average out; also a check of the explicit softmax against torch's attention."""
    attention = build(but(TRANSFORMER, attention_dropout=0.2)).blocks[0].attention
    random = torch.Generator().manual_seed(0)
    x, rotation = torch.randn(1, 9, 16, generator=random).expand(20_000, 9, 16), rotary(9, 8, torch.device("cpu"))
    with torch.no_grad():
        plain, dropped = attention(x[:1], rotation, None)[0], attention(x, rotation, draws(20_000))
    error = dropped.std(0) / 20_000**0.5
    assert float(((dropped.mean(0) - plain) / error).abs().max()) < 5
    attention.dropout = 1e-12
    assert torch.allclose(attention(x[:2], rotation, draws(2))[0], plain, atol=1e-6)


@pytest.mark.parametrize("config", [DROPOUTS[3], but(DROPOUTS[3], attention_dropout=0.0)])
def test_activation_checkpointing_changes_no_bit(config):
    ids = torch.randint(50, (4, 9))
    plain, frugal = (build(but(config, activation_checkpointing=on)) for on in (False, True))
    runs = []
    frugal.blocks[0].register_forward_pre_hook(lambda *_: runs.append(0))
    losses, slopes = zip(*(gradients(model, ids, draws(4)) for model in (plain, frugal)), strict=True)
    assert losses[0] == losses[1]
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))
    assert len(runs) == 2  # it was computed again


def test_a_variational_mask_is_one_for_all_time_steps():
    for variational in (True, False):
        model = build(but(LSTM, width=64, embed_dropout=0.5, variational=variational))
        x = model._dropped(torch.ones(2, 30, 64), draws(2), 0)
        assert torch.equal(x, x[:, :1].expand_as(x)) == variational


def test_windows_with_carried_state_are_the_whole_sequence():
    model, ids = build(LSTM), torch.randint(50, (3, 12))
    whole, state = model(ids), model.initial_state(3, "cpu")
    parts = []
    for window in ids.split(4, dim=1):
        logits, state = model.forward_from(window, None, state)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-6)
    assert not state.requires_grad


def test_state_is_split_by_sample_along_dimension_1():
    model, ids = build(LSTM), torch.randint(50, (3, 12))
    _, state = model.forward_from(ids, None, model.initial_state(3, "cpu"))
    logits, after = model.forward_from(ids, None, state)
    for row in range(3):
        part = slice(row, row + 1)
        alone, alone_after = model.forward_from(ids[part], None, state[:, part])
        assert torch.allclose(alone, logits[part], atol=1e-6)
        assert torch.allclose(alone_after, after[:, part], atol=1e-6)


def test_state_stays_float32_under_autocast():
    model, ids = build(but(LSTM, dropout=0.1)), torch.randint(50, (3, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = model.forward_from(ids, draws(3), model.initial_state(3, "cpu"))
        logits, state = model.forward_from(ids, draws(3), state)
    assert (logits.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo, behind an LSTM
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("config", [but(DROPOUTS[3], layers=1), DROPOUTS[4]], ids=lambda config: config.family)
def test_a_compiled_model_has_the_same_masks_loss_and_gradients(config):
    model, ids = build(config), torch.randint(50, (4, 9))
    compiled = torch.compile(model)
    for step in range(2):
        losses, slopes = zip(*(gradients(each, ids, draws(4, step)) for each in (model, compiled)), strict=True)
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*slopes, strict=True))
