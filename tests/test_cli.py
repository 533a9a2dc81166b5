"""The command line: help with an example everywhere, documented exit codes, JSON as the last line."""

import json
import subprocess
import sys

import pytest
from harness import ROOT, run_values, write_config

from hvdlm import cli
from hvdlm.errors import EXIT_STOPPED, StoppedOnRequest, UserError

ALONE = ("doctor", "preprocess", "train", "eval", "generate", "scale", "report", "jobs", "lint")
COMMANDS = [(name,) for name in ALONE] + [("data", "inspect"), ("data", "verify"), ("config", "show")]
COMMANDS += [("config", "schema"), *(("submit", stage) for stage in ("train", "eval", "scale", "pipeline"))]


def call(*words, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "hvdlm", *map(str, words)], capture_output=True, text=True, cwd=cwd)


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


def test_help_and_version_load_nothing_heavy():
    code = "import sys; sys.argv[1:] = {!r}\nfrom hvdlm.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    heavy = ("torch", "h5py", "mpi4py.MPI", "matplotlib", "tokenizers", "pydantic")
    check = f"import json; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    for words in (["--help"], ["--version"], ["train", "--help"]):
        done = subprocess.run([sys.executable, "-c", code.format(words) + check], capture_output=True, text=True)
        assert json.loads(done.stdout.splitlines()[-1]) == []


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
        (("trian", "x"), "No such command 'trian'"),
        (("train",), "Missing argument 'CONFIG'"),
        (("data", "verify", "/nowhere"), "hvdlm: error: /nowhere/manifest.json: there is none"),
        (("eval", "/nowhere"), "hvdlm: error: /nowhere: holds no complete checkpoint"),
        (("generate", "/nowhere", "--top-p", "0"), "Invalid value for '--top-p'"),
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
