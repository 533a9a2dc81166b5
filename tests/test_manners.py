"""How a published model is talked to is kept with a run that begins with it, and ends what it writes."""

import json

import pytest
import torch
from harness import run_training
from test_engine import Kept

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.exchange.manners import ends_in, keep_manners, template_in
from hvdlm.inference.engine import STOP, Engine, Request
from hvdlm.inference.load import load_checkpoint_model, prepare, tokenizer_of
from hvdlm.inference.sampling import Sampling
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld


def ready(run):
    path = checkpoint.resolve(run)
    loaded = load_checkpoint_model(path, (), find_place(SerialWorld()))
    return prepare(loaded, path, tokenizer_of(path, loaded.state))


@pytest.mark.parametrize(("ends", "ids"), [(7, {7}), ([7, 9], {7, 9}), (None, set()), ([], set())])
def test_one_end_of_text_or_several(tmp_path, ends, ids):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "temperature": 0.6}))
    assert ends_in(tmp_path) == ids


@pytest.mark.parametrize("text", ['{"eos_token_id": ["a"]}', '{"eos_token_id": [-1]}', '{"eos_token_id": true}', "{"])
def test_what_names_no_ids_is_refused(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config\.json: .*mend it or move it away"):
        ends_in(tmp_path)


def test_a_folder_that_tells_nothing_leaves_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    keep_manners(tmp_path, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir()) and template_in(tmp_path) == (None, "")


def test_a_run_that_begins_with_another_talks_as_that_one(data_dir, tmp_path):
    """Its template and its ends; how it samples is not taken over unasked (I26)."""
    first, second = tmp_path / "first", tmp_path / "second"
    run_training(data_dir, first, "train.steps=1")
    (first / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (first / "generation_config.json").write_text('{"eos_token_id": [256, 101], "temperature": 0.1}')
    run_training(data_dir, second, "train.steps=1", f"init.from={first}")
    assert template_in(second) == ("{{ messages }}", str(second / "chat_template.jinja"))
    assert json.loads((second / "generation_config.json").read_text()) == {"eos_token_id": [101, 256]}
    loaded = ready(second)
    assert loaded.ends == {101, 256}
    with torch.no_grad():
        engine, heard = Engine(loaded.model, loaded.vocabulary, context=None), Kept()
        sure = Sampling(temperature=0, logit_bias={101: 1e4})
        engine.add(Request((256, 97), 9, sure, loaded.ends), heard)
        engine.run()
    assert heard.ids() == [] and heard.reasons == {0: STOP}


def test_ids_that_the_vocabulary_lacks_end_nothing(data_dir, tmp_path):
    run_training(data_dir, tmp_path, "train.steps=1")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 100000]}')
    assert ready(tmp_path).ends == {5, 256}


def test_ends_of_turns_end_texts_too(data_dir, tmp_path, monkeypatch):
    run_training(data_dir, tmp_path, "train.steps=1")
    monkeypatch.setattr("hvdlm.inference.load.turn_ends", lambda tokenizer: frozenset({5, 300}))
    assert ready(tmp_path).ends == {5, 256}
