"""Kim's CNN: windows around each token, which know nothing of padding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import make_config

from hvdlm.compute.draws import Draws, draws_for
from hvdlm.errors import UserError
from hvdlm.models import Vocabulary, build_model, num_parameters
from hvdlm.models.cnn import CnnConfig

SMALL = CnnConfig(embed_width=8, maps=6)
LENGTHS = torch.tensor([7, 3, 1, 0, 5])


def build(config=SMALL):
    return build_model(config, Vocabulary(50, 49), seed=0)


def but(**changes):
    return SMALL.model_copy(update=changes)


def ids_of(*shape):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(0))


def draws(*samples, step=0):
    return draws_for(0, step, np.array(samples))


def test_it_is_its_formula():
    """Window by window, from zeros around the sentence."""
    model, ids = build(), ids_of(1, 6)
    x = F.pad(model.embed(ids)[0], (0, 0, 4, 4))  # the sentence begins at 4
    expected = []
    for place in range(6):
        parts = []
        for convolution, (before, after) in zip(model.convolutions, ((1, 1), (1, 2), (2, 2)), strict=True):
            window = x[4 + place - before : 4 + place + after + 1]  # (K, E)
            parts.append((convolution.weight * window.T).sum((1, 2)) + convolution.bias)
        expected.append(torch.cat(parts).relu())
    assert torch.allclose(model(ids)[0][0], torch.stack(expected), atol=1e-6)


def test_a_sentence_is_the_same_alone_and_beside_longer_ones():
    """Hidden vectors and what pooling makes of them; shorter than any window, of no length, and whatever padding is."""
    model, ids = build(), ids_of(5, 7)
    hidden, state = model(ids, lengths=LENGTHS)
    assert state is None and hidden.shape == (5, 7, 18) and model.hidden_width == 18
    is_there = torch.arange(7) < LENGTHS.unsqueeze(1)
    assert (hidden[~is_there] == 0).all()
    assert torch.equal(model(torch.where(is_there, ids, 3), lengths=LENGTHS)[0], hidden)
    for row, length in enumerate(LENGTHS.tolist()):
        if length:
            alone, _ = model(ids[row : row + 1, :length])
            assert torch.allclose(alone[0], hidden[row, :length], atol=1e-6)
            assert torch.allclose(alone.amax(1)[0], hidden[row].amax(0), atol=1e-6)
    model(ids.clamp(max=48).masked_fill(~is_there, 49), lengths=LENGTHS)[0].sum().backward()
    assert not model.embed.weight.grad[49].any() and model.embed.weight.grad.any()


def test_each_token_is_seen_from_both_sides_as_far_as_windows_reach():
    model, ids = build(but(kernels=(3, 4))), ids_of(1, 9)
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % 50
    change = (model(ids)[0] - model(changed)[0]).abs()[0] > 0
    assert change[:, :6].any(1).tolist() == [3 <= place <= 5 for place in range(9)]
    assert change[:, 6:].any(1).tolist() == [2 <= place <= 5 for place in range(9)]  # two after its middle, one before


def test_dropout_of_features_is_that_of_the_pooled_ones():
    """A feature is dropped in all of a sentence; so the largest of it is 0, or as it was, scaled."""
    model, ids = build(but(output_dropout=0.5)), ids_of(4, 7)
    pooled, dropped = model(ids)[0].amax(1), model(ids, None, draws(0, 1, 2, 3))[0].amax(1)
    is_dropped = (dropped == 0) & (pooled > 0)
    assert 10 < int(is_dropped.sum()) < 60
    assert torch.allclose(dropped[~is_dropped], 2 * pooled[~is_dropped])


@pytest.mark.parametrize("kind", ["dropout", "embed_dropout", "output_dropout", "embed_word_dropout"])
def test_draws_follow_the_sample_and_not_its_batch_nor_its_padding(kind):
    model, ids = build(but(**{kind: 0.4})), ids_of(5, 7)
    assert model.takes_draws and not build().takes_draws
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
    build(but(dropout=0.3, embed_word_dropout=0.3))(ids_of(2, 5), None, draws(0, 1))
    assert len(set(made)) == len(made) == 3


def test_by_default_it_has_the_size_of_the_paper_s():
    model = build(CnnConfig())
    assert model.hidden_width == 300
    assert num_parameters(model) == 50 * 300 + (3 + 4 + 5) * 300 * 100 + 300
    assert model.flops_per_token(10) == 6 * (3 + 4 + 5) * 300 * 100
    assert float(model.embed.weight.detach().abs().max()) <= 0.25


def test_it_predicts_no_token_and_continues_no_text(tmp_path):
    assert SMALL.tasks == ("classify", "tag", "span")
    assert not SMALL.carries_state and not list(build().head.parameters())
    with pytest.raises(UserError, match=r"family: cnn sees both sides .* cannot continue a text"):
        build().initial_state(1)
    with pytest.raises(UserError, match=r"task: lm is nothing for this model \(cnn\), .*; model.family: conv is one"):
        make_config(tmp_path / "data", tmp_path / "run", "model={family: cnn}", "task=lm")
    with pytest.raises(UserError, match=r"model.kernels.1: must be an integer >= 1 and <= 1024, got 0"):
        make_config(tmp_path / "data", tmp_path / "run", "model={family: cnn, kernels: [3, 0]}")
    assert CnnConfig.model_validate({"family": "cnn", "kernels": [2]}).kernels == (2,)
