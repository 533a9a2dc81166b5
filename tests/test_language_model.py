"""The terms of the objective are their formulas; noise replaces the share it says, of inputs alone."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hvdlm.compute.draws import Draws, draws_for
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.models import MODELS, Vocabulary, build_model
from hvdlm.tasks import TaskContext
from hvdlm.tasks.elbo import ElboConfig
from hvdlm.tasks.language_model import LmConfig, NoiseConfig, ObjectiveConfig, activity, noisy_inputs, objective
from hvdlm.tasks.masked import MlmConfig

CONFIGS = [
    ObjectiveConfig(),
    ObjectiveConfig(label_smoothing=0.1),
    ObjectiveConfig(z_loss=1e-2),
    ObjectiveConfig(label_smoothing=0.2, z_loss=1e-1),
]
EOS = 0


@pytest.fixture
def batch():
    """Logits (2, 5, 7) and targets of which three are padding."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 7, generator=random)
    targets = torch.randint(7, (2, 5), generator=random)
    targets[1, 2:] = IGNORED
    return logits, targets


def by_formula(logits, targets, config):
    """Token by token, in float64."""
    aims, nats = [], []
    for row, target in zip(logits.double().flatten(0, 1), targets.flatten().tolist(), strict=True):
        if target == IGNORED:
            continue
        log_z = row.exp().sum().log()
        target_distribution = torch.full_like(row, config.label_smoothing / len(row))
        target_distribution[target] += 1 - config.label_smoothing
        aims.append(-(target_distribution * (row - log_z)).sum() + config.z_loss * log_z**2)
        nats.append(log_z - row[target])
    return torch.stack(aims).sum(), torch.stack(nats).sum()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_objective_is_its_formula_with_its_gradient(batch, config):
    logits, targets = batch
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    actual, expected = objective(leaves[0], targets, config), by_formula(leaves[1], targets, config)
    for one, other in zip(actual, expected, strict=True):
        assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-5)
    actual[0].backward()
    expected[0].backward()
    assert torch.allclose(leaves[0].grad, leaves[1].grad, atol=1e-5)
    assert not actual[1].requires_grad


@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_float32_from_the_logits_on(batch, config):
    logits, targets = batch
    coarse = logits.bfloat16()
    for one, other in zip(objective(coarse, targets, config), objective(coarse.float(), targets, config), strict=True):
        assert torch.equal(one, other)
        assert one.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_nats_of_many_targets_are_added_up_without_rounding(config):
    logits, targets = torch.zeros(1, 20_000, 3), torch.zeros(1, 20_000, dtype=torch.long)
    of_one = float(objective(logits[:, :1], targets[:, :1], config)[1])
    assert float(objective(logits, targets, config)[1]) == pytest.approx(20_000 * of_one, rel=1e-12)


def test_activity_is_its_formula_where_there_are_targets():
    hidden = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.ones(2, 5, dtype=torch.int64)
    targets[0, 2], targets[1, 3:] = IGNORED, IGNORED
    places = [(0, 0), (0, 1), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]
    squares = sum(float(hidden[place].square().mean()) for place in places)
    pairs = [(0, 0), (0, 3), (1, 0), (1, 1)]
    changes = sum(float((hidden[row, place + 1] - hidden[row, place]).square().mean()) for row, place in pairs)
    found = [activity(hidden, targets, ObjectiveConfig(**{name: 3.0})) for name in ("activation", "temporal")]
    assert [float(value) for value in found] == pytest.approx([3 * squares, 3 * changes], rel=1e-5)
    both = activity(hidden, targets, ObjectiveConfig(activation=1.0, temporal=2.0))
    assert float(both) == pytest.approx(squares + 2 * changes, rel=1e-5)
    assert float(activity(hidden[:, :1], targets[:, :1], ObjectiveConfig(activation=1.0, temporal=2.0))) > 0


@pytest.mark.parametrize("family", ["lstm", "conv", "transformer"])
def test_activity_is_minimized_and_not_told_as_loss(family):
    model = build_model(MODELS[family](layers=1, width=16), Vocabulary(50, 49), seed=0)
    ids = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    sums = {}
    for name in ("", "activation", "temporal"):
        terms = ObjectiveConfig(**({name: 1.0} if name else {}))
        task = LmConfig().build(TaskContext(Vocabulary(50, 49), terms, NoiseConfig()))
        sums[name], _ = task.loss(model, task.batch(ids, None, None, training=True), None, None)
        parts = [task.loss(model, task.batch(row, None, None, training=True), None, None)[0] for row in ids.split(1)]
        assert torch.allclose(sum(part.aim for part in parts), sums[name].aim, rtol=1e-5)
    for name in ("activation", "temporal"):
        assert torch.equal(sums[name].values, sums[""].values)
        assert bool(sums[name].aim > sums[""].aim * (1 + 1e-6))


