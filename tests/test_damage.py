"""Files that were torn, edited or swapped since they were written: read rightly, or refused in one line."""

import copy
import json
import math
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from harness import STATE, run_training
from saved import rewrite, write_record

from hvdlm import checkpoint
from hvdlm.config.loading import load as load_config
from hvdlm.data.bridges import ConvertOptions, convert
from hvdlm.data.config import DataConfig
from hvdlm.data.corpora import open_corpora
from hvdlm.data.inspection import inspect
from hvdlm.data.manifest import read_manifest
from hvdlm.data.shards import doc_offsets
from hvdlm.data.stream import TokenStream
from hvdlm.data.verify import verify
from hvdlm.errors import UserError
from hvdlm.files import open_stream
from hvdlm.jobs.ledger import LedgerEntry, progress_of, read_all
from hvdlm.tokenizer import from_json, train_bpe
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import load_weights

OLD = Path(__file__).parent / "golden/checkpoint-v1/transformer/checkpoints/step_00000004"
VALUES = (None, [], {}, "x", "", 0, -1, 1.5, math.nan, math.inf, True, 1 << 70, "../x", [None])
DELETED = object()


def places(value, before=()):
    """The way to each value of a JSON document, of a list to its first two."""
    below = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in below:
        yield (*before, key)
        yield from places(part, (*before, key))


def edited(document, place, value):
    document = copy.deepcopy(document)
    *way, last = place
    within = document
    for key in way:
        within = within[key]
    if value is DELETED:
        del within[last]
    else:
        within[last] = value
    return document


def edits(document):
    return ((edited(document, place, value), place) for place in places(document) for value in (*VALUES, DELETED))


