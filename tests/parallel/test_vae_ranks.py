"""A variational autoencoder on real ranks: one run of two processes has the numbers of one of one."""

import pytest
from harness import make_config

from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.session.metrics import read_metrics
from hvdlm.train import setup
from hvdlm.world.serial import SerialWorld

OPTIONS = (
    "model={family: vae, width: 16, latent: 4, dropout: 0.2, encoder_dropout: 0.1}",
    "task={kind: elbo, free_bits: 0.4, anneal_steps: 4, samples: 2}",
    "noise.word_dropout=0.2",
    "data.order=documents",
    "train.steps=6",
    "train.eval_tokens=2000",
)


@pytest.mark.on_ranks(2)
def test_two_ranks_train_and_evaluate_like_one(world, data_dir, tmp_path):
    setup.train(make_config(data_dir, tmp_path / "both", *OPTIONS), world)
    world.on_root(lambda: setup.train(make_config(data_dir, tmp_path / "alone", *OPTIONS), SerialWorld()))
    both, alone = (
        [read_metrics(tmp_path / name / "metrics.jsonl", split) for split in ("train", "val")]
        for name in ("both", "alone")
    )
    names = ("loss", "reconstruction", "kl", "elbo")
    for rows, expected in zip(both, alone, strict=True):
        found = [[row[name] for name in names] for row in rows]
        assert sum(found, []) == pytest.approx(sum(([row[name] for name in names] for row in expected), []), rel=1e-5)
    assert both[0][-1]["grad_norm"] == pytest.approx(alone[0][-1]["grad_norm"], rel=1e-4)
    evaluations = [evaluate_checkpoint(tmp_path / "both", (), "val", by) for by in (world, SerialWorld())]
    for name in (*names, "active_units", "mutual_information", "iw_loss"):
        assert evaluations[0][name] == pytest.approx(evaluations[1][name], rel=1e-5), name
