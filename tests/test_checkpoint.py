"""A checkpoint is complete or absent, at whatever point the writer dies."""

import errno
import json
import shutil

import pytest
import torch
from harness import STATE, preprocess, run_training

from hvdlm.checkpoint import store as checkpoint
from hvdlm.errors import UserError
from hvdlm.session.metrics import read_metrics
from hvdlm.train.step import Engine


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(run_dir, step, parts, keep=2):
    return checkpoint.save(run_dir, step, *parts, STATE, keep=keep)


def test_what_is_saved_is_restored_bit_for_bit(tmp_path, parts):
    path = save(tmp_path, 7, parts)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    checkpoint.load_model(path, model)
    checkpoint.load_optimizer(path, model, optimizer)
    for ours, theirs in zip(model.parameters(), parts[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(optimizer.state[ours], parts[1].state[theirs], rtol=0, atol=0)
    assert checkpoint.read_state(path)["step"] == 7


def test_latest_points_to_the_newest_and_old_ones_go(tmp_path, parts):
    for step in (10, 20, 30):
        save(tmp_path, step, parts)
    root = tmp_path / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_00000020", "step_00000030"]
    assert (root / "latest").resolve().name == "step_00000030"
    assert checkpoint.resolve(root / "latest").name == "latest"
    assert checkpoint.resolve(tmp_path).name == "step_00000030"


def dying(function, survive, error):
    calls = []

    def wrapped(*arguments, **options):
        calls.append(arguments)
        if len(calls) > survive:
            raise error
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize(
    "point", ["save_file", "replace_durably", "sha256_of", "write_text_durably", "sync_folder", "_point_latest"]
)
def test_a_crash_at_any_point_leaves_a_complete_checkpoint(tmp_path, parts, monkeypatch, point, error):
    save(tmp_path, 10, parts)
    for survive in range(1 if point in ("write_text_durably", "_point_latest") else 2):  # as often as it is called
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(checkpoint, point, dying(getattr(checkpoint, point), survive, error))
            save(tmp_path, 20, parts)
        assert checkpoint.damage(checkpoint.newest(tmp_path)) is None
    assert save(tmp_path, 20, parts).name == "step_00000020"
    assert checkpoint.newest(tmp_path).name == "step_00000020"
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, parts, name, damage):
    save(tmp_path, 10, parts)
    path = save(tmp_path, 20, parts) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:30] + b"\xff" + content[31:])
    assert checkpoint.newest(tmp_path).name == "step_00000010"


def test_no_checkpoint_is_told_apart_from_a_damaged_one(tmp_path, parts):
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoint.resolve(tmp_path)
    path = save(tmp_path, 10, parts)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model.safetensors is cut short"):
        checkpoint.resolve(path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, parts):
    path = save(tmp_path, 10, parts)
    with pytest.raises(UserError, match=r"weight is \(3, 3\), this config says \(3, 4\)"):
        checkpoint.load_model(path, torch.nn.Linear(4, 3))
    with pytest.raises(UserError, match=r"other tensors than this config \(bias"):
        checkpoint.load_model(path, torch.nn.Linear(3, 3, bias=False))


def final_state(run_dir):
    state = json.loads((checkpoint.resolve(run_dir) / "state.json").read_text())
    return {name: facts["sha256"] for name, facts in state["files"].items()}


@pytest.mark.parametrize("stop_after", [3, 10, 17])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(data_dir, tmp_path, monkeypatch, stop_after, optimizer):
    overrides = ("checkpoint.every=3", f"optim.name={optimizer}", "model.dropout=0.1")
    run_training(data_dir, tmp_path / "whole", *overrides)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "_step", dying(Engine._step, stop_after, KeyboardInterrupt()))
        run_training(data_dir, tmp_path / "resumed", *overrides)
    run_training(data_dir, tmp_path / "resumed", *overrides)
    assert final_state(tmp_path / "resumed") == final_state(tmp_path / "whole")
    numbers = ("step", "split", "loss", "lr", "grad_norm", "tokens")  # the others are of the clock
    whole, resumed = (
        [[row.get(name) for name in numbers] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "resumed")
    )
    assert resumed == whole


