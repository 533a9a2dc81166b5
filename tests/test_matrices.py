"""Matrices laid out anew say the same, as int8 nearly the same; for every family."""

import pytest
import torch
from test_engine import FAMILIES, VOCABULARY, built
from torch import nn

from hvdlm.errors import UserError
from hvdlm.inference import matrices
from hvdlm.models import build_model
from hvdlm.models.transformer import TransformerConfig

IDS = torch.arange(24).view(2, 12) % 50
HAS_ONEDNN = torch.backends.mkldnn.is_available()


def logits_of(model):
    model.eval()
    with torch.no_grad():
        return model.logits(IDS, model.initial_state(2))[0].float()


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch was built without oneDNN")
@pytest.mark.parametrize("name", FAMILIES)
def test_matrices_in_another_layout_say_the_same(name, monkeypatch):
    monkeypatch.setattr(matrices, "LEAST", 1)
    model = built(FAMILIES[name])
    expected = logits_of(model)
    matrices.pack(model)
    assert torch.allclose(logits_of(model), expected, atol=2e-5, rtol=1e-5)
    has_layers = FAMILIES[name].family in ("transformer", "mingru", "lstm", "rnn", "gru", "conv", "vae")
    assert has_layers == any(type(module).__name__ == "MkldnnLinear" for module in model.modules())


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch was built without oneDNN")
@pytest.mark.parametrize("change", [matrices.pack, matrices.quantize])
@pytest.mark.parametrize("name", ["0-transformer", "13-lstm", "18-gru", "20-mingru", "27-vae"])
def test_half_precision_around_them_changes_nothing_but_rounding(name, change, monkeypatch):
    monkeypatch.setattr(matrices, "LEAST", 1)
    model = build_model(FAMILIES[name], VOCABULARY, seed=0)
    expected = logits_of(model)
    change(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits_of(model)
    assert float((found - expected).abs().max()) < 0.1 * float(expected.std()) + 0.02


def test_small_matrices_stay_as_they_are():
    model = build_model(TransformerConfig(layers=1, heads=2, width=16), VOCABULARY, 0)
    matrices.pack(model)
    assert type(model.blocks[0].attention.qkv) is nn.Linear and model.head.product is None


@pytest.mark.parametrize("name", FAMILIES)
def test_int8_is_near_or_refused(name):
    config = FAMILIES[name]
    model = build_model(config, VOCABULARY, seed=0)
    expected = logits_of(model)
    if config.family in ("hmm", "ngram", "maxent"):
        with pytest.raises(UserError, match="--int8: this model has no linear or recurrent layer"):
            matrices.quantize(model)
        return
    matrices.quantize(model)
    found = logits_of(model)
    assert 0 < float((found - expected).abs().max()) < 0.1 * float(expected.std()) + 0.02
