"""`hvdlm inspect`: what it shows is what the model computes, and what it prints is harmless and legible."""

import base64
import hashlib
import io
import itertools
import json
import logging
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from harness import preprocess, run_training
from labelled import ANSWERED, TAGGED, answered, make_data, run_of, tagged
from rich.cells import cell_len
from rich.console import Console

from hvdlm import checkpoint, cli
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.inspect import Asked, inspect_text
from hvdlm.inference.inspect.asked import Subject
from hvdlm.inference.inspect.attention import watched
from hvdlm.inference.inspect.page import page_of
from hvdlm.inference.inspect.pieces import pieces_of
from hvdlm.inference.inspect.terminal import show
from hvdlm.inference.load import load_checkpoint_model, tokenizer_of
from hvdlm.models import Vocabulary
from hvdlm.models.transformer import TransformerConfig
from hvdlm.tasks.crf import LinearChainCrf
from hvdlm.tasks.seq2seq import Seq2seq
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.train.setup import train
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

TEXT = "the 中文 é text is <b>here</b>,\nand it goes on & on for more than a window of it all\n"
ONE_STEP = ("train.steps=1", "train.eval_every=1000", "data.seq_len=32")
SMALL = {"layers": 1, "width": 16}
TINY = {"family": "transformer", "heads": 2, **SMALL}
MODELS = {
    "transformer": {"family": "transformer", "layers": 2, "heads": 4, "kv_heads": 2, "width": 16},
    **{name: {"family": name, **SMALL} for name in ("rnn", "gru", "lstm", "mingru", "conv")},
    "hmm": {"family": "hmm", "states": 4, "training": "gradient"},
    "ngram": {"family": "ngram", "order": 3},
    "maxent": {"family": "maxent", "buckets": 10},
    "vae": {"family": "vae", "encoder": "transformer", "decoder": "transformer", "heads": 2, "latent": 4, **SMALL},
}
BOTH_SIDES = {**TINY, "causal": False}
CROSSED = {**TINY, "layers": 2, "encoder_layers": 2}
RECORDS = {
    "class": ((), {"kind": "classify", "label": "label"}, BOTH_SIDES),
    "number": ((), {"kind": "classify", "label": "score"}, BOTH_SIDES),
    "tag": ((tagged, TAGGED), {"kind": "tag"}, BOTH_SIDES),
    "span": ((answered, ANSWERED), {"kind": "span", "stride": 4}, BOTH_SIDES),
    "seq2seq": ((), {"kind": "seq2seq", "language": "en"}, CROSSED),
}


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run of one step of a family, made once."""
    made = {}

    def run(name, *overrides, model=None):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            given = json.dumps(model or MODELS[name])
            run_training(data_dir, folder / "run", *ONE_STEP, f"model={given}", *overrides)
            made[name] = folder / "run"
        return made[name]

    return run


@pytest.fixture(scope="module")
def record_run(tmp_path_factory):
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            kind, task, model = RECORDS[name]
            data = make_data(folder, SerialWorld(), *kind)
            train(run_of(data, folder / "run", "train.steps=1", model=model, task=task), SerialWorld())
            made[name] = folder / "run"
        return made[name]

    return run


@pytest.fixture(scope="module")
def text_data(corpus, tmp_path_factory):
    """A data folder whose validation split is TEXT alone."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "text.txt").write_text(TEXT)
    source = {"train": str(corpus), "val": str(folder / "text.txt")}
    preprocess("", folder / "data", input=source, split={"val": 0})
    return folder / "data"


def inspected(run_dir, text=TEXT, *overrides, **asked):
    return inspect_text(run_dir, overrides, Asked(text, **asked))


def subject_of(run_dir):
    path = checkpoint.resolve(run_dir)
    loaded = load_checkpoint_model(path, (), find_place(SerialWorld()))
    loaded.model.eval()
    return Subject(loaded, tokenizer_of(path, loaded.state))


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_add_up_to_what_evaluation_counts(name, run, text_data):
    run_dir = run(name)
    found = inspected(run_dir).numbers()
    whole = evaluate_checkpoint(run_dir, (f"data.path={text_data}",), "val", SerialWorld())
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert (found["num_tokens"], found["protocol"]) == (whole["num_tokens"], whole["protocol"])
    bits = sum(one["bits"] for one in found["tokens"])
    assert bits * math.log(2) + found.get("latent_nats", 0.0) == pytest.approx(found["nats"], rel=1e-9)
    assert "".join(one["text"] for one in found["tokens"]) == TEXT + "<end of text>"
    for one in found["tokens"]:
        best, own = one["likeliest"][0]["probability"], 2 ** -one["bits"]
        assert own <= best * (1 + 1e-5)
        assert own >= best * (1 - 1e-3) or one["rank"] > 1


