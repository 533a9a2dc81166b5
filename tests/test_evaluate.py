"""Evaluation against what can be computed by hand, and sampling against its definition."""

import math

import numpy as np
import pytest
import torch
from harness import documents_of, make_config, preprocess, run_training
from torch import nn

from hvdlm.data.corpora import open_corpora
from hvdlm.data.manifest import TOKENIZER, SplitEntry, read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import EvaluationStreams, EvaluationWindows
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint, num_words
from hvdlm.models import LanguageModel, Vocabulary
from hvdlm.models.recurrent import LstmConfig
from hvdlm.tasks import TaskContext
from hvdlm.tasks.evaluate import evaluate, pool
from hvdlm.tasks.language_model import LmConfig, NoiseConfig, ObjectiveConfig
from hvdlm.tokenizer import load
from hvdlm.world.serial import SerialWorld


class Unigram(LanguageModel):
    """A model without context: the same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.everywhere, self.head = nn.Parameter(logits), nn.Identity()

    def initial_state(self, num):
        return ()

    def forward(self, ids, state=None, draws=None):
        return self.everywhere.expand(*ids.shape, -1), state


TASK = LmConfig().build(TaskContext(Vocabulary(257, 0), ObjectiveConfig(), NoiseConfig()))


def evaluate_unigram(data_dir, logits, split="val", seq_len=32):
    manifest = read_manifest(data_dir)
    windows = EvaluationWindows(TokenStream(data_dir, split), seq_len, manifest.eos_id)
    entry = manifest.splits[split]
    return evaluate(Unigram(logits), TASK, windows, entry, batch=5, precision="fp32", world=SerialWorld())


@pytest.mark.parametrize("seq_len", [1, 7, 32, 100_000])
def test_a_uniform_model_has_the_logarithm_of_the_vocabulary(data_dir, seq_len):
    result = evaluate_unigram(data_dir, torch.zeros(257), seq_len=seq_len)
    entry = read_manifest(data_dir).splits["val"]
    assert result.loss == pytest.approx(math.log(257), rel=1e-6)
    assert result.perplexity == pytest.approx(257, rel=1e-5)
    assert result.num_tokens == entry.num_tokens
    # a byte a token, and an end of text a document
    expected = math.log2(257) * entry.num_tokens / (entry.num_tokens - entry.num_documents)
    assert result.bits_per_byte == pytest.approx(expected, rel=1e-6)


def test_the_manifest_knows_the_loss_of_token_frequencies(data_dir):
    train = TokenStream(data_dir, "train")
    counts = torch.bincount(torch.from_numpy(train.read(0, len(train))), minlength=257)
    result = evaluate_unigram(data_dir, (counts + 1.0).log())
    assert result.unigram_loss == pytest.approx(result.loss, rel=1e-5)


class Tokens:
    """A split in memory."""

    def __init__(self, ids):
        self.ids = np.array(ids)

    def __len__(self):
        return len(self.ids)

    def read(self, start, length):
        return self.ids[start : start + length]

    @property
    def entry(self):
        return SplitEntry(
            shards=(), num_tokens=len(self), num_documents=1, text_bytes=len(self), unigram_loss=1.0, digest=""
        )


def loss_on(model, read):
    return evaluate(model, TASK, read, read.stream.entry, batch=5, precision="fp32", world=SerialWorld())


@pytest.mark.parametrize("ids", [[0] * 8000 + [1] * 4000, [0, 0, 1] * 4000, [0] * 32 + ([1] * 32 + [0] * 32) * 190])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_part_of_a_split_is_an_estimate_of_the_whole(ids, share):
    """Whether the split is sorted, mixed, or periodic: easy tokens are 0, hard ones 1."""
    model, split = Unigram(torch.tensor([0.9, 0.1]).log()), Tokens(ids)
    whole, part = (loss_on(model, EvaluationWindows(split, 32, 0, part)) for part in (0, int(share * len(ids))))
    assert part.loss == pytest.approx(whole.loss, abs=0.25)
    assert part.num_tokens == pytest.approx(share * len(ids), abs=32)
    assert (part.bits_per_byte, part.split_tokens) == (None, len(ids))
    assert part.coverage == f"{part.num_tokens:,} of {len(ids):,} tokens"
    assert whole.coverage == f"all {len(ids):,} tokens"


def test_a_part_of_each_corpus_stands_for_all_of_it():
    """The smaller corpus, read as far as the larger, counts no more for that."""
    model = Unigram(torch.tensor([0.9, 0.1]).log())
    splits = [Tokens([0] * 9000), Tokens([1] * 1000)]
    results = {part: [loss_on(model, EvaluationWindows(split, 10, 0, part)) for split in splits] for part in (0, 500)}
    whole, part = (pool(TASK, found, [split.entry for split in splits]) for found in results.values())
    assert part.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (part.num_tokens, part.split_tokens, part.bits_per_byte) == (1000, 10_000, None)


@pytest.fixture(scope="module")
def lstm():
    torch.manual_seed(0)
    model = LstmConfig(layers=2, width=16).build(Vocabulary(50, 49))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)  # so that the past counts
    return model, Tokens(np.random.default_rng(0).integers(0, 49, 700))


def nats_of(model, ids, before):
    """By one pass over all of `ids`, from a state of zero."""
    inputs = torch.tensor([[before, *ids[:-1].tolist()]])
    logits = model.logits(inputs)[0][0]
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids), reduction="sum").detach())


@pytest.mark.parametrize("seq_len", [7, 20, 1000])
def test_one_stream_with_carried_state_is_one_pass_over_the_split(lstm, seq_len):
    model, split = lstm
    expected = nats_of(model, split.ids, 49)
    result = loss_on(model, EvaluationStreams(split, seq_len, 49))
    assert result.loss * 700 == pytest.approx(expected, rel=1e-5)
    assert (result.num_tokens, result.split_tokens) == (700, 700)
    assert result.bits_per_byte == pytest.approx(expected / math.log(2) / 700, rel=1e-5)
    if seq_len < 100:
        assert abs(loss_on(model, EvaluationWindows(split, seq_len, 49)).loss * 700 - expected) > 5


def test_each_of_several_streams_begins_without_a_past(lstm):
    model, split = lstm
    parts = np.split(split.ids, [233, 466])
    befores = [49, split.ids[232], split.ids[465]]
    expected = sum(nats_of(model, part, before) for part, before in zip(parts, befores, strict=True))
    assert loss_on(model, EvaluationStreams(split, 20, 49, 3)).loss * 700 == pytest.approx(expected, rel=1e-5)


def test_how_a_run_was_trained_is_how_it_is_evaluated(data_dir, tmp_path):
    """And the number comes with its protocol."""
    lstm = ("model={family: lstm, layers: 1, width: 16}", "train.steps=4")
    carried = run_training(data_dir, tmp_path / "carried", *lstm, "data.order=contiguous")
    run_training(data_dir, tmp_path / "windows", *lstm)
    run_training(data_dir, tmp_path / "transformer", "train.steps=1")

    def found(run, **protocol):
        return evaluate_checkpoint(tmp_path / run, (), "val", SerialWorld(), **protocol)

    assert found("carried")["protocol"] == "1 stream with carried state, not reset between documents"
    assert found("carried", carry=False)["protocol"] == "windows of 32 tokens, each from its own beginning"
    assert found("carried", streams=12)["loss"] == pytest.approx(carried["val_loss"], rel=1e-6)
    assert [found("windows", **how)["streams"] for how in ({}, {"carry": True}, {"streams": 3})] == [0, 1, 3]
    with pytest.raises(UserError, match=r"--carry: model.family: transformer has no state to carry"):
        found("transformer", carry=True)
    with pytest.raises(UserError, match=r"--streams is of --carry"):
        found("windows", carry=False, streams=2)
    with pytest.raises(UserError, match=r"--streams: 10000000 are more than .* windows of 32"):
        found("windows", streams=10_000_000)


def test_unknown_words_are_remarked_on(tmp_path, caplog):
    """Their letters cost nothing, so that bits per byte look better than those of a vocabulary that spells them."""
    for kind, told in (("word", 1), ("byte", 0)):
        text = tmp_path / f"{kind}.jsonl"
        text.write_text("".join(f'{{"text": "of a word{n} and of one"}}\n' for n in range(300)))
        data, size = tmp_path / kind, {"vocab_size": 8} if told else {}
        preprocess(text, data, tokenizer={"kind": kind, **size})
        run_training(data, tmp_path / f"run-{kind}", "train.steps=1")
        caplog.clear()
        evaluate_checkpoint(tmp_path / f"run-{kind}", (), "val", SerialWorld())
        assert caplog.text.count("% of its tokens are unknown to the vocabulary") == told


def test_what_a_model_forgets_is_part_of_the_protocol(data_dir, tmp_path):
    for name, setting, told in (("own", "false", "which begins anew at each"), ("across", "true", "not reset between")):
        run_training(data_dir, tmp_path / name, f"model={{family: ngram, across_documents: {setting}}}")
        found = evaluate_checkpoint(tmp_path / name, (), "val", SerialWorld())
        assert found["protocol"] == f"1 stream with carried state, {told} document{'' if name == 'own' else 's'}"


def test_words_are_what_white_space_parts_and_an_end_a_document(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", "train.steps=1")
    found = evaluate_checkpoint(tmp_path / "run", (), "val", SerialWorld(), words=True)
    texts = [bytes(ids[:-1].astype(np.uint8)).decode() for ids in documents_of(data_dir, "val")]
    assert found["num_words"] == sum(len(text.split()) + 1 for text in texts)
    nats = found["loss"] * found["num_tokens"]
    assert math.log(found["word_perplexity"]) == pytest.approx(nats / found["num_words"], rel=1e-9)
    corpora, tokenizer = open_corpora(make_config(data_dir, tmp_path).data), load(data_dir / TOKENIZER)
    parts = [num_words(corpora, "val", tokenizer, rank=rank, size=3) for rank in range(3)]
    assert sum(parts) == found["num_words"]
