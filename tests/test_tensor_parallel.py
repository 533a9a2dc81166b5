"""Tensor ranks that share a model compute what one process does: losses, every gradient, dropout and all."""

import threading

import pytest
import torch

from hvdlm.compute.draws import draws_for
from hvdlm.data.windows import IGNORED
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig
from hvdlm.parallel.exchange import summed
from hvdlm.parallel.tensor import cut_tensor
from hvdlm.tasks.language_model import ObjectiveConfig, objective_at
from hvdlm.world.threads import run_on_threads

BUILDING = threading.Lock()
SHAPE = {"layers": 2, "width": 24, "heads": 6}
KINDS = {
    "plain": {},
    "dropout": {"dropout": 0.2, "residual_dropout": 0.1},
    "kv groups, swiglu": {"heads": 12, "kv_heads": 6, "activation": "swiglu", "norm": "rmsnorm"},
    "qk norm, softcaps": {"qk_norm": True, "attention_softcap": 5.0, "logit_softcap": 8.0},
    "alibi, biases": {"positions": {"kind": "alibi"}, "bias": True, "head_bias": True},
    "learned, untied": {
        "positions": {"kind": "learned", "max_seq_len": 16},
        "tie_embeddings": False,
        "embed_norm": True,
    },
    "post norm, transform": {"norm_position": "post", "bias": True, "head_transform": True},
    "recomputed": {"activation_checkpointing": True, "dropout": 0.1},
}


def model_of(options):
    with BUILDING:
        model = build_model(TransformerConfig(**{**SHAPE, **options}), Vocabulary(65, 0), seed=3)
    with torch.no_grad():  # gains and biases that tell apart where they are
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter))
    return model.double()


def passed(model, objective):
    """(aim, nats) of a batch, and its backward pass."""
    ids = torch.arange(3 * 11).remainder(65).view(3, 11)
    targets = (ids * 7 + 3) % 65
    targets[1, 4:] = IGNORED
    hidden, _ = model(ids, None, draws_for(1, 2, torch.arange(3).numpy()))
    aim, nll = objective_at(model, hidden, targets, objective)
    aim.backward()
    return float(aim.detach()), float(nll)


@pytest.mark.parametrize("shares_time", [False, True], ids=["", "sequence"])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_process(kind, size, shares_time):
    objective = ObjectiveConfig(label_smoothing=0.1, z_loss=0.01) if kind == "dropout" else ObjectiveConfig()
    whole = model_of(KINDS[kind])
    expected = passed(whole, objective)
    gradients = {name: p.grad for name, p in whole.named_parameters()}

    def on_rank(world):
        model = model_of(KINDS[kind])
        part = cut_tensor(model, world, shares_time=shares_time)
        found = passed(model, objective)
        odd = {}
        for name, parameter in model.named_parameters():
            mine = summed(parameter.grad, world) if name in part.partial else parameter.grad
            full = gradients[name]
            full = part.cuts[name].of(full) if name in part.cuts else full
            if not torch.allclose(mine, full, rtol=1e-10, atol=1e-12):
                odd[name] = float((mine - full).abs().max())
        return found, odd

    for found, odd in run_on_threads(size, on_rank):
        assert odd == {}
        assert found == pytest.approx(expected, rel=1e-12)
