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
from hvdlm.tasks.language_model import ObjectiveConfig, judged_at, objective_at
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
    "both sides": {"causal": False, "token_types": 2, "positions": {"kind": "sinusoidal"}, "residual_dropout": 0.1},
    "several texts a row": {"positions": {"kind": "learned", "max_seq_len": 16}, "window": 3, "embed_scale": True},
}
KINDS |= {f"{kind}, by logits": KINDS[kind] for kind in ("plain", "learned, untied", "post norm, transform")}
BY_LOGITS = [kind for kind in KINDS if kind.endswith("by logits")]
GIVEN = {  # beside ids
    "both sides": {"lengths": torch.tensor([11, 2, 5]), "types": torch.arange(33).remainder(2).view(3, 11)},
    "several texts a row": {"segments": torch.arange(11).div(4, rounding_mode="floor").expand(3, 11)},
}


def model_of(options, dtype=torch.float64):
    with BUILDING:
        model = build_model(TransformerConfig(**{**SHAPE, **options}), Vocabulary(65, 0), seed=3)
    with torch.no_grad():  # gains and biases that tell apart where they are
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter))
    return model.to(dtype)


def passed(model, objective_of, given=None):
    """(aim, nats) of a batch, and its backward pass; by all logits where `objective_of` asks for them."""
    ids = torch.arange(3 * 11).remainder(65).view(3, 11)
    targets = (ids * 7 + 3) % 65
    targets[1, 4:] = IGNORED
    hidden, _ = model(ids, None, draws_for(1, 2, torch.arange(3).numpy()), **(given or {}))
    if isinstance(objective_of, str):  # as a task of somebody's own
        logits = model.head(hidden).double()
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        aim = nll + 0.01 * hidden.square().sum() + logits.square().sum()
    else:
        aim, nll = objective_at(model, hidden, targets, objective_of)
    aim.backward()
    return float(aim.detach()), float(nll.detach())


@pytest.mark.parametrize("shares_time", [False, True], ids=["", "sequence"])
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_process(kind, size, shares_time):
    objective = ObjectiveConfig(label_smoothing=0.1, z_loss=0.01) if kind == "dropout" else ObjectiveConfig()
    objective = "by logits" if kind in BY_LOGITS else objective
    whole = model_of(KINDS[kind])
    expected = passed(whole, objective, GIVEN.get(kind))
    gradients = {name: p.grad for name, p in whole.named_parameters()}

    def on_rank(world):
        model = model_of(KINDS[kind])
        part = cut_tensor(model, world, shares_time=shares_time)
        found = passed(model, objective, GIVEN.get(kind))
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


@pytest.mark.parametrize("shares_time", [False, True], ids=["", "sequence"])
def test_less_exact_numbers_agree_as_far_as_they_go(shares_time):
    """In float32 to 1e-5; in bfloat16 ranks may err by as much as one process does."""
    kind = {**KINDS["kv groups, swiglu"], **KINDS["dropout"]}

    def run(world, in_bf16):
        model = model_of(kind, torch.float32)
        part = cut_tensor(model, world, shares_time=shares_time) if world else None
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            losses = passed(model, ObjectiveConfig())
        named = dict(model.named_parameters())
        held = {n: summed(p.grad, world) if part and n in part.partial else p.grad for n, p in named.items()}
        return losses, held, part.cuts if part else {}

    exact, rough = run(None, False), run(None, True)
    for in_bf16, of_loss in ((False, 1e-5), (True, 1e-2)):
        for losses, gradients, cuts in run_on_threads(3, lambda world, in_bf16=in_bf16: run(world, in_bf16)):
            assert losses == pytest.approx(exact[0], rel=of_loss)
            for name, gradient in gradients.items():
                one, serial = (cuts[name].of(w[1][name]) if name in cuts else w[1][name] for w in (exact, rough))
                allowed = 2 * (serial - one).norm() if in_bf16 else 1e-5 * one.norm()
                assert (gradient - one).norm() <= allowed, name


@pytest.mark.parametrize("num_blocks", [0, 4])
def test_of_equal_logits_the_first_is_the_likeliest(num_blocks):
    """As with one process; else ties, which half precision has many of, would all be hits."""
    weight = torch.zeros(65, 24, dtype=torch.float64)
    weight[[7, 30, 64], 0] = 2.0  # on three of five ranks
    hidden, targets = torch.ones(4, 24, dtype=torch.float64), torch.tensor([7, 30, 64, 0])

    def on_rank(world):
        model = model_of({"heads": 4, "width": 24, "mlp_width": 16} if num_blocks else {})
        with torch.no_grad():
            model.head.weight.copy_(weight)
        cut_tensor(model, world, shares_time=False, num_blocks=num_blocks)
        terms = model.head.terms(hidden, targets)
        return terms.likeliest.tolist(), int(judged_at(model, hidden, targets, ObjectiveConfig())[2])

    assert run_on_threads(4 if num_blocks else 5, on_rank) == [([7] * 4, 1)] * (4 if num_blocks else 5)
