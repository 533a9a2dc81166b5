"""`hvdlm ckpt`: what people ask of checkpoints, whatever wrote them."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from harness import run_training
from safetensors.torch import load_file
from saved import PART, rewrite, tensors_in

from hvdlm import checkpoint
from hvdlm.cli.command import cli
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.world.serial import SerialWorld


@pytest.fixture(scope="module")
def kept(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("ckpt") / "run"
    run_training(data_dir, run_dir, "checkpoint={every: 5, keep: 9}", "ema={decay: 0.9}", "checkpoint.best=loss")
    return run_dir


@pytest.fixture
def run(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "run", symlinks=True)


def ckpt(*words, code=0):
    found = CliRunner().invoke(cli, ["ckpt", *map(str, words)], standalone_mode=False)
    if code == 0:
        assert found.exception is None, found.exception
        return found.stdout
    assert isinstance(found.exception, UserError)
    return str(found.exception)


def steps(run):
    return checkpoint.complete_steps(run)


def test_the_list_has_each_with_its_marks(run):
    (run / "checkpoints/step_00000010/state.json").write_text("{")
    lines = ckpt("ls", run).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"step_{step:08d}" for step in (5, 10, 15, 20)]
    assert "latest" in lines[-1] and "cannot be read" in lines[2]
    told = json.loads(ckpt("ls", run, "--json"))["checkpoints"]
    assert [each["step"] for each in told] == [5, 10, 15, 20]
    assert told[-1]["schema"] == 2 and told[-1]["val_loss"] > 0


def test_each_is_verified(run):
    assert ckpt("verify", run).count(": sound") == 4
    part = run / "checkpoints/step_00000010" / PART
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert "step_00000010: part-0000.safetensors is damaged (checksum)" in ckpt("verify", run, code=2)
    assert ckpt("verify", run / "checkpoints/step_00000005") == f"{run}/checkpoints/step_00000005: sound\n"


def test_what_differs_is_told_tensor_by_tensor(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other", symlinks=True)
    assert " have the same bits" in ckpt("diff", run, other)

    def change(tensors):
        tensors["model/norm.weight"][3] += 0.5
        del tensors["optimizer/norm.weight/exp_avg"]

    rewrite(checkpoint.resolve(other), change)
    lines = ckpt("diff", run, other).splitlines()
    assert lines[0] == "model/norm.weight: 1 of 32 elements differ, by at most 0.5"
    assert lines[1] == "optimizer/norm.weight/exp_avg: only in the first"
    assert len(json.loads(ckpt("diff", run, other, "--weights", "--json"))["differ"]) == 1


def test_old_ones_go_and_the_best_stays(run):
    checkpoint.point_best(run, 5)
    assert ckpt("prune", run, "--keep", 1, "--dry-run").count("would remove") == 2
    assert steps(run) == [5, 10, 15, 20]
    ckpt("prune", run, "--keep", 1, "--keep-every", 10)
    assert steps(run) == [5, 10, 20]
    assert ckpt("prune", run, "--keep", 3) == "nothing to remove\n"


def test_one_file_has_the_weights_in_serial_names(run, tmp_path):
    ckpt("consolidate", run, tmp_path / "weights.safetensors")
    weights = checkpoint.read_weights(checkpoint.resolve(run))
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    ckpt("consolidate", run, tmp_path / "mean.safetensors", "--ema")
    mean = load_file(tmp_path / "mean.safetensors")
    assert torch.equal(mean["norm.weight"], tensors_in(checkpoint.resolve(run), "engine/ema/")["norm.weight"])
    assert "must end in .safetensors" in ckpt("consolidate", run, tmp_path / "weights.bin", code=2)


def test_the_mean_of_several_is_a_run_that_is_evaluated(run, data_dir, tmp_path):
    told = json.loads(ckpt("average", run, "--last", 2, "--out", tmp_path / "mean", "--json"))
    paths = [checkpoint.path_of(run, step) for step in (15, 20)]
    assert told["averaged"] == list(map(str, paths))
    one, other = map(checkpoint.read_weights, paths)
    found = checkpoint.read_weights(checkpoint.resolve(tmp_path / "mean"))
    expected = (one["norm.weight"].double() + other["norm.weight"].double()) / 2
    assert torch.equal(found["norm.weight"], expected.float())
    assert evaluate_checkpoint(tmp_path / "mean", (), "val", SerialWorld())["loss"] > 0
    assert "name a new folder" in ckpt("average", run, "--out", tmp_path / "mean", code=2)
    assert "its own mean" in ckpt("average", paths[0], "--out", tmp_path / "one", code=2)
