"""ARPA: what is written is the model, by the format's own rule; what others write is read; what is none is refused."""

import gzip
import math

import numpy as np
import pytest
import torch
from test_ngram import after_border, counted, random_documents, stream_of

from hvdlm.errors import UserError
from hvdlm.inference.load import load_checkpoint_model
from hvdlm.inference.ngram_files import export_arpa, import_arpa
from hvdlm.models.ngram.arpa import names_of, write_arpa
from hvdlm.models.ngram.arpa_reader import parse_arpa, tables_of
from hvdlm.tokenizer import ByteTokenizer, CharTokenizer, from_json
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

VOCAB = 20
NAMES = ["</s>", "<unk>", *(f"w{number}" for number in range(2, VOCAB))]
# What SRILM writes when it prunes: a comment, no beginning `b c` of `b c a`, no backoffs where they are 0.
FOREIGN = """made by hand
\\data\\
ngram 1=6
ngram 2=3
ngram 3=1

\\1-grams:
-99 <s> -0.5
-1.0\t</s>
-0.7\ta\t-0.3
-0.6 b -0.2
-0.8 c
-1.5 <unk>

\\2-grams:
-0.4 <s> a -0.1
-0.5 a b
-0.9 c a 0.05

\\3-grams:
-0.2 b c a

\\end\\
"""


@pytest.fixture
def model():
    return counted(stream_of(random_documents(VOCAB, 80, 9)), VOCAB, 4)


def score(lines, words):
    """log10 p of the last of `words`, from a file's lines by the rule of the format."""
    ngram = " ".join(words)
    if ngram in lines:
        return lines[ngram][0]
    return lines.get(" ".join(words[:-1]), (0, 0))[1] + score(lines, words[1:])


def lines_of(text):
    columns = [line.split("\t") for line in text.splitlines() if "\t" in line]
    return {words: (float(prob), float(*rest or [0])) for prob, words, *rest in columns}


def test_a_file_says_what_the_model_says(model, tmp_path):
    path = tmp_path / "model.arpa"
    write_arpa(path, model.tables(), NAMES, 0, begins=True)
    text = path.read_text()
    lines = lines_of(text)
    assert lines["</s>"][1] == 0 and lines["<s>"][1] < 0  # nothing follows the one, what follows the other is its own
    for order, table in enumerate(model.tables(), 1):
        num = sum(len(words.split()) == order for words in lines)
        assert f"ngram {order}={num}\n" in text and num == len(table.keys) + (order == 1)
    for document in random_documents(VOCAB, 20, 9, seed=3):
        words = ["<s>", *(NAMES[token] for token in document), "</s>"]
        ids = after_border(stream_of([document]))
        found = model.target_log_probs(model(ids[:, :-1])[0], ids[:, 1:])[0] / math.log(10)
        expected = [score(lines, words[max(0, place - 3) : place + 1]) for place in range(1, len(words))]
        assert found.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz"])
