"""Each tokenizer gives back what it was given, and its digest names it."""

import base64
import gzip
import io
import itertools
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from harness import make_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvdlm import tokenizer as tokenizers
from hvdlm.errors import UserError
from hvdlm.tokenizer import TOKENIZERS, ByteTokenizer, TokenizerConfig, dtype_for, from_json, load, read_any
from hvdlm.tokenizer.dropped import byte_alphabet
from hvdlm.tokenizer.loss import num_lost
from hvdlm.tokenizer.sentencepiece_model import read_model
from hvdlm.tokenizer.tiktoken_ranks import PATTERNS, PUBLISHED, read_ranks
from hvdlm.tokenizer.word import (
    SlowPatternError,
    WordRule,
    WordTokenizer,
    count_words,
    cutter,
    parts_finder,
    read_vocabulary,
)

TEXTS = ["plain words", "", "tabs\t and\n\nnewlines  ", "héllo wörld 你好 🙂", "def f(x):\n    return x\n"]
SENTENCES = ["我们在北京大学学习自然语言处理。", "今天天气很好,我们去公园散步。", "他来到了网易杭研大厦"]
SPECIALS = ["<|endoftext|>", "</s>", "<eos>", "[SEP]", "<unk>", "[UNK]", "a <eos>b", "x<|endoftext|>y </s> z"]
EXACT = ("byte", "bpe", "tiktoken")
KINDS = (*EXACT, "char", "word", "jieba", "unigram", "wordpiece", "sentencepiece")

any_text = st.text(st.characters(exclude_categories=["Cs"]))  # lone surrogates are no text
quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sample():
    yield from (make_text(number, 400) for number in range(20))
    yield from SENTENCES * 5
    yield "0123456789 ()[]:<>|/_.," + "".join(map(chr, range(97, 123)))


def make(kind, texts=sample, **values):
    return TOKENIZERS[kind].make(TokenizerConfig.model_validate({"kind": kind, **values}), texts)


