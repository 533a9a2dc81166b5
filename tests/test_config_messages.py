"""Whatever is written for a key of a config is taken or refused in one line of our own words that names the place."""

import re
from pathlib import Path

import pytest
from harness import preprocess_values, run_values

from hvdlm.config import load, validate
from hvdlm.config.sections import sections_of, union_of
from hvdlm.errors import UserError
from hvdlm.jobs.site import Site
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.train.config import RunConfig

GOOD = {
    RunConfig: run_values(Path("data"), Path("run")),
    PreprocessConfig: preprocess_values("texts", Path("out")),
    Site: {"description": "x"},
}
LIBRARY_WORDS = re.compile(
    r"discriminator|Input should|Extra inputs|valid (integer|number|dictionary|list|tuple|string|boolean)"
    r"|Field required|pydantic|type=|https?://|Value error|NoneType|<class|Unable to|Traceback|dict\b|PosixPath"
    r"|\bNone\b",
)
WRONG = ["", "word", "-1", "0", "1.5", "nan", "inf", "1e400", "1e30", "9" * 5000, "yes", "[1]", "{a: 1}", "[[", "null"]
WRONG += ["a\0b", "{a: [", "[]", "{}", "1:30", "2026-11-26", "é", "a b", "*x", "&x", "!x", "%", "`", "- a", "a: b"]


# Models that can be trained for tasks which the usual one cannot.
FOR_TASK = {"mlm": ("model={family: transformer, causal: false}",), "elbo": ("model={family: vae}",)}


def keys_of(section, prefix=()):
    """(key, the overrides that make it a key) of all that a config may hold."""
    for name, field in section.model_fields.items():
        yield (*prefix, name), ()
        union = union_of(field)
        for option in sections_of(field) if not str(field.annotation).startswith(("tuple", "list", "dict")) else ():
            kind = option.model_fields[union.tag].default if union else ""
            choice = (f"{'.'.join((*prefix, name))}={{{union.tag}: {kind}}}",) if union else ()
            choice = (*FOR_TASK.get(kind, ()), *choice) if name == "task" else choice
            for key, more in keys_of(option, (*prefix, name)):
                yield key, choice + more


CASES = [(model, key, choice) for model in GOOD for key, choice in keys_of(model)]


def refusal(model, *overrides):
    try:
        validate(model, GOOD[model], Path("config.yaml"), overrides)
    except UserError as error:
        assert "\n" not in str(error).replace("\\n", "")
        return str(error)
    return None


REST = {
    RunConfig: {"run_dir": "a", "data.path": "b", "train.global_batch": 8, "train.micro_batch": 4, "train.steps": 10},
    PreprocessConfig: {"input": "a", "output": "b"},
    Site: {},
}
BYSTANDERS = {RunConfig: "log.every=7", PreprocessConfig: "shard_tokens=70", Site: "max_restarts=7"}


@pytest.mark.parametrize(
    ("model", "key", "choice"), CASES, ids=lambda part: ".".join(part) if type(part) is tuple else ""
)
def test_an_override_is_taken_or_refused_by_its_name(model, key, choice):
    for wrong in WRONG:
        override = f"{'.'.join(key)}={wrong}"
        message = refusal(model, *choice, override, BYSTANDERS[model])
        if message is not None and override.split("=")[0] not in BYSTANDERS[model]:
            said = [f"override {override!r}", *(f"overrides {other!r} and {override!r}" for other in choice[-1:])]
            begun = [prefix for prefix in said if message.startswith(prefix)]
            assert begun, message
            assert not LIBRARY_WORDS.search(message.removeprefix(begun[0])), message


@pytest.mark.parametrize(
    ("model", "key", "choice"), CASES, ids=lambda part: ".".join(part) if type(part) is tuple else ""
)
def test_a_value_in_a_file_is_taken_or_refused_with_its_line(model, key, choice, tmp_path):
    path = tmp_path / "config.yaml"
    opened = "".join(f"{' ' * depth}{part}:\n" for depth, part in enumerate(key[:-1]))
    below = " " * (len(key) - 1)
    tag = re.search(r"{(.*)}", choice[-1])[1] if choice else ""
    is_of_tag = choice and choice[-1].split("=")[0] == ".".join(key[:-1]) and not tag.startswith(key[-1])
    more = f"{below}{tag}\n" if is_of_tag else ""
    for wrong in ("word", "-1", "0x", "'7'", "[1, [2]]", "{a: 1}", "", "~", "2026-11-26", "1:30", "no", '"\\0"'):
        path.write_text(f"{opened}{below}{key[-1]}: {wrong}\n{more}")
        with_rest = [f"{name}={value}" for name, value in REST[model].items() if name != ".".join(key)]
        try:
            load(model, path, tuple(with_rest))
        except UserError as error:
            assert not LIBRARY_WORDS.search(str(error)), error
            assert str(error).startswith((f"{path}:", "override")), error


TYPES = "text, pair, label, labels, span or number"
WRONG_FIELDS = [
    ("{type: lable}", f"fields.a.type: must be {TYPES}, got 'lable'; did you mean 'label'?"),
    ("lable", f"fields.a.type: must be {TYPES}, got 'lable'; did you mean 'label'?"),
    ("{typ: label}", "unknown key 'fields.a.typ'; did you mean 'fields.a.type'? (and 1 more)"),
    ("{type: labels, scheme: BOI}", "fields.a.scheme: must be BIO, IOB1, BIOES or BMES or null, got 'BOI'; did you me"),
    ("{type: label, several: maybe}", "fields.a.several: must be true or false, got 'maybe'"),
    ("{type: label, labels: [x, [y]]}", "fields.a.labels.1: must be text, got ['y']"),
    ("[label]", "fields.a: is a section, whose keys are set one by one, such as fields.a.type=…, got ['label']"),
    ("{}", "the key 'fields.a.type' is required"),
]


@pytest.mark.parametrize(("entry", "told"), WRONG_FIELDS)
@pytest.mark.parametrize("name", ["a", "input", "7"])
def test_a_section_under_a_name_of_the_users_is_told_by_its_whole_place(name, entry, told, tmp_path):
    """Whatever the name is: that of a key, too, or a number."""
    path = tmp_path / "config.yaml"
    path.write_text(f"input: x\noutput: y\nfields:\n  text: text\n  {name}: {entry}\n")
    with pytest.raises(UserError, match=re.escape(f"{path}:5: " + told.replace("fields.a", f"fields.{name}"))):
        load(PreprocessConfig, path)


def test_sections_by_name_are_asked_for_where_there_are_none():
    message = refusal(PreprocessConfig, "fields=text")
    assert message is not None and "fields: must be sections by name, such as {NAME: {type: …, key: …, " in message
