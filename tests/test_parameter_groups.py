"""Which parameters decay, which have a learning rate of their own, and which are Muon's."""

import pytest
from torch import nn

from hvdlm.errors import UserError
from hvdlm.models import Vocabulary
from hvdlm.models.recurrent import LstmConfig, Recurrent
from hvdlm.models.transformer import TransformerConfig
from hvdlm.optim import OptimConfig, build_optimizer, set_lr


def make_model():
    """One of each kind of parameter."""
    head = nn.Linear(8, 11, bias=False)
    return nn.ModuleDict(
        {"embed": nn.Embedding(11, 6), "hidden": nn.Linear(6, 8), "norm": nn.LayerNorm(8), "head": head}
    )


def groups_of(config):
    """{(weight decay, lr scale): names} of the groups of an optimizer over a model."""
    model = make_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        (group["weight_decay"], group["lr_scale"]): [names[id(parameter)] for parameter in group["params"]]
        for group in build_optimizer(model, config).param_groups
    }


def test_only_matrices_decay():
    groups = groups_of(OptimConfig(weight_decay=0.3))
    assert groups == {
        (0.3, 1.0): ["embed.weight", "hidden.weight", "head.weight"],
        (0.0, 1.0): ["hidden.bias", "norm.weight", "norm.bias"],
    }


def test_embeddings_need_not_decay():
    groups = groups_of(OptimConfig(weight_decay=0.3, decay_embeddings=False))
    assert groups[0.3, 1.0] == ["hidden.weight", "head.weight"]
    assert "embed.weight" in groups[0.0, 1.0]


def test_the_first_rule_that_matches_a_name_counts():
    rules = ({"match": "embed", "lr_scale": 0.1, "weight_decay": 0.0}, {"match": "weight$", "lr_scale": 2.0})
    assert groups_of(OptimConfig(weight_decay=0.3, groups=rules)) == {
        (0.0, 0.1): ["embed.weight"],
        (0.3, 2.0): ["hidden.weight", "head.weight"],
        (0.0, 1.0): ["hidden.bias", "norm.bias"],
        (0.0, 2.0): ["norm.weight"],
    }
    decaying_gains = ({"match": "norm", "weight_decay": 0.2},)
    assert groups_of(OptimConfig(groups=decaying_gains))[0.2, 1.0] == ["norm.weight", "norm.bias"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (({"match": "embd"},), r"optim.groups.0: match 'embd' finds no parameter; names are embed.weight, .*…"),
        (({"match": "e"}, {"match": "head"}), r"optim.groups.1: match 'head' finds no parameter that no earlier rule"),
    ],
)
def test_a_rule_for_no_parameter_is_refused(rules, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(make_model(), OptimConfig(groups=rules))


def test_set_lr_respects_the_groups():
    optimizer = build_optimizer(make_model(), OptimConfig(lr=1.0, groups=({"match": "embed", "lr_scale": 0.1},)))
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.1, 1.0, 1.0]
    set_lr(optimizer, 0.5)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.05, 0.5, 0.5]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "model_of",
    [
        lambda tied: TransformerConfig(layers=1, heads=2, width=8, tie_embeddings=tied).build(Vocabulary(11, 10)),
        lambda tied: Recurrent(LstmConfig(layers=1, width=8, tie_embeddings=tied), 11),
    ],
)
def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(model_of, tied):
    model = model_of(tied)
    config = OptimConfig(name="muon", lr=1.0, muon={"adamw_lr_scale": 0.25})
    algorithms, rates = {}, {}
    for group in build_optimizer(model, config).param_groups:
        algorithms |= {id(parameter): group["algorithm"] for parameter in group["params"]}
        rates[group["algorithm"]] = group["lr"]
    assert rates == {"muon": 1.0, "adamw": 0.25}
    for name, parameter in model.named_parameters():
        is_hidden = parameter.dim() == 2 and name not in ("embed.weight", "head.weight")
        assert algorithms[id(parameter)] == ("muon" if is_hidden else "adamw"), name