def write_ranks(path):
    """256 bytes and two merges, in the format of tiktoken."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"wo", b" wo"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


def train_sentencepiece(path, **options):
    import sentencepiece

    model = io.BytesIO()
    options = {"vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sample(), model_writer=model, **options)
    path.write_bytes(model.getvalue())
    return path


SIZES = {"bpe": 400, "char": 100, "word": 150, "unigram": 300, "wordpiece": 300}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    return {
        "byte": make("byte"),
        "tiktoken": make("tiktoken", path=write_ranks(folder / "r50k_base.tiktoken")),
        "jieba": make("word", words="jieba", vocab_size=500),
        "sentencepiece": make("sentencepiece", path=train_sentencepiece(folder / "a.model")),
        **{kind: make(kind, vocab_size=size) for kind, size in SIZES.items()},
    }


@pytest.fixture(params=KINDS)
def tokenizer(request, made):
    return made[request.param]


@pytest.mark.parametrize("kind", EXACT)
@quick
@given(text=any_text)
def test_any_text_survives_the_round_trip(made, kind, text):
    assert made[kind].decode(made[kind].encode(text)) == text


@pytest.mark.parametrize("texts", [[], [*TEXTS, *SPECIALS, *SENTENCES]], ids=["none", "some"])
def test_documents_are_their_ids_with_eos_after_each_and_nowhere_else(tokenizer, texts):
    ids, counts = tokenizer.encode_documents(texts)
    expected = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    assert ids.tolist() == sum(expected, [])
    assert counts.tolist() == [len(part) for part in expected]
    assert (ids == tokenizer.eos_id).sum() == len(texts)
    assert ids.max(initial=tokenizer.eos_id) < tokenizer.vocab_size
    assert ids.dtype == dtype_for(tokenizer.vocab_size) and counts.dtype == np.int64
    assert tokenizer.encode("some text").dtype == np.int64


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("word", "jieba")])
def test_the_name_of_the_unknown_token_is_text_but_in_closed_vocabularies(made, kind):
    name = "[UNK]" if kind == "wordpiece" else "<unk>"
    assert len(made[kind].encode(name)) > 1


def test_json_restores_the_same_tokenizer(tokenizer):
    again = from_json(tokenizer.to_json())
    assert tokenizers.digest(again) == tokenizers.digest(tokenizer)
    for name in ("kind", "vocab_size", "eos_id", "unk_id"):
        assert getattr(again, name) == getattr(tokenizer, name)
    for ours, its in zip(tokenizer.encode_documents(TEXTS), again.encode_documents(TEXTS), strict=True):
        assert ours.tolist() == its.tolist()


def test_digests_tell_vocabularies_apart(made):
    assert len({tokenizers.digest(tokenizer) for tokenizer in made.values()}) == len(made)


def test_the_byte_tokenizers_digest_is_the_one_in_existing_shards():
    assert tokenizers.digest(ByteTokenizer()) == "5ec14d01f0b1b4aa"


@pytest.mark.parametrize("kind", SIZES)
def test_training_is_deterministic(kind, made):
    assert make(kind, vocab_size=SIZES[kind]).to_json() == made[kind].to_json()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "sentencepiece"])
def test_learnt_vocabularies_compress(kind, made):
    text = make_text(0, 400)
    assert len(made[kind].encode(text)) < 0.6 * len(text.encode())


@quick
@given(text=any_text)
def test_unknown_characters_and_only_they_are_lost(made, text):
    char = made["char"]
    ids = char.encode(text)
    assert len(ids) == len(text)
    known = set(json.loads(char.to_json())["characters"])
    assert char.decode(ids) == "".join(c if c in known else "\ufffd" for c in text)
    assert ((ids == char.unk_id) == [c not in known for c in text]).all()


def test_characters_of_chinese_are_tokens():
    chinese = make("char", lambda: iter(SENTENCES))
    ids = chinese.encode(SENTENCES[0])
    assert chinese.decode(ids) == SENTENCES[0]
    assert len(ids) == 16 and chinese.unk_id not in ids


def test_rare_and_surplus_characters_are_unknown():
    char = make("char", lambda: iter(["aaabbbccd"]), min_frequency=2, vocab_size=4)
    assert char.encode("abcd").tolist() == [2, 3, 0, 0]
    assert char.vocab_size == 4


def test_jieba_cuts_chinese_into_words(made):
    jieba = made["jieba"]
    ids = jieba.encode(SENTENCES[0])
    pieces = [jieba.decode([token]) for token in ids]
    assert pieces == ["我们", "在", "北京大学", "学习", "自然语言", "处理", "。"]
    assert jieba.decode(ids) == SENTENCES[0]
    assert jieba.encode("<unk>在").tolist() == [jieba.unk_id, jieba.encode("在")[0]]


@quick
@given(text=any_text)
def test_jieba_loses_no_character(made, text):
    assert "".join(made["jieba"]._cut(text)) == text


def test_jieba_is_silent_and_leaves_no_cache(tmp_path, monkeypatch, capfd):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make("word", words="jieba").encode(SENTENCES[0])
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    path = write_ranks(tmp_path / "r50k_base.tiktoken")
    needing = {"jieba": ("word", {"words": "jieba"}), "sentencepiece": ("sentencepiece", {"path": path})}
    for library, (kind, values) in {**needing, "tiktoken": ("tiktoken", {"path": path})}.items():
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UserError, match=rf"needs {library}; pip install 'hvdlm\[text\]'"):
            make(kind, **values)


def test_penn_treebank_reads_as_its_papers_count_it(tmp_path):
    (tmp_path / "words.txt").write_text("the\ncat\n<unk>\nN\n", encoding="utf-8")
    word = make("word", vocabulary=tmp_path / "words.txt", line_ends=True)
    ids, counts = word.encode_documents([" the cat <unk> N \n the dog \n"])
    assert word.decode(ids) == "the cat <unk> N\nthe <unk>\n"
    assert counts.tolist() == [8]  # six words and two line ends, the last of which is the document's end
    assert word.vocab_size == 5 and word.unk_id == 3  # <eos> is added, <unk> stays where the file has it
    assert word.encode("the\n\ncat").tolist() == [1, word.eos_id, word.eos_id, 2]
    assert word.encode("<eos>").tolist() == [word.unk_id]


def test_words_by_a_pattern():
    word = make("word", lambda: iter(["cat bat, cat"]), words="regex", pattern="(c|b)at|<unk>x")
    assert word.encode("bat<unk>cats").tolist() == [3, 0, 2]


READERS = {
    "json": load,
    "sentencepiece": read_model,
    "tiktoken": lambda path: read_ranks(path, "gpt2"),
    "word": lambda path: read_vocabulary(path, WordRule()),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_vocabulary_is_a_regular_file(kind, tmp_path):
    """A pipe would be waited for, a device read for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=r"cannot read this .* \(is no regular file\)"):
            READERS[kind](path)
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="bytes: "):
        READERS[kind](tmp_path / "bytes")


def test_a_word_twice_in_a_vocabulary_is_an_error(tmp_path):
    (tmp_path / "words.txt").write_text("the\ncat\nthe\n")
    with pytest.raises(UserError, match=r"words.txt: lists the word 'the' twice"):
        make("word", vocabulary=tmp_path / "words.txt")
    with pytest.raises(UserError, match="cannot read this vocabulary"):
        make("word", vocabulary=tmp_path / "none.txt")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_vocabulary_has_its_words_whatever_parts_its_lines(end, mark, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(mark + end.join(["the", "", "cat", "sat"]).encode())
    assert make("word", vocabulary=path).encode("the cat sat").tolist() == [2, 3, 4]


def test_words_that_no_text_has_are_remarked(tmp_path, caplog):
    path = tmp_path / "words.txt"
    path.write_text("the 100\ncat\nsat \n\u3000x\n")
    make("word", vocabulary=path)
    assert "words.txt: 3 of 4 words hold white space, so no text has them, such as 'the 100'" in caplog.text
    caplog.clear()
    make("word", vocabulary=path, words="regex", pattern="[^|]+")
    assert not caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 100\ncat 7\n", "2 of 2 words hold white space.* one word a line, and nothing else"),
        (gzip.compress(b"the\ncat\n", mtime=0), "is not UTF-8; it is compressed: unpack it"),
        (b"PK\x03\x04\0\0", "holds NUL.*; it is compressed: unpack it"),
        ("the\ncat\n".encode("utf-16"), "is not UTF-8; it is UTF-16: save it as UTF-8"),
        ("the\ncat\n".encode("utf-16-le"), "holds NUL.*; save the vocabulary as UTF-8"),
        (b"caf\xe9\n", "byte 3 is not UTF-8; save the vocabulary as UTF-8"),
        (b'{"the": 0,\n"cat": 1}', "is JSON.*; tokenizer.vocabulary names a file with one word a line"),
        (b'["the",\n"cat"]', "is JSON; tokenizer.vocabulary names"),
        (b"\xef\xbb\xbf\r\n", "holds no word"),
    ],
)
def test_what_is_no_list_of_words_says_what_it_is(content, message, tmp_path):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"words.txt: .*{message}"):
        make("word", vocabulary=tmp_path / "words.txt")


