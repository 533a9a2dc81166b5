"""Whatever has happened to a file of a run folder: the run goes on as it would have, or one line says what to do."""

import errno
import math
import os
import shutil

import pytest
from harness import run_training
from saved import PART

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.session.metrics import RunLog, read_metrics
from hvdlm.train.guard import Guard, Verdict
from hvdlm.train.learners import LEARNERS
from hvdlm.train.step import GradientLearner

WORDS = ("train.steps=6", "train.eval_every=6", "checkpoint.every=2", "ema={decay: 0.9}")


@pytest.fixture(scope="module")
def kept_run(data_dir, tmp_path_factory):
    """A run at step 4 of 6."""
    run_dir = tmp_path_factory.mktemp("kept") / "run"
    run_training(data_dir, run_dir, *WORDS, "train.steps=4")
    return run_dir


@pytest.fixture(scope="module")
def expected(data_dir, kept_run, tmp_path_factory):
    """What an undamaged copy of it becomes."""
    run_dir = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(kept_run, run_dir, symlinks=True)
    run_training(data_dir, run_dir, *WORDS)
    return result_of(run_dir)


@pytest.fixture
def run_dir(kept_run, tmp_path):
    return shutil.copytree(kept_run, tmp_path / "run", symlinks=True)


def result_of(run_dir):
    files = checkpoint.read_state(checkpoint.resolve(run_dir))["files"]
    numbers = ("step", "split", "loss", "lr", "grad_norm", "tokens")
    rows = [[row.get(name) for name in numbers] for row in read_metrics(run_dir / "metrics.jsonl")]
    return {name: facts["sha256"] for name, facts in files.items()}, [row for row in rows if row[1] == "train"]


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def link_to_zeros(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.unlink()
    path.mkdir()


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "torn": halve,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "other JSON": lambda path: path.write_text('[{"step": "x"}, 1, null]'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": make_folder,
    "a pipe": make_pipe,
    "a link to /dev/zero": link_to_zeros,
}
FILES = ("config.yaml", "metrics.jsonl", "owner", "tokenizer.json", "checkpoints/latest")
OF_CHECKPOINT = ("state.json", PART)


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"a folder"}))
def test_damage_to_what_is_there_for_people_changes_no_number(data_dir, run_dir, expected, damage, caplog):
    latest = run_dir / "checkpoints/latest"
    latest.unlink()
    latest.write_text("step_00000004\n")  # as in a copy made where there are no links
    for name in FILES:
        DAMAGES[damage](run_dir / name)
    if damage in ("a pipe", "a link to /dev/zero"):  # the user's own history: not to be replaced unread
        with pytest.raises(UserError, match=r"^\S+/metrics.jsonl: is no regular file$"):
            run_training(data_dir, run_dir, *WORDS)
        (run_dir / "metrics.jsonl").unlink()
    run_training(data_dir, run_dir, *WORDS)
    files, rows = result_of(run_dir)
    assert files == expected[0]
    assert [row for row in expected[1] if row in rows] == rows
    assert [row[0] for row in rows[-2:]] == [5, 6]
    assert f"{run_dir}/config.yaml: is not what" in caplog.text
    assert f"{run_dir}/metrics.jsonl: " in caplog.text


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_folder_in_a_files_place_is_named(data_dir, run_dir, name):
    make_folder(run_dir / name)
    with pytest.raises(UserError, match=rf"^{run_dir / name}: \D+$") as caught:
        run_training(data_dir, run_dir, *WORDS)
    assert caught.value.on_all_ranks


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", OF_CHECKPOINT)
def test_a_checkpoint_with_a_damaged_file_is_passed_over(run_dir, name, damage, caplog):
    DAMAGES[damage](run_dir / "checkpoints/step_00000004" / name)
    assert checkpoint.newest(run_dir).name == "step_00000002"
    assert f"{run_dir}/checkpoints/step_00000004: " in caplog.text
    DAMAGES[damage](run_dir / "checkpoints/step_00000002" / name)
    with pytest.raises(UserError, match="every checkpoint is damaged; restore one, or remove them to start anew"):
        checkpoint.newest(run_dir)


def test_the_settings_of_the_checkpoint_count_and_not_a_file_that_was_edited(data_dir, run_dir):
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.002", "lr: 0.5"))
    with pytest.raises(UserError, match=r"other settings \(optim.lr: 0.002 -> 0.5\)"):
        run_training(data_dir, run_dir, *WORDS, "optim.lr=0.5")
    config.unlink()
    with pytest.raises(UserError, match=r"other settings \(optim.lr: 0.002 -> 0.5\)"):
        run_training(data_dir, run_dir, *WORDS, "optim.lr=0.5")


