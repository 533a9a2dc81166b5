"""N-grams counted by real ranks: the same bits as by one, over every way that bytes travel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from harness import make_config

from hvdlm.models import Vocabulary, build_model
from hvdlm.models.ngram import NgramConfig
from hvdlm.models.ngram.counts import adjusted_counts, empty_table, merge
from hvdlm.partition import slice_of
from hvdlm.train import counting
from hvdlm.train.ngram_exchange import share_counts
from hvdlm.train.setup import build_learner
from hvdlm.world.serial import SerialWorld

UNIT = 256


@pytest.mark.on_ranks(1, 2, 3)
@pytest.mark.on_ranks(2, kind="horovod")
@pytest.mark.on_ranks(2, kind="gloo")
def test_ranks_count_what_one_counts(world):
    stream = np.concatenate(([0], (np.random.default_rng(0).random(5000) ** 2 * 40).astype(int)))
    for num_units in (20, 1):  # with one unit some ranks have nothing to count
        ids = stream[: 1 + num_units * UNIT]
        model = build_model(NgramConfig(), Vocabulary(40, 0), seed=0)
        table = empty_table(5)
        for unit in slice_of(world.rank, world.size, num_units):
            start = 1 + unit * UNIT
            table = merge(table, model.count(ids[start : start + UNIT], ids[max(0, start - 4) : start]))
        model.update(share_counts(table, world)[0])
        alone = build_model(NgramConfig(), Vocabulary(40, 0), seed=0)
        alone.update(adjusted_counts(alone.count(ids[1:], ids[:1])))
        expected = alone.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def after_its_pass(data_dir, world):
    learner, corpora = build_learner(make_config(data_dir, Path("unused"), "model={family: ngram}"), world)
    assert learner.total_steps == 1
    (result,) = learner.run(0, 1)
    learner.close()
    sums = result.sums.numpy()
    world.sum_(sums)
    assert sums[1] == corpora.manifest.splits["train"].num_tokens
    return learner.model.state_dict(), sums[0]


@pytest.mark.on_ranks(1, 2, 3)
@pytest.mark.parametrize("num_units", [1, 7])
def test_ranks_learn_what_one_learns(data_dir, world, monkeypatch, num_units):
    """And the loss of the text in the model, each rank's part of it read on from what stands before."""
    monkeypatch.setattr(counting, "MOST_UNITS", num_units)
    monkeypatch.setattr(counting, "UNIT_TOKENS", 500)
    found, nats = after_its_pass(data_dir, world)
    alone, same_nats = after_its_pass(data_dir, SerialWorld())
    assert all(torch.equal(tensor, alone[name]) for name, tensor in found.items())
    assert nats == pytest.approx(same_nats, rel=1e-12)