@pytest.mark.parametrize("content", ["{\n}\n", "[\n]\nthe\n", '{"\n'])
def test_signs_are_words(content, tmp_path):
    (tmp_path / "words.txt").write_text(content)
    assert make("word", vocabulary=tmp_path / "words.txt").encode("{ ]").tolist() != [0, 0] or content == '{"\n'


FLAGGED = {
    r"(?i)[a-z]+": ["Foo", "bar", "x", "y"],
    "(?x) [a-z]+  # letters": ["oo", "bar", "x", "y"],
    "(?m)^.": ["F", "x"],
    "(?i)(?x) [A-Z] + # letters": ["Foo", "bar", "x", "y"],
    "(?s)a.+": ["ar\nx-y"],
    "(?ai)foo|(?-i:B)": ["Foo"],
    r"(?P<c>o)(?P=c)": ["oo"],
}


@pytest.mark.parametrize("pattern", FLAGGED)
def test_flags_in_a_pattern_hold_for_it_and_not_for_the_unknown_word(pattern):
    config = TokenizerConfig.model_validate({"kind": "word", "words": "regex", "pattern": pattern})
    assert list(cutter(config.word_rule)("Foo bar\nx-y")) == FLAGGED[pattern]
    assert list(cutter(config.word_rule)("<unk>")) == ["<unk>"] and "<UNK>" not in cutter(config.word_rule)("<UNK>")


def test_what_a_pattern_finds_of_no_length_is_no_word():
    assert list(cutter(WordRule("regex", r"\b|[a-z]+(?=-)"))("foo bar-")) == ["bar"]
    assert list(cutter(WordRule("regex", r"(?=x)|[a-z]+"))("foo x")) == ["foo", "x"]


def test_unigram_gives_text_of_known_characters_back(made):
    for text in ("the  sun\n is", " lead and trail ", "rain\n\nsun"):
        ids = made["unigram"].encode(text)
        assert made["unigram"].decode(ids) == text
    assert made["unigram"].unk_id in made["unigram"].encode("🙂")
    assert "<unk>" in made["unigram"].decode(made["unigram"].encode("🙂"))


def test_tiktoken_merges_and_appends_its_end(made, tmp_path):
    tiktoken = made["tiktoken"]
    assert tiktoken.encode("wo wow").tolist() == [256, 257, ord("w")]
    assert (tiktoken.eos_id, tiktoken.vocab_size) == (258, 259)
    path = write_ranks(tmp_path / "mine.tiktoken")
    with pytest.raises(
        UserError, match=r"mine.tiktoken: .* does not say .* set tokenizer.pattern \(--pattern\) to gpt2"
    ):
        make("tiktoken", path=path)
    assert make("tiktoken", path=path, pattern=r"\S+|\s").encode("wo wow").tolist() == [256, 32, 256, ord("w")]
    with pytest.raises(UserError, match="not a regular expression"):
        make("tiktoken", path=path, pattern="(")


def write_many_ranks(path, ranks):
    """Every rank a token: the bytes, then words."""
    words = (bytes(word) for size in (2, 3, 4) for word in itertools.product(range(97, 123), repeat=size))
    tokens = itertools.chain((bytes([byte]) for byte in range(256)), words)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in zip(ranks, tokens, strict=False))
    path.write_text("".join(lines))
    return path


def test_a_published_rank_file_ends_texts_as_its_publisher_does(tmp_path):
    """By name, and by the number of ranks under any other name; the pattern may be given."""
    with_hole = [rank for rank in range(50281) if rank != 50256]
    path = write_many_ranks(tmp_path / "p50k_base.tiktoken", with_hole)
    found = make("tiktoken", path=path)
    assert (found.eos_id, found.vocab_size) == (50256, 50281)
    again = from_json(found.to_json())
    assert (again.eos_id, again.vocab_size) == (50256, 50281)
    ids, _ = again.encode_documents(["ab"])
    assert ids[-1] == 50256 and again.decode(ids) == "ab"
    renamed = path.rename(tmp_path / "mine.model")
    assert make("tiktoken", path=renamed).eos_id == 50256
    assert make("tiktoken", path=renamed, pattern=r"\S+|\s").eos_id == 50256
    assert make("tiktoken", path=renamed.rename(tmp_path / "p50k_edit.tiktoken")).vocab_size == 50284


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony"])
def test_the_table_of_published_rank_files_is_tiktokens(name, monkeypatch):
    public = pytest.importorskip("tiktoken_ext.openai_public")
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})  # nothing is downloaded
    theirs, ours = public.ENCODING_CONSTRUCTORS[name](), PUBLISHED[name]
    assert ours.eos_id == theirs["special_tokens"]["<|endoftext|>"]
    assert PATTERNS[ours.pattern] == theirs["pat_str"]
    assert ours.vocab_size == theirs.get("explicit_n_vocab", max([50280, *theirs["special_tokens"].values()]) + 1)


