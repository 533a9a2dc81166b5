"""A damaged record of `format: json` costs itself alone: others are kept, nothing inside it is taken for a record."""

from __future__ import annotations

import io
import json
import re

import pytest
from reading import STRICT, read, write_packed

from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import BadRecord, Document, Part, ReadOptions
from hvdlm.preprocessing.readers import json_values

RECORDS = [
    {"text": 'one ["a", {"text": "no"}]', "id": 1},
    {"text": "two }, {", "turns": [{"text": "inner"}, {"text": "inner"}], "meta": {"text": "inner", "n": [1, {}]}},
    {"text": "three \\", "id": 3, "turns": [{"text": "inner"}]},
    {"text": "four", "tags": ["a", "b"]},
]
DAMAGED = 1
OTHERS = [record["text"] for number, record in enumerate(RECORDS) if number != DAMAGED]


def indented(record):
    return json.dumps(record, indent=2).replace("\n", "\n  ")


LAYOUTS = {  # what stands before, between and behind, and how a record is spelled
    "an array on one line": ("[", ", ", "]\n", json.dumps),
    "an array without blanks": ("[", ",", "]", lambda record: json.dumps(record, separators=(",", ":"))),
    "a record a line of an array": ("[\n", ",\n", "\n]\n", json.dumps),
    "an indented array": ("[\n  ", ",\n  ", "\n]\n", indented),
    "objects": ("", "\n", "\n", lambda record: json.dumps(record, indent=1)),
    "an object a line": ("", "\n", "\n", json.dumps),
    "objects without anything between": ("", "", "", json.dumps),
}


DAMAGES = {
    "lost quote behind the text": lambda record: record.replace('{",', "{,", 1),
    "lost quote before the text": lambda record: record.replace('"two', "two", 1),
    "lost quote of the key": lambda record: record.replace('"text', "text", 1),
    "stray quote": lambda record: record.replace("two", 'tw"o', 1),
    "lost brace": lambda record: record[:-1],
    "lost first brace": lambda record: record[1:],
    "lost brace inside": lambda record: "".join(record.rsplit("}", 1)),
    "extra brace inside": lambda record: record.replace('"turns', '}"turns', 1),
    "lost comma": lambda record: record.replace('{",', '{"', 1),
    "lost colon": lambda record: record.replace(":", "", 1),
    "lost bracket": lambda record: record.replace("]", "", 1),
    "lost colon of the first key": lambda record: record.replace('"text":', '"text"', 1),
    "a word": lambda record: record.replace('"two }, {"', "None", 1),
}


def content_with(layout, spelled):
    before, between, behind, _ = LAYOUTS[layout]
    return (before + between.join(spelled) + behind).encode()


def place_of(layout, spelled):
    before, between, _, _ = LAYOUTS[layout]
    return len(before + between.join([*spelled[:DAMAGED], ""]))


