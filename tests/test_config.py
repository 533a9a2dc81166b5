"""Configs are validated once, and a mistake is one line with file, line, key and the nearest valid name."""

import re
from pathlib import Path

import pytest

from hvdlm.config import free_on_resume, load, to_yaml
from hvdlm.errors import UserError
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.train.config import RunConfig

GOOD = """\
run_dir: runs/a
data:
  path: data
model:
  family: transformer
  width: 64
optim:
  lr: 1e-4
train:
  steps: 10
  global_batch: 8
  micro_batch: 4
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_1e_minus_4_is_a_number(write):
    assert load(RunConfig, write(GOOD)).optim.lr == 1e-4


def test_overrides_win_and_have_yaml_types(write):
    config = load(RunConfig, write(GOOD), ("optim.lr=3e-4", "data.seq_len=64", "log.tensorboard=false", "world=mpi"))
    assert (config.optim.lr, config.data.seq_len, config.log.tensorboard, config.world) == (3e-4, 64, False, "mpi")


def test_the_resolved_config_reads_back_equal(write):
    config = load(RunConfig, write(GOOD))
    assert load(RunConfig, write(to_yaml(config))) == config


def test_a_config_cannot_be_changed(write):
    with pytest.raises(ValueError, match="frozen"):
        load(RunConfig, write(GOOD)).seed = 3


# What of GOOD is replaced (nothing: it is appended to), by what, and the message that this gives.
BAD = [
    ("width", "witdh", r"config.yaml:6: unknown key 'model.witdh'; did you mean 'width'\?"),
    ("", "optimizer: {}\n", r"config.yaml:13: unknown key 'optimizer'; did you mean 'optim'\?"),
    ("", "zzz: 1\n", r"unknown key 'zzz'; valid keys: .*train"),
    ("1e-4", "fast", r"config.yaml:8: optim.lr: .*number.*got 'fast'"),
    ("steps: 10", "steps: 0", r"config.yaml:10: train.steps: .*greater than or equal to 1"),
    ("  path: data", "  seq_len: 8", r"config.yaml:2: the key 'data.path' is required"),
    ("  global_batch: 8", "  global_batch:", r"config.yaml:11: the key 'train.global_batch' is required"),
    ("transformer", "transfomer", r"config.yaml:\d: model: .*'transformer', 'lstm'"),
    ("steps: 10", "steps: '7'", r"config.yaml:10: train.steps: .*valid integer, got '7'"),
    ("steps: 10", "steps: true", r"config.yaml:10: train.steps: .*integer, got True"),
    ("1e-4", ".inf", r"config.yaml:8: optim.lr: .*finite"),
    ("micro_batch: 4", "micro_batch: 3", r"config.yaml:9: train: global_batch 8 is not a multiple of micro_batch 3"),
    ("width: 64", "width: 6", r"config.yaml:4: model: width 6 is not a multiple of 2 x heads 4"),
    ("", "seed: 1\nseed: 2\n", r"config.yaml:14: .*'seed' is given twice"),
    (GOOD, "a: [1\n", r"config.yaml:2: not valid YAML"),
    (GOOD, "- 1\n", r"is a mapping of keys to values"),
]
BAD_OVERRIDES = [
    ("log.tensorboard=1", r"override 'log.tensorboard=1': log.tensorboard: .*boolean, got 1"),
    ("optim.betas=[1.5, 0.9]", r"optim.betas.*less than 1, got 1.5"),
    ("optim.min_lr=1", r"optim: min_lr 1.0 is above lr 0.0001"),
    ("optim.ler=1", r"override 'optim.ler=1': unknown key 'optim.ler'; did you mean 'lr'\?"),
    ("optim.lr", r"override 'optim.lr': write key.sub=value"),
    ("seed.x=1", r"override 'seed.x=1': seed: .*valid integer"),
]


def problem_of(path, *overrides):
    with pytest.raises(UserError) as caught:
        load(RunConfig, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("old", "new", "pattern"), BAD, ids=[new.strip() for _, new, _ in BAD])
def test_a_mistake_is_one_clear_line(old, new, pattern, write):
    assert re.search(pattern, problem_of(write(GOOD.replace(old, new) if old else GOOD + new)))


@pytest.mark.parametrize(("override", "pattern"), BAD_OVERRIDES)
def test_a_mistake_in_an_override_is_one_clear_line(override, pattern, write):
    assert re.search(pattern, problem_of(write(GOOD), override))


def test_what_may_differ_when_a_run_is_resumed():
    sections = "checkpoint data.mixture data.path guard log model.activation_checkpointing run_dir sync world"
    train = "compile device digest_every epochs eval_every eval_tokens micro_batch minutes patience steps target_loss"
    expected = {*sections.split(), *(f"train.{key}" for key in f"{train} threads tokens".split())}
    assert free_on_resume(RunConfig) == expected


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere.yaml: cannot read this config \(No such file"):
        load(RunConfig, "nowhere.yaml")


def test_impossible_combinations_of_preprocessing(write):
    text = "input: a\noutput: b\ntokenizer: {kind: byte, path: tokenizer.json}\n"
    with pytest.raises(UserError, match="config.yaml:3: tokenizer: the byte tokenizer has no file"):
        load(PreprocessConfig, write(text))
    with pytest.raises(UserError, match="leave nothing to train on"):
        load(PreprocessConfig, write("input: a\noutput: b\nsplit: {val: 0.5, test: 0.5}\n"))


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.parent.glob("configs/*.yaml")), ids=lambda path: path.name
)
def test_the_shipped_configs_are_valid(path):
    model = PreprocessConfig if "\ninput:" in path.read_text() else RunConfig
    load(model, path)