def test_what_earlier_versions_saved_keeps_its_ids(tmp_path):
    """Shards were made with the id after the last rank."""
    path = write_many_ranks(tmp_path / "p50k_base.tiktoken", [rank for rank in range(50281) if rank != 50256])
    old = {"hvdlm": "tiktoken", "pattern": "gpt2", "ranks": path.read_text()}
    assert from_json(json.dumps(old)).eos_id == 50281


def test_a_file_of_any_kind_is_read_by_its_name(made, tmp_path):
    (tmp_path / "a.json").write_text(made["bpe"].to_json(), encoding="utf-8")
    assert read_any(tmp_path / "a.json").kind == "bpe"
    assert read_any(train_sentencepiece(tmp_path / "a.model")).kind == "sentencepiece"
    assert read_any(write_ranks(tmp_path / "r50k_base.tiktoken")).kind == "tiktoken"
    assert read_any(write_ranks(tmp_path / "tokenizer.model"), "llama3").kind == "tiktoken"
    with pytest.raises(UserError, match=r"b.model: a rank file of tiktoken .* \(--pattern\)"):
        read_any(write_ranks(tmp_path / "b.model"))
    (tmp_path / "c.model").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"c.model: not a .model of sentencepiece"):
        read_any(tmp_path / "c.model")


def test_a_cut_off_published_rank_file_is_said(tmp_path, caplog):
    make("tiktoken", path=write_ranks(tmp_path / "cl100k_base.tiktoken"))
    assert "has 258 ranks, the published file of this name 100256" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("YWI= 3", "token or rank of line 4 again"),
        ("d28= 300", "token or rank of line 257 again"),
        ("YWI= -1", "rank -1 is no id"),
        ("YWI= 99999999999999999999", "is no id"),
        ("YWI=", "a token in base64"),
    ],
)
def test_a_bad_line_of_a_rank_file_is_named(line, message, tmp_path):
    path = write_ranks(tmp_path / "a.tiktoken")
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(UserError, match=rf"a.tiktoken:260: not a rank file .*{message}"):
        make("tiktoken", path=path, pattern="gpt2")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_more_ids_than_a_trainer_has_memory_for_are_refused(kind):
    for vocab_size in ((1 << 24) + 1, 99_999_999_999, 1 << 70):
        with pytest.raises(ValueError, match=f"vocab_size: {kind} learns 16,777,216 ids at most"):
            TokenizerConfig.model_validate({"kind": kind, "vocab_size": vocab_size})
    assert make("char", lambda: iter(["ab"]), vocab_size=99_999_999_999).vocab_size == 4  # at most so many


def test_broken_rank_files_are_named(tmp_path):
    for content in ("nonsense", "YQ== 0\n", "YQ== x\n", ""):
        (tmp_path / "gpt.tiktoken").write_text(content)
        with pytest.raises(UserError, match=r"gpt.tiktoken.*not a rank file"):
            make("tiktoken", path=tmp_path / "gpt.tiktoken", pattern="gpt2")


def test_sentencepiece_without_an_end_gets_one(tmp_path, made):
    assert made["sentencepiece"].eos_id == 2
    model = make("sentencepiece", path=train_sentencepiece(tmp_path / "b.model", eos_id=-1))
    assert model.eos_id == model.vocab_size - 1
    ids, _ = model.encode_documents(["the sun"])
    assert ids[-1] == model.eos_id and model.decode(ids) == model.decode(ids[:-1])
    (tmp_path / "c.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"c.model: not a .model of sentencepiece"):
        make("sentencepiece", path=tmp_path / "c.model")


def test_vocabulary_size_counts_added_tokens(made):
    """vocab_size without added tokens is a classic off-by-some that overflows embeddings."""
    content = json.loads(made["bpe"].to_json())
    top = max(content["model"]["vocab"].values())
    content["added_tokens"].append({**content["added_tokens"][0], "id": top + 1, "content": "<|added|>"})
    assert from_json(json.dumps(content)).vocab_size == top + 2


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_ends_of_other_makers_are_found_or_named(kind, made, tmp_path):
    path = tmp_path / "tokenizer.json"
    text = made[kind].to_json()
    path.write_text(text.replace("<|endoftext|>", "</s>"), encoding="utf-8")
    other = make(kind, path=path)
    assert other.eos_id == made[kind].eos_id and other.kind == kind
    assert other.eos_id not in other.encode("a</s>b </s>")
    path.write_text(text.replace("<|endoftext|>", "<fin>"), encoding="utf-8")
    with pytest.raises(UserError, match="has none of the tokens .* tokenizer.eos"):
        make("bpe", path=path)
    own = make("bpe", path=path, eos="<fin>")
    assert own.eos_id == made[kind].eos_id and own.eos_id not in own.encode("<fin> a<fin>")
    assert from_json(own.to_json()).eos_id == own.eos_id
    with pytest.raises(UserError, match="has no token '<x>'"):
        make("bpe", path=path, eos="<x>")


def test_an_end_that_its_file_does_not_mark_as_special_is_still_no_text(made):
    content = json.loads(made["bpe"].to_json())
    content["added_tokens"][0]["special"] = False
    again = from_json(json.dumps(content))
    assert again.eos_id not in again.encode("a<|endoftext|>b")
    assert again.decode(again.encode("a<|endoftext|>b")) == "a<|endoftext|>b"


def test_a_loaded_file_never_cuts_or_pads_a_document(made):
    content = json.loads(made["bpe"].to_json())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    assert len(from_json(json.dumps(content)).encode("a text of more than three tokens")) > 3


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content in (b"nonsense", b"[]", b'{"a": 1}', b'{"hvdlm": "char"}', b"\x80\xff\x00"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer.json"):
            tokenizers.load(path)
    path.write_text('{"hvdlm": "later"}')
    with pytest.raises(UserError, match="kind 'later', this version reads byte"):
        tokenizers.load(path)
    with pytest.raises(UserError, match="cannot read"):
        tokenizers.load(tmp_path / "none.json")


WRONG = (None, "x", -1, 1.5, [], {}, 1 << 40, [1], {"a": 1})


def spoilt(content):
    """The JSON with one value left out or of another type, for each of the first places at every depth."""

    def places(part, path=()):
        if path:
            yield path
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, value in list(items)[: 12 if isinstance(part, dict) else 2]:
            yield from places(value, (*path, key))

    for path in places(content):
        for value in (*WRONG, ...):
            changed = json.loads(json.dumps(content))
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if value is ...:
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            yield changed


@pytest.mark.parametrize("kind", ["byte", "bpe", "char", "unigram", "word", "wordpiece"])
def test_a_spoilt_tokenizer_json_works_or_is_named_in_one_line(kind, made):
    num_named = 0
    for content in spoilt(json.loads(made[kind].to_json())):
        try:
            found = from_json(json.dumps(content), "t.json")
            found.encode_documents(["the sun", "a"])
            found.decode(found.encode("a sun"))
        except UserError as error:
            num_named += 1
            assert str(error).startswith("t.json: ") and "\n" not in str(error)
    assert num_named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["added_tokens"][0].pop("special"), "no 'special'"),
        (lambda c: c["model"].pop("vocab"), "no 'vocab'"),
        (lambda c: c["model"]["merges"].append("a b c"), "too many values"),
        (lambda c: c["model"]["merges"].append(["zz", "yy"]), "out of vocabulary"),
        (lambda c: c["model"]["vocab"].update(a="7"), "'a': '7' is no id"),
        (lambda c: c["model"].update(continuing_subword_prefix="##"), "does not continue with '##'"),
        (
            lambda c: c["added_tokens"].append({**c["added_tokens"][0], "content": "<x>", "id": 700}),
            "gives the added token '<x>' the id 700, the tokenizers library 400",
        ),
    ],
)
def test_what_is_wrong_in_a_tokenizer_json_is_said(change, message, made):
    content = json.loads(made["bpe"].to_json())
    change(content)
    with pytest.raises(UserError, match=f"^t.json: .*{message}"):
        from_json(json.dumps(content), "t.json")


