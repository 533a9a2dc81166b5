"""A checkpoint is complete or absent, at whatever point the writer dies."""

import errno
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from harness import STATE, preprocess, run_training
from saved import PART, opened_files, rewrite

from hvdlm import checkpoint
from hvdlm.checkpoint import finding, links, soundness, store
from hvdlm.checkpoint import parts as part_files
from hvdlm.errors import UserError
from hvdlm.session.metrics import read_metrics, read_run
from hvdlm.train.step import GradientLearner
from hvdlm.world.threads import run_on_threads


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(run_dir, step, parts, keep=2, permit=lambda: None):
    pieces, scalars = checkpoint.pieces_of(*parts, {})
    path = store.write(run_dir, step, pieces, {**STATE, "optimizer_scalars": scalars}, permit)
    checkpoint.prune(run_dir, keep=keep, last=step)
    return path


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
    ("room", "point"),
    [
        *((part_files, name) for name in ("_write_all", "sync_folder")),
        *((store, name) for name in ("write_parts", "write_text_durably", "sync_folder", "point_latest")),
        (links, "sync_folder"),
    ],
)
def test_a_crash_at_any_point_leaves_a_complete_checkpoint(tmp_path, parts, monkeypatch, room, point, error):
    save(tmp_path, 10, parts)
    for survive in range(2 if point == "_write_all" else 1):  # which is called more than once
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(room, point, dying(getattr(room, point), survive, error))
            save(tmp_path, 20, parts)
        assert checkpoint.damage(checkpoint.newest(tmp_path)) is None
    assert save(tmp_path, 20, parts).name == "step_00000020"
    assert checkpoint.newest(tmp_path).name == "step_00000020"
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_kill_at_any_call_to_the_file_system_leaves_a_run_that_goes_on(tmp_path):
    """Processes of its own, for what is killed is one; of two saves with a best one and with old ones that go."""
    script = Path(__file__).parent / "killed_saves.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15, "a save makes, writes, renames, links and removes"


@pytest.mark.parametrize("name", [PART, "state.json"])
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
    (path / PART).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{PART} is cut short"):
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
        patch.setattr(GradientLearner, "_step", dying(GradientLearner._step, stop_after, KeyboardInterrupt()))
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
    _, events = read_run(tmp_path / "metrics.jsonl")
    assert [(event["event"], event["step"]) for event in events] == [
        *(("started", 0), ("ended", 2)),  # the start with nothing to do is none
        *(("resumed", 2), ("ended", 4)),
    ]
    assert (events[2]["total_steps"], events[3]["reason"]) == (4, "all steps")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(data_dir, tmp_path):
    overrides = ("optim.name=sgd", "optim.lr=1e30", "optim.clip=0", "checkpoint.every=1")
    with pytest.raises(UserError, match=r"step \d+: gradient norm .*has diverged"):
        run_training(data_dir, tmp_path, *overrides)
    assert checkpoint.newest(tmp_path) is not None
    _, (*_, last) = read_run(tmp_path / "metrics.jsonl")
    assert last["event"] == "failed" and "has diverged" in last["reason"]


def test_retention_never_takes_the_checkpoint_just_written(tmp_path, parts):
    for step in (100, 200):
        (save(tmp_path, step, parts, keep=9) / PART).write_bytes(b"")
    path = save(tmp_path, 50, parts)
    assert path.exists()
    assert checkpoint.newest(tmp_path) == path


def test_a_checkpoint_that_is_not_permitted_never_appears(tmp_path, parts):
    """The folder changed hands while it was written; the new owner's next save removes what was left."""
    save(tmp_path, 10, parts)

    def refuse():
        raise UserError("taken over")

    with pytest.raises(UserError, match="taken over"):
        save(tmp_path, 20, parts, keep=1, permit=refuse)
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
        save(tmp_path, 10, other, permit=overtaken)
    path = checkpoint.newest(tmp_path)
    model = torch.nn.Linear(3, 3)
    checkpoint.load_model(path, model)
    assert torch.equal(model.weight, parts[0].weight)


