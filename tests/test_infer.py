"""Inference over files: what stands in the lines, what is refused where, and that a line is of its record alone."""

import bz2
import gzip
import json
import random
import shutil
from dataclasses import fields

import pytest
import torch
from harness import make_config, preprocess, texts_of
from labelled import ANSWERED, TAGGED, WORDS, answered, make_data, run_of, tagged

from hvdlm import checkpoint, cli
from hvdlm.data.corpora import open_corpora
from hvdlm.data.manifest import read_manifest
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.inference.generate import Texts
from hvdlm.inference.infer import likelihood, made_by, parts
from hvdlm.inference.infer import run as run_of_infer
from hvdlm.inference.infer.lines import UnitReader, look_through
from hvdlm.inference.infer.made_by import OF_LOADED
from hvdlm.inference.infer.run import infer
from hvdlm.inference.infer.wanted import Wanted
from hvdlm.inference.infer.work import seed_of
from hvdlm.inference.load import Loaded, load_checkpoint_model
from hvdlm.inference.sampling import Sampling
from hvdlm.models import LanguageModel
from hvdlm.records.encoder import RecordEncoder
from hvdlm.session.stop import StopFlag
from hvdlm.session.work_queue import WorkQueue
from hvdlm.tasks import record_evaluation
from hvdlm.tasks.evaluate import Protocol, SplitEvaluation
from hvdlm.train.setup import train
from hvdlm.world.place import Place, find_place
from hvdlm.world.serial import SerialWorld

FAMILIES = {
    "transformer": "{family: transformer, layers: 1, heads: 2, width: 16}",
    "lstm": "{family: lstm, layers: 1, width: 16}",
    "mingru": "{family: mingru, layers: 1, width: 16}",
    "conv": "{family: conv, layers: 1, width: 16}",
    "hmm": "{family: hmm, states: 4}",
    "ngram": "{family: ngram, order: 3}",
    "maxent": "{family: maxent, order: 2, buckets: 8}",
    "vae": "{family: vae, width: 16, latent: 4}",
}
SEQ_LEN = 48


def make_lines(folder):
    """Documents of at most SEQ_LEN - 2 bytes, a line each."""
    source = random.Random(0)
    words = [source.choice(("lo", "rem", "ip", "sum", "中")) for _ in range(2000)]
    lines = [" ".join(words[at : at + source.randint(1, 9)]) for at in range(0, 1900, 9)]
    (folder / "lines.txt").write_text("\n".join(lines))
    preprocess(folder / "lines.txt", folder / "data", format="lines", split={"val": 0.2})


@pytest.fixture(scope="session")
def run_for(made_once):
    """A run of a family that has seen a few steps, on short documents."""

    def run_for(family="transformer"):
        def make(folder):
            words = ("data.seq_len=48", "data.order=documents", "train.steps=6", "train.eval_every=100")
            model = f"model={FAMILIES[family]}"
            train(make_config(made_once("infer-lines", make_lines) / "data", folder, *words, model), SerialWorld())

        return made_once(f"infer-{family}", make)

    return run_for


def asked(run, source, out, wanted=None, world=None, overrides=(), **options):
    return infer(run, overrides, source, out, wanted or Wanted(Texts(max_tokens=6), **options), world or SerialWorld())


