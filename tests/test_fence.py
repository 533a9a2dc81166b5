"""Whatever a library raises over a document is one line with its place, or a bad record; a stop passes through."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import preprocess, texts_of

from hvdlm.errors import UserError
from hvdlm.preprocessing import build, fence, pipeline
from hvdlm.preprocessing.fence import reason_of
from hvdlm.tokenizer import kinds
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer

TEXTS = ["first", "the bad one", "third \ufffd", "bad too \ufffd", "last"]
GOOD = [text for text in TEXTS if "bad" not in text]


class Panic(BaseException):
    """What a panic of Rust is to Python."""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(TEXTS)))
    return path


def raising(error, real):
    """`real`, but `error` for a text with "bad" in it."""

    def call(text, *others):
        if "bad" in str(text):
            raise error
        return real(text, *others)

    return call


def break_stage(stage, error, monkeypatch):
    if stage == "encoder":
        tokenizer = ByteTokenizer()
        tokenizer.encode_documents = raising(error, tokenizer.encode_documents)
        monkeypatch.setattr(build.tokenizers, "from_json", lambda text, origin: tokenizer)
    elif stage == "dedup":
        monkeypatch.setattr(build.Signer, "sign", lambda self, text, data: raising(error, lambda text: b"")(text))
    else:
        real = {"make_cleaner": lambda text, _: text, "make_masker": lambda text, _: text}.get(stage, lambda text: None)
        monkeypatch.setattr(pipeline, stage, lambda config: raising(error, real))


STAGES = ["encoder", "dedup", "make_cleaner", "make_masker", "make_filter"]
ERRORS = [ValueError("no\nsense"), RecursionError("too deep"), Panic("index out of range"), KeyError()]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_document_that_a_library_cannot_take_is_named_or_passed_over(stage, error, source, tmp_path, monkeypatch):
    break_stage(stage, error, monkeypatch)
    with pytest.raises(UserError, match=rf"in\.jsonl:2: .*{type(error).__name__}.*on_error: skip would") as caught:
        preprocess(source, tmp_path / "fail", split={"val": 0})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fail" / "manifest.json").exists()
    manifest = preprocess(source, tmp_path / "skip", split={"val": 0}, on_error="skip", dropped=True, id_key="id")
    assert texts_of(tmp_path / "skip") == GOOD
    assert manifest.statistics == {"documents": 3, "bad_records": 2, "replaced_characters": 1}
    lines = [json.loads(line) for line in (tmp_path / "skip" / "dropped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["1", "3"]
    assert all(type(error).__name__ in line["reason"] for line in lines)
    assert lines[0]["position"] == source.read_bytes().index(b'{"text": "the bad')


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__)
def test_a_stop_passes_through(stage, error, source, tmp_path, monkeypatch):
    break_stage(stage, error, monkeypatch)
    with pytest.raises(type(error)):
        preprocess(source, tmp_path / "out", split={"val": 0}, on_error="skip")


def test_a_lack_of_memory_is_no_fault_of_the_document():
    with pytest.raises(UserError, match="not enough memory"):
        reason_of(MemoryError())


def test_a_reader_that_a_library_surprises_is_a_bad_record(source, tmp_path, monkeypatch):
    read = fence.read_documents

    def reads(part, options):
        yield next(read(part, options))
        raise Panic("index out of range")

    monkeypatch.setattr(fence, "read_documents", reads)
    with pytest.raises(UserError, match=r"in\.jsonl: cannot be read on.*Panic: index out of range.*on_error"):
        preprocess(source, tmp_path / "fail", split={"val": 0})
    manifest = preprocess(source, tmp_path / "skip", split={"val": 0}, on_error="skip")
    assert texts_of(tmp_path / "skip") == TEXTS[:1]
    assert manifest.statistics["bad_records"] == 1


def test_a_trainer_that_panics_is_one_line(source, tmp_path, monkeypatch):
    def panics(texts, vocab_size):
        raise Panic("assertion failed")

    monkeypatch.setitem(kinds.TOKENIZERS, "bpe", kinds.TokenizerKind(kinds._trained(panics), "trained"))
    with pytest.raises(UserError, match=r"tokenizer: a bpe vocabulary cannot be made .*Panic: assertion failed"):
        preprocess(source, tmp_path / "out", tokenizer={"kind": "bpe", "vocab_size": 300})


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "txt", "parquet"])
def test_the_place_is_in_the_terms_of_the_format(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"in.{suffix}"
    path.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    if suffix == "json":
        path.write_text("[\n" + ",\n".join(json.dumps({"text": text}) for text in TEXTS) + "]")
    elif suffix == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), path)
    place = {"json": ":[23]", "txt": ":1"}.get(suffix, ": row [12]")
    break_stage("encoder", ValueError("no"), monkeypatch)
    with pytest.raises(UserError, match=rf"in\.{suffix}{place}: "):
        preprocess(path, tmp_path / "out", split={"val": 0})


def test_a_real_encoder_without_an_unknown_token(source, tmp_path):
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "first": 1, "last": 2}, "unk_token": "<unk>"}
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [{"id": 0, "content": "</s>", "special": True} | token],
        "model": model,
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    tokenizer = {"kind": "bpe", "path": str(tmp_path / "t.json")}
    with pytest.raises(UserError, match=r"in\.jsonl:2: the tokenizer cannot take it \(.*WordLevel"):
        preprocess(source, tmp_path / "fail", split={"val": 0}, tokenizer=tokenizer)
    manifest = preprocess(source, tmp_path / "skip", split={"val": 0}, tokenizer=tokenizer, on_error="skip")
    assert manifest.statistics == {"documents": 2, "bad_records": 3, "replaced_characters": 0}
