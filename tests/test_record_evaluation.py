"""`hvdlm eval` of labelled records: which model it measures, how, and what it writes."""

import json

import numpy as np
import pytest
from labelled import ANSWERED, FIELDS, TAGGED, answered, make_data, record, run_of, tagged
from rich.cells import cell_len

from hvdlm import cli
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.record_report import as_text
from hvdlm.tasks.record_evaluation import RecordSplit
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

LSTM = {"family": "lstm", "bidirectional": True, "layers": 1, "width": 8}
DECODER = {"family": "transformer", "layers": 1, "heads": 2, "width": 8}
BARE = {name: field if name == "label" else field["type"] for name, field in FIELDS.items() if name != "topics"}


def with_name(random):
    return {**record(random), "name": f"no {random.integers(1000)}"}


# name -> data (kind of record, fields, what else preprocess is told), model, task
RUNS = {
    "class": ((), {}, LSTM, {"kind": "classify", "label": "label"}),
    "pair": ((with_name, BARE), {"id_key": "name"}, LSTM, {"kind": "classify", "label": "label", "pair": "other"}),
    "number": ((), {}, LSTM, {"kind": "classify", "label": "score"}),
    "tag": ((tagged, TAGGED), {}, LSTM, {"kind": "tag", "predicate": "asked"}),
    "span": ((answered, ANSWERED), {}, LSTM, {"kind": "span", "stride": 8}),
    "seq2seq": ((), {}, DECODER, {"kind": "seq2seq", "language": "en", "most_tokens": 4}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step of each kind, made once."""
    made = {}

    def run(name):
        if name not in made:
            kind, settings, model, task = RUNS[name]
            folder = tmp_path_factory.mktemp(name)
            data = make_data(folder, SerialWorld(), *kind, **settings)
            train(run_of(data, folder / "run", "train.steps=1", model=model, task=task), SerialWorld())
            made[name] = folder / "run"
        return made[name]

    return run


def evaluated(run_dir, *overrides, **options):
    return evaluate_checkpoint(run_dir, overrides, "test", SerialWorld(), **options)


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("class", "task.pooling=max"),
        ("class", "task.transform=true"),
        ("class", "task.label=topics"),
        ("pair", "task.pair=null"),
        ("tag", "task.crf=false"),
        ("tag", "task.predicate=null"),
        ("class", "lora={rank: 2, targets: [recurrent]}"),
    ],
)
def test_a_task_that_was_not_trained_is_refused(name, override, run):
    with pytest.raises(UserError, match=f"{override.split('=')[0]}.* -> .* was trained with the former") as error:
        evaluated(run(name), override)
    assert "\n" not in str(error.value)


def test_settings_of_measuring_are_taken_and_told(run):
    plain, other = evaluated(run("seq2seq")), evaluated(run("seq2seq"), "task.beams=3", "task.length_penalty=0")
    assert plain["settings"]["beams"] == 1 and other["settings"] == {
        **plain["settings"],
        "beams": 3,
        "length_penalty": 0.0,
    }
    assert "; language en, metrics bleu, beams 3, length penalty 0.0, most tokens 4; step 1" in as_text(other)
    assert evaluated(run("span"), "task.may_lack=true")["settings"]["may_lack"] is True


def test_what_does_not_change_the_model_may_be_set_and_is_no_change(run):
    words = ("train.micro_batch=3", "data.seq_len=32", "model.dropout=0.5", "task.pooling=mean", "optim.lr=1")
    assert not {"settings", "model_changes"} & evaluated(run("class"), *words).keys()


def test_another_model_of_the_same_weights_is_told(run, caplog):
    found = evaluated(run("seq2seq"), "model.window=2")
    assert found["model_changes"] == ["model.window: None -> 2"] and "; model.window: None -> 2; step 1" in as_text(
        found
    )
    assert "model.window: None -> 2: not as" in caplog.text


WRONG = [
    ("class", ("--picture", "x.doc"), "'x.doc' ends in none of .png, .svg, .pdf"),
    ("class", ("--out", "folder"), "--out folder: is a folder; name a file in it"),
    ("class", ("--predictions", "file/x.jsonl"), "--predictions file/x.jsonl: file is no folder"),
    ("class", ("--picture", "/proc/x.png"), "/proc/x.png: "),
    ("number", ("--picture", "x.png"), "--picture: is of a confusion matrix, which this task has not"),
    ("tag", ("--picture", "x.png"), "--picture: is of a confusion matrix, which this task has not"),
]


@pytest.mark.parametrize(("name", "words", "message"), WRONG)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_computed(
    name, words, message, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    run_dir = run(name)
    monkeypatch.setattr(RecordSplit, "evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", str(run_dir), *words])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert end.value.code == 2 and message in line


def test_files_are_written_into_new_folders(run, tmp_path):
    files = {"--out": "a/result.json", "--predictions": "b/lines.jsonl", "--picture": "c/matrix.png"}
    words = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", str(run("class")), *words])
    assert not end.value.code
    assert json.loads((tmp_path / "a/result.json").read_text())["num_records"] == 40
    assert (tmp_path / "c/matrix.png").read_bytes().startswith(b"\x89PNG")


LINES = {
    "class": ["record", "text", "other", "label", "predicted", "probability"],
    "pair": ["record", "id", "text", "other", "label", "predicted", "probability"],
    "number": ["record", "text", "other", "number", "predicted"],
    "tag": ["record", "text", "asked", "labels", "predicted"],
    "span": ["record", "text", "question", "target", "predicted"],
    "seq2seq": ["record", "text", "target", "predicted"],
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_a_prediction_says_what_it_is_about(name, run, tmp_path):
    run_dir = run(name)
    evaluated(run_dir, predictions=tmp_path / "lines.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in (run_dir.parent / "test.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines] == list(range(len(given)))
    for line, source in zip(lines, given, strict=True):
        assert list(line) == LINES[name]
        for key in line.keys() & source.keys():
            assert line[key] == source[key]
        assert line.get("id") == source.get("name")


def test_one_class_alone_is_said_and_what_it_leaves_undefined_is_no_number(tmp_path, caplog, capsys):
    data = make_data(tmp_path, SerialWorld(), lambda random: {**record(random), "label": "a\nb"})
    words = ("train.steps=1", "checkpoint.best=roc_auc")
    train(run_of(data, tmp_path / "run", *words, model=LSTM, task=RUNS["class"][-1]), SerialWorld())
    assert "label: has 'a\\nb' for its only label" in caplog.text
    assert "step 1: roc_auc is undefined here" in caplog.text
    lines = as_text(evaluated(tmp_path / "run")).splitlines()
    assert "roc auc            undefined" in lines and "a\\nb                61" in lines
    assert "NaN" not in capsys.readouterr().out  # of what is drawn for TensorBoard


def test_spans_without_a_name_have_a_row(tmp_path):
    sentence = {"text": ["a", "b"], "tags": ["B", "I"], "asked": 0}
    data = make_data(tmp_path, SerialWorld(), lambda random: sentence, TAGGED)
    train(run_of(data, tmp_path / "run", "train.steps=1", model=LSTM, task={"kind": "tag"}), SerialWorld())
    assert "(no name)" in as_text(evaluated(tmp_path / "run"))


def test_a_table_of_sixty_long_names_fits_a_terminal_and_says_that_there_are_more():
    names = [f"{'很长的类别名称' * 4} {number}" for number in range(60)]
    row = {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    found = {
        "loss": 1.0,
        "num_records": 9,
        "split": "test",
        "data": "d",
        "protocol": "records",
        "step": 1,
        "by_class": {name: {**row, "support": 100_000 + number} for number, name in enumerate(names)},
        "labels": names,
        "confusion": np.random.default_rng(0).integers(9000, size=(60, 60)).tolist(),
    }
    lines = as_text(found).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert "… 20 more, with fewer; --json has all" in lines
    assert "… 48 more with fewer mistakes, or as many; --json and --picture have all" in lines
