"""What docs/extending.md shows can be imported, trains on 2 ranks, is evaluated, and generates."""

import re

import pytest
from harness import ROOT, make_config, run_training, run_values, write_config

from hvdlm.cli.benchmarks import bench
from hvdlm.cli.extensions import import_all
from hvdlm.cli.scaling import scale
from hvdlm.cli.submission import submit
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.generate import Texts, continue_text
from hvdlm.models import MODELS
from hvdlm.session.metrics import read_metrics
from hvdlm.sync import SYNCS
from hvdlm.tasks import TASKS
from hvdlm.train.config import RunConfig
from hvdlm.world.serial import SerialWorld

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
MINE = ("model={family: bigram, width: 16}", "task.kind=focal", "optim.lr=0.02")


BEFORE = [(registry, dict(registry)) for registry in (MODELS, TASKS, SYNCS)]


def forget():
    """As a process of its own would begin."""
    for registry, before in BEFORE:
        registry.clear()
        registry.update(before)
    RunConfig.model_rebuild(force=True)


@pytest.fixture(autouse=True)
def as_before():
    """What a test registers is gone after it."""
    yield
    forget()


@pytest.fixture
def mine(tmp_path):
    """One file with all three examples."""
    file = tmp_path / "mine.py"
    file.write_text("\n\n".join(BLOCKS))
    return file


def losses(run_dir):
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl", "train")]


def test_a_family_a_task_and_a_sync_of_a_file_train_on_two_ranks(data_dir, tmp_path, mine, job):
    run = tmp_path / "run"
    config = write_config(tmp_path / "c.yaml", run_values(data_dir, run))
    job(2, "train", config, "--import", mine, *MINE, "sync=plain")
    with pytest.raises(UserError, match=r"run.*: was trained with --import .*mine.py; give that again"):
        evaluate_checkpoint(run, (), "val", SerialWorld())
    import_all((mine,))
    run_training(data_dir, tmp_path / "alone", *MINE)
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    assert evaluate_checkpoint(run, (), "val", SerialWorld())["loss"] < 5
    assert isinstance("".join(continue_text(run, (), "", Texts(max_tokens=3))), str)


@pytest.mark.parametrize("more", ["", "# other"])
def test_a_file_that_was_edited_since_is_remarked_on(data_dir, tmp_path, mine, more, caplog):
    """And one that was moved alone is not."""
    run = tmp_path / "run"
    import_all((mine,))
    run_training(data_dir, run, *MINE, "train.steps=2")
    forget()
    (tmp_path / "elsewhere").mkdir()
    moved = mine.rename(tmp_path / "elsewhere" / mine.name)
    moved.write_text(moved.read_text() + more)
    import_all((moved,))
    evaluate_checkpoint(run, (), "val", SerialWorld())
    run_training(data_dir, run, *MINE, "train.steps=2")
    assert caplog.text.count("mine.py: was edited since step_") == (2 if more else 0)


def test_commands_that_start_others_give_them_the_files(data_dir, tmp_path, mine, monkeypatch, capsys):
    """Jobs of a cluster, measurements of a scaling study, runs of a benchmark."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", run_values(data_dir, tmp_path / "run"))
    given = [str(config), *MINE, "--import", "mine.py"]
    site = ["--site", "generic-cpu", "--ranks-per-node", "2", "--cores-per-rank", "1", "--dry-run"]
    submit.main(["train", *given, *site], standalone_mode=False)
    assert "--import runs/jobs/train-001/imports/0/mine.py" in capsys.readouterr().out
    forget()
    scale.main([*given, "--ranks", "2", "--steps", "3", "--warmup", "1", "--repeats", "1"], standalone_mode=False)
    assert (tmp_path / "run" / "scaling" / "report.html").exists()
    forget()
    compared = ["models", *given, "--families", "bigram", "--steps", "2", "--out", str(tmp_path / "bench")]
    bench.main(compared, standalone_mode=False)
    assert '"bigram"' in (tmp_path / "bench" / "models.json").read_text()


@pytest.mark.parametrize(
    ("old", "new", "function"),
    [
        ("(targets != IGNORED).sum()))", "2 * (targets != IGNORED).sum()))", "count"),
        ("        self.gamma = gamma", "        self.gamma, self.count_of = gamma, lambda lengths: 1", "count_of"),
    ],
)
def test_a_task_that_counts_ahead_something_else_than_its_loss_ends_at_the_first_step(
    data_dir, tmp_path, mine, old, new, function
):
    """Its gradients would be divided by that, in silence."""
    text = mine.read_text()
    assert old in text
    mine.write_text(text.replace(old, new))
    import_all((mine,))
    with pytest.raises(UserError, match=rf"task: focal: its loss adds up \d+ targets where `{function}` tells \d+"):
        run_training(data_dir, tmp_path / "run", *MINE, "train.steps=2")


def test_a_family_that_looks_ahead_is_refused(data_dir, tmp_path, mine):
    text = mine.read_text()
    mine.write_text(text.replace("return self.embed(ids), state", "return self.embed(ids.roll(-1, 1)), state"))
    assert mine.read_text() != text
    import_all((mine,))
    with pytest.raises(UserError, match="model.family: bigram sees tokens that it is to predict"):
        run_training(data_dir, tmp_path / "run", MINE[0], "train.steps=2")


def test_a_task_may_be_like_another_one(data_dir, tmp_path, mine):
    import_all((mine,))
    assert make_config(data_dir, tmp_path, "task=focal").task.gamma == 2.0
    TASKS["focal"].like = ""
    with pytest.raises(UserError, match="task: focal is nothing for this model"):
        make_config(data_dir, tmp_path, "task=focal")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--import .*: there is no such file"),
        ("x = 1", r"--import .*: registers nothing in MODELS, TASKS, SYNCS"),
        ("\nx = 1 / 0", r"--import .*mine.py:2: ZeroDivisionError: division by zero"),
        ("x = (", r"--import .*mine.py:1: '\(' was never closed"),
        ("from hvdlm.models import MODELS\nMODELS['lstm'] = MODELS['transformer']", r"MODELS has 'lstm' already"),
        ("from hvdlm.models import MODELS\nMODELS['mine'] = int", r"mine in MODELS is no FamilyConfig"),
        ("from hvdlm.models import MODELS\nMODELS['mine'] = MODELS['lstm']", r"LstmConfig has family: lstm, not mine"),
    ],
)
def test_a_file_that_registers_nothing_of_use_says_why(tmp_path, content, message):
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        import_all((file,))
    assert "\n" not in str(caught.value)