def test_a_run_cannot_be_resumed_with_other_settings(data_dir, tmp_path):
    run_training(data_dir, tmp_path, "train.steps=2")
    with pytest.raises(UserError, match=r"other settings \(model.width: 32 -> 64; optim.lr: 0.002 -> 0.01\)"):
        run_training(data_dir, tmp_path, "train.steps=2", "optim.lr=0.01", "model.width=64")


def test_a_finished_run_has_nothing_to_do_and_a_longer_one_goes_on(data_dir, tmp_path):
    run_training(data_dir, tmp_path, "train.steps=2")
    before = final_state(tmp_path)
    assert run_training(data_dir, tmp_path, "train.steps=2")["step"] == 2
    assert final_state(tmp_path) == before
    assert run_training(data_dir, tmp_path, "train.steps=4")["step"] == 4


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(data_dir, tmp_path):
    overrides = ("optim.name=sgd", "optim.lr=1e30", "optim.clip=0", "checkpoint.every=1")
    with pytest.raises(UserError, match=r"step \d+: gradient norm .*has diverged"):
        run_training(data_dir, tmp_path, *overrides)
    assert checkpoint.newest(tmp_path) is not None


def test_retention_never_takes_the_checkpoint_just_written(tmp_path, parts):
    for step in (100, 200):
        (save(tmp_path, step, parts, keep=9) / "model.safetensors").write_bytes(b"")
    path = save(tmp_path, 50, parts)
    assert path.exists()
    assert checkpoint.newest(tmp_path) == path


def test_a_checkpoint_that_is_not_permitted_never_appears(tmp_path, parts):
    """The folder changed hands while it was written; the new owner's next save removes what was left."""
    save(tmp_path, 10, parts)

    def refuse():
        raise UserError("taken over")

    with pytest.raises(UserError, match="taken over"):
        checkpoint.save(tmp_path, 20, *parts, STATE, keep=1, permit=refuse)
    assert checkpoint.complete_steps(tmp_path) == [10]
    assert checkpoint.resolve(tmp_path).name == "step_00000010"
    save(tmp_path, 20, parts)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step_00000010", "step_00000020"]


def test_two_writers_of_one_step_do_not_mix_their_files(tmp_path, parts):
    """A new owner that saves the same step meanwhile: each file it commits is its own."""
    other = (torch.nn.Linear(3, 3), parts[1])

    def overtaken():
        save(tmp_path, 10, parts)
        raise UserError("taken over")

    with pytest.raises(UserError, match="taken over"):
        checkpoint.save(tmp_path, 10, *other, STATE, keep=2, permit=overtaken)
    path = checkpoint.newest(tmp_path)
    model = torch.nn.Linear(3, 3)
    checkpoint.load_model(path, model)
    assert torch.equal(model.weight, parts[0].weight)


def test_only_damaged_checkpoints_are_no_fresh_run(tmp_path, parts):
    (save(tmp_path, 10, parts) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint is damaged; restore one, or remove them"):
        checkpoint.newest(tmp_path)


def test_a_backup_beside_the_checkpoints_is_left_alone(tmp_path, parts):
    path = save(tmp_path, 10, parts)
    shutil.copytree(path, path.with_name("step_00000010.bak"))
    assert checkpoint.complete_steps(tmp_path) == [10]


def test_a_run_is_not_resumed_on_other_data(data_dir, corpus, tmp_path):
    run_training(data_dir, tmp_path / "run", "train.steps=2")
    preprocess(corpus, tmp_path / "other", seed=7)
    with pytest.raises(UserError, match="is not the data that .* was trained on"):
        run_training(tmp_path / "other", tmp_path / "run", "train.steps=3")
