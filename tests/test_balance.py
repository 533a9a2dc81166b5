"""The closing balance: what was listed was read, what was read was kept or counted, or there is no manifest."""

import gzip
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from harness import files_of, make_text, preprocess, preprocess_values

from hvdlm.config import validate
from hvdlm.data.inspection import inspect, to_text
from hvdlm.data.manifest import read_manifest
from hvdlm.errors import UserError
from hvdlm.preprocessing import build, documents
from hvdlm.preprocessing.balance import close_balance, sum_round_trips
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.preprocessing.remarks import of_settings

LISTED = {"a": (10, 1), "b": (5, 1), "c": (0, 1)}
READS = [
    {"path": "a", "bytes": 4, "documents": 3, "texts": 3},
    {"path": "a", "bytes": 6, "documents": 2, "texts": 2},
    {"path": "b", "bytes": 5, "documents": 0, "texts": 0},
]
LOST = {"bad_records": 1, "filter_min_chars": 2, "empty_documents": 0, "clean_width": 7, "replaced_characters": 9}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [json.dumps({"text": make_text(n % 20, 40)}) for n in range(60)]
    lines[7], lines[8], lines[9] = "bad", '{"text": "short"}', '{"text": "  "}'
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.jsonl").write_text("\n".join(lines[:5]))
    (folder / "c.jsonl").write_text("\n\n")
    return folder


SETTINGS = {
    "on_error": "skip",
    "filter": {"min_chars": 20},
    "dedup": {"exact": True, "near": True},
    "split": {"val": 0},
}


def test_sums_that_come_out():
    assert close_balance(LISTED, READS, LOST, 2) == {
        "files": 3,
        "bytes": 15,
        "documents_read": 5,
        "documents_kept": 2,
        "documents_lost": {"bad_records": 1, "filter_min_chars": 2},
        "files_without_documents": 2,
        "first_files_without_documents": ["b", "c"],
        "files_with_bad_records": 0,
        "first_files_with_bad_records": {},
        "files_of_one_text": 0,
        "files_with_suspect_text": 0,
        "first_files_with_suspect_text": {},
    }


@pytest.mark.parametrize(
    ("listed", "lost", "kept", "message"),
    [
        (LISTED | {"a": (11, 1)}, LOST, 2, "a: 10 bytes were read of 11"),
        (LISTED | {"d": (1, 1)}, LOST, 2, "d: 0 bytes were read of 1"),
        (LISTED, LOST, 1, "read 5 documents, kept 1 [+] bad_records 1 [+] filter_min_chars 2"),
        (LISTED, LOST | {"duplicate_documents": 1}, 2, "kept 2 .* duplicate_documents 1"),
    ],
)
def test_sums_that_do_not_come_out(listed, lost, kept, message):
    with pytest.raises(UserError, match=message):
        close_balance(listed, READS, lost, kept)


def balance_of(output):
    return json.loads((output / "preprocess.json").read_text())["balance"]


@pytest.mark.parametrize("unit_bytes", [300, 10_000_000])
def test_a_job_keeps_its_balance(source, tmp_path, monkeypatch, caplog, unit_bytes):
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", unit_bytes)
    monkeypatch.setattr(build, "SEGMENT_BYTES", 3_000)
    monkeypatch.setattr(build, "ENCODE_BYTES", 1_000)
    with caplog.at_level("INFO", "hvdlm"):
        manifest = preprocess(source, tmp_path / "out", **SETTINGS)
    balance = balance_of(tmp_path / "out")
    lost = Counter(balance["documents_lost"])
    assert {name: lost[name] for name in ("bad_records", "empty_documents", "filter_min_chars")} == {
        "bad_records": 1,
        "empty_documents": 1,
        "filter_min_chars": 1,
    }
    assert lost["duplicate_documents"] == 42
    assert balance["documents_read"] == 65 == manifest.num_documents + lost.total()
    assert balance["bytes"] == sum(path.stat().st_size for path in source.iterdir())
    assert balance["first_files_without_documents"] == [str(source / "c.jsonl")]
    assert "read 65 documents: kept 20, bad_records 1, duplicate_documents 42" in caplog.text
    assert f"1 file without any document, such as {source / 'c.jsonl'}" in caplog.text