def whitespace_model(tmp_path, **model):
    """A tokenizer.json that cuts at white space, with "</s>" beside the model's tokens."""
    added = {"id": 0, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False}
    added |= {"normalized": False, "special": True}
    content = {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [added], "model": model}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


UNIGRAM = {"type": "Unigram", "unk_id": None, "vocab": [["</s>", 0.0], ["h", -1.0], ["i", -2.0]]}
WORDLEVEL = {"type": "WordLevel", "vocab": {"</s>": 0, "hi": 1}, "unk_token": "<unk>"}
WORDPIECE = {"type": "WordPiece", "vocab": {"</s>": 0, "hi": 1}, "unk_token": "[UNK]"}
WORDPIECE |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}


@pytest.mark.parametrize("model", [UNIGRAM, WORDLEVEL, WORDPIECE], ids=["unigram", "wordlevel", "wordpiece"])
def test_a_text_that_a_vocabulary_cannot_encode_is_said(model, tmp_path):
    found = load(whitespace_model(tmp_path, **model))
    assert len(found.encode("hi"))
    for encode in (found.encode, lambda text: found.encode_documents([text])):
        with pytest.raises(UserError, match=r"t.json: this .* cannot encode a text .* needs an unknown token"):
            encode("hi stranger")


def test_characters_that_a_bpe_drops_are_counted(made, tmp_path):
    vocab = {"</s>": 0, "h": 1, "u": 2, "g": 3, "ug": 4, "?": 5}
    bpe = {"type": "BPE", "vocab": vocab, "merges": ["u g"], "unk_token": None}
    text = "hug mug 汉字 pug\n"
    assert num_lost(load(whitespace_model(tmp_path, **bpe)), [text, "hug", text]) == 8  # m, p and two Han characters
    with_unknown = load(whitespace_model(tmp_path, **{**bpe, "unk_token": "?"}))
    assert num_lost(with_unknown, [text]) == 0 and with_unknown.unk_id in with_unknown.encode(text)
    assert [num_lost(found, [text]) for found in made.values()] == [0] * len(made)


@pytest.mark.parametrize(("model", "eos"), [(UNIGRAM, "i"), (WORDLEVEL, "hi"), (WORDPIECE, "hi")])
def test_an_end_that_texts_need_is_refused(model, eos, made, tmp_path):
    path = whitespace_model(tmp_path, **model)
    with pytest.raises(UserError, match=f"t.json: texts need the token '{eos}'"):
        load(path, eos)
    assert load(path, "</s>").eos_id == 0
    path.write_text(made["bpe"].to_json(), encoding="utf-8")
    for byte in ("\u010a", "a", "\u0120"):
        with pytest.raises(UserError, match="t.json: texts need the token"):
            load(path, byte)
    word = next(token for token in json.loads(made["bpe"].to_json())["model"]["vocab"] if len(token) == 3)
    found = load(path, word)  # other pieces stand for its text
    assert found.decode(found.encode(f"a {word} b")) == f"a {word} b"


