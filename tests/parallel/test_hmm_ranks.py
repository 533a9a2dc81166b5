"""Baum-Welch by real ranks: the same bits as by one, and no pass makes the text less probable."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from harness import make_config

from hvdlm.train import counting
from hvdlm.train.setup import build_learner
from hvdlm.world.serial import SerialWorld


def after_passes(data_dir, world, *overrides):
    """The weights that ranks have after some passes, and nats a token before each."""
    model = "model={family: hmm, states: 5, max_length: 100}"
    learner, _ = build_learner(make_config(data_dir, Path("unused"), model, *overrides), world)
    results = learner.run(0, 4)
    learner.close()
    nats = torch.stack([result.sums for result in results]).numpy()
    world.sum_(nats)
    return learner.model.state_dict(), (nats[:, 0] / nats[:, 1]).tolist()


@pytest.mark.on_ranks(1, 2, 3)
@pytest.mark.on_ranks(2, kind="horovod")
@pytest.mark.parametrize("num_units", [1, 7])
def test_ranks_estimate_what_one_does(data_dir, world, monkeypatch, num_units):
    monkeypatch.setattr(counting, "MOST_UNITS", num_units)
    monkeypatch.setattr(counting, "UNIT_TOKENS", 500)
    found, losses = after_passes(data_dir, world)
    alone, same_losses = after_passes(data_dir, SerialWorld())
    assert all(torch.equal(tensor, alone[name]) for name, tensor in found.items())
    assert losses == same_losses
    assert all(after < before for before, after in pairwise(losses))