def test_each_file_with_bad_records_is_named_and_what_ends_a_file_always(tmp_path, caplog):
    source = tmp_path / "in"
    source.mkdir()
    for name, texts in (("a", 40), ("b", 1), ("c", 0)):
        lines = [json.dumps({"text": f"good {name} {n}"}) for n in range(texts)] + ["{"] * 10
        (source / f"{name}.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"text": make_text(n, 40)}) for n in range(300)]
    (source / "d.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-5000])
    preprocess(source, tmp_path / "out", on_error="skip", split={"val": 0})
    balance = balance_of(tmp_path / "out")
    assert balance["first_files_without_documents"] == [str(source / "c.jsonl")]
    found = {Path(path).name: bad["bad_records"] for path, bad in balance["first_files_with_bad_records"].items()}
    assert list(found) == ["c.jsonl", "b.jsonl", "a.jsonl", "d.jsonl.gz"]
    assert (found["a.jsonl"], found["b.jsonl"], found["c.jsonl"]) == (10, 10, 10)
    assert sum(found.values()) == balance["documents_lost"]["bad_records"]
    told = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    for name in "abcd":
        assert any(f"{name}.jsonl" in line for line in told)
    assert balance["first_files_with_bad_records"][str(source / "d.jsonl.gz")]["first"].startswith(str(source / "d"))
    assert "bad records by file: " in caplog.text
    shown = "".join(to_text(inspect(tmp_path / "out")).split())  # a long path is broken into lines
    assert "4fileswithbadrecords" in shown
    assert "c.jsonl:10of10,first" in shown


def test_a_document_that_is_lost_uncounted_ends_the_job(source, tmp_path, monkeypatch):
    documents = build.Pipeline.documents

    def loses_one(self, *arguments):
        yield from list(documents(self, *arguments))[1:]

    monkeypatch.setattr(build.Pipeline, "documents", loses_one)
    with pytest.raises(UserError, match="the balance does not come out: read 65 documents"):
        preprocess(source, tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out" / "manifest.json").exists()


CHANGES = {
    "appended": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "cut": lambda path: os.truncate(path, 10),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("is_same", [True, False])
def test_a_file_that_another_one_replaces_under_the_job(is_same, source, tmp_path, monkeypatch):
    """Of the same size and time: its bytes decide, as a copy does no harm."""
    path, real = source / "a.jsonl", build.Worker._encode
    data = path.read_bytes() if is_same else path.read_bytes().replace(b"short", b"SHORT")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)

    def replaces(*arguments):
        (tmp_path / "new").write_bytes(data)
        (tmp_path / "new").replace(path)
        os.utime(path, ns=times)
        return real(*arguments)

    monkeypatch.setattr(build.Worker, "_encode", replaces)
    if is_same:
        preprocess(source, tmp_path / "out", **SETTINGS)
    else:
        with pytest.raises(UserError, match=r"a\.jsonl: another file took its place while it was read"):
            preprocess(source, tmp_path / "out", **SETTINGS)
    assert (tmp_path / "out" / "manifest.json").exists() == is_same


def test_a_copy_of_the_input_may_continue_a_job(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "assemble", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        preprocess(source, tmp_path / "out", **SETTINGS)
    source.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", source)  # keeps the times
    preprocess(source, tmp_path / "out", **SETTINGS)
    summary = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert summary["num_units_resumed"] == summary["num_units"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before its unit", "while it is read"])
def test_a_file_that_changes_under_the_job_ends_it(change, when, source, tmp_path, monkeypatch):
    owner, name = (build.Worker, "tokenize") if when == "before its unit" else (build.Worker, "_encode")
    real = getattr(owner, name)

    def changes(*arguments):
        CHANGES[change](source / "a.jsonl")
        return real(*arguments)

    monkeypatch.setattr(owner, name, changes)
    expected = "cannot be found any more" if change == "removed" else "changed while the job ran"
    with pytest.raises(UserError, match=rf"a\.jsonl: .*{expected}") as caught:
        preprocess(source, tmp_path / "out", **SETTINGS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("change", ["cut", "removed"])
@pytest.mark.parametrize("when", ["sample", "head", "reading"])
def test_a_file_that_is_cut_short_before_it_is_read_is_no_bad_record(change, when, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": make_text(n, 40)}) for n in range(50)))
    owner, name = {"sample": (build, "make_vocabulary"), "head": (build, "with_fast_encoder")}.get(
        when, (build.Worker, "_batches")
    )
    real = getattr(owner, name)

    def changes(*arguments):
        CHANGES[change](path)
        return real(*arguments)

    monkeypatch.setattr(owner, name, changes)
    expected = "(cannot be found any more|No such file)" if change == "removed" else "changed while the job ran"
    with pytest.raises(UserError, match=rf"a\.jsonl: .*{expected}"):
        preprocess(path, tmp_path / "out", tokenizer={"kind": "bpe", "vocab_size": 300})
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_file_of_which_not_all_is_read_ends_the_job(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "digest_of", lambda part: ("", 3))
    with pytest.raises(UserError, match=r"a\.jsonl: gave 3 bytes from byte 0 on, \d+ were listed"):
        preprocess(source, tmp_path / "out", **SETTINGS)


def test_a_file_that_changes_between_kill_and_resume_ends_the_job(source, tmp_path, monkeypatch):
    preprocess(source, tmp_path / "whole", **SETTINGS)
    output, path = tmp_path / "out", source / "a.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "assemble", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        preprocess(source, output, **SETTINGS)
    before, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(before + b"\n")
    with pytest.raises(UserError, match=r"a\.jsonl: changed since this job was begun .* remove .*\.work to begin anew"):
        preprocess(source, output, **SETTINGS)
    path.write_bytes(before)
    os.utime(path, ns=times)
    preprocess(source, output, **SETTINGS)
    assert files_of(output) == files_of(tmp_path / "whole")
    assert balance_of(output) == balance_of(tmp_path / "whole")


def test_input_may_be_mended_after_an_error(source, tmp_path):
    settings = SETTINGS | {"on_error": "fail"}
    (source / "b.jsonl").write_text((source / "b.jsonl").read_text() + "\nbad")
    with pytest.raises(UserError, match=r"a\.jsonl:8"):
        preprocess(source, tmp_path / "out", **settings)
    (source / "a.jsonl").write_text((source / "a.jsonl").read_text().replace("\nbad\n", "\n"))
    with pytest.raises(UserError, match=r"b\.jsonl:6"):
        preprocess(source, tmp_path / "out", **settings)
    (source / "b.jsonl").write_text((source / "b.jsonl").read_text().replace("\nbad", ""))
    assert preprocess(source, tmp_path / "out", **settings).num_documents == 20


def test_after_a_change_the_job_may_begin_anew(source, tmp_path, monkeypatch):
    output, path = tmp_path / "out", source / "a.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "assemble", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        preprocess(source, output, **SETTINGS)
    path.write_bytes(path.read_bytes() + b"\n")
    shutil.rmtree(output / ".work")
    assert preprocess(source, output, **SETTINGS).num_documents == 20


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("unit_bytes", [300, 10_000_000])
def test_text_that_is_none_is_told_by_file(tmp_path, monkeypatch, caplog, unit_bytes):
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", unit_bytes)
    monkeypatch.setattr(build, "ENCODE_BYTES", 200)
    source = tmp_path / "in"
    source.mkdir()
    jsonl(source / "a.jsonl", [{"text": "text that is whole " * 20}] * 5 + [{"text": "but for one \ufffd" + "x" * 400}])
    jsonl(source / "b.jsonl", [{"text": "caf\ufffd"}, {"text": "na\ufffdve"}, {"text": "text " * 10}])
    jsonl(source / "c.jsonl", [{"text": "MZ\0\0\3\0\0\0\4"}])
    manifest = preprocess(source, tmp_path / "out", split={"val": 0})
    assert {name: manifest.statistics[name] for name in ("replaced_characters", "nul_characters")} == {
        "replaced_characters": 3,
        "nul_characters": 5,
    }
    balance = balance_of(tmp_path / "out")
    assert balance["files_with_suspect_text"] == 2
    shares = {str(source / "c.jsonl"): round(5 / 9, 4), str(source / "b.jsonl"): round(6 / 63, 4)}
    assert balance["first_files_with_suspect_text"] == shares
    assert list(balance["first_files_with_suspect_text"]) == list(shares)  # the worst first
    assert [line for line in warnings_of(caplog) if "c.jsonl: 56% of it is U+FFFD (a lost character) or NUL" in line]


def test_ids_that_some_documents_lack_are_counted(tmp_path, caplog):
    jsonl(tmp_path / "a.jsonl", [{"text": f"a text {n}", "id": n} for n in range(5)] + [{"text": "one without"}])
    manifest = preprocess(tmp_path / "a.jsonl", tmp_path / "out", id_key="id", split={"val": 0})
    assert manifest.statistics["documents_without_id"] == 1
    assert "1 document without 'id'; their id is empty" in warnings_of(caplog)


@pytest.mark.parametrize("key", ["id_key", "label_key"])
def test_a_key_that_no_document_has_is_told(key, tmp_path, caplog):
    jsonl(tmp_path / "a.jsonl", [{"text": f"a text {n}"} for n in range(5)])
    preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, **{key: "name"})
    assert [line for line in warnings_of(caplog) if "no document has 'name'" in line]


@pytest.mark.parametrize("limit", [4 << 20, 100])
def test_a_separator_that_parts_nothing_is_told(limit, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    settings = {"format": "separated", "separator": "-----", "split": {"val": 0}}
    (tmp_path / "a.txt").write_text("one\n====\ntwo\n" + "x " * 200)
    preprocess(tmp_path / "a.txt", tmp_path / "none", **settings)
    assert "separator '-----' parts none of 1 file" in warnings_of(caplog)
    caplog.clear()
    (tmp_path / "a.txt").write_text("one\n-----\ntwo\n")
    preprocess(tmp_path / "a.txt", tmp_path / "some", **settings)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("settings", "formats", "expected"),
    [
        ({"text_key": "body"}, {"txt", "md"}, ["text_key has no effect: all input is md or txt"]),
        ({"text_key": "body"}, {"txt", "jsonl"}, []),
        ({"id_key": "id", "label_key": "label"}, {"csv"}, []),
        ({"id_key": "id", "label_key": "label"}, {"wet"}, ["id_key has no effect: all input is wet", "label_key"]),
        ({"table": {"quote": "none"}}, {"jsonl"}, ["table has no effect: all input is jsonl"]),
        ({"table": {"quote": "none"}}, {"tsv", "txt"}, []),
        ({"encoding": "gb18030"}, {"parquet"}, ["encoding has no effect: all input is parquet"]),
        ({"encoding": "gb18030"}, {"html"}, []),
        ({}, {"parquet"}, []),
    ],
)
def test_settings_that_nothing_heeds_are_told(settings, formats, expected, tmp_path):
    config = validate(PreprocessConfig, preprocess_values(tmp_path, tmp_path, **settings), tmp_path)
    found = of_settings(config, formats)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_each_file_is_looked_at_once_for_the_plan(source, monkeypatch):
    looked: list[str] = []
    real = documents.stat_of
    monkeypatch.setattr(documents, "stat_of", lambda path: looked.append(path) or real(path))
    assert sorted(documents.find_stamps([str(source)])) == sorted(looked) == sorted(map(str, source.iterdir()))


def test_what_a_vocabulary_does_not_know_is_counted_and_remarked(source, tmp_path, caplog):
    caplog.set_level("WARNING")
    preprocess(source, tmp_path / "out", tokenizer={"kind": "word", "vocab_size": 12}, **SETTINGS)
    counts = read_manifest(tmp_path / "out").statistics
    assert 0.1 < counts["unknown_tokens"] / counts["encoded_tokens"] < 1
    assert [message for message in caplog.messages if "of the tokens are unknown to the vocabulary" in message]


def test_inspect_shows_the_balance(source, tmp_path):
    words = {"kind": "word", "vocab_size": 12}
    preprocess(source, tmp_path / "out", tokenizer=words, label_key="label", **SETTINGS)
    facts = inspect(tmp_path / "out")
    kept = balance_of(tmp_path / "out")
    assert facts["balance"] == {name: kept[name] for name in facts["balance"]}
    text = to_text(facts)
    words_of = [line.split() for line in text.splitlines()]
    assert ["documents", "read", "65"] in words_of and ["duplicate_documents", "42"] in words_of
    assert ["documents_without_label", "62"] in words_of
    assert "1 file without a document: see preprocess.json" in text
    assert f"{kept['round_trip']['changed']} changed" in text
    assert kept["round_trip"]["example"] in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80


@pytest.mark.parametrize("content", ["", "[]", '{"balance": 3}', '{"balance": {"files": -1}}', '{"balance": {"files"'])
def test_inspect_names_a_damaged_balance(content, data_dir, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    (folder / "preprocess.json").write_text(content)
    with pytest.raises(UserError, match=r"preprocess\.json: holds no balance .* remove it") as caught:
        inspect(folder)
    assert "\n" not in str(caught.value)
    (folder / "preprocess.json").unlink()
    assert inspect(folder)["balance"] is None


def test_the_example_of_a_job_is_the_first_that_tells_of_more_than_white_space():
    units = [
        {},
        {"excerpts": 3, "changed": 0, "white_space": 1, "example": "blank", "place": "a"},
        {"excerpts": 2, "changed": 2, "white_space": 0, "example": "letter", "place": "b"},
        {"excerpts": 1, "changed": 1, "white_space": 0, "example": "later", "place": "c"},
    ]
    assert sum_round_trips(units) == {
        "excerpts": 6,
        "changed": 3,
        "white_space": 1,
        "example": "letter",
        "place": "b",
    }
    assert sum_round_trips(units[:2])["example"] == "blank"
    assert sum_round_trips(units[:1]) == {"excerpts": 0, "changed": 0, "white_space": 0}


def test_what_was_done_before_an_error_stays_when_it_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", 100)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in "abc":
        (source / f"{name}.jsonl").write_text(json.dumps({"text": make_text(ord(name), 40)}) + "\n")
    (source / "d.jsonl").write_text("{\n")  # the smallest, and so the last
    settings = {"split": {"val": 0}, "tokenizer": {"kind": "byte"}}
    with pytest.raises(UserError, match="d.jsonl:1: not valid JSON"):
        preprocess(source, out, **settings)
    preprocess(source, out, on_error="skip", **settings)
    summary = json.loads((out / "preprocess.json").read_text())
    assert summary["num_units_resumed"] == summary["num_units"] - 1
    with pytest.raises(UserError, match="1 bad record passed over by an earlier start"):
        preprocess(source, out, **settings)


def test_what_was_passed_over_before_a_kill_is_not_taken_for_sound(tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.jsonl").write_text(json.dumps({"text": make_text(1, 40)}) + "\n{\n")
    settings = {"split": {"val": 0}, "tokenizer": {"kind": "byte"}}
    with monkeypatch.context() as patch:
        patch.setattr(build, "assemble", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            preprocess(source, out, on_error="skip", **settings)
    with pytest.raises(UserError, match="1 bad record passed over by an earlier start"):
        preprocess(source, out, **settings)
    assert preprocess(source, out, on_error="skip", **settings).statistics["bad_records"] == 1
