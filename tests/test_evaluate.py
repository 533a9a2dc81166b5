"""Evaluation against what can be computed by hand, and sampling against its definition."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import EvaluationWindows
from hvdlm.inference.generate import Sampling, choose, generate
from hvdlm.tasks.evaluate import evaluate
from hvdlm.world.serial import SerialWorld


class Unigram(nn.Module):
    """A model without context: the same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, ids):
        return self.logits.expand(*ids.shape, -1)


def evaluate_unigram(data_dir, logits, split="val", seq_len=32):
    manifest = read_manifest(data_dir)
    windows = EvaluationWindows(TokenStream(data_dir, split), seq_len, manifest.eos_id)
    return evaluate(Unigram(logits), windows, manifest.splits[split], batch=5, precision="fp32", world=SerialWorld())


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


def frequencies(logits, sampling, n=4000):
    random = torch.Generator().manual_seed(0)
    counts = Counter(choose(logits, sampling, random) for _ in range(n))
    return {key: count / n for key, count in counts.items()}


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def test_temperature_zero_takes_the_likeliest():
    assert choose(LOGITS, Sampling(temperature=0), torch.Generator()) == 0


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0.5), [p**2 / 0.365 for p in (0.5, 0.3, 0.15, 0.05)]),
        (Sampling(temperature=1.0, top_k=2), [0.625, 0.375]),
    ],
    ids=["the probabilities", "sharper when colder", "k ids"],
)
def test_sampling_follows(sampling, expected):
    assert frequencies(LOGITS, sampling) == pytest.approx(dict(enumerate(expected)), abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    kept = [set(frequencies(LOGITS, Sampling(temperature=1.0, top_p=p))) for p in (0.5, 0.51, 0.9)]
    assert kept == [{0}, {0, 1}, {0, 1, 2}]


def test_generation_is_reproducible_and_ends_at_the_end_of_text():
    model = Unigram(LOGITS)
    first, again, other = (
        list(generate(model, [0], Sampling(1.0, seed=seed), seq_len=4, max_tokens=30, eos_id=9)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(first) == 30
    ended = list(generate(model, [], Sampling(1.0), seq_len=4, max_tokens=10_000, eos_id=3))
    assert len(ended) < 10_000
    assert 3 not in ended