@pytest.mark.parametrize("kind", [MlmConfig, ElboConfig])
@pytest.mark.parametrize("name", ["activation", "temporal"])
def test_tasks_that_would_pass_over_a_term_refuse_it(kind, name):
    context = TaskContext(Vocabulary(50, 49), ObjectiveConfig(**{name: 1.0}), NoiseConfig())
    with pytest.raises(UserError, match=f"are for task: lm, not {kind().kind}; leave them out"):
        kind().build(context)


def noisy(config, *, samples=2000, first=0, time=50):
    ids = torch.arange(1, samples * time + 1).view(samples, time)
    return ids, noisy_inputs(ids, config, EOS, draws_for(0, 0, np.arange(first, first + samples)))


def test_word_dropout_replaces_its_share_and_nothing_else():
    ids, noised = noisy(NoiseConfig(word_dropout=0.2))
    replaced = noised == EOS
    assert torch.equal(noised[~replaced], ids[~replaced])
    assert float(replaced.double().mean()) == pytest.approx(0.2, abs=4.5 * (0.2 * 0.8 / ids.numel()) ** 0.5)
    assert float(replaced.sum(1).double().var()) == pytest.approx(50 * 0.2 * 0.8, rel=0.15)  # each id by itself


def test_token_masking_draws_a_ratio_for_each_sequence():
    """A share uniform in [0, m) has mean m / 2 and variance m^2 / 12, besides that of the draws at that share."""
    _, noised = noisy(NoiseConfig(token_masking=0.6), samples=4000, time=400)
    shares = (noised == EOS).double().mean(1)
    assert float(shares.mean()) == pytest.approx(0.3, abs=0.015)
    assert float(shares.var()) == pytest.approx(0.6**2 / 12 + (0.3 - 0.12) / 400, rel=0.06)
    assert float(shares.max()) < 0.75
    deciles = torch.histc(shares, 10, 0, 0.6) / 4000
    assert float((deciles[1:-1] - 0.1).abs().max()) < 0.025


def test_both_kinds_of_noise_add_up():
    _, noised = noisy(NoiseConfig(word_dropout=0.3, token_masking=0.4))
    assert float((noised == EOS).double().mean()) == pytest.approx(1 - 0.7 * 0.8, abs=0.01)


def test_noise_is_keyed_by_sample():
    config = NoiseConfig(word_dropout=0.3, token_masking=0.4)
    ids = torch.ones(8, 20, dtype=torch.int64)
    whole = noisy_inputs(ids, config, EOS, draws_for(0, 0, np.arange(8)))
    parts = [noisy_inputs(ids[k : k + 2], config, EOS, draws_for(0, 0, np.arange(k, k + 2))) for k in range(0, 8, 2)]
    assert torch.equal(torch.cat(parts), whole)


def test_no_two_kinds_of_noise_have_the_same_draws(monkeypatch):
    sites, plain = [], Draws.uniform_bits
    monkeypatch.setattr(Draws, "uniform_bits", lambda self, site, *of: sites.append(site) or plain(self, site, *of))
    noisy(NoiseConfig(word_dropout=0.3, token_masking=0.4))
    assert sites == [-1, -2, -3]


def test_without_noise_or_draws_the_ids_stay_and_are_never_written_to():
    ids = torch.ones(2, 20, dtype=torch.int64)
    assert noisy_inputs(ids, NoiseConfig(), EOS, draws_for(0, 0, np.arange(2))) is ids
    assert noisy_inputs(ids, NoiseConfig(word_dropout=0.9), EOS, None) is ids
    noisy_inputs(ids, NoiseConfig(word_dropout=0.9, token_masking=0.9), EOS, draws_for(0, 0, np.arange(2)))
    assert bool((ids == 1).all())


def test_noise_is_on_where_some_kind_is():
    for kind in ("word_dropout", "token_masking"):
        assert [NoiseConfig(**{kind: p}).is_on for p in (0.0, 0.1)] == [False, True]


@pytest.mark.parametrize("values", [{"word_dropout": 1.0}, {"token_masking": -0.1}])
def test_a_whole_input_is_never_noise(values):
    with pytest.raises(ValidationError):
        NoiseConfig(**values)