# --- what a run ends with


GARBAGE = ("optim.name=sgd", "optim.lr=1e25", "optim.clip=0", "optim.warmup_steps=0")  # finite, and no loss is
SKIP = ("guard.nonfinite=skip", "checkpoint.every=1", "checkpoint.keep=1", "train.eval_every=100")


def steps_of(run_dir):
    return checkpoint.complete_steps(run_dir)


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_state_that_is_not_finite_ends_the_run_and_the_one_before_stays(data_dir, tmp_path, action):
    words = ("optim.lr=1e38", "optim.warmup_steps=0", f"guard.nonfinite={action}")
    with pytest.raises(UserError, match=r"step 1: model/\S+ is not finite, and is not saved: the run"):
        run_training(data_dir, tmp_path, *words, "train.steps=1")
    assert steps_of(tmp_path) == []


def test_checkpoints_whose_loss_is_nan_push_out_no_other(data_dir, tmp_path):
    """The first is of finite weights that give no loss; nobody could know when it was saved."""
    for _ in range(2):  # started again, a finished run is no success either
        with pytest.raises(UserError, match="ended at step 4 without a result: validation loss nan: the run has div"):
            run_training(data_dir, tmp_path, *GARBAGE, *SKIP, "train.steps=4")
        assert steps_of(tmp_path) == [1, 2, 3, 4]
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / f"checkpoints/step_{step:08d}")
    with pytest.raises(UserError, match="ended at step 3 without a result: validation loss nan"):
        run_training(data_dir, tmp_path, *GARBAGE, *SKIP, "train.steps=3")


def test_a_run_whose_every_update_is_left_out_is_no_success(data_dir, tmp_path, monkeypatch):
    run_training(data_dir, tmp_path / "sound", "train.steps=4")
    monkeypatch.setattr(Guard, "judge", lambda self, norm: Verdict.SKIP)
    assert run_training(data_dir, tmp_path / "sound", *SKIP, "train.steps=5")["step"] == 5  # the four before count
    with pytest.raises(UserError, match="ended at step 2 without a result: every update was left out"):
        run_training(data_dir, tmp_path / "empty", *SKIP, "train.steps=2")


def test_old_checkpoints_go_once_the_step_after_was_sound(data_dir, tmp_path):
    run_training(data_dir, tmp_path, "train.steps=5", "checkpoint.every=2", "checkpoint.keep=1")
    assert steps_of(tmp_path) == [5]


class PoisonedOnce(GradientLearner):
    """One update breaks a weight, in the step before a checkpoint."""

    is_over = False

    def _apply(self, step):
        found = super()._apply(step)
        if step == 3 and not PoisonedOnce.is_over:
            PoisonedOnce.is_over = True
            self.sync.parameters[0].data.view(-1)[0] = math.nan
        return found


def test_a_broken_weight_is_rewound_where_gradients_are(data_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(LEARNERS, "gradient", PoisonedOnce)
    words = ("guard.nonfinite=rewind", "checkpoint={every: 2, asynchronous: false}", "train.steps=6")
    assert run_training(data_dir, tmp_path, *words)["step"] == 6
    assert "is not finite: back to step 2, and past the samples up to step 4" in caplog.text


def test_what_was_not_finite_in_a_save_under_way_is_told_when_it_is_seen(data_dir, tmp_path, monkeypatch):
    """The next interval is under way by then; the checkpoint before stays, and no later one is made."""
    monkeypatch.setitem(LEARNERS, "gradient", PoisonedOnce)
    monkeypatch.setattr(PoisonedOnce, "is_over", False)
    monkeypatch.setattr(Guard, "judge", lambda self, norm: Verdict.APPLY)
    with pytest.raises(UserError, match=r"^(step 4: model/\S+ is not finite, and is not saved|step [56]: loss nan)"):
        run_training(data_dir, tmp_path, "checkpoint.every=2", "train.steps=9", "train.eval_every=9")
    assert steps_of(tmp_path) == [2]


def test_a_row_that_cannot_be_written_ends_the_run_after_a_save(data_dir, tmp_path, monkeypatch):
    def write(self, step, split, **values):
        if step > 3:
            self.fault = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.jsonl"))

    monkeypatch.setattr(RunLog, "write", write)
    with pytest.raises(UserError, match=r"/metrics.jsonl: No space left on device; make space and run the same"):
        run_training(data_dir, tmp_path, "train.steps=500", "train.eval_every=500", "checkpoint.every=500")
    (saved,) = steps_of(tmp_path)
    assert 3 < saved < 500
