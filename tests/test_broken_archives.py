"""What is kept of damaged compressed files: nothing that a fault has spoilt, as far as that shows, and all else."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import zlib
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from reading import STRICT, only_bad, read

from hvdlm.data.compression import break_of, open_plain, read_before_break
from hvdlm.data.stream_faults import PIECE_BYTES, sound_bz2_pieces
from hvdlm.errors import UserError
from hvdlm.preprocessing.documents import BadRecord, Document, Part, ReadOptions
from hvdlm.preprocessing.pipeline import Pipeline
from hvdlm.preprocessing.plan import PreprocessConfig, Unit

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
NOISE = random.Random(1)
WORDS = "".join(f"{n} {n * n} {NOISE.choice('abcdefgh') * (n % 7)}\n" for n in range(60_000)).encode()


VOCABULARY = ["".join(NOISE.choice("etaoinshrdlu") for _ in range(NOISE.randint(2, 9))) for _ in range(3000)]
PROSE = " ".join(NOISE.choice(VOCABULARY) for _ in range(100_000)).encode()


def content_of(path):
    """The content up to a break, and the break."""
    found = b""
    with open_plain(str(path)) as file:
        while True:
            data, broken = read_before_break(file, 1 << 20)
            found += data
            if broken or not data:
                return found, broken


def flipped(data, place):
    damaged = bytearray(data)
    damaged[place] ^= 1 << NOISE.randrange(8)
    return bytes(damaged)


def in_bz2_blocks(content):
    return b"".join(bz2.compress(part, 1) for part in (content[:500_000], content[500_000:]))


SPOILT = {  # what compresses -> content, and how much of it a fault may cost at most
    "bz2": (in_bz2_blocks, WORDS, 150_000),
    "bz2, runs": (lambda content: bz2.compress(content, 1), b"a" * 3_000_000 + b"b" * 9_000_000, 5_200_000),
    "bz2, one block": (bz2.compress, WORDS[:500_000], 500_000),
    "xz": (lambda content: lzma.compress(content, preset=0), PROSE, 300_000),
}


@pytest.mark.parametrize("case", SPOILT)
def test_nothing_is_given_out_that_a_fault_has_spoilt(tmp_path, case):
    compress, content, most = SPOILT[case]
    packed = compress(content)
    path = tmp_path / f"a.txt.{case[:3].strip(',')}"
    num_places = 20 if case == "xz" else 7  # not each gives noise
    for n in range(1, num_places):
        path.write_bytes(flipped(packed, len(packed) * n // num_places))
        given, broken = content_of(path)
        assert content.startswith(given)
        assert len(given) >= len(content) * n // num_places - most
        assert broken and str(broken).startswith("broken")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_break_says_whether_all_content_stands_before_it(tmp_path, suffix):
    content = WORDS[:20_000]
    packed = COMPRESS[suffix](content)
    path = tmp_path / f"a.txt{suffix}"
    trailer = {".gz": 8, ".bz2": 4, ".xz": 16, ".zst": 4}[suffix]  # bytes that can be missing
    for num_missing in (1, 2, trailer, trailer + 60):
        path.write_bytes(packed[:-num_missing])
        given, broken = content_of(path)
        assert broken.is_all_given == (num_missing <= trailer)
        assert (given == content) == (num_missing <= trailer)
    for place in {".gz": (-1, -8), ".bz2": (-3, -9), ".xz": (-1, -9, -14, -29), ".zst": (-1, -4)}[suffix]:
        damaged = flipped(packed, place)
        path.write_bytes(damaged)
        given, broken = content_of(path)
        assert given == content
        assert broken.is_all_given
        path.write_bytes(damaged + COMPRESS[suffix](b"more"))
        given, broken = content_of(path)
        assert given == content
        assert not broken.is_all_given


def test_gz_that_ends_before_the_length_in_its_trailer_is_not_whole(tmp_path):
    """A flip in the last bytes of deflate can be a sound end."""
    path = tmp_path / "a.txt.gz"
    content = b"one two three"
    for num_given in (len(content), len(content) - 2):
        path.write_bytes(gzip.compress(content[:num_given])[:-8] + bytes(4) + len(content).to_bytes(4, "little"))
        given, broken = content_of(path)
        assert given == content[:num_given]
        assert broken.is_all_given == (num_given == len(content))


def test_stored_content_that_lacks_a_byte_is_not_whole(tmp_path):
    for content in (b"a page", bytes(range(250)) * 20):
        for level in (0, 1, 9):
            packed = gzip.compress(content, level)
            for num_missing in range(1, 14):
                (tmp_path / "a.txt.gz").write_bytes(packed[:-num_missing])
                given, broken = content_of(tmp_path / "a.txt.gz")
                assert broken.is_all_given == (num_missing <= 8)
                assert given == content or num_missing > 8


@pytest.mark.parametrize("has_checksum", [True, False])
def test_stored_blocks_of_zstd_that_lack_a_byte_are_not_whole(tmp_path, has_checksum):
    content = random.Random(2).randbytes(5000)
    packed = zstandard.ZstdCompressor(write_checksum=has_checksum).compress(content)
    for num_missing in range(1, 14):
        (tmp_path / "a.txt.zst").write_bytes(packed[:-num_missing])
        given, broken = content_of(tmp_path / "a.txt.zst")
        assert broken.is_all_given == (given == content) == (num_missing <= 4 * has_checksum)


def test_bz2_is_all_given_where_its_last_block_has_ended_and_nowhere_else(tmp_path):
    path, packed = tmp_path / "a.txt.bz2", bz2.compress(WORDS[:250_000], 1)
    bits = f"{int.from_bytes(packed, 'big'):0{8 * len(packed)}b}"
    starts = [found.start() // 8 for found in re.finditer(f"{0x314159265359:048b}", bits)]
    assert len(starts) == 3  # blocks
    for place in range(starts[2] - 2, starts[2] + 20):  # between the second and the third
        path.write_bytes(packed[:place])
        assert not content_of(path)[1].is_all_given
    content = random.Random(2).randbytes(100)
    short = bz2.compress(content)
    for bit in range(8 * 10, 8 * 50):  # such that the block's end is missed, and the trailer read as its data
        damaged = (int.from_bytes(short, "big") ^ 1 << bit).to_bytes(len(short), "big")
        path.write_bytes(damaged[:-2])
        given, broken = content_of(path)
        assert given == content or not broken.is_all_given


def test_no_more_of_bz2_is_held_back_than_its_largest_block(monkeypatch):
    """Else a file that expands without end by a few bytes would fill the memory."""
    monkeypatch.setattr("hvdlm.data.stream_faults.MAX_BZ2_BLOCK_BYTES", 200_000)
    decoder, content = bz2.BZ2Decompressor(), bytes(3_000_000)
    pieces = sound_bz2_pieces(decoder, bz2.compress(content), 0)
    first = next(pieces)
    rest = decoder.decompress(b"", -1)  # what libbz2 has not given yet
    assert len(content) - 200_000 - 2 * PIECE_BYTES <= len(rest) < len(content)
    assert first + b"".join(pieces) + rest == content


TABLE = pa.table({"text": [f"row {n} {n**5}" for n in range(300)]})


def arrow(new):
    file = io.BytesIO()
    with new(file, TABLE.schema) as writer:
        for batch in TABLE.to_batches(max_chunksize=30):
            writer.write_batch(batch)
    return file.getvalue()


def parquet():
    file = io.BytesIO()
    pq.write_table(TABLE, file, row_group_size=30)
    return file.getvalue()


LINES = [f"document {n}" for n in range(30)]
FILES = {  # the last record has no line end
    "a.txt": b"a page\nof text",
    "a.md": b"# A page",
    "a.jsonl": "\n".join(json.dumps({"text": line}) for line in LINES).encode(),
    "a.json": json.dumps([{"text": line} for line in LINES]).encode(),
    "a.csv": "\n".join(["text", *LINES]).encode(),
    "a.tsv": "\n".join(["text", *LINES]).encode(),
    "a.tokens": b"\n = A = \n\n one\n = B = \n two",
    "a.parquet": parquet(),
    "a.arrow": arrow(pa.ipc.new_stream),
    "a.feather": arrow(pa.ipc.new_file),
    "a.html": b"<html><body><p>" + b"A sentence of the page. " * 20 + b"</p></body></html>",
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_wrong_trailer_costs_no_record(tmp_path, name, suffix):
    if name == "a.html":
        pytest.importorskip("trafilatura")
    (tmp_path / name).write_bytes(FILES[name])
    whole = read(tmp_path / name)
    packed = COMPRESS[suffix](FILES[name])
    path = tmp_path / f"{name}{suffix}"
    for damaged in (packed[:-1], packed[:-3], flipped(packed, -4), packed + b"\n"):
        path.write_bytes(damaged)
        *good, bad = read(path)
        assert good == whole
        assert bad.place == str(path)
        assert bad.reason.startswith(f"broken {suffix[1:]}")


@pytest.mark.parametrize("encoding", ["utf-16-le", "gbk"])
def test_the_same_holds_in_another_encoding(tmp_path, encoding):
    packed = gzip.compress("one\n\ntwo".encode(encoding))
    (tmp_path / "a.txt.gz").write_bytes(packed[:-2])
    *good, bad = read(tmp_path / "a.txt.gz", ReadOptions("paragraphs", encoding=encoding))
    assert [found.text for found in good] == ["one", "two"]
    assert bad.reason.startswith("broken gz")


def test_a_record_that_may_be_cut_is_not_kept(tmp_path):
    for name in ("a.txt", "a.md", "a.jsonl", "a.csv", "a.tokens"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FILES[name], 0)[:-9])  # the last byte of the content
        *good, bad = read(tmp_path / f"{name}.gz")
        assert len(good) == {"a.txt": 0, "a.md": 0, "a.tokens": 1}.get(name, 29)
        assert bad.reason.startswith("broken gz")


@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
def test_what_is_whole_of_a_cut_arrow_file_is_kept(tmp_path, name):
    content, texts = FILES[name], TABLE["text"].to_pylist()
    for damaged in (content[: len(content) * 2 // 3], content[:-40] + bytes(4) + content[-36:-20]):
        (tmp_path / name).write_bytes(damaged)
        *good, bad = read(tmp_path / name)
        assert [found.text for found in good] == texts[: len(good)]
        assert len(good) >= 150
        assert isinstance(bad, BadRecord)
    packed = gzip.compress(content)
    (tmp_path / f"{name}.gz").write_bytes(packed[: len(packed) * 2 // 3])
    *good, bad = read(tmp_path / f"{name}.gz")
    assert len(good) >= 120
    assert bad.reason.startswith("broken gz")


def damaged_table():
    """A .csv.gz whose header has a wrong bit, which its checksum tells."""
    compress = zlib.compressobj(0, zlib.DEFLATED, 31)
    packed = bytearray(compress.compress(FILES["a.csv"]) + compress.flush())
    packed[packed.index(b"text")] ^= 1
    return bytes(packed)


def test_a_break_is_named_and_not_the_columns_that_it_made(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(damaged_table())
    assert "broken gz" in only_bad(tmp_path / "a.csv.gz").reason
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(FILES["a.csv"].replace(b"text", b"words")))
    with pytest.raises(UserError, match="no column 'text'"):
        read(tmp_path / "b.csv.gz", STRICT)
    assert break_of(str(tmp_path / "b.csv.gz")) is None


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_bad_record_of_a_broken_archive_tells_of_that(tmp_path, is_broken):
    path = tmp_path / "a.jsonl.gz"
    wrong = FILES["a.jsonl"].replace(b'7"}', b"7 }", 1)
    packed = bytearray(gzip.compress(wrong, 0))
    packed[-8] ^= is_broken
    path.write_bytes(packed)
    config = PreprocessConfig.model_validate({"input": str(path), "output": "out", "tokenizer": {"kind": "byte"}})
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:8: not valid JSON") as caught:
        list(Pipeline(config).documents(Unit(0, (Part(str(path), 0, None),), len(packed)), Counter()))
    assert ("perhaps because the file is broken gz" in str(caught.value)) == is_broken


def conversion(text, num_more=0):
    head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n"
    return (head.format(len(text) + num_more) + text + "\r\n\r\n").encode()


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
@pytest.mark.parametrize("num_more", [50, 100_000, 10**9])
def test_a_length_that_is_too_large_costs_its_own_record_alone(tmp_path, suffix, num_more):
    texts = [f"{n} " + "word " * 2000 for n in range(5)]
    path = tmp_path / f"a.wet{suffix}"
    members = [conversion(text, num_more if n == 1 else 0) for n, text in enumerate(texts)]
    path.write_bytes(b"".join(map(COMPRESS.get(suffix, bytes), members)))
    found = read(path)
    assert [item.text for item in found if isinstance(item, Document)] == [texts[0], *texts[2:]]
    (bad,) = [item for item in found if isinstance(item, BadRecord)]
    assert bad.place == f"{path}: record 1"
