"""Pages lose their frame, archives give their pages, and a damaged record does not lose the next.

warcio writes the archives here: it is the reference for the format that web.py reads.
"""

import gzip
import io
import sys
import zlib

import pytest
from reading import STRICT, only_bad, read, write_packed
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from hvdlm.errors import UserError
from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import BadRecord, Document, ReadOptions
from hvdlm.preprocessing.readers import web

STORY = [
    "The harbour of the old town was rebuilt after the great storm of 1953, when the sea broke through both dikes.",
    "Since then engineers have measured the height of the water every ten minutes, day and night, without a gap.",
    "Their records, kept in a small brick house by the lock, are among the longest of their kind in Europe.",
    "Last week the keepers published all of them, so that anybody can study how the tides have changed.",
]
STORY_ZH = [
    "这座老城的港口在一九五三年的大风暴之后重新修建，当时海水冲破了两道堤坝，淹没了大片农田。",
    "从那时起，工程师们每隔十分钟测量一次水位，不分昼夜，从来没有间断过，积累了大量宝贵的资料。",
    "这些记录保存在水闸旁边的一座小砖房里，是欧洲同类记录中时间最长的之一，吸引了许多研究者。",
    "上个星期，管理人员公布了全部数据，任何人都可以研究潮汐在过去几十年里发生了怎样的变化。",
]
FRAME = ["Subscribe to our newsletter", "Privacy policy", "返回首页", "版权所有", "window.tracker", "Sports"]


def page(paragraphs, charset="utf-8", meta=True):
    html = f"""<!DOCTYPE html>
<html lang="en"><head>{f'<meta charset="{charset}">' if meta else ""}<title>News</title>
<script>window.tracker = [1, 2];</script><style>p {{ margin: 0 }}</style></head>
<body><header><nav><ul><li><a href="/">返回首页</a></li><li><a href="/sports">Sports</a></li></ul></nav></header>
<main><article><h1>{paragraphs[0][:12]}</h1>{"".join(f"<p>{p}</p>" for p in paragraphs)}</article></main>
<aside class="sidebar"><a href="/letter">Subscribe to our newsletter</a></aside>
<footer class="footer"><a href="/privacy">Privacy policy</a> 版权所有 © 2024</footer></body></html>"""
    return html.encode(charset, "ignore")


@pytest.fixture
def trafilatura():
    return pytest.importorskip("trafilatura", reason="trafilatura cannot be imported", exc_type=ImportError)


@pytest.fixture
def html(tmp_path, trafilatura):
    """Write a page."""
    return lambda content, suffix="": write_packed(tmp_path / f"a.html{suffix}", content)


def is_story(text, story):
    return all(paragraph in text for paragraph in story) and not any(words in text for words in FRAME)


def has_story(path, story, options=STRICT):
    """Whether a file's one document is the story without its frame."""
    (found,) = read(path, options)
    return is_story(found.text, story)


