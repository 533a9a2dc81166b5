"""The closing balance: what was listed was read, what was read was kept or counted, or there is no manifest."""

import json
import os
import shutil
from collections import Counter

import pytest
from harness import files_of, make_text, preprocess

from hvdlm.errors import UserError
from hvdlm.preprocessing import build
from hvdlm.preprocessing.balance import close_balance

LISTED = {"a": (10, 1), "b": (5, 1), "c": (0, 1)}
READS = [
    {"path": "a", "bytes": 4, "documents": 3},
    {"path": "a", "bytes": 6, "documents": 2},
    {"path": "b", "bytes": 5, "documents": 0},
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


@pytest.mark.parametrize("unit_bytes", [300, 10_000_000])
def test_a_job_keeps_its_balance(source, tmp_path, monkeypatch, caplog, unit_bytes):
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", unit_bytes)
    monkeypatch.setattr(build, "SEGMENT_BYTES", 3_000)
    monkeypatch.setattr(build, "ENCODE_BYTES", 1_000)
    with caplog.at_level("INFO", "hvdlm"):
        manifest = preprocess(source, tmp_path / "out", **SETTINGS)
    balance = json.loads((tmp_path / "out" / "preprocess.json").read_text())["balance"]
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
