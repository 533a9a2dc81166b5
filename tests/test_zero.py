"""ZeRO-1: slices of the optimizer give the weights, moments and norms of whole ones, and fit any number of ranks."""

import threading

import pytest
import torch
from harness import make_config

from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.parallel.axes import axes_of
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.threads import run_on_threads

BUILDING = threading.Lock()  # weights come from torch's one generator
MODEL = "model={family: transformer, layers: 2, width: 24, heads: 3, dropout: 0.1}"
STEPS = 20


def moments_of(learners_pieces):
    """The optimizer's tensors by key, put together of the ranks' pieces."""
    found = {}
    for pieces in learners_pieces:
        for piece in pieces:
            if piece.key.startswith("optimizer/"):
                room = found.setdefault(piece.key, torch.full(piece.shape, torch.nan))
                room[tuple(slice(o, o + n) for o, n in zip(*piece.box, strict=True))] = piece.tensor
    return found


@pytest.fixture
def trained(data_dir, tmp_path):
    """(weights by name, moments by key, norms, bytes sent) after STEPS on so many threads as ranks."""
    source, manifest = TokenStream(data_dir, "train"), read_manifest(data_dir)

    def trained(size, *overrides):
        config = make_config(data_dir, tmp_path, MODEL, "sync=tree", "optim.clip=0.5", *overrides)

        def on_rank(world):
            with BUILDING:
                learner = GradientLearner(config, source, manifest, axes_of(world, config.parallel), Place(0, 1, 1))
            learner.agree()
            norms = [float(result.grad_norm) for result in learner.run(0, STEPS)]
            weights = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
            pieces = learner.pieces({})[0]
            learner.close()
            return weights, pieces, norms, learner.bytes_sent

        found = run_on_threads(size, on_rank)
        weights, _, norms, sent = found[0]
        assert all(other[2] == norms for other in found)
        assert all(torch.equal(other[0][name], weights[name]) for other in found for name in weights)
        return weights, moments_of(pieces for _, pieces, _, _ in found), norms, sent

    return trained


def same(left, right):
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])} == set()


GROUPS = "optim.groups=[{match: 'mlp', weight_decay: 0.3, lr_scale: 0.5}]"


@pytest.mark.parametrize("overrides", [[GROUPS], ["train.precision=bf16"]])
def test_slices_train_to_the_bits_of_whole_parameters(trained, overrides):
    weights, moments, norms, _ = trained(1, *overrides)
    for size in (1, 2, 3, 4):
        batch = ["train.global_batch=24", "train.micro_batch=2"] if size == 4 else []
        expected = trained(1, *overrides, *batch) if batch else (weights, moments, norms, 0)
        found = trained(size, "parallel.zero=1", *overrides, *batch)
        assert found[2] == expected[2], size
        assert same(found[0], expected[0]) and same(found[1], expected[1]), size