@pytest.mark.parametrize("limit", [documents.MAX_DOCUMENT_BYTES, 200])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_record_is_one_bad_record(layout, damage, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    spelled = [LAYOUTS[layout][3](record) for record in RECORDS]
    assert DAMAGES[damage](spelled[DAMAGED]) != spelled[DAMAGED]
    spelled[DAMAGED] = DAMAGES[damage](spelled[DAMAGED])
    found = read(write_packed(tmp_path / "a.json", content_with(layout, spelled)))
    (bad,) = (item for item in found if isinstance(item, BadRecord))
    assert [item.text for item in found if item is not bad] == OTHERS
    assert bad.position == place_of(layout, spelled) + len(spelled[DAMAGED]) - len(spelled[DAMAGED].lstrip())
    assert bad.reason.startswith("not valid JSON (at byte ")
    assert bad.reason.endswith(" to the next record; mend it, or fetch the file again")


@pytest.mark.parametrize("layout", ["a record a line of an array", "an indented array"])
def test_brackets_that_are_missing_cost_no_record_of_another_line(layout, tmp_path):
    spelled = [LAYOUTS[layout][3]({"n": [{"a": n}], "text": str(n)}) for n in range(6)]
    spelled[2] = re.sub(r"\}\s*\],", ",", spelled[2], count=1)  # all that follows may lie inside
    found = read(write_packed(tmp_path / "a.json", content_with(layout, spelled)))
    (bad,) = (item for item in found if isinstance(item, BadRecord))
    assert [item.text for item in found if item is not bad] == list("01345")
    assert "no closing bracket before a line that begins like it" in bad.reason


def test_a_first_record_without_its_colon_lends_no_inner_object(tmp_path):
    records = [{"data": {"text": "inner", "x": {}}, "text": f"{n}", "z": None} for n in range(9)]
    content = "\n".join(json.dumps(record, indent=1) for record in records).replace('"data":', '"data"', 1)
    found = read(write_packed(tmp_path / "a.json", content.encode()))
    assert [item.text for item in found if isinstance(item, Document)] == list("12345678")


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"lost first brace"}))  # that leaves nothing to know it by
@pytest.mark.parametrize("layout", ["a record a line of an array", "an indented array", "an object a line"])
def test_records_of_their_own_lines_may_begin_with_any_key(layout, damage, tmp_path):
    """By the first key they are known where they stand on one line."""
    others_way = [record if n == DAMAGED else dict(reversed(record.items())) for n, record in enumerate(RECORDS)]
    spelled = [LAYOUTS[layout][3](record) for record in others_way]
    spelled[DAMAGED] = DAMAGES[damage](spelled[DAMAGED])
    found = read(write_packed(tmp_path / "a.json", content_with(layout, spelled)))
    assert [item.text for item in found if isinstance(item, Document)] == OTHERS


def edits(record):
    """Every character lost, and every sign of JSON added anywhere."""
    for at in range(len(record)):
        yield record[:at] + record[at + 1 :]
        yield from (record[:at] + sign + record[at:] for sign in '"{}[],:')


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_character_lost_or_added_costs_no_other_record(layout, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 200)
    spelled = [LAYOUTS[layout][3](record) for record in RECORDS]
    for edited in edits(spelled[DAMAGED]):
        spelled[DAMAGED] = edited
        file = io.BytesIO(content_with(layout, spelled))
        found = list(json_values.read_json(file, Part("a", 0, None), STRICT))
        texts = [item.text for item in found if isinstance(item, Document)]
        own = [text for text in texts if text not in OTHERS]
        assert [text for text in texts if text in OTHERS] == OTHERS, edited
        assert "inner" not in own, edited
        assert len(found) - len(texts) in ((0, 1) if own else (1, 2, 3)), edited