def test_what_could_not_be_resumed_is_not_saved(tmp_path, parts):
    """The record is read back before it is visible: older checkpoints would go for it."""
    save(tmp_path, 10, parts)
    with pytest.raises(UserError, match=r"step_00000020: cannot be saved: vocab_size: "):
        checkpoint.save(tmp_path, 20, *parts, {**STATE, "vocab_size": 0})
    with pytest.raises(UserError, match=r"step_00000020: cannot be saved: tensors.engine/deep"):
        checkpoint.save(tmp_path, 20, *parts, STATE, {"deep": torch.ones([1] * 9)})
    with pytest.raises(UserError, match=r"engine/odd is of torch.uint16, which no checkpoint holds"):
        checkpoint.save(tmp_path, 20, *parts, STATE, {"odd": torch.ones(2, dtype=torch.uint16)})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_00000010"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_cannot_be_read_says_nothing_of_a_checkpoint(tmp_path, parts, monkeypatch, code):
    """Nothing older is taken for it, and nobody is told to remove it."""
    for step in (10, 20):
        save(tmp_path, step, parts)

    def fail(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("hvdlm.checkpoint.soundness.sha256_of", fail)
    with pytest.raises(UserError, match=rf"rank 0 of 1 on .*{PART}: .*; mend that, and run") as caught:
        checkpoint.newest(tmp_path)
    assert "damage" not in str(caught.value)


def test_what_another_job_removes_meanwhile_is_no_damage(tmp_path, parts, monkeypatch):
    """A reader beside a run that keeps one checkpoint finds the next one instead."""
    save(tmp_path, 10, parts)
    plain = soundness.read_record

    def overtaken(path):
        if path.name == "step_00000010":
            save(tmp_path, 20, parts, keep=1)
        return plain(path)

    monkeypatch.setattr(soundness, "read_record", overtaken)
    assert checkpoint.newest(tmp_path).name == "step_00000020"


def test_a_rank_that_does_not_see_a_checkpoint_says_nothing_of_it(tmp_path, parts, monkeypatch):
    """A file system that is missing on one node."""
    save(tmp_path, 10, parts)
    plain = finding._fault_of_share

    def blind(path, world):
        return plain(path if world.rank == 0 else path / "nowhere", world)

    monkeypatch.setattr(finding, "_fault_of_share", blind)

    def on_rank(world):
        with pytest.raises(UserError, match="rank 1 of 2 on .* does not see it, though rank 0 does; mend that"):
            checkpoint.newest(tmp_path, world)

    run_on_threads(2, on_rank)


def test_only_damaged_checkpoints_are_no_fresh_run(tmp_path, parts):
    (save(tmp_path, 10, parts) / PART).write_bytes(b"")
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


# --- what is not finite


def poison(folder, prefix, value=math.nan):
    """Put `value` into a tensor whose key begins so."""

    def change(tensors):
        tensors[min(key for key in tensors if key.startswith(prefix))].view(-1)[0] = value

    rewrite(folder, change)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["weight", "moment", "engine tensor", "scalar"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, parts, part, value):
    model, optimizer = parts
    save(tmp_path, 10, parts)
    tensors = {"ema/weight": torch.zeros(2, dtype=torch.bfloat16), "empty": torch.zeros(0), "count": torch.tensor(3)}
    with torch.no_grad():
        match part:
            case "weight":
                model.bias[1] = value
            case "moment":
                optimizer.state[model.weight]["exp_avg_sq"][0, 2] = value
            case "engine tensor":
                tensors["ema/weight"][1] = value
            case "scalar":
                optimizer.state[model.weight]["scale"] = value
    with pytest.raises(checkpoint.NotFiniteError, match=r"^\S+ is not finite$"):
        checkpoint.save(tmp_path, 20, *parts, STATE, tensors)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_00000010"]


@pytest.mark.parametrize("prefix", ["model/", "optimizer/", "engine/"])
def test_a_checkpoint_that_is_not_finite_is_passed_over(tmp_path, parts, prefix, caplog):
    for step in (10, 20):
        path = checkpoint.save(tmp_path, step, *parts, STATE, {"carried": torch.ones(2)})
    poison(path, prefix)
    assert checkpoint.newest(tmp_path).name == "step_00000010"
    assert re.search(rf"{prefix}\S+ is not finite; trying the checkpoint before it", caplog.text)


def test_moments_that_are_not_finite_do_not_keep_weights_from_use(tmp_path, parts):
    path = save(tmp_path, 10, parts)
    poison(path, "optimizer/")
    assert checkpoint.resolve(path) == path
    poison(path, "model/")
    with pytest.raises(UserError, match="model/bias is not finite; use another checkpoint"):
        checkpoint.resolve(path)


def test_json_of_a_state_has_null_for_what_is_not_finite(tmp_path, parts):
    path = checkpoint.save(tmp_path, 1, *parts, {**STATE, "engine": {"val_losses": [math.nan, 2.0]}})
    state = json.loads((path / "state.json").read_text(), parse_constant=pytest.fail)
    assert state["engine"]["val_losses"] == [None, 2.0]
    (path / "state.json").write_text((path / "state.json").read_text().replace("null", "NaN"))  # of an older version
    assert checkpoint.read_state(checkpoint.newest(tmp_path)) == state


def test_passed_over_checkpoints_do_not_count_as_kept(tmp_path, parts):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, parts, keep=9)
    checkpoint.prune(tmp_path, keep=2, last=40, unsound={20, 30})
    assert checkpoint.complete_steps(tmp_path) == [10, 40]


# --- copies and file systems


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_a_copy_that_followed_links_resumes_and_saves(tmp_path, parts):
    save(tmp_path / "run", 10, parts)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # as cp -rL, scp -r
    root = tmp_path / "copy/checkpoints"
    assert not (root / "latest").is_symlink()
    assert checkpoint.resolve(root / "latest") == root / "latest"
    save(tmp_path / "copy", 20, parts)
    assert names(root) == ["latest", "step_00000010", "step_00000020"]
    assert (root / "latest").readlink().name == "step_00000020"