UNKNOWN_ENDS = {
    "BPE": {"vocab": {"<unk>": 0, "a": 1, "</s>": 2}, "merges": [], "unk_token": "<unk>"},
    "Unigram": {"vocab": [["<unk>", 0.0], ["a", -1.0], ["</s>", 0.0]], "unk_id": 0},
    "WordLevel": {"vocab": {"<unk>": 0, "a": 1, "</s>": 2}, "unk_token": "<unk>"},
    "WordPiece": {**WORDPIECE, "vocab": {"<unk>": 0, "a": 1, "</s>": 2}, "unk_token": "<unk>"},
}


@pytest.mark.parametrize("kind", UNKNOWN_ENDS)
def test_an_unknown_token_neither_ends_nor_begins_documents(kind, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": kind, **UNKNOWN_ENDS[kind]}}))
    with pytest.raises(UserError, match=r"t.json: its unknown token \(id 0\) would also end .* set tokenizer.eos"):
        load(path, "<unk>")
    with pytest.raises(UserError, match=r"would also begin documents.*set tokenizer.bos to .* or none"):
        load(path, bos="<unk>")
    path.write_text(json.dumps({"hvdlm": "tokenizers", "eos": "<unk>", "tokenizer_json": path.read_text()}))
    with pytest.raises(UserError, match="would also end"):
        load(path, bos="auto")
    assert load(path).eos_id == 0  # shards that have it stay readable
    assert load(path, "</s>").eos_id == 2


@pytest.mark.parametrize("suffix", [None, "</w>"])
@pytest.mark.parametrize("lacking", [(), (0xC0, 0xF5, 0xFF)])  # bytes of no UTF-8
def test_an_end_that_is_an_unknown_token_by_name_only_is_taken(suffix, lacking, tmp_path):
    alphabet = [token for byte, token in enumerate(byte_alphabet()) if byte not in lacking]
    tokens = ["<|endoftext|>", *alphabet, *(token + suffix for token in alphabet if suffix)]
    model = {"type": "BPE", "merges": [], "unk_token": "<|endoftext|>", "end_of_word_suffix": suffix}
    model["vocab"] = {token: number for number, token in enumerate(tokens)}
    rule = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}
    path = tmp_path / "t.json"
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": rule, "decoder": rule, "model": model}
    path.write_text(json.dumps(content))
    found = load(path, bos="auto")
    assert (found.eos_id, found.unk_id) == (0, None)
    ids, _ = found.encode_documents(["\u6c49 a"])
    assert ids.tolist().count(0) == 1 and found.decode(ids) == found.decode(ids[:-1])
    del model["vocab"]["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="would also end"):
        load(path, bos="auto")


@pytest.mark.parametrize("value", [5, ["x"]])
@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_an_affix_of_another_type_is_named_with_its_file(key, value, tmp_path):
    vocab = {"</s>": 0, "a": 1}
    path = whitespace_model(tmp_path, type="BPE", vocab=vocab, merges=[], unk_token=None, **{key: value})
    for ends in ({}, {"bos": "auto"}, {"eos": "</s>"}, {"bos": "a"}):
        with pytest.raises(UserError, match=r"t.json: not a tokenizer.json \(.* is no text\)"):
            load(path, **ends)


NAMES = (
    "</s>",
    "[SEP]",
    "<eos>",
    "<EOS>",
    "[EOS]",
    "<|im_end|>",
    "<\uff5cend\uff5c>",
    "<end_of_turn>",
    "<doc>",
    "[CLS]",
)
PIECES = ("U.S.", "--", "don't", "<>", "<html>", "[1]", "the", "the-", "\u2581the-", "\u2581the", "\u0120the")


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "WordPiece", "BPE"])
def test_what_a_vocabulary_has_as_a_piece_of_text_ends_and_begins_none(kind, tmp_path):
    tokens = ["<|endoftext|>", "a", *NAMES, *PIECES]
    vocab = [[token, -1.0] for token in tokens] if kind == "Unigram" else dict(map(reversed, enumerate(tokens)))
    own = {"Unigram": {"unk_id": None}, "BPE": {"merges": []}, "WordLevel": {"unk_token": "a"}, "WordPiece": WORDPIECE}
    content = {"version": "1.0", "added_tokens": [], "model": {**own[kind], "type": kind, "vocab": vocab}}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    for name in (*NAMES, *(PIECES if kind == "BPE" else ())):  # of a BPE others can stand for them
        assert load(path, name).eos_id == load(path, bos=name).bos_id == tokens.index(name)
    for token in () if kind == "BPE" else PIECES:
        for ends in ({"eos": token}, {"bos": token}):
            with pytest.raises(UserError, match="texts need the token '?.*; add one to added_tokens and name that"):
                load(path, **ends)