def one_line(path, error):
    return str(error.value if hasattr(error, "value") else error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.fixture
def folder(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "data")


# --- data folders


FREE = {
    "tokenizer_kind",
    "tokenizer_digest",
    "statistics",
    "plan",
    "digest",
    "unigram_loss",
    "text_bytes",
    "splitting",
}  # or
FREE |= {"num_bytes", "checksum", "file", "vocab_size", "eos_id"}  # checked where the files are opened


def test_a_manifest_of_any_content_is_read_as_it_was_or_refused(folder):
    path = folder / "manifest.json"
    whole = json.loads(path.read_text())
    expected = read_manifest(folder)
    for changed, place in edits(whole):
        path.write_text(json.dumps(changed))
        try:
            found = read_manifest(folder)
        except UserError as error:
            assert one_line(path, error), error
        else:
            assert found == expected or FREE & set(place) or place == ("splits", "test"), place


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("splits.val.shards", [], r"splits.val.num_tokens is \d+, its parts have 0"),
        ("splits.train", DELETED, r"num_tokens is \d+, its parts have \d+"),
        ("splits", {}, "there is no split train, val or test, only none"),
        ("splitting.kind", "dev", "'hash' or 'predefined'"),
        ("splits.val.text_bytes", -1, "should be greater than or equal to 0"),
        ("splits.val.unigram_loss", math.inf, "finite number"),
        ("vocab_size", 1 << 70, "less than or equal to"),
        ("vocab_size", 0, "greater than or equal to 1"),
        ("eos_id", 70_000, "eos_id 70000 is not in a vocabulary of"),
        ("num_tokens", True, "valid integer"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_refused(folder, key, value, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(edited(json.loads(path.read_text()), key.split("."), value)))
    with pytest.raises(UserError, match=message) as error:
        read_manifest(folder)
    assert one_line(path, error)


@pytest.mark.parametrize("key", ["vocab_size", "eos_id"])
def test_a_manifest_of_another_vocabulary_than_the_tokenizers_is_refused(folder, key):
    path = folder / "manifest.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, key: whole[key] + (1 if key == "vocab_size" else -1)}))
    for use in (inspect, lambda folder: open_corpora(DataConfig(path=folder))):
        with pytest.raises(UserError, match=rf"{path}: {key}: is \d+, \S+tokenizer.json has \d+"):
            use(folder)


def test_an_id_outside_the_vocabulary_reaches_no_model(folder):
    manifest = read_manifest(folder)
    with h5py.File(folder / manifest.splits["train"].shards[0].file, "r+") as file:
        file["tokens"][5] = manifest.vocab_size
    stream = TokenStream(folder, "train")
    for read in (lambda: stream.read(5, 1), lambda: stream.read_windows(np.array([0]), 8), lambda: inspect(folder)):
        with pytest.raises(
            UserError, match=rf"holds id {manifest.vocab_size}, the vocabulary has .*`hvdlm data verify"
        ):
            read()


@pytest.mark.parametrize("kind", ["gone", "shorter", "not ascending", "header"])
def test_a_shard_whose_documents_are_damaged_is_named(folder, tmp_path, kind):
    entry = read_manifest(folder).splits["train"].shards[0]
    path = folder / entry.file
    with h5py.File(path, "r+") as file:
        offsets = file["doc_offsets"][:]
        offsets[1] = -1
        if kind == "not ascending":
            file["doc_offsets"][:] = offsets
        elif kind != "header":
            del file["doc_offsets"]
        if kind == "shorter":
            file["doc_offsets"] = offsets[:1]
    if kind == "header":
        path.write_bytes(path.read_bytes().replace(b"OHDR", b"\0HDR"))
    uses = (
        lambda: doc_offsets(folder, entry),
        lambda: inspect(folder),
        lambda: convert(folder, tmp_path / "out", to="jsonl", tokenizer=None, options=ConvertOptions()),
    )
    for use in uses:
        with pytest.raises(UserError) as error:
            use()
        assert one_line(path, error)


def test_verify_waits_for_no_pipe(folder):
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert verify(folder)[0].startswith(f"{folder / 'tokenizer.json'}: is is no regular file, the manifest")


# --- vocabularies


def test_a_tokenizer_json_of_any_content_is_read_or_refused():
    whole = json.loads(train_bpe(["aab abb ab"] * 9, 262).to_json())
    for vocabulary in (whole, {**whole, "model": {**whole["model"], "type": "WordLevel", "unk_token": "a"}}):
        for changed, _ in edits({**vocabulary, "model": {**vocabulary["model"], "vocab": {}}}):
            if isinstance(changed.get("model"), dict) and changed["model"].get("vocab") == {}:
                changed["model"]["vocab"] = vocabulary["model"]["vocab"]
            try:
                tokenizer = from_json(json.dumps(changed), "t.json")
            except UserError as error:
                assert one_line("t.json", error), error
            else:
                assert 0 <= tokenizer.eos_id < tokenizer.vocab_size <= 1 << 32


OWN_KINDS = (
    {"hvdlm": "char", "characters": "abc"},
    {
        "hvdlm": "word",
        "words": "whitespace",
        "pattern": None,
        "line_ends": False,
        "vocabulary": ["<unk>", "<eos>", "a"],
    },
    {"hvdlm": "tokenizers", "eos": "x", "tokenizer_json": "{}"},
    {"hvdlm": "sentencepiece", "model": "AAA="},
    {"hvdlm": "tiktoken", "pattern": "gpt2", "ranks": "YQ== 0"},
)


@pytest.mark.parametrize("whole", OWN_KINDS, ids=lambda whole: whole["hvdlm"])
def test_a_vocabulary_of_our_own_kinds_of_any_content_is_read_or_refused(whole):
    for changed, _ in edits(whole):
        try:
            from_json(json.dumps(changed), "t.json")
        except UserError as error:
            assert str(error).startswith("t.json") and "\n" not in str(error), error


# --- checkpoints


@pytest.fixture
def saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    state = {**STATE, "config": {"model": {"width": 2}, "optim": {"lr": 0.1}}, "figures": {"loss": math.nan}}
    state["engine"] = {"sync": "allreduce", "guard": {"seen": 3}, "left_out": 0, "val_losses": [2.0, math.nan]}
    return checkpoint.save(tmp_path, 7, model, optimizer, state, {"ema/weight": torch.ones(2)})


def test_any_change_to_a_checkpoints_record_is_damage(saved):
    path = saved / "state.json"
    whole = json.loads(path.read_text())
    for changed, place in edits(whole):
        path.write_text(json.dumps(changed))
        read = json.loads(path.read_text(), parse_constant=lambda _: None)
        assert (checkpoint.damage(saved) is None) == (repr(read) == repr(whole)), place


@pytest.mark.parametrize("depth", [100, 300, 600, 990, 3000, 100_000])
def test_a_record_of_any_depth_is_a_line(saved, depth):
    path = saved / "state.json"
    whole = path.read_text()
    path.write_text(whole.replace("{", '{"x": ' + "[" * depth + "]" * depth + ", ", 1))
    assert "\n" not in (checkpoint.damage(saved) or "\n")


@pytest.mark.parametrize("name", ["model/a\nb", "model/\x1b[2J", "model/" + "a" * 100_000, ""])
@pytest.mark.parametrize("part", ["tensors", "files"])
def test_no_name_in_a_record_changes_the_screen(saved, name, part):
    path = saved / "state.json"
    whole = json.loads(path.read_text())
    whole[part][name] = next(iter(whole[part].values()))
    write_record(saved, whole)
    told = checkpoint.damage(saved)
    assert told and told.isprintable() and len(told) < 800


@pytest.mark.parametrize("layout", [{"indent": 4}, {"sort_keys": True}, {"separators": (",", ":")}])
def test_a_record_that_is_laid_out_otherwise_is_the_same(saved, layout):
    path = saved / "state.json"
    path.write_bytes(json.dumps(json.loads(path.read_text()), **layout).replace("\n", "\r\n").encode())
    assert checkpoint.damage(saved) is None


def test_a_record_of_an_older_version_has_no_digest(tmp_path):
    old = shutil.copytree(OLD, tmp_path / "step_00000004")
    path = old / "state.json"
    whole = json.loads(path.read_text())
    whole.pop("digest", None)
    whole["engine"]["guard"]["seen"] = 4
    path.write_text(json.dumps(whole))
    assert checkpoint.damage(old) is None
    for key in ("model", "optim"):
        path.write_text(json.dumps(edited(whole, ("config", key), 3)))
        assert f"config.{key}: " in checkpoint.damage(old)


def test_a_record_that_is_a_link_is_not_read(saved, tmp_path):
    (saved / "state.json").rename(tmp_path / "elsewhere.json")
    (saved / "state.json").symlink_to(tmp_path / "elsewhere.json")
    assert "it is a link" in checkpoint.damage(saved)


def test_a_link_that_leads_to_itself_is_no_checkpoint(saved):
    latest = saved.parent / "latest"
    latest.unlink()
    latest.symlink_to("latest")
    with pytest.raises(UserError, match="cannot be read .*; use another checkpoint of this run"):
        checkpoint.resolve(latest)


# --- configs and logs, which may be pipes


def test_a_config_is_read_from_a_pipe_of_the_shell_and_waits_for_no_other(tmp_path):
    read, write = os.pipe()
    os.write(write, b"run_dir: r\ndata: {path: d}\n")
    os.close(write)
    with open_stream(f"/dev/fd/{read}", wait_s=0.0) as file:
        assert file.read().startswith(b"run_dir")
    os.close(read)
    os.mkfifo(tmp_path / "named")
    with pytest.raises(OSError, match="is a pipe, and nobody wrote to it for 0 s"):
        open_stream(tmp_path / "named", wait_s=0.0)
    with pytest.raises(IsADirectoryError):
        open_stream(tmp_path)
    with pytest.raises(UserError, match=r"cannot read this config \(Is a directory\)"):
        load_config(RunConfig, tmp_path)


# --- the ledger of jobs, and how far their runs are


ENTRY = {
    "id": "1",
    "stage": "train",
    "run_dir": "r",
    "nodes": 1,
    "ranks_per_node": 1,
    "minutes": 1,
    "submitted": "2026",
}


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, "NaN", "{}", "\ufeff{}", '{"id": 1}', "9" * 10_000])
def test_a_job_of_any_content_is_named(tmp_path, content):
    path = tmp_path / "train-001/job.json"
    path.parent.mkdir()
    path.write_text(content)
    found, (line,) = read_all(tmp_path)
    assert found == []
    assert re.fullmatch(rf"{re.escape(str(path))}: no job of `hvdlm submit`: .*; move it away", line)