def write(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


PROMPTS = [{"prompt": text, "id": name} for name, text in enumerate(["lorem ip", "", "中", "sum " * 30, "a\nb"])]


def test_a_line_a_record_in_the_order_of_the_input(run_for, tmp_path):
    source = write(tmp_path / "in.jsonl", *PROMPTS)
    summary = asked(run_for(), source, tmp_path / "out.jsonl")
    lines = lines_of(tmp_path / "out.jsonl")
    assert [(line["id"], line["index"]) for line in lines] == [(n, n) for n in range(5)]
    assert all(line["finish_reason"] in ("stop", "length") and line["num_tokens"] <= 6 for line in lines)
    assert [line["truncated"] > 0 for line in lines] == [False, False, False, True, False]
    assert summary["num_records"] == sum(summary["finish_reasons"].values()) == 5
    assert summary["truncated"] == 1
    assert summary == json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert not parts.work_of(tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_greedy_text_is_the_same_alone_and_among_others(run_for, tmp_path, family):
    greedy = Texts(Sampling(temperature=0), max_tokens=8)
    asked(run_for(family), write(tmp_path / "in.jsonl", *PROMPTS), tmp_path / "all", Wanted(greedy, batch=4))
    if family == "vae":  # its latent variable is drawn by the record's number
        return
    for record, line in zip(PROMPTS, lines_of(tmp_path / "all"), strict=True):
        out = tmp_path / f"{record['id']}"
        asked(run_for(family), write(tmp_path / "one.jsonl", record), out, Wanted(greedy))
        assert lines_of(out)[0]["text"] == line["text"]


def test_the_seed_of_a_text_is_of_its_record_alone(run_for, tmp_path):
    """However many are computed together; and two records of one prompt have two texts."""
    source = write(tmp_path / "in.jsonl", *[{"prompt": "lorem"}] * 6)
    for batch in (1, 4):
        asked(run_for(), source, tmp_path / f"{batch}", batch=batch)
    one, other = (lines_of(tmp_path / f"{batch}") for batch in (1, 4))
    assert [line["text"] for line in one] == [line["text"] for line in other]
    assert len({line["text"] for line in one}) > 1
    assert len({seed_of(seed, index) for seed in range(20) for index in range(20)}) == 400


def test_choices_log_probs_and_the_prompt_are_told_when_asked(run_for, tmp_path):
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"}, {"prompt": "ip"})
    asked(run_for(), source, tmp_path / "out", choices=3, logprobs=2, echo=True)
    for record, line in zip(("lorem", "ip"), lines_of(tmp_path / "out"), strict=True):
        assert line["prompt"] == record and len(line["choices"]) == 3
        assert [token["text"] for token in line["prompt_tokens"]][1:] == list(record)
        assert line["prompt_tokens"][0]["log_prob"] is None
        for choice in line["choices"]:
            assert len(choice["tokens"]) == choice["num_tokens"]
            assert all(len(token["top"]) == 2 and token["log_prob"] < 0 for token in choice["tokens"])


def test_a_stop_string_is_not_in_the_text(run_for, tmp_path):
    source = write(tmp_path / "in.jsonl", *[{"prompt": "lorem "}] * 20)
    free = Texts(Sampling(temperature=1), max_tokens=30)
    asked(run_for(), source, tmp_path / "free", Wanted(free))
    asked(run_for(), source, tmp_path / "out", Wanted(Texts(Sampling(temperature=1), 30, stops=("e", "m"))))
    for line, whole in zip(lines_of(tmp_path / "out"), lines_of(tmp_path / "free"), strict=True):
        assert whole["text"].startswith(line["text"]) and not set(line["text"]) & {"e", "m"}
        assert (line["text"] != whole["text"]) <= (line["finish_reason"] == "stop")


def test_beams_find_texts_at_least_as_likely_as_the_greedy_one(run_for, tmp_path):
    source = write(tmp_path / "in.jsonl", *PROMPTS)
    asked(run_for(), source, tmp_path / "one", beams=1)
    asked(run_for(), source, tmp_path / "out", beams=3, choices=2)
    for line, greedy in zip(lines_of(tmp_path / "out"), lines_of(tmp_path / "one"), strict=True):
        first, second = line["choices"]
        assert first["score"] >= second["score"] and first["score"] >= greedy["score"] - 1e-6


# Scores


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_eval_at_any_batch(run_for, made_once, tmp_path, family):
    """I27, I29: each document of a split, and their sum."""
    run, data = run_for(family), made_once("infer-lines", make_lines) / "data"
    texts = texts_of(data, "val")
    source = write(tmp_path / "in.jsonl", *({"prompt": text} for text in texts))
    for batch in (1, 32):
        asked(run, source, tmp_path / f"{batch}", scores=True, batch=batch)
    keys = ("log_prob_bound",) if family == "vae" else ("log_prob", "end_log_prob")
    one, other = ([sum(line[key] for key in keys) for line in lines_of(tmp_path / name)] for name in ("1", "32"))
    assert one == pytest.approx(other, abs=1e-5)
    loaded = load_checkpoint_model(checkpoint.resolve(run), (), find_place(SerialWorld()))
    evaluation = SplitEvaluation(open_corpora(loaded.config.data), "val", Protocol(SEQ_LEN, documents=True))
    found, _ = evaluation.run(loaded.model, loaded.task, batch=8, precision="fp32", world=SerialWorld())
    assert -sum(one) == pytest.approx(found.loss * found.num_tokens, rel=1e-5)


def test_a_text_longer_than_the_context_is_scored_in_pieces_as_eval_reads_it(run_for, made_once, tmp_path):
    run, data = run_for(), made_once("infer-lines", make_lines) / "data"
    source = write(tmp_path / "in.jsonl", *({"prompt": text} for text in texts_of(data, "val")))
    asked(run, source, tmp_path / "out", scores=True, overrides=("data.seq_len=7",))
    loaded = load_checkpoint_model(checkpoint.resolve(run), (), find_place(SerialWorld()))
    evaluation = SplitEvaluation(open_corpora(loaded.config.data), "val", Protocol(7, documents=True))
    found, _ = evaluation.run(loaded.model, loaded.task, batch=8, precision="fp32", world=SerialWorld())
    total = sum(line["log_prob"] + line["end_log_prob"] for line in lines_of(tmp_path / "out"))
    assert -total == pytest.approx(found.loss * found.num_tokens, rel=1e-5)


def test_the_score_of_a_completion_is_a_part_of_the_whole_text_s(run_for, tmp_path):
    source = write(
        tmp_path / "in.jsonl",
        {"prompt": "lorem ", "completion": "ip"},
        {"prompt": "lorem", "continuation": " ip"},
        {"prompt": "", "completion": "lorem ip"},
        {"prompt": "lorem ip"},
    )
    asked(run_for(), source, tmp_path / "out", scores=True, logprobs=0)
    spaced, plain, alone, whole = lines_of(tmp_path / "out")
    assert spaced["log_prob"] == plain["log_prob"]
    assert alone["log_prob"] == pytest.approx(whole["log_prob"], abs=1e-5)
    assert plain["log_prob"] == pytest.approx(sum(token["log_prob"] for token in whole["tokens"][5:-1]), abs=1e-5)
    assert [token["text"] for token in plain["tokens"]] == [" ", "i", "p"]


def test_a_prompt_before_a_completion_is_cut_where_it_has_no_room_and_that_is_told(run_for, tmp_path):
    long, short = "lorem ip " * 20, ("lorem ip " * 20)[-40:]
    source = write(tmp_path / "in.jsonl", {"prompt": long, "completion": "sum"}, {"prompt": short, "completion": "sum"})
    summary = asked(run_for(), source, tmp_path / "out", scores=True)
    assert [line["truncated"] > 0 for line in lines_of(tmp_path / "out")] == [True, False]
    assert summary["truncated"] == 1


# Files


def read(source):
    with UnitReader(source) as reader:
        return [line for unit in source.units for line in reader.read(unit)]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_compressed_lines_are_read_by_units_in_any_order(tmp_path, pack):
    path = tmp_path / f"a.txt.{'gz' if pack is gzip.compress else 'bz2'}"
    path.write_bytes(pack("".join(f"{number} é\n" for number in range(200)).encode()))
    found = look_through(path, lambda values: None, 9)
    assert [line.values for line in read(found)] == [f"{number} é" for number in range(200)]
    with UnitReader(found) as reader:
        assert [reader.read(found.units[n])[0].values for n in (5, 2, 7)] == ["45 é", "18 é", "63 é"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.txt\.\w+: .*"):
        look_through(path, lambda values: None, 9)


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("a.jsonl", b'{"prompt": "a"}\r\n\r\n{"prompt": "b"}', ["a", "b"]),
        ("a.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\n', ["a"]),
        ("a.txt", b"\xef\xbb\xbfa\r\n \n b\x0bc\xe2\x80\xa8d", ["a", " b\x0bc\u2028d"]),
        ("a.txt", b"", []),
        ("a.jsonl", b"\n\n \r\n", []),
    ],
)
def test_lines_are_what_they_are_everywhere(tmp_path, name, data, wanted):
    (tmp_path / name).write_bytes(data)
    found = look_through(tmp_path / name, lambda values: None, 1)
    lines = read(found)
    assert [line.values if isinstance(line.values, str) else line.values["prompt"] for line in lines] == wanted
    assert found.num_records == len(wanted)


def test_units_tile_the_records_of_a_file(tmp_path):
    source = random.Random(1)
    text = "".join("\n" * source.choice((1, 1, 1, 3)) + f"{number} é" for number in range(999))
    (tmp_path / "a.txt").write_text(text)
    for rows in (1, 7, 2000):
        found = look_through(tmp_path / "a.txt", lambda values: None, rows)
        lines = read(found)
        assert [line.values for line in lines] == [f"{number} é" for number in range(999)]
        assert all(text.split("\n")[line.number - 1] == line.values for line in lines)
        assert [unit.first for unit in found.units] == [
            sum(unit.num_records for unit in found.units[:n]) for n in range(len(found.units))
        ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "3: is no JSON (Expecting ',' delimiter, column 15)"),
        ('["prompt"]', "3: is list, not an object"),
        ('{"text": "a"}', "3: has no 'prompt' (it has 'text')"),
        ("{}", "3: has no 'prompt' (it has no keys)"),
        ('{"prompt": 5}', "3: 'prompt' is int, not text"),
        ('{"prompt": null}', "3: 'prompt' is NoneType, not text"),
        ('{"prompt": "a\\ud800"}', "3: 'prompt': character 2 is a lone surrogate"),
        ('{"prompt": "a", "id": [1]}', "3: 'id' is neither a text nor a number"),
        ('{"prompt": "a", "id": NaN}', "3: 'id' is neither a text nor a number"),
        ("[" * 100_000, "3: is no JSON that can be read"),
        (b'{"prompt": "\xff"}', "3: byte 13 is not UTF-8"),
    ],
)
def test_a_line_that_is_no_record_is_named_before_any_work(run_for, tmp_path, line, message):
    data = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "a"}\n\n' + data)
    with pytest.raises(UserError) as caught:
        asked(run_for(), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_number_of_any_size_is_an_id(run_for, tmp_path):
    names = [10**400, -(10**400), 0.5, 0]
    source = write(tmp_path / "in.jsonl", *({"prompt": "a", "id": name} for name in names))
    asked(run_for(), source, tmp_path / "out")
    assert [line["id"] for line in lines_of(tmp_path / "out")] == names


def test_no_record_gives_an_empty_file(run_for, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"")
    assert asked(run_for(), tmp_path / "in.jsonl", tmp_path / "out")["num_records"] == 0
    assert (tmp_path / "out").read_bytes() == b""


def test_an_output_is_made_once_and_nothing_else_is_written_over(run_for, tmp_path, caplog):
    source, out = write(tmp_path / "in.jsonl", *PROMPTS), tmp_path / "out.jsonl"
    caplog.set_level("INFO")
    first = asked(run_for(), source, out)
    assert asked(run_for(), source, out) == first and "is complete already: 5 records" in caplog.text
    with pytest.raises(UserError, match="out.jsonl was made with --n 1, and this start has --n 2; name another --out"):
        asked(run_for(), source, out, choices=2)
    write(source, *PROMPTS, PROMPTS[0])
    with pytest.raises(UserError, match="the input has changed since .*out.jsonl was made"):
        asked(run_for(), source, out)
    write(source, *PROMPTS)
    out.write_text("mine")
    with pytest.raises(UserError, match="has changed since it was made"):
        asked(run_for(), source, out)
    parts.summary_of(out).unlink()
    with pytest.raises(UserError, match="nothing tells how it was made"):
        asked(run_for(), source, out)
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match="is the input"):
        asked(run_for(), source, source)


