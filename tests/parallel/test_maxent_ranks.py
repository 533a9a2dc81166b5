"""L-BFGS by real ranks: the same bits as by one, and a lower objective with each step."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from harness import make_config

from hvdlm.train import counting
from hvdlm.train.setup import build_learner
from hvdlm.world.serial import SerialWorld


def after_steps(data_dir, world):
    """The weights that ranks have, and the objective after each step."""
    model = "model={family: maxent, order: 3, buckets: 9, training: lbfgs, l1: 1e-5, l2: 1e-4}"
    learner, _ = build_learner(make_config(data_dir, Path("unused"), model), world)
    objectives = []
    for step in range(3):
        learner.run(step, step + 1)
        objectives.append(learner.facts()["objective"])
    learner.close()
    return learner.model.state_dict(), objectives


@pytest.mark.on_ranks(1, 2, 3)
def test_ranks_find_what_one_finds(data_dir, world, monkeypatch):
    monkeypatch.setattr(counting, "UNIT_TOKENS", 5000)
    found, objectives = after_steps(data_dir, world)
    alone, same_objectives = after_steps(data_dir, SerialWorld())
    assert all(torch.equal(tensor, alone[name]) for name, tensor in found.items())
    assert objectives == same_objectives
    assert all(after < before for before, after in pairwise(objectives))