def test_progress_is_told_whatever_stands_in_a_run_folder(tmp_path):
    rows = [{"split": "train", "step": step, "tokens": 64 * step, "loss": 2.0, "tokens_per_s": 9.0} for step in (1, 2)]
    owner = {"total_steps": 8}
    for which, whole in enumerate((*rows, owner)):
        for changed, _ in edits(whole):
            first, last, own = [changed if which == place else part for place, part in enumerate((*rows, owner))]
            (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(first)}\n{'[' * 100_000}\n{json.dumps(last)}\n")
            (tmp_path / "owner").write_text(json.dumps(own))
            found = progress_of(tmp_path)
            assert found is None or (str(found) and (found.seconds_left is None or found.seconds_left >= 0))


def test_no_pipe_in_a_files_place_is_waited_for(tmp_path):
    for name in ("metrics.jsonl", "owner", "history", "job.json"):
        os.mkfifo(tmp_path / name)
    assert progress_of(tmp_path) is None
    entry = LedgerEntry(**ENTRY, after=[], folder=tmp_path)
    assert entry.said() == (0, "")
    found, lines = read_all(tmp_path.parent)
    assert found == []
    assert [line for line in lines if line.startswith(f"{tmp_path}/job.json: ") and "is no regular file" in line]


def dropped(tensors):
    del tensors["engine/ema/bias"]


