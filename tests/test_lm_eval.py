"""`hvdlm lm-eval`: tasks of lm-evaluation-harness, from files here, for the library's own need the network."""

import json
import sys
from types import SimpleNamespace

import pytest
from harness import HVDLM, run_ranks, run_training

from hvdlm.cli import main
from hvdlm.errors import UserError
from hvdlm.inference.lm_eval_adapter import Wanted, evaluate_on_tasks
from hvdlm.inference.log_likelihoods import encode_pair, stretches
from hvdlm.tokenizer import train_bpe
from hvdlm.world.serial import SerialWorld

QUIZ = [("the cat", [" sat", " zzz"], 0), ("a ", ["qqq", "mat", "x"], 1), ("", ["the", "%"], 0)]
TASKS = {
    "quiz": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} and more",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
    "missing": {"output_type": "multiple_choice", "data": "nowhere.jsonl"},
}

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library's


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'hvdlm[lm-eval]'")


@pytest.fixture(scope="module")
def run(data_dir, made_once):
    return made_once("run-for-lm-eval", lambda folder: run_training(data_dir, folder, "train.steps=3"))


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of them; what the library makes of their data is kept here too."""
    lines = [json.dumps({"question": text, "choices": words, "answer": at}) for text, words, at in QUIZ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(lines))
    for name, task in TASKS.items():
        data = str(tmp_path / task.get("data", "quiz.jsonl"))
        shared = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": data}}}
        shared |= {"test_split": "test", "target_delimiter": "", "metadata": {"version": 1.0}}
        text = json.dumps({**shared, **{key: value for key, value in task.items() if key != "data"}})
        (tmp_path / f"{name}.yaml").write_text(text)
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_without_the_library_one_line_says_what_to_install(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(SystemExit) as end:
        main(["lm-eval", str(run), "--tasks", "quiz"])
    assert end.value.code == 2 and "pip install 'hvdlm[lm-eval]'" in capsys.readouterr().err


def test_options_that_cannot_be_read_are_refused_by_name(run, capsys):
    for words, told in (
        (["--tasks", "quiz", "--gen-kwargs", "max_gen_toks=3"], "--gen-kwargs"),
        (["--tasks", "quiz", "--metadata", "[1]"], "is no JSON object"),
        (["--tasks", " , "], "--tasks: names none"),
        ([], "--tasks"),
    ):
        with pytest.raises(SystemExit):
            main(["lm-eval", str(run), *words])
        assert told in capsys.readouterr().err


def test_tasks_of_all_three_kinds_give_figures_and_samples(library, run, tasks):
    names = ("quiz", "texts", str(tasks / "written.yaml"))
    wanted = Wanted(names, include_path=tasks, keeps_samples=True, generation={"max_gen_toks": 2})
    found = evaluate_on_tasks(run, (), wanted, SerialWorld())
    told = found["hvdlm"]
    assert (told["num_log_likelihoods"], told["num_whole_texts"], told["num_written"]) == (7, 3, 3)
    assert told["num_cut"] == 0 and told["step"] == 3 and told["context"] == 32
    assert "acc_norm" in found["table"]
    samples = found["samples"]
    for (_, choices, _), sample in zip(QUIZ, samples["quiz"], strict=True):
        scores = [pair[0] for pair in sample["filtered_resps"]]
        assert len(scores) == len(choices) and all(score < 0 for score in scores)
    right = [
        max(range(len(c)), key=lambda n, s=s: s["filtered_resps"][n][0]) == at
        for (_, c, at), s in zip(QUIZ, samples["quiz"], strict=True)
    ]
    assert found["results"]["quiz"]["acc,none"] == pytest.approx(sum(right) / 3)
    assert all(len(sample["filtered_resps"][0]) <= 2 for sample in samples["written"])
    assert found["results"]["texts"]["byte_perplexity,none"] > 1


def test_an_unknown_task_is_told_with_those_that_are_like_it(library, run, tasks, monkeypatch):
    from lm_eval.tasks import TaskManager

    build = TaskManager.__init__

    def without_the_librarys(self, include_defaults=True, **rest):  # which take 6 s to look at
        build(self, include_defaults=False, **rest)

    monkeypatch.setattr(TaskManager, "__init__", without_the_librarys)
    with pytest.raises(UserError, match="--tasks: quizz: is no task, group or tag of lm_eval, as quiz; "):
        evaluate_on_tasks(run, (), Wanted(("quiz", "quizz"), include_path=tasks), SerialWorld())


def test_data_that_cannot_be_had_are_told_in_one_line(library, run, tasks):
    with pytest.raises(UserError, match=r"--tasks: a task cannot be loaded: FileNotFoundError: .*HF_HOME") as end:
        evaluate_on_tasks(run, (), Wanted(("missing",), include_path=tasks), SerialWorld())
    assert "\n" not in str(end.value)


def test_programs_of_the_model_run_only_where_that_is_allowed(library, run, tasks, monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask, "UNSAFE_CODE", True, raising=False)
    with pytest.raises(UserError, match="written runs programs that the model writes; allow it by --run-code"):
        evaluate_on_tasks(run, (), Wanted(("written",), include_path=tasks), SerialWorld())
    assert evaluate_on_tasks(run, (), Wanted(("written",), include_path=tasks, runs_code=True), SerialWorld())[
        "results"
    ]


def test_pairs_and_windows_are_those_of_the_library(library):
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows

    tokenizer = train_bpe(["the cat sat on the mat the cat"] * 50, 280)
    theirs = SimpleNamespace(backend="causal", tok_encode=lambda text, **_: tokenizer.encode(text).tolist())
    for context, continuation in (("the", " cat"), ("the ", "cat"), ("the c", "at"), ("a\n ", "mat the"), (" ", "x")):
        expected = TemplateLM._encode_pair(theirs, context, continuation)
        ours = encode_pair(lambda text: tuple(tokenizer.encode(text).tolist()), context, continuation)
        assert tuple(map(list, ours)) == expected
    for num in range(1, 30):
        windows = get_rolling_token_windows(list(range(num)), prefix_token=99, max_seq_len=7, context_len=1)
        expected = [([*inputs, targets[-1]], len(targets)) for inputs, targets in windows]
        assert [(list(one.ids), one.num) for one in stretches([99], list(range(num)), 7)] == expected


def test_two_ranks_give_what_one_gives(library, run, tasks):
    names = ("quiz", "texts", "written")
    alone = evaluate_on_tasks(run, (), Wanted(names, include_path=tasks, keeps_samples=True), SerialWorld())
    out, words = tasks / "samples.jsonl", ["--include-path", tasks, "--tasks", ",".join(names), "--json"]
    done = run_ranks(2, [*HVDLM, "lm-eval", run, *words, "--samples", out])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {name: alone[name] for name in found} and found.keys() >= {"results", "hvdlm"}
    lines = [{"task": task, **sample} for task, samples in alone["samples"].items() for sample in samples]
    assert list(map(json.loads, out.read_text().splitlines())) == lines
