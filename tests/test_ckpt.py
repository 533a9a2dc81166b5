"""`hvdlm ckpt`: what people ask of checkpoints, whatever wrote them."""

import json
import os
import shutil

import pytest
import torch
from click.testing import CliRunner
from harness import run_training
from safetensors import SafetensorError
from safetensors.torch import load_file
from saved import PART, rewrite, tensors_in, write_record

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
    if code in (0, 1):
        assert found.exit_code == code, found.exception
        return found.stdout
    assert isinstance(found.exception, UserError)
    return str(found.exception)


def umask():
    """Reading it sets it."""
    found = os.umask(0)
    os.umask(found)
    return found


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
    assert told[0]["val_loss"] is None, "it was not validated: the next is after ten steps"


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
    lines = ckpt("diff", run, other, code=1).splitlines()
    assert lines[0] == "model/norm.weight: 1 of 32 elements differ, by at most 0.5"
    assert lines[1] == "optimizer/norm.weight/exp_avg: only in the first"
    assert len(json.loads(ckpt("diff", run, other, "--weights", "--json", code=1))["differ"]) == 1


def test_bits_are_compared_and_not_numbers(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other", symlinks=True)
    values = {"zero": torch.tensor([0.0, 1.0]), "count": torch.tensor([1 << 60, 2]), "none": torch.ones(0, 3)}
    rewrite(checkpoint.resolve(run), lambda tensors: tensors.update({f"model/{k}": v for k, v in values.items()}))
    values["zero"], values["count"] = torch.tensor([-0.0, 1.0]), torch.tensor([(1 << 60) + 1, 2])
    rewrite(checkpoint.resolve(other), lambda tensors: tensors.update({f"model/{k}": v for k, v in values.items()}))
    lines = ckpt("diff", run, other, "--weights", code=1).splitlines()
    assert lines[0] == "model/count: 1 of 2 elements differ"
    assert lines[1] == "model/zero: 1 of 2 elements differ, by at most 0"
    assert lines[2].endswith(" have the same bits")


def test_a_tensor_that_holds_nan_is_the_same_as_itself(run):
    rewrite(checkpoint.resolve(run), lambda tensors: tensors["optimizer/norm.weight/exp_avg"].fill_(float("nan")))
    latest = run / "checkpoints/latest"
    assert "differ" not in ckpt("diff", latest, latest)


def test_a_number_that_training_goes_on_with_differs_too(run):
    early, late = (run / f"checkpoints/step_{step:08d}" for step in (15, 20))
    values = json.loads(ckpt("diff", early, late, "--json", code=1))["values"]
    assert "step: 15 and 20" in values and any(line.startswith("engine.guard.seen: ") for line in values)


def test_old_ones_go_and_the_best_stays(run):
    checkpoint.point_best(run, 5)
    assert ckpt("prune", run, "--keep", 1, "--dry-run").count("would remove") == 2
    assert steps(run) == [5, 10, 15, 20]
    ckpt("prune", run, "--keep", 1, "--keep-every", 10)
    assert steps(run) == [5, 10, 20]
    assert ckpt("prune", run, "--keep", 3) == "nothing to remove\n"


def test_what_stays_is_what_the_run_says_unless_one_says_otherwise(run):
    assert ckpt("prune", run, "--dry-run") == "nothing to remove\n"  # it keeps nine
    for path in (run / "checkpoints").glob("step_*"):
        state = json.loads((path / "state.json").read_text())
        state["config"]["checkpoint"].update(keep=1, keep_every=10)
        write_record(path, state)
    checkpoint.point_best(run, None)
    ckpt("prune", run)
    assert steps(run) == [10, 20]
    ckpt("prune", run, "--keep-every", 0)
    assert steps(run) == [20]


def test_one_file_has_the_weights_in_serial_names(run, tmp_path):
    ckpt("consolidate", run, tmp_path / "weights.safetensors")
    weights = checkpoint.read_weights(checkpoint.resolve(run))
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    ckpt("consolidate", run, tmp_path / "mean.safetensors", "--ema")
    mean = load_file(tmp_path / "mean.safetensors")
    assert torch.equal(mean["norm.weight"], tensors_in(checkpoint.resolve(run), "engine/ema/")["norm.weight"])
    assert (tmp_path / "mean.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask()
    assert "must end in .safetensors" in ckpt("consolidate", run, tmp_path / "weights.bin", code=2)


def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"begun")
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("hvdlm.checkpoint.tools.save_file", full)
    (tmp_path / "out").mkdir()
    message = ckpt("consolidate", run, tmp_path / "out/weights.safetensors", code=2)
    assert "weights.safetensors: cannot be written (No space left" in message
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["latest", "best"])
def test_what_stands_for_a_checkpoint_does_so_everywhere(run, tmp_path, name):
    """A link, a text where there are none, and never one out of the run; whatever the folders above are called."""
    checkpoint.point_best(run, 20)
    at = run / "checkpoints" / name
    assert ckpt("verify", at) == f"{at}: sound\n"
    at.unlink()
    at.write_text("step_00000010\n")
    path = run / "checkpoints/step_00000010"
    assert checkpoint.resolve(at) == path
    assert ckpt("verify", at) == f"{path}: sound\n"
    at.unlink()
    at.symlink_to(shutil.copytree(path, tmp_path / "step_00000010"))
    assert "points out of its run" in ckpt("verify", at, code=2)
    with pytest.raises(UserError, match="points out of its run"):
        checkpoint.resolve(at)
    inside = shutil.copytree(run, tmp_path / "checkpoints/run", symlinks=True)
    assert ckpt("verify", inside).count(": sound") == 4


def test_only_names_that_a_run_gives_are_checkpoints(run):
    for name in ("step_0000000005", "step_٠٠٠٠٠٠٠٢"):
        shutil.copytree(run / "checkpoints/step_00000005", run / "checkpoints" / name)
    assert steps(run) == [5, 10, 15, 20]


def test_a_damaged_checkpoint_is_not_averaged(run, tmp_path):
    part = run / "checkpoints/step_00000010" / PART
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    message = ckpt("average", run, "--out", tmp_path / "mean", code=2)
    assert "part-0000.safetensors is damaged (checksum); leave it out" in message
    assert not (tmp_path / "mean").exists()


def test_a_mean_begins_runs_and_goes_on_with_none(run, data_dir, tmp_path):
    ckpt("average", run, "--last", 2, "--out", tmp_path / "mean")
    same = ("checkpoint={every: 5, keep: 9}", "ema={decay: 0.9}", "checkpoint.best=loss")
    with pytest.raises(UserError, match=r"is the mean of other checkpoints, .*; begin a run with it: init.from="):
        run_training(data_dir, tmp_path / "mean", *same)
    begins = (f"init.from={tmp_path / 'mean'}", "train.steps=5")
    with pytest.raises(UserError, match="init.optimizer: .* is a mean of checkpoints, without such a state"):
        run_training(data_dir, tmp_path / "next", *begins, "init.optimizer=true")
    assert run_training(data_dir, tmp_path / "next", *begins)["step"] == 5


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
