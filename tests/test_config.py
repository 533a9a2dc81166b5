"""Configs are validated once, and a mistake is one line with file, line, key and the nearest valid name."""

import re
from pathlib import Path

import pytest
from harness import make_config

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


TEXTS = [
    "my run #2",
    "2026-11-26",
    "no",
    "1e3",
    "0123",
    "~",
    "null",
    "a: b",
    "[x]",
    "{a",
    '"x',
    "'s|'t",
    "'a' 'b'",
    '"a": "b"',
    " x ",
    "a=b",
    "é",
    "*a",
    "-",
]


def test_a_number_is_one_where_a_name_may_stand_too(write):
    for override, expected in (("parallel.data=2", 2), ("parallel={data: 2}", 2), ("parallel.data=auto", "auto")):
        assert load(RunConfig, write(GOOD), (override,)).parallel.data == expected
    assert load(RunConfig, write(f"{GOOD}parallel:\n  data: 2\n")).parallel.data == 2
    with pytest.raises(UserError, match="must be auto or an integer >= 1"):
        load(RunConfig, write(f"{GOOD}parallel:\n  data: '2'\n"))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_key_takes_an_override_whole(text, write):
    listed = text.replace("'", "''")
    given = (f"run_dir={text}", "data.path=null", f"data.mixture=[{{path: '{listed}', weight: 1}}]")
    config = load(RunConfig, write(GOOD), given)
    assert (str(config.run_dir), str(config.data.mixture[0].path)) == (text, text)
    assert load(RunConfig, write(to_yaml(config))) == config


QUOTED = [("' '", " "), ('"x"', "x"), ("'1'", "1"), ("'it''s'", "it's"), (r'"a\tb"', "a\tb"), ("'null'", "null")]


@pytest.mark.parametrize(("written", "text"), [*QUOTED, ("'[x]'", "[x]"), ("'~'", "~"), ("' x '", " x ")])
def test_quotes_around_all_of_an_override_are_those_of_a_file(written, text, write):
    """As when a word is copied from a file within the quotes of the shell."""
    path = write("input: a\noutput: b\n")
    assert load(PreprocessConfig, path, (f"id_key={written}", f"output={written}")).id_key == text
    assert load(PreprocessConfig, write(f"input: a\noutput: b\nid_key: {written}\n")).id_key == text


def test_a_quoted_override_is_text_and_may_be_empty(write):
    assert load(PreprocessConfig, write("input: a\noutput: b\n"), ("id_key=''",)).id_key == ""
    assert problem_of(write(GOOD), "run_dir=''").endswith("run_dir: must not be empty")
    for quoted in ("'7'", '"7"'):
        assert problem_of(write(GOOD), f"train.steps={quoted}").endswith("got '7'; leave the quotes out")


@pytest.mark.parametrize(
    "text", ["2026-11-26", "no", "1e3", "012", "1:30", "0x10", "1_000", "on", ".5", "+1", "=", "'null'", '"~"']
)
def test_a_text_key_takes_what_the_file_says_as_it_stands(text, write):
    path = write(f"input: [{text}, a]\noutput: {text}\nid_key: {text}\n")
    config, written = load(PreprocessConfig, path), text.strip("\"'")
    assert (config.input, str(config.output), config.id_key) == ([written, "a"], written, written)


READINGS = [  # key, what it is when written as one of these, the texts
    ("train.steps", 1000, ["1000", "1e3", "1E3", "1_000", "1000.0", "+1000", " 1000 ", "0x3e8", "01000", "100.e1"]),
    ("train.steps", None, ["", "null", "~", "None", "none", "NULL"]),
    ("seed", 0, ["-0", "0", "0e5", "0.0"]),
    ("seed", 2**63 - 1, [str(2**63 - 1)]),
    ("optim.lr", 0.5, [".5", "0.5", "5e-1", "5.e-1", "0.50", "+.5", "0_0.5"]),
    ("optim.lr", 1e-4, ["1e-4", "1E-4", "1.0e-04", "0.0001"]),
    ("log.tensorboard", False, ["false", "False", "no", "off", "NO", "Off"]),
    ("log.tensorboard", True, ["true", "TRUE", "yes", "on"]),
    ("guard.spike", "off", ["off"]),
    ("optim.betas", (0.0, 0.5), ["[0, .5]", "[0.0, 5e-1]"]),
    ("log.trace", (0, 10), ["[0, 1e1]"]),
    ("train.ramp", None, ["null", "~"]),
]