class Killed(BaseException):
    """As a kill would end it."""


def test_a_start_goes_on_where_another_was_killed(run_for, tmp_path, monkeypatch):
    """The same bytes; parts that are whole are not made again, damaged ones are."""
    source = write(tmp_path / "in.jsonl", *({"prompt": f"lorem {n}"} for n in range(12)))
    asked(run_for(), source, tmp_path / "whole", batch=2)
    written = parts.write_part

    def dying(path, lines, counts):
        if path.name == "unit-000004.jsonl":
            raise Killed
        written(path, lines, counts)

    out = tmp_path / "out"
    monkeypatch.setattr(parts, "write_part", dying)
    with pytest.raises(Killed):
        asked(run_for(), source, out, batch=2)
    made = sorted(path.name for path in parts.work_of(out).glob("unit-*"))
    assert made == [f"unit-{n:06d}.jsonl" for n in range(4)]
    with pytest.raises(UserError, match="out was begun with no --echo, and this start has --echo"):
        asked(run_for(), source, out, batch=2, echo=True)
    broken = parts.work_of(out) / made[1]
    broken.write_bytes(broken.read_bytes()[:-3])
    made_anew = []
    monkeypatch.setattr(parts, "write_part", lambda path, *rest: (made_anew.append(path.name), written(path, *rest)))
    summary = asked(run_for(), source, out, batch=2)
    assert sorted(made_anew) == ["unit-000001.jsonl", "unit-000004.jsonl", "unit-000005.jsonl"]
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert summary["num_units_resumed"] == 3 and summary["num_records"] == 12