@pytest.mark.parametrize("begins", [True, False])
def test_what_was_written_is_read_back(model, tmp_path, name, begins):
    if not begins:
        model = counted(stream_of(random_documents(VOCAB, 80, 9)), VOCAB, 4, across_documents=True)
    path = tmp_path / name
    write_arpa(path, model.tables(), NAMES, 0, begins=begins)
    arpa = parse_arpa(path)
    assert arpa.reaches_across == (not begins)
    for ours, theirs in zip(model.tables(), tables_of(arpa, NAMES), strict=True):
        assert np.array_equal(ours.keys, theirs.keys)
        assert np.allclose(ours.log_probs, theirs.log_probs, atol=1e-7)
        assert np.allclose(ours.log_backoffs, theirs.log_backoffs, atol=1e-7)
    before = path.read_bytes()
    write_arpa(path, model.tables(), NAMES, 0, begins=begins)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_tool_becomes_a_run_and_a_file_again(tmp_path):
    (tmp_path / "foreign.arpa").write_text(FOREIGN)
    import_arpa(tmp_path / "foreign.arpa", tmp_path / "run", None)
    loaded = load_checkpoint_model(tmp_path / "run/checkpoints/latest", (), find_place(SerialWorld()))
    tokenizer = from_json((tmp_path / "run/tokenizer.json").read_text())
    lines = {"<s>": (-99, -0.5), "a": (-0.7, -0.3), "b": (-0.6, -0.2), "c": (-0.8, 0), "</s>": (-1, 0)}
    lines |= {"<unk>": (-1.5, 0), "<s> a": (-0.4, -0.1), "a b": (-0.5, 0), "c a": (-0.9, 0.05), "b c a": (-0.2, 0)}
    for text in ("a b c a", "c a a b", "", "b c a zebra a"):
        tokens = tokenizer.encode(text)
        ids = torch.tensor([[tokenizer.eos_id, *tokens.tolist(), tokenizer.eos_id]])
        hidden, _ = loaded.model(ids[:, :-1])
        found = loaded.model.target_log_probs(hidden, ids[:, 1:])[0] / math.log(10)
        words = ["<s>", *(word if word in "abc" else "<unk>" for word in text.split()), "</s>"]
        expected = [score(lines, words[max(0, place - 2) : place + 1]) for place in range(1, len(words))]
        assert found.tolist() == pytest.approx(expected, abs=1e-6), text
    export_arpa(tmp_path / "run", tmp_path / "again.arpa")
    import_arpa(tmp_path / "again.arpa", tmp_path / "second", None)
    export_arpa(tmp_path / "second", tmp_path / "third.arpa")
    assert (tmp_path / "third.arpa").read_text() == (tmp_path / "again.arpa").read_text()
    with pytest.raises(UserError, match="has a model already"):
        import_arpa(tmp_path / "foreign.arpa", tmp_path / "run", None)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("\\data\\", "data"), r"no line \\data\\"),
        (("ngram 2=3", "ngram 3=3"), "line 4: `ngram 2=NUMBER`"),
        (("ngram 2=3", "ngram 2=4"), r"3 2-grams end here, \\data\\ says 4"),
        (("\\3-grams:", "\\4-grams:"), r"\\3-grams: is expected"),
        (("\\end\\", ""), r"\\end\\ is expected"),
        (("-0.4 <s> a -0.1", "-0.4 <s>"), "line 16: 2 columns, a 2-gram has 3 or 4"),
        (("-0.5 a b", "-0.5 a b c d"), "5 columns"),
        (("-0.5 a b", "half a b"), "line 17: .*half"),
        (("-0.5 a b", "0.5 a b"), "at most 0"),
        (("-0.5 a b", "nan a b"), "at most 0"),
        (("-0.5 a b", "-0.5 a b inf"), "finite"),
        (("-0.5 a b", "-0.5 a d"), "line 17: 'd' is no 1-gram"),
        (("-0.8 c", "-0.8 a"), "line 12: 'a' stands here again"),
        (("-0.5 a b", "-0.5 c a"), "a 2-gram twice"),
        (("-0.5 a b", "-0.5 a <s>"), "<s> within"),
        (("-0.8 c", "-0.8 c" + "c" * (1 << 20)), "line 12: a line of more than a MiB"),
    ],
)
def test_a_broken_file_is_refused_with_its_line_and_leaves_nothing(tmp_path, change, fault):
    path = tmp_path / "broken.arpa"
    assert change[0] in FOREIGN
    path.write_text(FOREIGN.replace(*change))
    with pytest.raises(UserError, match=fault) as caught:
        import_arpa(path, tmp_path / "run", None)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "run").exists()


def test_a_packed_file_that_was_cut_is_refused(tmp_path):
    path = tmp_path / "cut.arpa.gz"
    packed = gzip.compress(FOREIGN.encode())
    for cut in (packed[: len(packed) // 2], packed[:30], packed[:40] + b"\0\0\0" + packed[43:]):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"cut\.arpa\.gz: is damaged or cut short"):
            parse_arpa(path)


def test_words_that_a_vocabulary_has_not_are_named(tmp_path):
    path = tmp_path / "foreign.arpa"
    path.write_text(FOREIGN)
    with pytest.raises(UserError, match="'c', which the vocabulary has not"):
        tables_of(parse_arpa(path), ["</s>", "<unk>", "a", "b"])


def test_ids_that_a_file_has_not_are_told_and_have_no_probability(tmp_path, caplog):
    path = tmp_path / "foreign.arpa"
    path.write_text(FOREIGN)
    tables = tables_of(parse_arpa(path), ["</s>", "a", "b", "c", "d"])
    assert "lacks 1 of the vocabulary's 5 ids" in caplog.text and "has <unk>" in caplog.text
    assert tables[0].log_probs[4] == pytest.approx(-99 * math.log(10))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("a b\n▁é")])
def test_names_are_words_of_one_id_each(tokenizer):
    names = names_of(tokenizer)
    assert len(set(names)) == len(names) == tokenizer.vocab_size
    assert all(name.encode().split() == [name.encode()] for name in names)
    assert names[tokenizer.eos_id] == "</s>"
    assert "a" in names and "▁" in names


def test_what_cannot_be_exported_is_told(tmp_path):
    (tmp_path / "foreign.arpa").write_text(FOREIGN)
    import_arpa(tmp_path / "foreign.arpa", tmp_path / "run", None)
    with pytest.raises(UserError, match="is a folder"):
        export_arpa(tmp_path / "run", tmp_path)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        export_arpa(tmp_path, tmp_path / "x.arpa")
