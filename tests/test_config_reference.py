"""`hvdlm config schema` prints a config that loads as the defaults once its required keys have values."""

import re

import pytest

from hvdlm.cli.config_reference import commented_yaml
from hvdlm.config import load, validate
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.records.fields import FieldConfig
from hvdlm.sync import SYNCS
from hvdlm.train.batch_plan import RampConfig
from hvdlm.train.config import RunConfig

TRAIN = ("run_dir=a", "data.path=b", "train.global_batch=8", "train.micro_batch=4", "train.steps=10")
REQUIRED = {RunConfig: TRAIN, PreprocessConfig: ("input=a", "output=b")}


def reference(model, width=100):
    return commented_yaml(model.model_json_schema(), width)


@pytest.mark.parametrize("model", REQUIRED)
@pytest.mark.parametrize("width", [80, 120])
def test_it_loads_as_the_defaults(model, width, tmp_path):
    text = reference(model, width)
    assert max(map(len, text.splitlines())) <= width
    (tmp_path / "config.yaml").write_text(text)
    assert load(model, tmp_path / "config.yaml", REQUIRED[model]) == validate(model, {}, tmp_path, REQUIRED[model])


@pytest.mark.parametrize("model", REQUIRED)
def test_the_keys_without_a_value_are_the_required_ones_and_say_so(model):
    empty = re.findall(r"^ *(\w+): +# (required)?", reference(model), re.MULTILINE)
    assert {key for key, mark in empty if mark} == {line.split("=")[0].split(".")[-1] for line in REQUIRED[model]} - {
        "path",
        "steps",
    }
    assert all(mark for _, mark in empty)


@pytest.mark.parametrize("model", REQUIRED)
def test_every_key_has_a_meaning(model):
    """But for sections, which have theirs above them, and for the tag of a union."""
    schema = model.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for key, value in section.get("properties", {}).items():
            says_it = {"description", "$ref", "discriminator", "const"} & value.keys()
            assert says_it or key in ("kind", "family"), (section["title"], key)


@pytest.mark.parametrize("kind", SYNCS)
def test_another_kind_than_the_default_can_be_taken_in(kind, tmp_path):
    lines = reference(RunConfig).splitlines()
    first = lines.index(f"  # kind: {kind}")
    block = [re.sub("^  # ", "  ", line) for line in lines[first : lines.index("", first)]]
    default = next(number for number, line in enumerate(lines) if line.startswith("  kind: auto"))
    (tmp_path / "config.yaml").write_text("\n".join([*lines[:default], *block, *lines[default + 1 :]]))
    assert load(RunConfig, tmp_path / "config.yaml", TRAIN).sync == SYNCS[kind]()


def test_a_section_that_is_null_by_default_can_be_taken_in(tmp_path):
    text = re.sub("(?m)^  ramp: null.*$", "", reference(RunConfig))
    (tmp_path / "config.yaml").write_text(re.sub("(?m)^  # (ramp|  start|  increment|  steps):", r"  \1:", text))
    ramp = {"start": 2, "increment": 3, "steps": 4}
    given = (f"train.ramp.{key}={value}" for key, value in ramp.items())
    assert load(RunConfig, tmp_path / "config.yaml", (*TRAIN, *given)).train.ramp == RampConfig(**ramp)


def test_sections_by_name_are_shown_and_can_be_taken_in(tmp_path):
    text = re.sub("(?m)^fields: .*\n.*$", "", reference(PreprocessConfig))
    first = text.index("# fields:\n#   NAME:\n")
    block = text[first : text.index("\nseparator:", first)]
    assert re.search(r"(?s)type: .*\[text, pair, label, labels, span or number\].* scheme: .*\[BIO, IOB1,", block)
    taken = re.sub("(?m)^#", "", block).replace("NAME:", "body:").replace("type: ", "type: text")
    (tmp_path / "config.yaml").write_text(text.replace(block, re.sub("(?m)^ ", "", taken)))
    found = load(PreprocessConfig, tmp_path / "config.yaml", REQUIRED[PreprocessConfig])
    assert found.fields == {"body": FieldConfig(type="text")}


def test_choices_and_ranges_stand_behind_the_meaning():
    text = reference(RunConfig, 120)
    assert re.search(r"  decay_shape: linear +# wsd \[linear or 1-sqrt\]", text)
    assert re.search(r"  betas: \[0.9, 0.95\] +# adam, .* \[list of 2: number >= 0 and < 1\]", text)
    assert "kind is auto, horovod, allreduce, tree, local_sgd, diloco or async; each has its own keys." in text
