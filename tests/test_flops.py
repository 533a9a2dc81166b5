"""The convention's count is what torch counts, operation by operation."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hvdlm.models import Vocabulary, build_model
from hvdlm.models.convolutional import ConvConfig
from hvdlm.models.min_gru import MinGruConfig
from hvdlm.models.recurrent import GruConfig, LstmConfig, RnnConfig
from hvdlm.models.transformer import TransformerConfig


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # said when oneDNN is switched off
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(layers=3, heads=2, width=48),
        LstmConfig(layers=3, width=48),
        LstmConfig(layers=1, width=96),
        LstmConfig(layers=2, width=48, embed_width=32),
        RnnConfig(layers=2, width=48),
        GruConfig(layers=2, width=48),
        MinGruConfig(layers=2, width=48),
        ConvConfig(layers=2, width=48),
        ConvConfig(layers=2, width=48, embed_width=32, preset="tcn"),
    ],
    ids=lambda config: f"{config.family}-{config.layers}-{config.width}",
)
@pytest.mark.parametrize("seq_len", [16, 64])
def test_the_formula_counts_what_torch_counts(config, tie, seq_len):
    config = config.model_copy(update={"tie_embeddings": tie})
    model, ids = build_model(config, Vocabulary(200, 199), seed=0), torch.randint(200, (2, seq_len))
    counter = FlopCounterMode(display=False)
    # The counter does not look into oneDNN's LSTM and torch's fused attention; these are the same in plain operations.
    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), counter:
        F.cross_entropy(model.logits(ids)[0].flatten(0, 1), ids.flatten()).backward()
    assert counter.get_total_flops() / ids.numel() == pytest.approx(model.flops_per_token(seq_len), rel=0.03)