def test_a_character_with_the_mark_of_its_place_ends_no_text(tmp_path):
    vocab = {"</s>": 0, "a": 1, "a</w>": 2, "##a": 3, "ab</w>": 4}
    for mark in ({"end_of_word_suffix": "</w>"}, {"continuing_subword_prefix": "##"}):
        model = {"type": "BPE", "vocab": vocab, "merges": [], **mark}
        path = tmp_path / "t.json"
        path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
        with pytest.raises(UserError, match="texts need the token"):
            load(path, "a</w>" if "end_of_word_suffix" in mark else "##a")
        assert load(path, "ab</w>").eos_id == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "byte", "path": "a"}, "byte tokenizer has no file"),
        ({"kind": "bpe", "vocab_size": 256}, "bpe needs 257 ids at least, got 256"),
        ({"kind": "tiktoken"}, "kind: tiktoken reads a file; set path"),
        ({"kind": "sentencepiece"}, "kind: sentencepiece reads a file; set path"),
        ({"kind": "bpe", "min_frequency": 2}, "min_frequency is for kind: char or word, not bpe"),
        ({"kind": "char", "words": "jieba"}, "words is for kind: word, not char"),
        ({"kind": "word", "pattern": "a"}, "pattern is for words: regex"),
        ({"kind": "word", "words": "regex", "pattern": "("}, "not a regular expression"),
        ({"kind": "word", "words": "regex", "pattern": "a)|(b"}, "not a regular expression"),
        ({"kind": "word", "words": "regex", "pattern": "(?i)x*"}, "also matches nothing"),
        ({"kind": "word", "words": "regex", "pattern": "a{99999999999}"}, "not a regular expression"),
        ({"kind": "word", "vocabulary": "a", "path": "b"}, "both name the words"),
        ({"kind": "bpe", "eos": "x"}, "eos names a token of the file in path"),
    ],
)
def test_keys_that_do_not_go_together_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig.model_validate(values)
    assert TokenizerConfig.model_validate({"kind": "char", "vocab_size": 64}).vocab_size == 64


def test_a_lack_of_memory_is_no_fault_of_a_text(monkeypatch):
    def fails(*words, **options):
        raise MemoryError

    tokenizer = tokenizers.train_bpe(iter(["the cat sat"]), 260)
    monkeypatch.setattr(tokenizer, "_backend", type("Backend", (), {"encode": fails}))
    with pytest.raises(MemoryError):
        tokenizer.encode("the cat")


@pytest.mark.parametrize("wrong", [{"vocab_size": 256}, {"eos_id": 0}, {"eos_id": True}, {"eos_id": None}])
def test_a_byte_file_that_tells_of_another_tokenizer_is_refused(wrong):
    content = json.loads(ByteTokenizer().to_json())
    assert from_json(json.dumps(content)).eos_id == 256
    with pytest.raises(UserError, match=f"t.json: has {next(iter(wrong))} .*, the byte tokenizer 25"):
        from_json(json.dumps({**content, **wrong}), "t.json")


def test_a_file_of_another_kind_is_told_by_its_first_bytes(made, tmp_path):
    files = {
        "json": (made["bpe"].to_json().encode(), "begins as a tokenizer.json, which tokenizer.kind: bpe reads"),
        "ranks": (write_ranks(tmp_path / "a").read_bytes(), "a rank file of tiktoken, which tokenizer.kind: tiktoken"),
        "model": (train_sentencepiece(tmp_path / "b").read_bytes(), "a .model of sentencepiece, which .*sentencepiece"),
        "empty": (b"", "it is empty"),
        "gzip": (b"\x1f\x8b\x08\x00", "it is compressed: unpack it"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        "page": (b"<!DOCTYPE html><html>", "it is a web page"),
    }
    for content, message in (
        ({"bos_token": "<s>"}, "it tells of special tokens alone: name the tokenizer.json"),
        ({"config": {}, "vocab": []}, "it is a tekken.json"),
        ({"a": 0, "b": 1}, "it is a vocab.json, a part of one"),
    ):
        (tmp_path / "part").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"part: not a tokenizer.json \(no 'model'\); {message}"):
            make("bpe", path=tmp_path / "part")
    readers = {"bpe": "json", "tiktoken": "ranks", "sentencepiece": "model"}
    for (name, (content, message)), (kind, own) in itertools.product(files.items(), readers.items()):
        path = tmp_path / name
        path.write_bytes(content)
        if name != own:
            with pytest.raises(UserError, match=f"{name}: not a .*; .*{message}") as error:
                make(kind, path=path)
            assert "\n" not in str(error.value)