@pytest.mark.parametrize(("key", "value", "texts"), READINGS)
def test_other_keys_read_a_text_as_people_write_their_type(key, value, texts, write):
    section, _, name = key.rpartition(".")
    for text in texts:
        config = load(RunConfig, write(GOOD + "guard: {}\nlog: {}\n"), ("train.tokens=5", f"{key}={text}"))
        assert getattr(getattr(config, section) if section else config, name) == value, text
        if text.strip() != "" and section in ("guard", "log", ""):
            in_file = f"{section}: {{{name}: {text}}}\n" if section else f"{name}: {text}\n"
            config = load(RunConfig, write(GOOD + in_file))
            assert getattr(getattr(config, section) if section else config, name) == value, text


@pytest.mark.parametrize(
    "text", ["1.5", "1,000", "1:30", "1e30", str(2**63), "9" * 5000, "1e999999", "ten", "١", "0x", "--1"]
)
def test_what_is_no_whole_number_is_refused(text, write):
    assert "train.steps: must be an integer >= 1 or null, got " in problem_of(write(GOOD), f"train.steps={text}")


def test_the_override_that_changed_a_choice_is_named_and_all_keys_that_no_longer_fit(write):
    path = write(GOOD.replace("width: 64", "heads: 2\n  attention_dropout: 0.5"))
    start = (
        "override 'model.family=lstm': .*config.yaml:6: heads, attention_dropout of model are no keys of family: lstm"
    )
    assert re.match(start, problem_of(path, "seed=1", "model.family=lstm", "log.every=3"))


def test_of_two_overrides_of_a_key_the_last_one_holds(write):
    assert load(RunConfig, write(GOOD), ("seed=1", "seed=2")).seed == 2
    assert load(RunConfig, write(GOOD), ("sync=local_sgd", "sync.every=4")).sync.every == 4
    assert "override 'seed=x'" in problem_of(write(GOOD), "seed=1", "seed=x")


