"""Weights that are made later are those that would have been made at once."""

import pytest
import torch

from hvdlm.models import Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.unmade import LARGE, Unmade

KINDS = {
    "plain": {},
    "untied, biases": {
        "tie_embeddings": False,
        "activation": "swiglu",
        "norm": "rmsnorm",
        "bias": True,
        "head_bias": True,
    },
    "learned": {"positions": {"kind": "learned", "max_seq_len": 512}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_has_the_bits_of_a_model_that_was_built_at_once(kind):
    config, vocabulary = TransformerConfig(layers=2, width=256, heads=4, **KINDS[kind]), Vocabulary(300, 0)
    whole = build_model(config, vocabulary, 3)
    state = torch.get_rng_state()
    with Unmade() as unmade:
        model = build_model(config, vocabulary, 3)
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn next is the same too
    sources = unmade.sources(model)
    named = dict(model.named_parameters())
    assert {name for name, p in named.items() if p.is_meta} == set(sources)
    assert set(sources) == {name for name, p in whole.named_parameters() if p.numel() >= LARGE} != set()
    for name, expected in reversed(list(whole.named_parameters())):  # in any order
        found = unmade.made(sources[name], expected.shape, expected.dtype) if name in sources else named[name]
        assert torch.equal(found, expected), name
    assert torch.equal(torch.get_rng_state(), state)


def test_a_weight_that_is_written_in_part_is_refused():
    with Unmade(), pytest.raises(NotImplementedError, match="in part"):
        torch.empty(LARGE)[:3].zero_()