def broadcast(tensors):
    tensors["engine/ema/bias"] = torch.ones(1)


def renamed(tensors):
    tensors["engine/ema/other"] = tensors.pop("engine/ema/bias")


@pytest.mark.parametrize("change", [dropped, broadcast, renamed])
def test_a_running_mean_is_taken_whole_or_not_at_all(saved, change):
    model = torch.nn.Linear(2, 2)
    rewrite(saved, lambda tensors: tensors.update({"engine/ema/bias": torch.ones(2)}))
    rewrite(saved, lambda tensors: tensors.update({"engine/ema/weight": torch.ones(2, 2)}))
    assert load_weights(saved, model, mean=True)
    assert (model.bias == 1).all()
    rewrite(saved, change)
    with pytest.raises(UserError, match="running mean of the weights is of another model") as error:
        load_weights(saved, model, mean=True)
    assert one_line(saved, error)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_another_type_are_refused(saved, dtype):
    rewrite(saved, lambda tensors: tensors.update({"model/bias": tensors["model/bias"].to(dtype)}))
    assert checkpoint.damage(saved) is None
    with pytest.raises(UserError, match=f"bias is {dtype} there, this config says torch.float32"):
        checkpoint.load_model(saved, torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=f"bias is {dtype}"):
        load_weights(saved, torch.nn.Linear(2, 2), mean=False)


def test_a_run_may_begin_with_weights_of_twice_the_precision_and_not_go_on_with_them(saved):
    plain, double = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double()
    load_weights(saved, plain, mean=False)
    load_weights(saved, double, mean=False)
    assert torch.equal(double.weight, plain.weight.double())
    with pytest.raises(UserError, match="float32 there, this config says torch.float64"):
        checkpoint.load_model(saved, double)


def test_no_leftover_of_a_save_is_waited_for(saved, tmp_path):
    os.mkfifo(saved.parent / ".step_x")
    (saved.parent / ".step_y").mkdir()
    model = torch.nn.Linear(2, 2)
    checkpoint.save(tmp_path, 8, model, torch.optim.AdamW(model.parameters()), STATE)
    assert not list(saved.parent.glob(".step_*"))


def test_a_source_or_run_that_is_a_link_to_itself_is_one_line(tmp_path, data_dir):
    (tmp_path / "loop").symlink_to("loop")
    for words in (("run_dir=new", "init.from=loop"), ("run_dir=loop", "init.from=new")):
        run_dir, source = (tmp_path / word.partition("=")[2] for word in words)
        with pytest.raises(UserError, match="init.from: .*there is no such folder"):
            run_training(data_dir, run_dir, f"init.from={source}", "train.steps=1")