def test_overrides_win(write):
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
    ("width", "witdh", r"config.yaml:6: unknown key 'model.witdh'; did you mean 'model.width'\?"),
    ("", "optimizer: {}\n", r"config.yaml:13: unknown key 'optimizer'; did you mean 'optim'\?"),
    ("", "zzz: 1\n", r"unknown key 'zzz'; valid keys: .*train"),
    ("1e-4", "fast", r"config.yaml:8: optim.lr: .*number.*got 'fast'"),
    ("steps: 10", "steps: 0", r"config.yaml:10: train.steps: .*integer >= 1 or null, got 0$"),
    ("  path: data", "  seq_len: 8", r"config.yaml:2: the key 'data.path' is required"),
    ("  global_batch: 8", "  global_batch:", r"config.yaml:11: train.global_batch: must not be empty"),
    (
        "transformer",
        "transfomer",
        r"config.yaml:\d: model.family: must be transformer, .*, got 'transfomer'; did you mean 'transformer'",
    ),
    ("steps: 10", "steps: '7'", r"config.yaml:10: train.steps: .*integer.*got '7'; leave the quotes out"),
    ("steps: 10", "steps: true", r"config.yaml:10: train.steps: .*an integer.*got true"),
    ("1e-4", ".inf", r"config.yaml:8: optim.lr: must be a number > 0, got .inf"),
    ("micro_batch: 4", "micro_batch: 3", r"config.yaml:9: train: global_batch 8 is not a multiple of micro_batch 3"),
    ("width: 64", "width: 6", r"config.yaml:4: model: width 6 is not a multiple of 2 x heads 4"),
    ("", "seed: 1\nseed: 2\n", r"config.yaml:14: .*'seed' is given twice, first in line 13"),
    (GOOD, "a: [1\n", r"config.yaml:2: not valid YAML"),
    (GOOD, "", r"config.yaml: is empty"),
    (GOOD, "# nothing\n", r"config.yaml: is empty"),
    (GOOD, "text\n", r"is a mapping of keys to values, this is the text 'text'"),
    (GOOD, "a: 1\n---\nb: 2\n", r"config.yaml:2: .*a second document begins"),
    (GOOD, "a:\n\tb: 1\n", r"config.yaml:2: .*indent with blanks, not tabs"),
    (GOOD, "a: \x01\n", r"config.yaml:1: .*U\+0001 may not stand there"),
    (GOOD, "a: !!python/name:os.system\n", r"config.yaml:1: the tag !!python/name:os.system means nothing"),
    (GOOD, "a: !env HOME\n", r"config.yaml:1: the tag !env means nothing"),
    (GOOD, "[1]: 2\n", r"config.yaml:1: a key is a word"),
    (GOOD, "a: &a [*a]\n", r"an alias stands within what it names"),
    (GOOD, "a: " + "[" * 3000 + "\n", r"nested too deeply"),
    (GOOD, 'a: "\\UFFFFFFFF"\n', r"config.yaml:?1?: not valid YAML"),
    ("", "1: 2\n", r"config.yaml:13: unknown key '1'"),
    ("", "yes: 2\n", r"config.yaml:13: unknown key 'yes'"),
    ("  width: 64", '  width: "64"', r"config.yaml:6: model.width: .*got '64'; leave the quotes out"),
    ("runs/a", '""', r"config.yaml:1: run_dir: must not be empty"),
    ("runs/a", "", r"config.yaml:1: run_dir: must not be empty"),
    ("runs/a", "~", r"config.yaml:1: the key 'run_dir' is required"),
    ("", "steps: 3\n", r"config.yaml:13: unknown key 'steps'; did you mean 'train.steps' or 'train.ramp.steps'\?"),
    ("  width", "  lr", r"config.yaml:6: unknown key 'model.lr'; did you mean 'optim.lr'\?"),
    ("runs/a", '"a\\0"', r"config.yaml:1: run_dir: must be a path"),
    ("runs/a", '"\\ud800"', r"config.yaml:1: run_dir: character 0 is not Unicode"),
    (GOOD, "- 1\n", r"is a mapping of keys to values"),
]
BAD_OVERRIDES = [
    ("model.family=gpt", r"override 'model.family=gpt': model.family: must be transformer, .* or .*, got 'gpt'$"),
    ("sync={every: 4}", r"override 'sync={every: 4}': the key 'sync.kind' is required: auto, horovod, allreduce"),
    ("optim=none", r"override 'optim=none': optim: is a section, whose keys are set one by one"),
    ("guard=", r"override 'guard=': guard: is a section, whose keys are set one by one"),
    ("optim=adam", r"override 'optim=adam': optim: is a section, whose keys are set one by one, such as optim.name="),
    (
        'lora={targets: ["mlp\\."]}',
        r"lora: not valid YAML: found unknown escape character '\.', got .*; in single quotes, \\ is itself$",
    ),
    ("freeze=['^blocks'", r"freeze: not valid YAML: expected ',' or '\]', but got '<stream end>', got "),
    ("optim.lr=1e39", r"optim.lr: must be a number > 0, got 1e39; numbers here end at 3.4"),
    (
        "train.steps=1e30",
        r"train.steps: must be an integer >= 1 or null, got 1e30; whole numbers here go to 92233720\d*7$",
    ),
    ("train.threads=5000", r"train.threads: must be an integer >= 0 and <= 4096, got 5000"),
    ("train.steps=99e999999", r"train.steps: must be .*, got 99e999999; whole numbers here go to 9223372036854775807$"),
    (
        "seed=-0x1_0000_0000_0000_0000",
        r"seed: must be an integer, got -0x1.*; whole numbers here go from -9\d*7 to 9",
    ),
    ("run_dir=", r"override 'run_dir=': run_dir: must not be empty$"),
    ("data.path=", r"override 'data.path=': data.path: must not be empty$"),
    ("init.from=", r"override 'init.from=': init.from: must not be empty$"),
    ("train.global_batch=", r"override 'train.global_batch=': train.global_batch: must not be empty$"),
    ("data.mixture=[{pathh: x}]", r"unknown key 'data.mixture.0.pathh'; did you mean 'data.mixture.0.path'\?"),
    ("model.name=x", r"unknown key 'model.name'; valid keys: .*family"),
    ("run_dir=a\0", r"run_dir: must be a path, got 'a\\x00'"),
    ("run_dir=\udcff", r"run_dir: character 0 is not Unicode"),
    ("=1", r"override '=1': write key.sub=value"),
    ("optim..lr=1", r"override 'optim..lr=1': write key.sub=value"),
    ("data.mixture=x", r"data.mixture: must be a list of sections, such as \[{path: …, weight: …}\], got 'x'"),
    ("log.tensorboard=1", r"override 'log.tensorboard=1': log.tensorboard: .*true or false, got 1"),
    ("optim.betas=[1.5, 0.9]", r"optim.betas.0: must be a number >= 0 and < 1, got 1.5"),
    ("optim.min_lr=1", r"optim: min_lr 1.0 is above lr 0.0001"),
    ("optim.ler=1", r"override 'optim.ler=1': unknown key 'optim.ler'; did you mean 'optim.lr'\?"),
    ("optim.lr", r"override 'optim.lr': write key.sub=value"),
    ("seed.x=1", r"override 'seed.x=1': seed: must be an integer, got a section"),
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
    sections = "checkpoint data.mixture data.path guard log model.activation_checkpointing parallel run_dir sync world"
    train = "compile deterministic device digest_every epochs eval_every eval_tokens micro_batch minutes patience"
    expected = {
        "task.samples",
        *sections.split(),
        *(f"train.{key}" for key in f"{train} steps target_loss threads tokens".split()),
    }
    assert free_on_resume(RunConfig) == expected


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere.yaml: cannot read this config \(No such file"):
        load(RunConfig, "nowhere.yaml")


def test_aliases_that_stand_for_a_billion_values_are_refused_at_once(write):
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert "aliases make more than" in problem_of(write("a0: &a0 [x, x]\n" + bomb))
    merges = "".join(f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert "unknown key" in problem_of(write("m0: &m0 {x: 1}\n" + merges)) or "aliases" in problem_of(write(merges))


def test_aliases_and_merges_are_those_of_yaml(write):
    text = GOOD.replace("model:\n", "model: &m\n").replace("  width: 64\n", "  width: 64\n") + "log: &l {every: 3}\n"
    assert (
        load(RunConfig, write(text.replace("log: &l", "checkpoint: &c {every: 5}\nlog:\n  <<: *c\n#"))).log.every == 5
    )
    both = "checkpoint: &c {every: 5}\nlog: {<<: *c, every: 6}\n"
    config = load(RunConfig, write(GOOD + both), ("checkpoint.every=7",))
    assert (config.checkpoint.every, config.log.every) == (7, 6)


@pytest.mark.parametrize(
    "encode", [lambda t: b"\xef\xbb\xbf" + t, lambda t: t.replace(b"\n", b"\r\n")], ids=["BOM", "CRLF"]
)
def test_what_windows_writes_is_read(encode, tmp_path):
    (tmp_path / "c.yaml").write_bytes(encode(GOOD.encode()))
    assert load(RunConfig, tmp_path / "c.yaml").optim.lr == 1e-4


def test_files_that_are_no_configs(tmp_path):
    (tmp_path / "large").write_bytes(b"a" * (5 << 20))
    (tmp_path / "utf-16").write_bytes(GOOD.encode("utf-16"))
    found = [problem_of(path) for path in (tmp_path, tmp_path / "large", tmp_path / "utf-16", "/dev/zero", "a\0b")]
    assert [re.search(r"Is a directory|larger than 4 MiB|not UTF-8|null byte|null char", text)[0] for text in found[:3]]
    assert "larger than 4 MiB" in found[3]
    assert "cannot read this config" in found[4]


def test_a_section_with_nothing_in_it_has_its_defaults(write):
    assert load(RunConfig, write(GOOD + "log:\n#  every: 3\nsync:\nema: ~\n")).log.every == 10
    assert "the key 'data.path' is required" in problem_of(write(GOOD.replace("  path: data", "")))


def test_impossible_combinations_of_preprocessing(write):
    text = "input: a\noutput: b\ntokenizer: {kind: byte, path: tokenizer.json}\n"
    with pytest.raises(UserError, match="config.yaml:3: tokenizer: the byte tokenizer has no file"):
        load(PreprocessConfig, write(text))
    with pytest.raises(UserError, match="override 'tokenizer.path=': tokenizer.path: must not be empty"):
        load(PreprocessConfig, write("input: a\noutput: b\n"), ("tokenizer.path=",))
    with pytest.raises(UserError, match="leave nothing to train on"):
        load(PreprocessConfig, write("input: a\noutput: b\nsplit: {val: 0.5, test: 0.5}\n"))


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.parent.glob("configs/*.yaml")), ids=lambda path: path.name
)
def test_the_shipped_configs_are_valid(path):
    model = PreprocessConfig if "\ninput:" in path.read_text() else RunConfig
    load(model, path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model={family: maxent, l2: 1e-7}", "objective.z_loss=0.1"), "do not go together with model.l1 and l2"),
        (
            ("model={family: ngram}", "noise.word_dropout=0.1"),
            "noise.word_dropout: for what is trained by gradients, and this ngram is",
        ),
        (
            ("model={family: hmm}", "objective.temporal=0.1"),
            "objective.temporal: for what is trained by gradients, and this hmm is",
        ),
    ],
)
def test_terms_that_would_act_on_nothing_are_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config(tmp_path, tmp_path, *overrides)
