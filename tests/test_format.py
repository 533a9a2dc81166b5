"""Versions 1 and 2 of the data format stay readable: a folder written once is read by every later version."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from harness import texts_of

from hvdlm.data import inspection
from hvdlm.data.bridges.convert import convert
from hvdlm.data.inspection import inspect, to_text
from hvdlm.data.manifest import read_manifest
from hvdlm.data.records import Records
from hvdlm.data.shards import COLUMNS, doc_column
from hvdlm.data.stream import TokenStream
from hvdlm.data.verify import stream_digest, verify
from hvdlm.errors import UserError
from hvdlm.tokenizer import digest, load

FOLDER = Path(__file__).parent / "golden" / "format-v1"
DIGESTS = {
    "train": "a02074df2f9a75658fdc0ff0e78a8cec",
    "val": "b59ff1fef4846de0a62241bf111f2f45",
    "test": "230831b919d40a195fe953873e57ac69",
}


def text_of(number):
    return f"Document {number}: a text in English, und auf Deutsch, 和中文。 " * (1 + number % 3)


def test_a_folder_of_version_1_is_read_whole():
    manifest, tokenizer = read_manifest(FOLDER), load(FOLDER / "tokenizer.json")
    assert digest(tokenizer) == manifest.tokenizer_digest
    found = []
    for split, entry in manifest.splits.items():
        assert stream_digest(TokenStream(FOLDER, split, manifest)) == entry.digest == DIGESTS[split]
        names, labels = (sum((doc_column(FOLDER, shard, name) for shard in entry.shards), []) for name in COLUMNS)
        found += zip(names, labels, texts_of(FOLDER, split), strict=True)
    expected = [(f"doc-{number}", "odd" if number % 2 else "even", text_of(number)) for number in range(30)]
    assert sorted(found) == sorted(expected)


def test_its_checksums_hold_and_it_can_be_inspected():
    assert verify(FOLDER) == []
    text = to_text(inspect(FOLDER))
    assert "bytes a token" in text
    assert "Document" in text


def test_frequencies_of_a_long_split_are_counted_from_everywhere_in_it(monkeypatch):
    """All documents are alike but for their numbers, so shares are near those of the whole."""
    whole = inspect(FOLDER)["splits"]["train"]
    monkeypatch.setattr(inspection, "PIECE_TOKENS", 16)
    monkeypatch.setattr(inspection, "COUNTED_TOKENS", whole["num_tokens"] // 2)
    facts = inspect(FOLDER)
    part = facts["splits"]["train"]
    assert whole["counted_tokens"] == whole["num_tokens"]
    assert part["counted_tokens"] == pytest.approx(whole["num_tokens"] / 2, abs=32)
    assert part["frequent"][0]["share"] == pytest.approx(whole["frequent"][0]["share"], abs=0.05)
    assert f" in a sample of {part['counted_tokens']:,} tokens" in " ".join(to_text(facts).split())


def test_the_page_about_the_format_is_enough_to_read_it():
    """The example of docs/format.md, without our reader."""
    path = FOLDER / "train-00000.h5"
    with h5py.File(path) as file:
        tokens = np.memmap(path, file["tokens"].dtype, "r", file["tokens"].id.get_offset(), file["tokens"].shape)
        first = tokens[: file["doc_offsets"][1] - 1].astype(np.uint8).tobytes().decode()
        columns = {"doc_ids", "doc_ids_offsets", "doc_labels", "doc_labels_offsets"}
        assert set(file) == {"tokens", "doc_offsets", "block_crc32"} | columns
        assert file.attrs["format_version"] == 1
    assert first.startswith("Document ")


LABELLED = Path(__file__).parent / "golden" / "format-v2"


def test_a_folder_of_version_2_is_read_whole():
    """Its records beside the lines that they were made of."""
    manifest, tokenizer = read_manifest(LABELLED), load(LABELLED / "tokenizer.json")
    assert manifest.format_version == 2 and verify(LABELLED) == []
    for split in manifest.splits:
        records, fields = Records(LABELLED, split, manifest), manifest.fields
        lines = [json.loads(line) for line in (LABELLED / f"{split}.jsonl").read_text().splitlines()]
        assert len(records) == len(lines)
        for number, line in enumerate(lines):
            words = records.values("text_places", number).reshape(-1, 2).tolist()
            found = {
                "text": records.texts("text", number)[0],
                "label": fields["label"].labels[records.values("label", number)[0]],
                "topics": [fields["topics"].labels[label] for label in records.values("topics", number)],
                "score": records.values("score", number)[0],
                "other": records.texts("other", number),
                "answer": records.values("answer", number).reshape(-1, 2).tolist(),
            }
            assert found == line
            assert tokenizer.decode(records.ids("other", number)) == line["other"][0]
            assert "".join(line["text"][start:stop] for start, stop in words) == "".join(line["text"].split())
            assert records.values("text_words", number).sum() == len(records.tokens(number)) - 1


def test_labelled_records_are_not_converted_to_what_has_no_place_for_them(tmp_path):
    with pytest.raises(UserError, match="holds labelled records.*would lose its fields"):
        convert(LABELLED, tmp_path / "out", to="jsonl")


def test_fields_of_records_are_inspected():
    facts = inspect(LABELLED)
    assert facts["splits"]["train"]["fields"]["label"]["labels"].keys() == {"down", "up"}
    text = to_text(facts)
    assert "label (label): down" in text and "score (number): " in text and "answer (span): 1.0 answers" in text