def test_windows_that_overlap_are_those_of_evaluation(run, text_data):
    run_dir = run("transformer")
    found = inspected(run_dir, stride=8)
    whole = evaluate_checkpoint(run_dir, (f"data.path={text_data}",), "val", SerialWorld(), stride=8)
    assert found.numbers()["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert not any(cell.begins for cell in found.passage.cells)
    begins = [number for number, cell in enumerate(inspected(run_dir).passage.cells) if cell.begins]
    assert len(begins) == (len(TEXT.encode()) + 1) // 32


def test_a_masked_model_has_each_token_hidden_in_turn(run):
    run_dir = run("mlm", "task=mlm", model={**BOTH_SIDES, "layers": 2})
    subject, text = subject_of(run_dir), "ab 中 c"
    ids, eos_id = [*text.encode(), 256], 256
    expected = []
    for place, id_ in enumerate(ids[:-1]):
        hidden = torch.tensor([[*ids[:place], subject.loaded.task.mask_id, *ids[place + 1 :]]])
        expected.append(-float(subject.loaded.model.logits(hidden)[0][0, place].detach().log_softmax(0)[id_]))
    tokens = inspected(run_dir, text).numbers()["tokens"]
    assert [one["bits"] * math.log(2) for one in tokens[:-1]] == pytest.approx(expected, rel=1e-4)
    assert tokens[-1] == {"id": eos_id, "text": "<end of text>"}


def test_a_character_of_several_tokens_is_one_cell_with_all_their_bits(run):
    found = inspected(run("lstm"), "a中文b")
    bits = [one["bits"] for one in found.numbers()["tokens"]]
    assert [cell.text for cell in found.passage.cells] == ["a", "中", "文", "b", "<end of text>"]
    assert [len(cell.details) for cell in found.passage.cells] == [1, 3, 3, 1, 1]
    assert found.passage.cells[1].value == pytest.approx(sum(bits[1:4]))
    assert found.passage.cells[1].details[2].text == "中"


@pytest.mark.parametrize("content", ["héllo 中文 🎉!", "\n\n  x", "", "e\u0301"])
def test_pieces_together_are_the_text(content):
    tokenizer = ByteTokenizer()
    ids, _ = tokenizer.encode_documents([content])
    pieces = pieces_of(tokenizer, ids.tolist())
    assert "".join(piece.text for piece in pieces[:-1]) == content
    assert [piece.first for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == len(ids)


def test_bytes_that_are_no_character_are_in_a_piece_too():
    pieces = pieces_of(ByteTokenizer(), [0xE4, 0xB8, 0x61, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x62])
    assert [(piece.first, piece.stop) for piece in pieces][-1][1] == 9
    assert sum(piece.stop - piece.first for piece in pieces) == 9


POSITIONS = [{"kind": "rotary"}, {"kind": "alibi"}, {"kind": "learned", "max_seq_len": 12}]
VARIANTS = [
    *({"positions": positions} for positions in POSITIONS),
    *({"window": 4}, {"causal": False}, {"kv_heads": 1}, {"qk_norm": True}, {"causal": False, "window": 3}),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@torch.no_grad()
def test_weights_times_values_are_what_fused_attention_gives(variant):
    torch.manual_seed(0)
    config = TransformerConfig(**{"layers": 2, "heads": 4, "width": 32, **variant})
    model = config.for_sequences(12).build(Vocabulary(20, 0))
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    site, seen = model.blocks[1].attention, {}
    fused = site._fused
    site._fused = lambda q, k, v, sight: seen.setdefault("mixed", seen.update(v=v) or fused(q, k, v, sight))
    with watched(site, lambda weights: seen.update(weights=weights)):
        model(torch.arange(12).unsqueeze(0))
    weights, values = seen["weights"], site._for_all_heads(seen["v"])
    assert torch.allclose(weights @ values, seen["mixed"], atol=1e-5, rtol=1e-4)
    assert torch.allclose(weights.sum(-1), torch.ones(1, 4, 12))
    distance = torch.arange(12).unsqueeze(1) - torch.arange(12)
    unseen = (distance < 0) & config.causal | (distance.abs() >= (variant.get("window") or 12))
    assert not weights[0, :, unseen].any()
    assert site.watcher is None


@torch.no_grad()
def test_weights_with_a_soft_cap_are_those_computed_by_hand():
    config = TransformerConfig(layers=1, heads=1, width=2, attention_softcap=1.5, positions={"kind": "none"})
    site = config.build(Vocabulary(5, 0)).blocks[0].attention
    q, k = torch.tensor([[[[1.0, 2.0], [3.0, -1.0]]]]), torch.tensor([[[[2.0, 0.0], [1.0, 1.0]]]])
    from hvdlm.models.transformer.attention import Sight

    found = site.weights(q, k, Sight(is_causal=True))[0, 0]
    scores = [1.5 * math.tanh(dot / math.sqrt(2) / 1.5) for dot in (3 * 2 - 1 * 0, 3 * 1 - 1 * 1)]
    first = 1 / (1 + math.exp(scores[1] - scores[0]))
    assert found.tolist() == [[1.0, 0.0], pytest.approx([first, 1 - first])]


def test_maps_are_of_one_layer_and_have_a_row_a_token(run, record_run):
    found = inspected(run("transformer"), "hello", layer=0)
    (shown,) = found.attention
    assert (shown.kind, shown.layer, shown.heads) == ("self", 0, (0, 1, 2, 3))
    assert shown.queries == ("<end of text>", *"hello") == shown.keys
    assert shown.weights.sum(2) == pytest.approx(np.ones((4, 6)), abs=1e-6)
    (one,) = inspected(run("transformer"), "hello", layer=0, head=2).attention
    assert np.array_equal(one.weights[0], shown.weights[2])
    kinds = inspected(record_run("seq2seq"), "w1 w2 w3", layer=1, pair="w3 w2").attention
    shapes = {shown.kind: shown.weights.shape for shown in kinds}
    assert shapes == {"self": (2, 3, 3), "encoder": (2, 4, 4), "cross": (2, 3, 4)}
    assert all(shown.weights.sum(2) == pytest.approx(np.ones(shown.weights.shape[:2]), abs=1e-6) for shown in kinds)
    assert {shown.kind for shown in inspected(run("vae"), "hello", layer=0).attention} == {"self", "encoder"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": 9}, "--layer: 9 is none"),
        ({"head": 7}, "--head: 7 is none"),
        ({"pair": "x"}, "--pair: task: lm"),
        ({"label": "x"}, "--label: task: lm"),
    ],
)
def test_what_there_is_not_is_told_in_a_line(asked, message, run):
    with pytest.raises(UserError, match=message) as error:
        inspected(run("transformer"), **asked)
    assert "\n" not in str(error.value)


def test_families_without_attention_or_an_embedding_say_so(run):
    with pytest.raises(UserError, match="model.family: lstm has no attention; leave them out"):
        inspected(run("lstm"), layer=0)
    with pytest.raises(UserError, match="model.family: ngram has no embedding"):
        inspected(run("ngram"), neighbours=("a",))
    assert inspected(run("lstm"), attends=True).attention == ()


def test_neighbours_are_the_vectors_that_point_the_same_way(run):
    run_dir = run("lstm")
    (near,) = inspected(run_dir, None, neighbours=("e",), num_neighbours=3).neighbours
    vectors = subject_of(run_dir).loaded.model.embed.weight.detach().numpy()[:257]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[ord("e")]
    expected = [id_ for id_ in np.argsort(-cosines).tolist() if id_ != ord("e")][:3]
    assert [one.id for one in near.near] == expected
    assert [one.cosine for one in near.near] == pytest.approx(cosines[expected].tolist(), abs=1e-4)


def log_odds(found):
    share = found.numbers()["probabilities"]["up"]
    return math.log(share / (1 - share))


def test_a_contribution_is_what_the_log_odds_lose_without_the_token(record_run):
    run_dir, words = record_run("class"), ["w0", "w7", "w4"]
    whole = inspected(run_dir, " ".join(words), label="up", pair="w2 w3")
    changes = [one["change"] for one in whole.numbers()["pieces"] if "change" in one]
    for place in range(len(words)):
        others = " ".join(words[:place] + words[place + 1 :])
        without = inspected(run_dir, others, label="up", pair="w2 w3")
        assert changes[place] == pytest.approx(log_odds(whole) - log_odds(without), abs=1e-3)
    assert len(changes) == 5
    down = inspected(run_dir, " ".join(words), label="down", pair="w2 w3").numbers()["pieces"]
    assert down[0]["change"] == pytest.approx(-changes[0], abs=1e-4)
    with pytest.raises(UserError, match="--label: 'sideways' is none of the model's"):
        inspected(run_dir, "w0", label="sideways", pair="w2")
    with pytest.raises(UserError, match="--pair: task: classify reads other beside text; give it"):
        inspected(run_dir, "w0")


def test_words_that_the_vocabulary_lacks_are_told_of(record_run, caplog, monkeypatch):
    monkeypatch.setattr("hvdlm.inference.inspect.inspection.log", logging.getLogger("unknown"))
    inspected(record_run("class"), "w0 nowhere w1", pair="w2")
    assert "1 of 3 tokens are unknown to the vocabulary" in caplog.text


def test_a_number_is_explained_in_its_own_unit(record_run):
    run_dir = record_run("number")
    whole, without = (inspected(run_dir, text, pair="w2").numbers() for text in ("w0 w3", "w3"))
    assert whole["pieces"][0]["change"] == pytest.approx(whole["number"] - without["number"], abs=1e-5)


@torch.no_grad()
def test_marginals_of_a_crf_are_sums_over_all_paths():
    torch.manual_seed(0)
    crf, logits = LinearChainCrf(3), torch.randn(1, 4, 3)
    for parameter in crf.parameters():
        parameter.normal_()
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for path in itertools.product(range(3), repeat=3):
        share = crf.log_likelihood(logits, torch.tensor([[*path, 0]]), torch.tensor([3])).exp()
        for place, label in enumerate(path):
            expected[place, label] += share[0]
    found = crf.marginals(logits, torch.tensor([3]))[0]
    assert torch.allclose(found[:3], expected)
    assert found[3].abs().max() == 0


def test_words_have_the_labels_that_the_tagger_predicts(record_run):
    run_dir, subject = record_run("tag"), subject_of(record_run("tag"))
    found = inspected(run_dir, "w0 w1  w8 w9").passage
    assert [cell.text for cell in found.cells] == ["w0", " w1", "  w8", " w9"]
    words = found.numbers["words"]
    assert [one["word"] for one in words] == ["w0", "w1", "w8", "w9"]
    for one in words:
        assert sum(one["likeliest"].values()) == pytest.approx(1)
        assert one["probability"] == one["likeliest"][one["label"]]
        assert one["label"] in subject.loaded.task.outputs


def test_an_answer_comes_with_probabilities_of_its_ends(record_run):
    found = inspected(record_run("span"), "w7 w0 w8 w4", pair="good").numbers()
    assert 1 >= sum(one["start"] for one in found["places"]) > 0
    assert found["answer"] in "w7 w0 w8 w4"
    long = " ".join(["w7"] * 70)  # several windows
    assert "window" in " ".join(inspected(record_run("span"), long, pair="good").passage.facts)


def test_a_target_is_read_behind_its_source(record_run):
    run_dir = record_run("seq2seq")
    given = inspected(run_dir, "w1 w2", pair="w2 w1").numbers()
    assert [one["text"] for one in given["tokens"]] == ["w2", " w1", "<end of text>"]
    other = inspected(run_dir, "w5 w6", pair="w2 w1").numbers()
    assert other["nats"] != given["nats"]


def test_without_a_target_the_model_writes_one(record_run, monkeypatch):
    tokenizer = subject_of(record_run("seq2seq")).tokenizer
    for text in ("w3 w4", ""):
        monkeypatch.setattr(Seq2seq, "predict", lambda *_, text=text: [tokenizer.encode(text)])
        if text:
            found = inspected(record_run("seq2seq"), "w1 w2").numbers()
            assert [one["text"] for one in found["tokens"]] == ["w3", " w4", "<end of text>"]
            assert found["protocol"] == "the target is what the model itself writes, read again"
    with pytest.raises(UserError, match="--pair: the model itself writes nothing for this source"):
        inspected(record_run("seq2seq"), "w1 w2")


class Elements(HTMLParser):
    """What a browser makes of a page: its elements, their attributes, and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.attributes, self.scripts, self.inside, self.shown = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside.pop()

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.scripts[-1] += data
        elif "div" in self.inside and self.inside[-1] == "span":
            self.shown += data


def test_a_page_takes_nothing_of_a_text_for_its_own(run):
    text = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\" onclick=\"a&amp;\x1b\x00"
    found = inspected(run("transformer"), text, layer=0, neighbours=("<",))
    page = Elements(page_of(found))
    data, program = page.scripts
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    policy = next(value for tag, name, value in page.attributes if name == "content" and "script-src" in (value or ""))
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not [one for one in page.attributes if one[1].startswith("on") or one[1] in ("src", "href")]
    assert text.replace("\x1b", "␛").replace("\x00", "␀") in page.shown
    assert len(json.loads(data)["details"]) == len(found.passage.cells)


def test_a_page_keeps_every_weight_to_a_byte(run):
    found = inspected(run("transformer"), "hello", layer=0, head=1)
    (shown,) = json.loads(Elements(page_of(found)).scripts[0])["maps"]
    weights = np.frombuffer(base64.b64decode(shown["weights"][0]), np.uint8).reshape(6, 6) / 255
    assert weights == pytest.approx(found.attention[0].weights[0], abs=0.5 / 255 + 1e-6)


def printed(found, **how):
    file = io.StringIO()
    show(found, Console(file=file, width=80, **how))
    return file.getvalue()


def test_a_terminal_without_colours_says_the_numbers(run):
    found = inspected(run("transformer"), TEXT + "\x1b[31m", layer=0, neighbours=("e", "中"))
    plain = printed(found, color_system=None)
    assert "\x1b" not in plain
    assert max(map(cell_len, plain.splitlines())) <= 80
    numbers = [cell.label for cell in found.passage.cells]
    assert [word for line in plain.splitlines() for word in line.split() if word in numbers][: len(numbers)]
    for cell in found.passage.cells:
        assert cell.label in plain
    coloured = printed(found, color_system="truecolor", force_terminal=True)
    assert "\x1b[" in coloured and "\x1b[31m" not in coloured


def called(capsys, *words, code=0):
    with pytest.raises(SystemExit) as caught:
        cli.main(["inspect", *map(str, words)])
    assert caught.value.code == code
    return capsys.readouterr()


def test_the_command_writes_a_page_a_picture_and_json(run, tmp_path, capsys, monkeypatch):
    run_dir, file = run("transformer"), tmp_path / "text.txt"
    file.write_text("中文")
    page, picture = tmp_path / "p.html", tmp_path / "p.png"
    out = called(capsys, run_dir, "--file", file, "train.threads=1", "--out", page, "--picture", picture, "--json").out
    assert "attention" not in json.loads(out.splitlines()[-1])
    named = called(capsys, run_dir, "x", "--layer", 0, "--json").out
    assert np.array(json.loads(named.splitlines()[-1])["attention"][0]["weights"]).shape == (4, 2, 2)
    assert "中" in page.read_text() and picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("中文".encode())))
    assert json.loads(called(capsys, run_dir, "-", "--json").out.splitlines()[-1])["tokens"][0]["text"] == "中"


@pytest.mark.parametrize("width", [1200, 390])
def test_maps_of_few_tokens_have_them_on_the_axes_and_any_map_tells_them(run, browser, tmp_path, width):
    """Of all heads and of one: letters are dark where nothing is taken from anywhere, above and left of the map."""
    page = browser.new_page(viewport={"width": width, "height": 844})
    inks = {}
    for text, head in (("abc", None), ("abc", 1), ("abc " * 12, None)):
        file = tmp_path / "page.html"
        file.write_text(page_of(inspected(run("transformer"), text, attends=True, head=head)))
        page.goto(file.as_uri())
        first = page.locator("canvas.map").first
        inks[text, head] = page.evaluate(
            "(canvas => { const corner = canvas.getContext('2d').getImageData(0, 130, 130, 60).data;"
            " return canvas.classList.contains('labelled') && corner.some((part, n) => n % 4 === 3 && part) })"
            "(document.querySelector('canvas.map'))"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = first.bounding_box()
        first.click(position={"x": box["width"] - 3, "y": box["height"] - 3})
        assert "takes" in page.inner_text("#panel")
    assert inks == {("abc", None): True, ("abc", 1): True, ("abc " * 12, None): False}
    page.close()


def test_a_cosine_is_written_alike_on_the_page_and_in_the_terminal(run):
    found = inspected(run("transformer"), None, neighbours=("e",), num_neighbours=3)
    (near,) = found.neighbours
    found = replace(found, neighbours=[replace(near, near=[near.near[0]._replace(cosine=0.4)])])
    console = Console(file=io.StringIO(), width=80)
    show(found, console)
    assert "0.400" in page_of(found) and "0.400" in console.file.getvalue()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "TEXT: there is none"),
        (["x", "--file", "text.txt"], "TEXT and --file: give one of them"),
        (["x = 1", "--file", "text.txt"], "TEXT and --file: give one of them"),
        (["x", "--out", "page.txt"], "--out: page.txt is no name of a page"),
        (["a", "--neighbours", ""], "'' is not in the vocabulary"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_ends_in_one_line(words, message, run, capsys):
    error = called(capsys, run("transformer"), *words, code=2).err.strip()
    assert message in error and "\n" not in error
