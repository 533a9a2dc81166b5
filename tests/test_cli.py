"""The command line: help with an example everywhere, documented exit codes, JSON as the last line."""

import json
import os
import re
import subprocess
import sys

import click
import pytest
from harness import ROOT, run_values, write_config

from hvdlm import cli
from hvdlm.errors import EXIT_STOPPED, StoppedOnRequest, UserError

ALONE = ("doctor", "preprocess", "train", "eval", "generate", "inspect", "scale", "report", "jobs", "lint", "export")
COMMANDS = [(name,) for name in ALONE] + [("data", "inspect"), ("data", "verify"), ("config", "show")]
COMMANDS += [
    ("plan",),
    ("schedule", "show"),
    ("config", "schema"),
    *(("submit", stage) for stage in ("train", "eval", "scale", "pipeline")),
]


def call(*words, cwd=ROOT, env=None):
    command = [sys.executable, "-m", "hvdlm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def answer(*words):
    """The JSON that `hvdlm WORDS --json` prints."""
    return json.loads(call(*words, "--json").stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Example:\n  " in text
    assert f"hvdlm {' '.join(command)}" in text.split("Example:")[1]
    assert "--json" in text


HEAVY = ["torch", "h5py", "mpi4py.MPI", "horovod", "matplotlib", "jinja2", "tokenizers"]
# What a step needs never, or later than the first.
LATER = ["torch._dynamo", "torch._inductor", "sympy", "onnx", *HEAVY[2:], "pyarrow"]
ENDS = """
from hvdlm.cli import main
for words in {calls!r}:
    try: main(words)
    except SystemExit: pass
"""


def loaded(code, names):
    """Which of the modules `names` a process has loaded at the end of `code`."""
    check = f"import sys; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_list_of_commands_cuts_no_sentence(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert "submit" in listed
    assert not [line for line in listed.splitlines() if line.endswith("...")]


def test_help_loads_nothing_heavy():
    def helps(group, names):
        for name, command in group.commands.items():
            yield [*names, name, "--help"]
            if isinstance(command, click.Group):
                yield from helps(command, [*names, name])

    calls = [["--help"], ["--version"], ["trian"], ["train"], ["train", "--nodes"], *helps(cli.cli, [])]
    assert loaded(ENDS.format(calls=calls), HEAVY) == "[]"


def test_what_is_wrong_with_a_file_or_folder_is_told_before_anything_heavy_is_loaded(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [")
    broken = str(tmp_path / "broken.yaml")
    calls = [["train", "none.yaml"], ["train", broken], ["train", "configs/quickstart.yaml", "optim.lr"]]
    calls += [
        ["preprocess", "none.yaml"],
        ["tokenizer", "train", broken, "--out", "x"],
        ["config", "show", "none.yaml"],
    ]
    calls += [
        ["scale", "none.yaml"],
        ["tune", broken],
        ["eval", "nowhere"],
        ["generate", "nowhere"],
        ["inspect", "nowhere"],
    ]
    assert loaded(ENDS.format(calls=calls), HEAVY) == "[]"


def test_nothing_that_comes_later_is_loaded_before_the_first_step(data_dir, tmp_path):
    """torch._dynamo alone took a second of CPU: `optim.torch_classes` has the reason."""
    config = write_config(tmp_path / "c.yaml", run_values(data_dir, tmp_path / "run"))
    code = (
        "import sys\nfrom hvdlm.train.step import GradientLearner\nstep = GradientLearner._step\n"
        "def first(*given):\n    step(*given)\n    raise SystemExit\nGradientLearner._step = first\n"
    )
    assert loaded(code + ENDS.format(calls=[["train", str(config), "world=serial"]]), LATER) == "[]"


def test_version():
    assert call("--version").stdout == "hvdlm, version 0.1.0\n"


def test_config_show_resolves_defaults_and_overrides(data_dir, tmp_path):
    config = write_config(tmp_path / "c.yaml", run_values(data_dir, tmp_path / "run"))
    shown = answer("config", "show", config, "optim.lr=5e-4")
    assert shown["optim"]["lr"] == 5e-4
    assert shown["optim"]["betas"] == [0.9, 0.95]
    assert call("config", "show", ROOT / "configs/quickstart-data.yaml").stdout.startswith("input: python-stdlib")


def test_config_schema_describes_every_key():
    schema = answer("config", "schema", "train")
    assert schema["$defs"]["TrainConfig"]["properties"]["global_batch"]["description"]
    assert call("config", "schema", "preprocess").stdout.startswith("# A preprocess config: raw text in")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "none.yaml"), "hvdlm: error: none.yaml: cannot read this config"),
        (("data", "verify", "/nowhere"), "hvdlm: error: /nowhere/manifest.json: there is none"),
        (("eval", "/nowhere"), "hvdlm: error: /nowhere: there is no such folder; give a run folder"),
        (("report", "/nowhere"), "hvdlm: error: /nowhere: there is no such folder"),
        (("scale", "configs/quickstart.yaml", "--ranks", "x"), "hvdlm: error: --ranks 'x'"),
    ],
)
def test_the_users_error_is_exit_2_without_a_traceback(words, message):
    done = call(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


UNREADABLE = [
    ("trian x", "hvdlm: No such command 'trian'. Did you mean 'train'?"),
    ("submit tran x", "hvdlm submit: No such command 'tran'. Did you mean 'train'?"),
    ("--vers", "hvdlm: No such option '--vers'. Did you mean '--version'?"),
    ("train", "hvdlm train: Missing argument 'CONFIG'; see `hvdlm train --help`"),
    ("submit train x", "hvdlm submit train: Missing option '--site'; see `hvdlm submit train --help`"),
    ("jobs --jsn", "hvdlm jobs: No such option '--jsn'. Did you mean '--json'?"),
    ("jobs x", "hvdlm jobs: Got unexpected extra argument (x); see `hvdlm jobs --help`"),
    ("jobs --json=1", "hvdlm jobs: Option '--json' does not take a value; see `hvdlm jobs --help`"),
    ("jobs --jobs-dir", "hvdlm jobs: Option '--jobs-dir' requires an argument; see `hvdlm jobs --help`"),
    (
        "train x --optim.lr=1",
        "hvdlm train: No such option '--optim.lr'; an override is written without dashes: optim.lr=",
    ),
    ("eval x --split tran", "hvdlm eval: Invalid value for '--split': .* is not one of .*. Did you mean 'train'?"),
    ("scale x --mode wek", "hvdlm scale: Invalid value for '--mode': .* is not one of .*. Did you mean 'weak'?"),
    ("config schema trian", "hvdlm config schema: Invalid value for .*: 'trian' .*. Did you mean 'train'?"),
    (
        "launch -np x -- train",
        "hvdlm launch: Invalid value for '-np': 'x' is no whole number from 1 on; see `",
    ),
    ("launch -- train --jsn", "hvdlm train: No such option '--jsn'. Did you mean '--json'?"),
    ("generate x --top-p 2", "hvdlm generate: Invalid value for '--top-p': 2.0 is not in the range .*; see `hvdlm gen"),
]


@pytest.mark.parametrize(("words", "message"), UNREADABLE)
def test_a_command_line_that_cannot_be_read_is_one_line_and_exit_2(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words.split())
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    pattern = "hvdlm: error: " + re.escape(message).replace(r"\.\*", ".*")
    assert re.match(pattern, err), err


@pytest.mark.parametrize(("error", "code"), [(UserError("mend it"), 2), (StoppedOnRequest("stopped"), EXIT_STOPPED)])
def test_exit_codes(monkeypatch, capsys, error, code):
    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr(cli.cli, "main", fails)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == code
    assert str(error) in capsys.readouterr().err


def test_inspect_and_verify(data_dir, tmp_path):
    splits = answer("data", "inspect", data_dir)["splits"]
    assert splits["train"]["num_documents"] + splits["val"]["num_documents"] == 37
    assert "tokens a document" in call("data", "inspect", data_dir).stdout
    assert answer("data", "verify", data_dir)["ok"] is True


def test_train_eval_and_generate_as_one_process(data_dir, tmp_path):
    config = write_config(tmp_path / "c.yaml", run_values(data_dir, tmp_path / "run"))
    trained = call("train", config, "--json", "log.tensorboard=true")
    summary = json.loads(trained.stdout)
    assert summary["step"] == 20
    assert "validation loss to beat" in trained.stderr
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    evaluated = answer("eval", tmp_path / "run")
    assert evaluated["loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert evaluated["step"] == 20
    latest = tmp_path / "run" / "checkpoints" / "latest"
    written = [answer("generate", latest, "--max-tokens", "8", "--seed", seed) for seed in "001"]
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 16.0 GiB for an array with shape (2147483648,)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2207613190144 bytes."),
        ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum possible size."),
    ],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr(cli.cli, "main", fails)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert re.match(r"hvdlm: error: not enough memory.*smaller.*\n$", capsys.readouterr().err)


def test_output_that_nobody_takes_is_no_traceback(tmp_path):
    command = f"{sys.executable} -m hvdlm config schema train"
    for tail, words in (("| true; exit ${PIPESTATUS[0]}", ""), ("> /dev/full", "hvdlm: error: stdout: No space left")):
        done = subprocess.run(["bash", "-c", f"{command} {tail}"], capture_output=True, text=True, cwd=ROOT)
        assert "Traceback" not in done.stderr
        assert words in done.stderr
    shown = call(
        "config", "show", "configs/quickstart.yaml", "run_dir=é", env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert shown.stdout.startswith("run_dir: \\xe9\n")
