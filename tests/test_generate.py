"""Text from a run: any seed and any prompt, where a text ends, and a model that has diverged is refused."""

import math

import pytest
import torch
import yaml
from harness import run_training
from test_engine import ids_written

from hvdlm.errors import UserError
from hvdlm.inference.generate import Texts, continue_text, count_unknown, open_writer
from hvdlm.inference.sampling import Sampling
from hvdlm.models import LanguageModel, Vocabulary
from hvdlm.tokenizer import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.word import WordRule, WordTokenizer


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_is_refused(value):
    class Diverged(LanguageModel):
        device = torch.device("cpu")
        head = torch.nn.Identity()

        def initial_state(self, num):
            return ()

        def forward(self, ids, state=None, draws=None):
            return torch.full((1, ids.shape[1], 3), value), state

    with pytest.raises(UserError, match="not finite: it has diverged"):
        ids_written(Diverged(), Vocabulary(3, 0), [], Sampling(), max_tokens=2)


def test_any_64_bit_seed_and_any_prompt_that_is_text(data_dir, tmp_path):
    run = tmp_path / "run"
    run_training(data_dir, run, "train.steps=1")
    for seed in (-(2**63) + 1, -1, 2**63 - 1):
        assert "".join(continue_text(run, (), "", Texts(Sampling(seed=seed), 2)))
    with pytest.raises(UserError, match="--prompt: character 1 is not UTF-8"):
        continue_text(run, (), "a\udcff", Texts())


def test_a_full_context_ends_a_text_with_a_word_or_slides(data_dir, tmp_path, caplog):
    run = tmp_path / "run"
    run_training(data_dir, run, "train.steps=1")
    context = yaml.safe_load((run / "config.yaml").read_text())["data"]["seq_len"]
    greedy = Sampling(temperature=0, logit_bias={256: -100.0})
    with pytest.raises(UserError, match=f"--prompt: the prompt has 501 tokens, the model's context {context};"):
        continue_text(run, (), "long " * 100, Texts(greedy))
    caplog.clear()
    short = "".join(continue_text(run, (), "ab", Texts(greedy, 3 * context)))
    assert f"context of {context} tokens is full" in caplog.text
    long = "".join(continue_text(run, (), "ab", Texts(greedy, 3 * context, slides=True)))
    assert long.startswith(short) and len(long.encode("utf-8", "replace")) > len(short.encode())


def test_stop_strings_end_a_text_before_them(data_dir, tmp_path):
    run = tmp_path / "run"
    run_training(data_dir, run, "train.steps=1")
    whole = "".join(continue_text(run, (), "ab", Texts(Sampling(temperature=1.0), 12)))
    stop = whole[4:6]
    assert "".join(continue_text(run, (), "ab", Texts(Sampling(temperature=1.0), 12, [stop]))) == whole.split(stop)[0]


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
    assert count_unknown(tokenizer, prompt, tokenizer.encode(prompt).tolist()) == num


def test_several_texts_begin_with_the_one_and_a_search_finds_the_likeliest_first(data_dir, tmp_path):
    run = tmp_path / "run"
    run_training(data_dir, run, "train.steps=1")
    writer = open_writer(run, (), "ab", Texts(Sampling(temperature=1.0), 6))
    drawn = writer.several(3)
    assert len(set(drawn)) == 3 and drawn[0].text == "".join(writer.pieces())
    found = writer.searched(4, 2)
    greedy = open_writer(run, (), "ab", Texts(Sampling(temperature=0), 6)).several(1)
    assert len(found) == 2 and [one.text for one in writer.searched(1, 1)] == [one.text for one in greedy]
