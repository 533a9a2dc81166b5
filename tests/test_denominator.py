"""One denominator: a step's loss is the sum over its targets by their number, whoever adds up which part of it.

Documents have unequal lengths, so a mean of micro-batches' means would be another number.
"""

import math
import threading

import numpy as np
import pytest
import torch
from first_gradient import first_gradient
from harness import make_config, make_text, preprocess
from torch.nn.utils import parameters_to_vector

from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED
from hvdlm.models import build_model
from hvdlm.parallel.axes import axes_of
from hvdlm.tasks.language_model import ObjectiveConfig, objective
from hvdlm.train.parts import vocabulary_of
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld

BUILDING = threading.Lock()  # weights come from torch's one generator
DOCUMENTS = ("data.order=documents", "data.seq_len=32", "optim.clip=0", "train.steps=4")


@pytest.fixture(scope="session")
def sentences(made_once):
    """Shards of 60 documents of 2 to 61 bytes."""

    def write(folder):
        texts = folder / "texts"
        texts.mkdir()
        for number in range(60):
            (texts / f"{number:02d}.txt").write_text(make_text(number, 40)[: 1 + number])
        preprocess(texts, folder / "data")

    return made_once("sentences", write) / "data"


@pytest.fixture
def gradient(sentences, tmp_path):
    """(gradient that is applied in the first step, what the ranks say of the step), by a number of threads as ranks."""
    manifest = read_manifest(sentences)

    def gradient(size, *overrides, spoil=None):
        config = make_config(sentences, tmp_path, *DOCUMENTS, *overrides)

        def learner_of(world):
            with BUILDING:
                learner = GradientLearner(
                    config, TokenStream(sentences, "train"), manifest, axes_of(world, config.parallel), Place(0, 1, 1)
                )
            if spoil is not None:
                learner.examples.batches = spoil(learner.examples.batches)
            learner.agree()
            return learner

        return first_gradient(size, learner_of)

    return gradient


@pytest.fixture
def at_once(sentences, tmp_path):
    """(gradient, loss, targets) of the whole first global batch in one pass."""
    config, manifest = make_config(sentences, tmp_path, *DOCUMENTS), read_manifest(sentences)
    learner = GradientLearner(
        config, TokenStream(sentences, "train"), manifest, axes_of(SerialWorld(), config.parallel), Place(0, 1, 1)
    )
    ids = torch.from_numpy(learner.examples.batches.windows(np.arange(12), 0))
    model = build_model(config.model, vocabulary_of(manifest), config.seed)
    inputs, targets = ids[:, :-1].clamp(min=0), ids[:, 1:]
    aim, _ = objective(model.logits(inputs)[0], targets, ObjectiveConfig())
    num = int((targets != IGNORED).sum())
    assert len(set((targets != IGNORED).sum(1).tolist())) > 2  # lengths do differ
    (aim / num).backward()
    learner.close()
    return parameters_to_vector([p.grad for p in model.parameters()]), float(aim.detach()) / num, num


@pytest.mark.parametrize("sync", ["allreduce", "tree", "{kind: allreduce, overlap: true}"])
@pytest.mark.parametrize(("size", "micro_batch"), [(1, 12), (1, 3), (1, 1), (2, 6), (2, 2), (3, 4), (3, 1), (4, 3)])
def test_the_gradient_is_that_of_the_global_mean(gradient, at_once, sync, size, micro_batch):
    expected, loss, num = at_once
    found, interval = gradient(size, f"sync={sync}", f"train.micro_batch={micro_batch}")
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert interval.steps[0].loss == pytest.approx(loss, rel=1e-6)
    assert interval.steps[0].targets == num


def test_tree_gives_the_same_bits_at_any_number_of_ranks(gradient):
    bits = [gradient(size, "sync=tree", "train.micro_batch=1")[0] for size in (1, 2, 3, 4)]
    assert all(torch.equal(each, bits[0]) for each in bits)


class Emptied:
    """An order of which some samples have no target."""

    pads = True

    def __init__(self, order, *empty):
        self._order, self._empty = order, empty

    def __getattr__(self, name):
        return getattr(self._order, name)

    def lengths(self, positions):
        return np.where(np.isin(positions, self._empty), 0, self._order.lengths(positions))

    def windows(self, positions, step):
        ids = self._order.windows(positions, step)
        ids[np.isin(positions, self._empty), 1:] = IGNORED
        return ids


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_micro_batch_without_targets_adds_nothing(gradient, size):
    """Neither to the sum nor to the number; a rank may have no others."""
    empty = range(12 // size)  # all of rank 0, or everything
    kept, left_out = [], []
    for sync in ("allreduce", "tree"):
        found, interval = gradient(size, f"sync={sync}", "train.micro_batch=2", spoil=lambda o: Emptied(o, *empty))
        kept.append(found)
        left_out.append(interval.steps[0])
    assert all(torch.isfinite(found).all() for found in kept)
    assert torch.allclose(*kept, atol=1e-6)
    assert all(math.isfinite(facts.loss) for facts in left_out)
    if size == 1:
        assert (left_out[0].loss, left_out[0].targets, float(kept[0].abs().max())) == (0.0, 0.0, 0.0)
    else:
        alone, facts = gradient(1, "sync=tree", "train.micro_batch=12", spoil=lambda o: Emptied(o, *empty))
        assert torch.allclose(kept[0], alone, atol=1e-6)
        assert facts.steps[0].loss == pytest.approx(left_out[0].loss, rel=1e-6)
