"""Every family maps (B, T) ids to (B, T, V) logits, looks only back, and starts from its seed alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from hvdlm.models import MODELS, build_model, num_parameters
from hvdlm.models.recurrent import LstmConfig
from hvdlm.models.transformer import TransformerConfig, rotary, rotate

CONFIGS = [
    TransformerConfig(layers=2, heads=2, width=16),
    TransformerConfig(layers=1, heads=4, width=16, tie_embeddings=False, dropout=0.5),
    LstmConfig(layers=2, width=16, dropout=0.5),
    LstmConfig(layers=1, width=16, tie_embeddings=False),
]


@pytest.fixture(params=CONFIGS, ids=lambda config: f"{config.family}-{config.layers}")
def model(request):
    return build_model(request.param, 50, seed=0).eval()


def test_every_family_is_tested():
    assert {config.family for config in CONFIGS} == set(MODELS)


def test_logits_have_the_shape_of_the_interface(model):
    assert model(torch.randint(50, (3, 7))).shape == (3, 7, 50)


def test_a_position_does_not_see_the_ones_after_it(model):
    ids = torch.randint(50, (2, 9))
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-4)


def test_a_position_sees_the_ones_before_it(model):
    ids = torch.randint(50, (1, 9))
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 50
    assert not torch.equal(model(ids)[0, -1], model(changed)[0, -1])


def test_the_first_loss_is_that_of_a_uniform_guess(model):
    ids = torch.randint(50, (8, 33))
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(50), rel=0.02)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_seed_decides_the_weights(config):
    first, again, other = (build_model(config, 50, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_tied_embeddings_count_once():
    tied, untied = (
        build_model(TransformerConfig(width=16, heads=2, tie_embeddings=tie), 50, 0) for tie in (True, False)
    )
    assert num_parameters(untied) - num_parameters(tied) == 50 * 16


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    rotation = rotary(20, 8, torch.device("cpu"))
    turned_q, turned_k = (rotate(x.expand(1, 1, 20, 8), rotation)[0, 0] for x in (q, k))
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(20), atol=1e-5)
    dots = turned_q @ turned_k.T
    assert torch.allclose(dots.diagonal(5), dots[0, 5].expand(15), atol=1e-4)