def test_latest_alone_is_a_checkpoint_too(tmp_path, parts):
    save(tmp_path / "run", 10, parts)
    root = tmp_path / "copy/checkpoints"
    shutil.copytree(tmp_path / "run/checkpoints/step_00000010", root / "latest")
    checkpoint.prepare(tmp_path / "copy")
    assert names(root) == ["step_00000010"]
    assert checkpoint.newest(tmp_path / "copy") == root / "step_00000010"


def test_a_folder_latest_that_is_no_copy_is_kept(tmp_path, parts):
    root = save(tmp_path, 10, parts).parent
    (root / "latest").unlink()
    (root / "latest").mkdir()
    (root / "latest/notes.txt").write_text("mine")
    save(tmp_path, 20, parts)
    (kept,) = root.glob("latest.*")
    assert (kept / "notes.txt").read_text() == "mine"
    assert checkpoint.resolve(root / "latest").resolve() == root / "step_00000020"


def test_without_links_latest_is_a_text(tmp_path, parts, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    for step in (10, 20):
        path = save(tmp_path, step, parts)
    assert checkpoint.resolve(path.parent / "latest") == path
    (path.parent / "latest").write_text("../../elsewhere")
    with pytest.raises(UserError, match="names no checkpoint beside it"):
        checkpoint.resolve(path.parent / "latest")


def test_latest_never_leads_out_of_its_run(tmp_path, parts):
    old = save(tmp_path / "old", 10, parts)
    path = save(tmp_path / "new", 20, parts)
    (path.parent / "latest").unlink()
    (path.parent / "latest").symlink_to(old)
    with pytest.raises(UserError, match="points out of its run, to .*/old/checkpoints/step_00000010"):
        checkpoint.resolve(path.parent / "latest")
    save(tmp_path / "new", 30, parts)
    assert names(old.parent) == ["latest", "step_00000010"]


def test_a_linked_checkpoint_is_read_and_only_its_link_goes(tmp_path, parts):
    path = save(tmp_path / "run", 10, parts)
    path.rename(tmp_path / "archive")
    path.symlink_to(tmp_path / "archive")
    assert checkpoint.newest(tmp_path / "run") == path
    save(tmp_path / "run", 20, parts, keep=1)
    assert names(path.parent) == ["latest", "step_00000020"]
    assert (tmp_path / "archive/state.json").exists()


def test_a_checkpoint_under_another_ones_name_is_passed_over(tmp_path, parts):
    path = save(tmp_path, 10, parts)
    shutil.copytree(path, path.with_name("step_00000020"))
    assert checkpoint.newest(tmp_path) == path


# --- disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "pathlib.Path.mkdir", "pathlib.Path.rename"])
def test_what_a_disk_refuses_names_the_checkpoint_and_leaves_nothing(tmp_path, parts, monkeypatch, call, number):
    save(tmp_path, 10, parts)

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="checkpoints/step_00000020'$") as caught:
        patch.setattr(call, refuse)
        save(tmp_path, 20, parts)
    assert caught.value.errno == number
    assert names(tmp_path / "checkpoints") == ["latest", "step_00000010"]


def test_a_file_that_may_not_grow_so_large_names_the_checkpoint(tmp_path, parts):
    """As a quota does; the writing is not Python's own, its error has no number."""
    save(tmp_path, 10, parts)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
    try:
        with pytest.raises(OSError, match="checkpoints/step_00000020'$") as caught:
            save(tmp_path, 20, parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path / "checkpoints") == ["latest", "step_00000010"]


# --- state.json is somebody's word


def changed(value, random):
    """The value with one thing in it changed."""
    odd = [None, True, -1, 0, 2**70, 0.5, 1e999, "", "x" * 300, [], {}, [[]], "../x", "/dev/zero", "pipe", "a\0b"]
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(sorted(value))
        rest = {name: part for name, part in value.items() if name != key}
        renamed = {**rest, random.choice(["../x", "/etc/passwd", "pipe", "A", "a/b"]): value[key]}
        other = {"drop": rest, "rename": renamed}
        return other.get(random.choice(["drop", "rename", "into", "into"]), {**rest, key: changed(value[key], random)})
    if isinstance(value, list) and value and random.random() < 0.5:
        return [changed(value[0], random), *value[1:]]
    return random.choice(odd)


def test_no_state_json_opens_a_file_elsewhere_or_waits(tmp_path, parts, monkeypatch):
    """A thousand of them, changed at random: sound, or damaged in one line; a pipe would keep us for ever."""
    path = checkpoint.save(tmp_path, 10, *parts, {**STATE, "engine": {"val_losses": [1.0], "guard": {"seen": 3}}})
    os.mkfifo(path / "pipe.safetensors")
    state = json.loads((path / "state.json").read_text())
    random = Random(0)
    sound = 0
    with opened_files(monkeypatch) as opened:
        for _ in range(1000):
            text = json.dumps(changed(state, random))
            if random.random() < 0.1:
                text = text[: random.randrange(len(text))]
            (path / "state.json").write_text(text)
            fault = checkpoint.damage(path)
            sound += fault is None
            assert fault is None or (fault and "\n" not in fault)
    assert 0 < sound < 900
    assert {name.parent for name in opened} == {path}
    assert {name.name for name in opened} == {"state.json", PART}