def test_a_sentencepiece_model_in_pieces_is_told_or_refused(tmp_path, caplog):
    """The library takes a file that ends between two pieces."""
    whole = train_sentencepiece(tmp_path / "whole.model").read_bytes()
    make("sentencepiece", path=tmp_path / "whole.model")
    assert not caplog.text
    path = tmp_path / "a.model"
    first = 2 + whole[1]  # the end of the first piece
    for end in (1, first - 1, first, first + 2 + whole[first + 1], len(whole) // 2):
        path.write_bytes(whole[:end])
        caplog.clear()
        try:
            make("sentencepiece", path=path)
        except UserError as error:
            assert str(error).startswith(f"{path}: not a .model of sentencepiece") and "\n" not in str(error)
        else:
            assert f"{path}: holds pieces, but not the normalizer" in caplog.text


def test_special_pieces_of_a_sentencepiece_model_are_text_in_texts(tmp_path):
    options = {
        "byte_fallback": True,
        "vocab_size": 600,
        "control_symbols": ["<ctl>"],
        "user_defined_symbols": ["<own>"],
    }
    model = make("sentencepiece", path=train_sentencepiece(tmp_path / "a.model", **options, pad_id=3), bos="none")
    for text in ("<s>", "</s>", "<pad>", "<unk>", "<ctl>", "<0x41>", "<own>", "the <own>sun</s>é汉"):
        ids = model.encode(text)
        assert not set(ids.tolist()) & {0, 1, 2, 3} and model.decode(ids) == text


def test_qwens_rank_file_normalizes_as_its_publishers_code_does(tmp_path):
    qwen = make("tiktoken", path=write_many_ranks(tmp_path / "qwen.tiktoken", range(151643)))
    assert (qwen.eos_id, qwen.vocab_size, qwen.bos_id) == (151643, 151851, None)
    for tokenizer in (qwen, from_json(qwen.to_json())):
        assert tokenizer.encode("e\u0301").tolist() == tokenizer.encode("é").tolist() == list("é".encode())
        assert tokenizer.encode_documents(["e\u0301"])[0].tolist() == [*"é".encode(), 151643]
    content = json.loads(qwen.to_json())
    with pytest.raises(UserError, match="normal_form 'X' is none of Unicode's"):
        from_json(json.dumps({**content, "normal_form": "X"}))
    del content["normal_form"]  # as an earlier version saved it
    assert from_json(json.dumps(content)).encode("e\u0301").tolist() == list("e\u0301".encode())


def test_a_text_has_the_same_ids_each_time_though_its_file_asks_for_dropout(made, tmp_path, caplog):
    content = json.loads(made["bpe"].to_json())
    content["model"]["dropout"] = 0.9
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with caplog.at_level("INFO"):
        found = make("bpe", path=path)
    assert found.to_json() == path.read_text(encoding="utf-8")
    text = "the sun and the sea " * 20
    assert found.encode(text).tolist() == made["bpe"].encode(text).tolist()
    assert "t.json: its dropout of 0.9 is not used" in caplog.text


def test_a_regular_expression_that_gives_up_asks_for_no_unknown_token():
    cut = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "vocab": {"</s>": 0, "a": 1, "b": 2}, "merges": []}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": cut, "model": model}
    found = from_json(json.dumps(content), "t.json")
    with pytest.raises(UserError, match=r"t.json: .*retry-limit.*; its pre_tokenizer's regular expression") as error:
        found.encode("a" * 60 + "b")
    assert "unk" not in str(error.value)


def test_a_file_saved_on_windows_and_a_folder_are_read_or_said(made, tmp_path):
    text, mark = made["bpe"].to_json(), "\ufeff"
    path = tmp_path / "tokenizer.json"
    path.write_text(mark + text, encoding="utf-8")
    assert make("bpe", path=path).to_json() == load(path).to_json() == text
    for content in ((mark + text).encode("utf-16-le"), (mark + text).encode("utf-16-be"), text.encode("utf-16-le")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="tokenizer.json: not a tokenizer.json; it is UTF-16: save it as UTF-8"):
            make("bpe", path=path)
    for kind in ("bpe", "tiktoken", "sentencepiece"):
        with pytest.raises(UserError, match=rf"cannot read .* \(is no regular file\); give {path}"):
            make(kind, path=tmp_path)
    ranks = write_ranks(tmp_path / "a.tiktoken")
    plain = make("tiktoken", path=ranks, pattern="gpt2")
    ranks.write_bytes(mark.encode() + ranks.read_bytes())
    assert make("tiktoken", path=ranks, pattern="gpt2").to_json() == plain.to_json()
    (tmp_path / "a.model").write_bytes(bytes(1000))
    with pytest.raises(UserError, match="not a .model of sentencepiece.*; it holds nothing but zeros: copy it again"):
        make("sentencepiece", path=tmp_path / "a.model")


def test_a_pattern_that_never_ends_is_named_with_the_text(monkeypatch):
    """Wherever a pattern meets a text: when words are counted, encoded, looked for what lies between, or parted."""
    monkeypatch.setattr("hvdlm.tokenizer.word.PATTERN_S", 0.02)
    rule, text = WordRule("regex", "(a+)+$|b"), "a" * 40 + "!"
    tokenizer = WordTokenizer(["b"], rule)
    for use in (
        lambda: count_words(["b", text], rule, 9, 1),
        lambda: tokenizer.encode_documents(["b", text]),
        lambda: tokenizer.num_lost(["b", text]),
        lambda: list(parts_finder(rule)(text, 1)),
    ):
        with pytest.raises(SlowPatternError, match=r"pattern '\(a\+\)\+\$\|b': .* such as 'aaa"):
            use()
    assert tokenizer.encode("b b").tolist() == [2, 2]
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(tokenizer.encode, "b").result().tolist() == [2]


def test_the_time_of_a_pattern_grows_with_the_text_and_leaves_the_signal_as_it_was(monkeypatch):
    """A long document of a sound pattern is no endless one, and a profiler may use the same clock."""
    limits, rule = list[float](), WordRule("regex", "a|b")
    monkeypatch.setattr("hvdlm.tokenizer.word.LIMITED_CHARACTERS", 100)
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: limits.append(seconds))
    tokenizer = WordTokenizer(["a"], rule)
    for uses in (None, signal.SIG_IGN, lambda number, frame: None):
        before = signal.getsignal(signal.SIGVTALRM) if uses is None else uses
        signal.signal(signal.SIGVTALRM, before)
        assert len(tokenizer.encode("a")) == 1
        assert signal.getsignal(signal.SIGVTALRM) is before
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    limits.clear()
    tokenizer.encode_documents(["a" * 250, "b", "a" * 90, "b" * 20])
    assert limits == [50, 20, 20, 0]
    limits.clear()
    assert sum(len(part.text) for part in parts_finder(rule)("a" * 300, 200)) == 300
    assert limits == [60, 0, 20, 0]