def test_a_folder_of_another_in_the_place_of_the_parts_is_left_as_it_is(run_for, tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", *PROMPTS), tmp_path / "out"
    notes = parts.work_of(out) / "notes"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"out\.parts: holds notes, and parts are to be kept there; move it, or name"):
        asked(run_for(), source, out)
    assert notes.read_text() == "mine" and not out.exists()
    notes.unlink()
    assembled = parts.assemble
    monkeypatch.setattr(parts, "assemble", lambda plan: (notes.write_text("later"), assembled(plan))[1])
    summary = asked(run_for(), source, out)
    assert [path.name for path in notes.parent.iterdir()] == ["notes"]
    assert asked(run_for(), source, out) == summary and notes.read_text() == "later"


def test_an_input_that_changed_since_the_kill_is_refused(run_for, tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", *PROMPTS)
    monkeypatch.setattr(parts, "assemble", lambda plan: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        asked(run_for(), source, tmp_path / "out")
    monkeypatch.undo()
    write(source, *PROMPTS[:4])
    with pytest.raises(UserError, match="the input has changed since .*out was begun; name another --out, or remove"):
        asked(run_for(), source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("checkpoint", "by other weights"),
        ("override", "with config.train.precision fp32, and this start has config.train.precision bf16"),
        ("threads", "with threads 1, and this start has threads 2"),
        ("device", "with device cpu, and this start has device meta"),
        ("extension", r"with extensions \{\}, and this start has extensions \{'mine.py': '12'\}"),
        ("ends", r"with ends \[\d+\], and this start has ends \[5, \d+\]"),
        ("kind of input", "with input as lines of text, and this start has input as JSON lines"),
    ],
)
def test_what_bytes_depend_on_may_not_change_after_a_kill(run_for, tmp_path, monkeypatch, change, message):
    run, source, out = tmp_path / "run", tmp_path / "in.txt", tmp_path / "out"
    shutil.copytree(run_for(), run)
    source.write_text('{"prompt": "lorem"}\n')
    monkeypatch.setattr(parts, "assemble", lambda plan: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        asked(run, source, out)
    monkeypatch.undo()
    overrides = {"override": ("train.precision=bf16",), "threads": ("train.threads=2",)}.get(change, ())
    if change == "checkpoint":
        run = run_for("lstm")
    elif change == "device":
        monkeypatch.setattr(LanguageModel, "device", torch.device("meta"))
    elif change == "extension":
        monkeypatch.setattr(made_by, "extension_digests", lambda config: {"/at/mine.py": "12"})
    elif change == "ends":
        (run / "generation_config.json").write_text('{"eos_token_id": [5]}')
    elif change == "kind of input":
        source = source.rename(tmp_path / "in.jsonl")
    with pytest.raises(UserError, match=f"out was begun {message}; name another --out, or remove") as caught:
        asked(run, source, out, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_every_field_of_a_loaded_model_is_told_or_said_to_depend_on_others():
    assert OF_LOADED.keys() == {field.name for field in fields(Loaded)}


LONG = "lorem ip " * 20  # is read in several pieces


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("transformer", {}),
        ("transformer", {"choices": 3}),
        ("transformer", {"beams": 2}),
        ("transformer", {"scores": True}),
        ("vae", {"scores": True}),
    ],
)
def test_a_unit_is_told_group_by_group_and_none_is_left_after_its_last(run_for, tmp_path, monkeypatch, family, options):
    """Else a unit that is finished would be lost where a job is asked to stop."""
    run, told = run_for(family), []
    monkeypatch.setattr(run_of_infer, "TELL_S", -1.0)
    monkeypatch.setattr(WorkQueue, "count", lambda queue, *amounts, may_leave=True: told.append((may_leave, amounts)))
    source = write(tmp_path / "in.jsonl", {"prompt": LONG}, {"prompt": "lorem"})
    summary = asked(run, source, tmp_path / "out", Wanted(Texts(max_tokens=30), batch=2, **options))
    assert [may_leave for may_leave, _ in told] == [True] * (len(told) - 1) + [False] and len(told) > 1
    if "scores" in options:
        assert sum(amounts[0] for _, amounts in told) == len(LONG) + len("lorem") + 2
    else:
        assert sum(amounts[1] for _, amounts in told) == summary["written_tokens"]


@pytest.mark.parametrize(("at", "num_kept"), [(1, 0), (2, 1)])
def test_a_stop_during_scores_keeps_a_unit_whose_last_group_is_done(run_for, tmp_path, monkeypatch, at, num_kept):
    score, num_groups = likelihood.score, []
    monkeypatch.setattr(run_of_infer, "TELL_S", -1.0)
    monkeypatch.setattr(likelihood, "score", lambda *given, **how: num_groups.append(1) or score(*given, **how))
    monkeypatch.setattr(StopFlag, "is_set", lambda flag: len(num_groups) >= at)
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"}, {"prompt": "lorem", "completion": "ip"}, *PROMPTS)
    with pytest.raises(StoppedOnRequest):
        asked(run_for(), source, tmp_path / "out", scores=True, batch=2)
    assert len(list(parts.work_of(tmp_path / "out").glob("unit-*"))) == num_kept and len(num_groups) == at


def test_keys_that_nobody_reads_are_told_once(run_for, tmp_path, caplog):
    wrong = {"prompt": "lorem", "completoin": " ip"}
    source = write(tmp_path / "in.jsonl", {"prompt": "lo", "id": 1}, wrong, {"prompt": "a", "completion": "b"})
    for name, options, keys in (
        ("scores", {"scores": True}, {"completoin": 1}),
        ("texts", {}, {"completoin": 1, "completion": 1}),
        ("beams", {"beams": 1}, {"completoin": 1, "completion": 1}),
    ):
        caplog.clear()
        assert asked(run_for(), source, tmp_path / name, **options)["unread_keys"] == keys
        told = ", ".join(f"{key} (1 of 3 records)" for key in keys)
        assert caplog.text.count("keys that mean nothing here") == caplog.text.count(told) == 1
    fine = write(tmp_path / "in.jsonl", {"prompt": "lo", "id": 1})
    assert "unread_keys" not in asked(run_for(), fine, tmp_path / "fine")
    both = write(tmp_path / "both.jsonl", {"prompt": "lo", "completion": "a", "continuation": "b"})
    with pytest.raises(UserError, match="both.jsonl:1: has both 'completion' and 'continuation'; leave one out"):
        asked(run_for(), both, tmp_path / "both", scores=True)


def test_tokens_that_the_vocabulary_lacks_are_counted_and_told(made_once, tmp_path, caplog):
    (tmp_path / "lines.txt").write_text("lorem ip sum\n" * 50)
    preprocess(tmp_path / "lines.txt", tmp_path / "data", format="lines", tokenizer={"kind": "word"})
    words = ("data.seq_len=16", "train.steps=1", "train.eval_every=100", f"model={FAMILIES['transformer']}")
    train(make_config(tmp_path / "data", tmp_path / "run", *words), SerialWorld())
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem zebra ip zebra"}, {"prompt": "sum"})
    for name, options in (("texts", {}), ("scores", {"scores": True}), ("beams", {"beams": 1})):
        caplog.clear()
        assert asked(tmp_path / "run", source, tmp_path / name, **options)["unknown_tokens"] == 2
        assert caplog.text.count("in.jsonl: 2 tokens unknown to the vocabulary") == 1
    pair = write(tmp_path / "pair.jsonl", {"prompt": "lorem zebra", "completion": " zebra"})
    assert asked(tmp_path / "run", pair, tmp_path / "pair", scores=True)["unknown_tokens"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--logit-bias", "99999=4"], "--logit-bias: 99999 is no id of a vocabulary of 257"),
        (["--beams", "101"], "'--beams'"),
    ],
)
def test_a_refused_start_leaves_nothing_behind(run_for, tmp_path, call, words, message):
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"})
    code, _, errors = call(run_for(), source, "--out", tmp_path / "new" / "out", *words)
    assert code == 2 and len(errors) == 1 and message in errors[0]
    source.write_text("{}")
    assert call(run_for(), source, "--out", tmp_path / "new" / "out")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_streams_are_refused_with_what_to_do_instead(run_for, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"})
    for words, message in (
        (["-", "--out", "out"], "INPUT -: is read twice, which a pipe cannot be; write it to a file and name that"),
        ([source, "--out", "-"], "--out -: is put together from parts in a folder beside it; name a file"),
    ):
        code, _, errors = call(run_for(), *words)
        assert code == 2 and len(errors) == 1 and message in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_threads_that_are_left_are_told_when_work_begins_and_nobody_has_set_them(
    run_for, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(run_of_infer, "find_place", lambda world: Place(0, 1, 4))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    caplog.set_level("INFO")
    source, told = write(tmp_path / "in.jsonl", {"prompt": "lorem"}), "with 1 thread of the 4 it could have"
    asked(run_for(), source, tmp_path / "out")
    assert told in caplog.text
    caplog.clear()
    asked(run_for(), source, tmp_path / "out")
    source.write_text("{}")
    with pytest.raises(UserError):
        asked(run_for(), source, tmp_path / "other")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked(run_for(), write(source, {"prompt": "lorem"}), tmp_path / "third")
    assert "it could have" not in caplog.text


# Labelled records


def segmented(random):
    """Characters that come one by one, of which pairs of good ones are words."""
    found = tagged(random)
    signs = {word: chr(0x4E00 + number) for number, word in enumerate(WORDS)}
    return {**found, "text": [signs[word] for word in found["text"]]}


SEGMENTED = {"text": {"type": "text", "join": ""}, "tags": {"type": "labels", "scheme": "BIO"}, "asked": "number"}
LABELLED = {
    "class": ((), {"kind": "classify", "label": "label", "pair": "other"}, {}),
    "several": ((), {"kind": "classify", "label": "topics"}, {}),
    "number": ((), {"kind": "classify", "label": "score"}, {}),
    "tag": ((tagged, TAGGED), {"kind": "tag"}, {}),
    "predicate": ((tagged, TAGGED), {"kind": "tag", "predicate": "asked"}, {}),
    "without blanks": ((segmented, SEGMENTED), {"kind": "tag"}, {}),
    "span": ((answered, ANSWERED), {"kind": "span", "stride": 8}, {}),
    "seq2seq": ((), {"kind": "seq2seq", "language": "en"}, {"model": {"family": "transformer", "causal": True}}),
}
SAID = {
    "class": lambda line: line["label"],
    "several": lambda line: line["labels"],
    "number": lambda line: line["number"],
    "tag": lambda line: line["labels"],
    "predicate": lambda line: line["labels"],
    "without blanks": lambda line: line["labels"],
    "span": lambda line: line["answer"],
    "seq2seq": lambda line: line["text"],
}


@pytest.mark.parametrize("name", LABELLED)
def test_records_without_answers_are_given_those_of_eval(name, made_once, tmp_path):
    """From lines that have neither labels nor targets, what `hvdlm eval --predictions` says of the same records."""
    from hvdlm.inference.evaluate import evaluate_checkpoint

    kind, task, sections = LABELLED[name]
    data = made_once(
        f"infer-data-{kind[0].__name__ if kind else 'record'}", lambda f: make_data(f, SerialWorld(), *kind)
    )
    config = run_of(data / "data", tmp_path / "run", "train.epochs=2", "train.threads=1", task=task, **_model(sections))
    train(config, SerialWorld())
    evaluate_checkpoint(tmp_path / "run", (), "test", SerialWorld(), predictions=tmp_path / "gold")
    given = lines_of(data / "test.jsonl")
    answers = {"label", "topics", "score", "tags", "answer"} | ({"other"} if name == "seq2seq" else set())
    source = write(tmp_path / "in.jsonl", *({k: v for k, v in one.items() if k not in answers} for one in given))
    asked(tmp_path / "run", source, tmp_path / "out", batch=8)
    wanted = [line["predicted"] for line in lines_of(tmp_path / "gold")]
    found = [SAID[name](line) for line in lines_of(tmp_path / "out")]
    if name == "class":  # two kinds of text, and unknown words in both
        odd = write(tmp_path / "odd.jsonl", {**lines_of(source)[0], "text": "zebra zebra", "other": "zebra zebra"})
        given = Wanted(Texts(), int8=True, given={"int8": "--int8"})
        summary = asked(tmp_path / "run", odd, tmp_path / "odd", given)
        assert summary["unknown_tokens"] == 4 and summary["made_by"]["int8"]
        assert sum(lines_of(tmp_path / "odd")[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    if name == "without blanks":
        assert [line["words"] for line in lines_of(tmp_path / "out")] == [line["text"] for line in lines_of(source)]
        assert read_manifest(data / "data").fields["text"].join == ""
        texts = ["".join(line["text"]) for line in lines_of(source)]
        asked(
            tmp_path / "run", write(tmp_path / "a.jsonl", *({"text": text} for text in texts)), tmp_path / "a", batch=8
        )
        (tmp_path / "b.txt").write_text("\n".join(texts))
        asked(tmp_path / "run", tmp_path / "b.txt", tmp_path / "b", batch=8)
        assert [line["labels"] for line in lines_of(tmp_path / "a")] == wanted
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    if name == "seq2seq":
        lines = lines_of(tmp_path / "out")
        assert {line["finish_reason"] for line in lines} <= {"stop", "length"}
        assert all((line["num_tokens"] == 64) == (line["finish_reason"] == "length") for line in lines)
    assert found == (pytest.approx(wanted, abs=1e-5) if name == "number" else wanted)


@pytest.fixture(scope="session")
def tagger(made_once):
    def make(folder):
        data = make_data(folder, SerialWorld(), tagged, TAGGED)
        train(run_of(data, folder / "run", "train.epochs=1", task={"kind": "tag"}), SerialWorld())

    return made_once("infer-tagger", make) / "run"


def test_groups_of_records_are_told_and_none_is_left_after_the_last(tagger, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(run_of_infer, "TELL_S", -1.0)
    monkeypatch.setattr(record_evaluation, "GROUP_TOKENS", 8)
    monkeypatch.setattr(WorkQueue, "count", lambda queue, *amounts, may_leave=True: told.append((may_leave, amounts)))
    source = write(tmp_path / "in.jsonl", *({"text": ["w1"] * num} for num in (1, 2, 5, 9)))
    summary = asked(tagger, source, tmp_path / "out", Wanted(Texts()))
    assert [may_leave for may_leave, _ in told] == [True] * (len(told) - 1) + [False] and len(told) > 2
    assert sum(amount for _, (amount,) in told) == summary["prompt_tokens"]


@pytest.mark.parametrize("text", ['"w1 \\ud800"', '["w1", "\\udfff"]'])
def test_a_surrogate_in_a_field_is_named_before_any_work(tagger, tmp_path, text):
    (tmp_path / "in.jsonl").write_text(f'{{"text": ["w1"]}}\n{{"text": {text}}}\n')
    with pytest.raises(UserError, match=r"in.jsonl:2: 'text': character \d is a lone surrogate"):
        asked(tagger, tmp_path / "in.jsonl", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_word_that_the_vocabulary_cannot_spell_is_named_with_its_line(tagger, tmp_path, monkeypatch):
    encode = RecordEncoder.encode

    def strict(encoder, documents):
        if any("zz" in document.text for document in documents):
            raise UserError("the word 'zz' has no token")
        return encode(encoder, documents)

    monkeypatch.setattr(RecordEncoder, "encode", strict)
    source = write(tmp_path / "in.jsonl", {"text": ["w1"]}, {"text": ["w2", "zz"]})
    with pytest.raises(UserError, match="in.jsonl:2: the word 'zz' has no token"):
        asked(tagger, source, tmp_path / "out")


def _model(sections):
    model = {"family": "transformer", "causal": False, "layers": 1, "heads": 2, "width": 16}
    return {"model": {**model, **sections.get("model", {})}}


# The command


@pytest.fixture
def call(capsys):
    """`hvdlm infer WORDS` in this process: exit code, stdout and the errors."""

    def call(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(["infer", *map(str, words)])
        out, err = capsys.readouterr()
        return end.value.code, out, [line for line in err.splitlines() if "hvdlm: error:" in line]

    return call


def test_every_option_reaches_what_is_asked(run_for, tmp_path, call):
    """I5: what was made tells of each."""
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"})
    words = {
        "--max-tokens": "3",
        "--temperature": "0",
        "--top-k": "5",
        "--top-p": "0.9",
        "--min-p": "0.1",
        "--seed": "7",
        "--repetition-penalty": "1.5",
        "--presence-penalty": "0.5",
        "--frequency-penalty": "0.25",
        "--n": "2",
        "--logit-bias": "65=-1.5",
        "--stop": "zz",
        "--logprobs": "1",
        "--batch": "3",
    }
    flat = [word for pair in words.items() for word in pair]
    code, out, _ = call(run_for(), source, "--out", tmp_path / "out", *flat, "--echo", "--slide", "--json")
    made = json.loads(out)["made_by"]
    asked_for = {
        "max_tokens": 3,
        "temperature": 0.0,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 7,
        "n": 2,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "stop": ["zz"],
        "logit_bias": {"65": -1.5},
        "logprobs": 1,
        "batch": 3,
        "echo": True,
        "slide": True,
        "score": False,
    }
    assert code == 0 and {name: made[name] for name in asked_for} == asked_for
    (line,) = lines_of(tmp_path / "out")
    assert line["choices"][0] == line["choices"][1]  # temperature 0 is none that was forgotten


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score", "--temperature", "0"], "--temperature: is of texts that are written, --score reads"),
        (["--score", "--echo"], "--echo: is of texts that are written, --score reads"),
        (["--beams", "2", "--seed", "1"], "--seed: is of texts that are drawn, --beams searches"),
        (["--beams", "2", "--n", "3"], "--n: 3 texts are more than --beams 2 find"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run_for, tmp_path, call, words, message):
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"})
    code, out, errors = call(run_for(), source, "--out", tmp_path / "out", *words)
    assert code == 2 and not out and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [setting.name for setting in fields(Sampling)])
def test_every_setting_of_draws_is_refused_where_nothing_is_drawn(run_for, tmp_path, name):
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"})
    for options in ({"scores": True}, {"beams": 2}):
        with pytest.raises(UserError, match=f"--{name}: is of texts"):
            asked(run_for(), source, tmp_path / "out", given={name: f"--{name}"}, **options)


def test_a_file_of_an_unknown_kind_and_one_that_is_not_there_are_named(run_for, tmp_path, call):
    (tmp_path / "in.csv").write_text("a,b\n")
    for name, message in (("in.csv", "is neither JSON lines"), ("none.txt", "No such file")):
        code, _, errors = call(run_for(), tmp_path / name, "--out", tmp_path / "out")
        assert code == 2 and len(errors) == 1 and f"{name}: {message}" in errors[0]


def test_a_masked_model_writes_nothing_and_scores_nothing(made_once, tmp_path, call):
    data = made_once("infer-lines", make_lines) / "data"
    model = "model={family: transformer, layers: 1, heads: 2, width: 16, causal: false}"
    words = ("data.seq_len=48", "train.steps=1", "train.eval_every=100", "task=mlm", model)
    train(make_config(data, tmp_path / "run", *words), SerialWorld())
    source = write(tmp_path / "in.jsonl", {"prompt": "lorem"})
    for word, message in (([], "cannot continue a text"), (["--score"], "task: mlm does not predict each token")):
        code, _, errors = call(tmp_path / "run", source, "--out", tmp_path / "out", *word)
        assert code == 2 and len(errors) == 1 and message in errors[0]