@pytest.mark.parametrize("story", [STORY, STORY_ZH], ids=["en", "zh"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_page_loses_its_frame(html, story, suffix):
    path = html(page(story), suffix)
    assert has_story(path, story)
    assert [found.position for found in read(path)] == [0]
    assert has_story(path, story)  # what was read before leaves no trace


@pytest.mark.parametrize("charset", ["gb2312", "gbk", "gb18030", "big5", "utf-16-le"])
def test_a_page_is_read_in_its_charset(html, charset):
    bom, story = b"\xff\xfe" if charset == "utf-16-le" else b"", STORY_ZH if charset != "big5" else STORY
    assert has_story(html(bom + page(story, charset)), story)


def test_a_page_without_a_charset_is_in_that_of_the_options(html):
    path = html(page(STORY_ZH, "gb18030", meta=False))
    assert "is not utf-8; set encoding, or errors: replace" in only_bad(path).reason
    assert has_story(path, STORY_ZH, ReadOptions(encoding="gb18030"))
    (replaced,) = read(path, ReadOptions(errors="replace"))
    assert "\ufffd" in replaced.text


@pytest.mark.parametrize("label", ["no-such-charset", "hex", "idna", "undefined", "utf-16"])
def test_a_charset_that_is_none_is_passed_over(html, label):
    assert has_story(html(page(STORY).replace(b'charset="utf-8"', f'charset="{label}"'.encode())), STORY)


@pytest.mark.parametrize("content", [b"", b"\n", b"<html><body></body></html>", b"\0" * 1000, b"<" * 200_000, b"{}"])
def test_a_page_without_text_is_a_bad_record(html, content, capfd, caplog):
    path = html(content)
    assert only_bad(path).place == str(path)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_half_a_surrogate_pair_is_no_character(html):
    (found,) = read(html(page([*STORY, "Half a pair &#xD800; and a whole one &#x1F600; in a sentence of a page."])))
    assert "😀" in found.text.encode().decode()


def test_a_large_page_is_not_read(html, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 60)
    assert only_bad(html(page(STORY))).reason.startswith("larger than")


def test_pages_without_trafilatura_name_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_bytes(page(STORY))
    (tmp_path / "a.warc").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    remedy = r"reading html needs trafilatura \(.*\); pip install 'hvdlm\[text\]'"
    for name in ("a.html", "a.warc"):
        with pytest.raises(UserError, match=f"{name}: {remedy}"):
            read(tmp_path / name)


class Archive:
    """An archive as a crawler writes it; `records` holds the uncompressed bytes of each record."""

    def __init__(self):
        self.records = []

    def add(self, content, kind="response", *, status="200 OK", uri="http://a.example/1", http=(), record=None):
        file = io.BytesIO()
        writer = WARCWriter(file, gzip=False)
        headers = StatusAndHeaders(status, [("Content-Type", "text/html"), *http], "HTTP/1.1")
        options = {"http_headers": headers if kind == "response" else None, "warc_content_type": record or ""}
        written = writer.create_warc_record(uri, kind, io.BytesIO(content), **options)
        writer.write_record(written)
        written.raw_stream.close()  # a temporary file of warcio's
        self.records.append(file.getvalue())
        return self

    def write(self, path):
        packed = [gzip.compress(record) for record in self.records] if path.suffix == ".gz" else self.records
        path.write_bytes(b"".join(packed))
        return path


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_of_an_archive_have_their_address_and_number(tmp_path, trafilatura, name):
    archive = Archive().add(b"software: x\r\n", "warcinfo", record="application/warc-fields")
    archive.add(page(STORY), uri="http://a.example/storm")
    archive.add(b"GET / HTTP/1.0\r\n\r\n", "request")
    archive.add(page(STORY), status="404 Not Found").add(b"\x89PNG", http=[("X", "y")], status="301 Moved")
    archive.add(b"{}" * 50, "metadata", record="application/json").add(page(STORY_ZH), uri="http://b.example/港口")
    found = read(archive.write(tmp_path / name))
    assert [(f.position, f.id) for f in found] == [(1, "http://a.example/storm"), (6, "http://b.example/港口")]
    assert is_story(found[0].text, STORY)
    assert is_story(found[1].text, STORY_ZH)


def chunked(data):
    chunks = [data[i : i + 300] for i in range(0, len(data), 300)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


def deflated(data, wbits):
    compressor = zlib.compressobj(wbits=wbits)
    return compressor.compress(data) + compressor.flush()


CODINGS = {
    "chunked": (chunked, [("Transfer-Encoding", "chunked")]),
    "gzip": (gzip.compress, [("Content-Encoding", "gzip")]),
    "deflate": (lambda d: deflated(d, 15), [("Content-Encoding", "deflate")]),
    "raw deflate": (lambda d: deflated(d, -15), [("Content-Encoding", "deflate")]),
    "both": (lambda d: chunked(gzip.compress(d)), [("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")]),
    "undone": (lambda d: d, [("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")]),
    "undone deflate": (lambda d: d, [("Content-Encoding", "deflate")]),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_the_codings_of_http_are_undone(tmp_path, trafilatura, coding):
    encode, http = CODINGS[coding]
    assert has_story(Archive().add(encode(page(STORY)), http=http).write(tmp_path / "a.warc"), STORY)


def test_the_charset_of_the_response_comes_before_that_of_the_page(tmp_path, trafilatura):
    content = page(STORY_ZH, "gb18030").replace(b'charset="gb18030"', b'charset="utf-8"')
    archive = Archive().add(content)
    archive.records[0] = archive.records[0].replace(b"text/html", b"text/html;charset=GBK")
    archive.records[0] = archive.records[0].replace(*length_of(archive.records[0], 12))
    assert has_story(archive.write(tmp_path / "a.warc"), STORY_ZH)


def length_of(record, more):
    """The Content-Length line of a record, and one that says `more`."""
    line = next(line for line in record.split(b"\r\n") if line.startswith(b"Content-Length"))
    return line, b"Content-Length: %d" % (int(line.split()[1]) + more)


def encoded(content, encoding):
    return Archive().add(content, http=[("Content-Encoding", encoding)]).records[0]


DAMAGES = {
    "no length": lambda r: r.replace(length_of(r, 0)[0], b"Content-Length: many"),
    "length too small": lambda r: r.replace(*length_of(r, -50)),
    "length too large": lambda r: r.replace(*length_of(r, 40)),
    "no version line": lambda r: r[20:],
    "noise": lambda r: b"\x00\xff" * 40_000 + b"\n\n",
    "headers without end": lambda r: b"WARC/1.0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    "no HTTP": lambda r: r.replace(b"HTTP/1.1 200", b"PTTH/1.1 200"),
    "a page that is too large": lambda r: Archive().add(b" " * 9000).records[0],
    "a page that expands": lambda r: encoded(gzip.compress(bytes(9000)), "gzip"),
    "broken gzip": lambda r: encoded(b"\x1f\x8b rest", "gzip"),
    "brotli": lambda r: encoded(b"rest", "br"),
    "an empty page": lambda r: Archive().add(b"").records[0],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_damaged_record_does_not_lose_those_after_it(tmp_path, trafilatura, monkeypatch, damage, name, capfd):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 8000)
    archive = Archive()
    for site, story in zip("abcd", (STORY, STORY, STORY_ZH, STORY_ZH), strict=True):
        archive.add(page(story), uri=f"http://{site}/")
    archive.records[1] = DAMAGES[damage](archive.records[1])
    first, bad, *others = read(archive.write(tmp_path / name))
    assert isinstance(bad, BadRecord)
    assert bad.place == f"{tmp_path / name}: record 1"
    others = [found.id for found in [first, *others]]
    assert others == [f"http://{site}/" for site in "acd"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("length", [99, 10**17])
def test_the_last_record_may_be_cut_short(tmp_path, length):
    head = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % length
    assert only_bad(write_packed(tmp_path / "a.wet", head + b"some"))


def test_a_broken_member_in_the_middle_of_an_archive_ends_it(tmp_path):
    members = [gzip.compress(r) for r in conversions(["one", "two " * 999, "three"]).records]
    damaged = bytearray(members[1])
    damaged[-6] ^= 255  # of the checksum
    (tmp_path / "a.wet.gz").write_bytes(members[0] + damaged + members[2])
    first, *_, bad = read(tmp_path / "a.wet.gz")
    assert first.text == "one"
    assert "broken gz" in bad.reason


@pytest.mark.parametrize("num_empty", [1, 3])
def test_empty_members_of_an_archive_cut_no_record(tmp_path, num_empty):
    texts = ["one", "two " * 99, "three"]
    first, second, third = conversions(texts).records
    empty = gzip.compress(b"") * num_empty
    for place in (1, len(second) // 2, len(second) - 8):  # in the headers, in the text, in its last bytes
        parts = [first, second[:place], second[place:], third]
        (tmp_path / "a.wet.gz").write_bytes(empty + b"".join(gzip.compress(part) + empty for part in parts))
        assert [found.text for found in read(tmp_path / "a.wet.gz")] == texts


def conversions(texts):
    archive = Archive()
    for i, text in enumerate(texts):
        archive.add(text.encode(), "conversion", uri=f"http://{i}/", record="text/plain")
    return archive


@pytest.mark.parametrize("name", ["a.warc.wet", "a.warc.wet.gz"])
def test_extracted_text_stands_as_it_is(tmp_path, name):
    texts = ["one\n\ntwo\r\n", "\n".join(STORY_ZH), "", "WARC/1.0 is a format\n"]
    archive = conversions(texts)
    info = Archive().add(b"software: x\r\n", "warcinfo", record="application/warc-fields")
    archive.records = info.records + archive.records
    found = read(archive.write(tmp_path / name))
    assert found == [Document(text, i + 1, f"http://{i}/") for i, text in enumerate(texts)]


def test_records_of_other_kinds_are_counted(tmp_path, trafilatura, caplog):
    caplog.set_level("INFO")
    archive = conversions(["one", "two"])
    archive.add(b"{}", "conversion", record="application/json").add(b"about", "metadata", record="text/plain")
    assert [f.text for f in read(archive.write(tmp_path / "a.wet"))] == ["one", "two"]
    told = f"{tmp_path}/a.wet: passed over 1 record of other kinds (conversion of application/json 1)"
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", told)]
    caplog.clear()
    archive.add(page(STORY)).add(b"x", status="404 Not Found").add(b"x", http=[]).records.append(b"garbage")
    archive.records[-2] = archive.records[-2].replace(b"text/html", b"image/png")
    read(archive.write(tmp_path / "a.warc"))
    told = "(conversion 3, response 404 1, response of image/png 1); set format: wet"
    assert f"a.warc: passed over 5 records of other kinds {told}" in caplog.text


@pytest.mark.parametrize(("name", "other"), [("a.warc", "wet"), ("a.wet.gz", "warc")])
def test_an_archive_of_the_other_kind_names_the_format(tmp_path, trafilatura, caplog, name, other):
    archive = conversions(["one"] * 12) if other == "wet" else Archive()
    for _ in range(12 if other == "warc" else 0):
        archive.add(page(STORY))
    archive.add(b"software: x\r\n", "warcinfo", record="application/warc-fields")
    path = archive.write(tmp_path / name)
    assert read(path) == []
    (record,) = caplog.records
    kind = {"wet": "conversion", "warc": "response"}[other]
    told = f"{path}: passed over 12 records of other kinds ({kind} 12); set format: {other}"
    assert (record.levelname, record.getMessage()) == ("WARNING", told)
    path.write_bytes(path.read_bytes() + b"\1\2" * (path.suffix == ".gz"))
    caplog.clear()
    assert len(read(path)) == (path.suffix == ".gz")  # a break is told too
    assert told in caplog.text


def test_wrong_bytes_of_extracted_text_follow_the_error_policy(tmp_path):
    archive = conversions(["one", "two"])
    archive.records[0] = archive.records[0].replace(b"one", b"\xff\xfee")
    path = archive.write(tmp_path / "a.wet")
    bad, good = read(path)
    assert (bad.place, good.text) == (f"{path}: record 0", "two")
    assert [f.text for f in read(path, ReadOptions(errors="replace"))] == ["\ufffd\ufffde", "two"]


@pytest.mark.parametrize("charset", ["GBK", "hex", "nonsense"])
def test_a_charset_of_pages_is_known_or_passed_over(charset):
    assert web._decoded("中".encode("gbk" if charset == "GBK" else "utf-8"), charset, ReadOptions()) == "中"
