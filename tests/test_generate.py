"""Sampling: any temperature, top_k and top_p gives an id, and a model that has diverged is refused."""

import math

import pytest
import torch
from harness import run_training

from hvdlm.errors import UserError
from hvdlm.inference.generate import Sampling, _num_unknown, added_text, choose, continue_text, generate
from hvdlm.models import LanguageModel
from hvdlm.tokenizer import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.word import WordRule, WordTokenizer

LOGITS = torch.tensor([-300.0, 2.0, 1.0, 1.9, 300.0, -1e30])


def ids_of(sampling, logits=LOGITS, draws=30):
    random = torch.Generator().manual_seed(0)
    return {choose(logits, sampling, random) for _ in range(draws)}


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-300, 1e-40, 1e-8])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    assert ids_of(Sampling(temperature=temperature)) == {4}


@pytest.mark.parametrize("top_p", [1e-320, 1e-300, 1e-8, 0.5])
def test_a_top_p_near_zero_takes_the_likeliest(top_p):
    assert ids_of(Sampling(temperature=1.0, top_p=top_p)) == {4}


def test_a_huge_temperature_takes_all_alike_and_top_k_may_exceed_the_vocabulary():
    assert ids_of(Sampling(temperature=1e308, top_k=10**18), draws=100) == {0, 1, 2, 3, 4, 5}
    assert ids_of(Sampling(temperature=1e308, top_k=2), draws=100) == {1, 4}


def test_usual_temperatures_draw_as_the_softmax_says():
    random, logits = torch.Generator().manual_seed(0), torch.tensor([0.0, 1.0, 2.0])
    drawn = torch.tensor([choose(logits, Sampling(temperature=0.7), random) for _ in range(4000)])
    assert torch.allclose(drawn.bincount(minlength=3) / 4000, (logits / 0.7).softmax(-1), atol=0.03)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_is_refused(value):
    class Diverged(LanguageModel):
        device = "cpu"
        head = torch.nn.Identity()

        def initial_state(self, num):
            return ()

        def forward(self, ids, state=None, draws=None):
            return torch.full((1, ids.shape[1], 3), value), state

    with pytest.raises(UserError, match="not finite: it has diverged"):
        list(generate(Diverged(), [], Sampling(), seq_len=4, max_tokens=2, eos_id=0))


def test_any_64_bit_seed_and_any_prompt_that_is_text(data_dir, tmp_path):
    run = tmp_path / "run"
    run_training(data_dir, run, "train.steps=1")
    for seed in (-(2**63) + 1, -1, 2**63 - 1):
        assert isinstance(continue_text(run, (), "", Sampling(seed=seed), 2), str)
    assert isinstance(continue_text(run, (), "long " * 100, Sampling(), 2), str)
    with pytest.raises(UserError, match="--prompt: character 1 is not UTF-8"):
        continue_text(run, (), "a\udcff", Sampling(), 2)


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "num"),
    [
        (WordTokenizer(["<unk>", "<eos>", "the", "cat"], WordRule()), "the dog the cow", 2),
        (WordTokenizer(["<unk>", "<eos>", "the", "cat"], WordRule()), "the cat", 0),
        (WordTokenizer(["<unk>", "<eos>", "the", "cat"], WordRule("whitespace")), "the <unk> cat", 0),
        (CharTokenizer("ab"), "abc", 1),
        (ByteTokenizer(), "é", 0),
    ],
)
def test_what_of_a_prompt_the_vocabulary_lacks_is_counted(tokenizer, prompt, num):
    assert _num_unknown(tokenizer, prompt, tokenizer.encode(prompt).tolist()) == num


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "text"),
    [
        (WordTokenizer(["<unk>", "<eos>", "the", "cat", "sat"], WordRule()), "the cat", " sat the"),
        (WordTokenizer(["<unk>", "<eos>", "the", "cat", "sat"], WordRule()), "the dog", " sat the"),
        (WordTokenizer(["<unk>", "<eos>", "the", "cat", "sat"], WordRule()), "", "sat the"),
        (ByteTokenizer(), "cafè", "é"),
    ],
)
def test_a_continuation_joins_the_prompt_as_the_vocabulary_writes_it(tokenizer, prompt, text):
    written = tokenizer.encode(text).tolist()
    assert added_text(tokenizer, tokenizer.encode(prompt).tolist(), written) == text
    assert added_text(tokenizer, [], []) == ""