@pytest.mark.parametrize("which", ["first", "last", "all", "neighbours"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_at_the_borders_of_a_file(layout, which, tmp_path, monkeypatch):
    monkeypatch.setattr(json_values, "CONTEXT_BYTES", 64)
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
    numbers = {"first": [0], "last": [3], "all": [0, 1, 2, 3], "neighbours": [1, 2]}[which]
    spelled = [LAYOUTS[layout][3](record) for record in RECORDS]
    for number in numbers:
        spelled[number] = spelled[number].replace('": "', '": x"', 1).replace('":"', '":x"', 1)
    found = read(write_packed(tmp_path / "a.json", content_with(layout, spelled)))
    texts = [item.text for item in found if isinstance(item, Document)]
    assert texts == [record["text"] for number, record in enumerate(RECORDS) if number not in numbers]
    assert len(found) == len(RECORDS)


def test_a_lost_quote_in_a_long_record_costs_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 5000)
    records = [{"text": f"{number} " + "x" * number} for number in (1, 30_000, 60_000, 2)]
    whole = "[" + ", ".join(map(json.dumps, records)) + "]"
    for size in (30_000, 60_000):  # below and above what is held of a record
        damaged = whole.replace(f'{size} {"x" * size}"', f"{size} {'x' * size}")
        found = read(write_packed(tmp_path / "a.json", damaged.encode()))
        (bad,) = (item for item in found if isinstance(item, BadRecord))
        assert bad.position == whole.index(f'{{"text": "{size}')
        starts = [item.text.split()[0] for item in found if item is not bad and not item.piece]
        assert starts == [str(number) for number in (1, 30_000, 60_000, 2) if number != size]


@pytest.mark.parametrize("end", ['{"text": "half', '{"text": "half"', '{"text": "' + "x" * 9999, "", '{"text": [1, '])
@pytest.mark.parametrize("array", ["[", ""])
def test_a_lost_end_is_told_once(array, end, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    path = write_packed(tmp_path / "a.json", f'{array}{{"text": "a"}}, {end}'.encode())
    first, *bad = read(path)
    assert first.text == "a"
    assert [one.reason.partition(" (")[0] for one in bad] == [json_values.NO_END] * bool(array or end)


@pytest.mark.parametrize("last", ["null", "true", "12", '"word"'])
def test_a_value_may_end_the_file(last, tmp_path):
    _, bad = read(write_packed(tmp_path / "a.json", f'{{"text": "a"}} {last}'.encode()))
    assert bad.reason.startswith("no key 'text'")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bracket_too_many_costs_no_record(layout, tmp_path):
    spelled = [LAYOUTS[layout][3](record) for record in RECORDS]
    for sign in "}]":
        spelled[DAMAGED] = LAYOUTS[layout][3](RECORDS[DAMAGED]) + sign
        found = read(write_packed(tmp_path / "a.json", content_with(layout, spelled)))
        assert [item.text for item in found if isinstance(item, Document)] == [record["text"] for record in RECORDS]
        assert len(found) == len(RECORDS) + 1


def test_json_that_is_no_json_is_a_bad_record_a_record(tmp_path):
    content = "".join(f"{{'text': 'it\"s {number}', 'n': {{'a': 1}}}}\n" for number in range(5))
    assert len(read(write_packed(tmp_path / "a.json", content.encode()))) == 5


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("size", [10, 40_000])
@pytest.mark.parametrize("last", ["b", ""])
def test_the_last_of_a_key_that_is_there_twice_is_read_and_remarked_once(
    last, size, suffix, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    line = json.dumps({"text": "x" * size})[:-1] + f', "text": "{last}", "id": 3}}\n'
    found = read(write_packed(tmp_path / f"a.{suffix}", line.encode() * 3), ReadOptions(id_key="id"))
    assert [(item.text, item.id) for item in found] == [(last, "3")] * 3
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "has records with the key 'text' twice, of which the last is read; remove one"
    ]
    (good,) = read(write_packed(tmp_path / f"b.{suffix}", b'{"text": "a", "n": {"text": "b"}, "m": "\\"text\\""}'))
    assert good.text == "a"
    assert len(caplog.messages) == 1


def test_a_record_may_be_nested_as_deeply_as_the_faster_parser_goes(tmp_path):
    deep = '{"text": "a", "x": "text", "n": ' + "[" * 1000 + "]" * 1000 + "}\n"
    found = read(write_packed(tmp_path / "a.jsonl", (deep + '{"text": "b"}\n').encode()))
    assert [item.text for item in found] == ["a", "b"]


@pytest.mark.parametrize("size", [10, 40_000])
def test_numbers_have_any_number_of_digits(size, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 8000)
    digits, options = "9" * 5000, ReadOptions(id_key="id", label_key="n")
    content = f'{{"text": "{"x" * size}", "other": -{digits}, "id": {digits}, "n": [{digits}, 1e3]}}'
    for name in ("a.jsonl", "a.json"):
        found = read(write_packed(tmp_path / name, content.encode()), options)
        assert {(item.id, item.label) for item in found} == {(digits, f"[{digits}, 1e3]")}


@pytest.mark.parametrize("key", ["text", "tëxt", "a😀"])
def test_an_escaped_key_is_the_same_in_a_long_record(key, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    escaped = key.encode("utf-16-be").hex("/", 2).replace("/", "\\u")
    for spelled in (key, json.dumps(key)[1:-1], f"\\u{escaped}"):
        path = write_packed(tmp_path / "a.jsonl", f'{{"{spelled}": "{"x" * 40_000}"}}'.encode())
        assert "".join(item.text for item in read(path, ReadOptions(text_key=key))) == "x" * 40_000
