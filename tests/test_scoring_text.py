"""BLEU and chrF equal sacrebleu's to the last bit; ROUGE and answers equal what the papers' scripts count by hand."""

import random
import sys
from itertools import combinations

import numpy as np
import pytest

from hvdlm.errors import UserError
from hvdlm.scoring.answers import answer_figures, answer_rows, common_run, exact_match, normalized, token_f1, tokens
from hvdlm.scoring.languages import language_of
from hvdlm.scoring.text import (
    UNIT,
    bleu,
    chrf,
    common_subsequence,
    rouge_figures,
    rouge_rows,
    rouge_tokens,
    translation_figures,
)
from hvdlm.tasks.text_figures import of_answers

ENGLISH = ["the", "a", "cat", "dog", "sat", "on", "mat,", "and", "then", "it", "ran", "away", "home.", "Why?", "(so)"]
CHINESE = list("我们今天去公园散步，天气很好。他说：“不错！”BERT 2018")


@pytest.fixture
def sacrebleu():
    return pytest.importorskip("sacrebleu", reason="sacrebleu is missing: pip install 'hvdlm[tasks]'")


def some_texts(language, num=60, seed=0):
    """Written texts, and one to three references of each."""
    chooses = random.Random(seed)
    words, glue = (CHINESE, "") if language == "zh" else (ENGLISH, " ")
    references = [[chooses.choices(words, k=chooses.randint(1, 20)) for _ in range(1 + n % 3)] for n in range(num)]
    written = [[chooses.choice(words) if chooses.random() < 0.2 else word for word in one[0]] for one in references]
    return [glue.join(one) for one in written], [[glue.join(one) for one in several] for several in references]


def streams(gold):
    most = max(map(len, gold))
    return [[one[place] if place < len(one) else None for one in gold] for place in range(most)]


@pytest.mark.parametrize(("language", "cut"), [("de", "13a"), ("zh-CN", "zh"), ("zh", "char")])
@pytest.mark.parametrize("most", [1, 3], ids=["one reference", "several"])
def test_scores_are_sacrebleus_to_the_last_bit(sacrebleu, language, cut, most):
    written, gold = some_texts(language_of(language))
    gold = [one[:most] for one in gold]
    told = translation_figures(written, gold, language, tokenizer=cut if cut == "char" else None)
    official = sacrebleu.BLEU(tokenize=cut, force=True)
    assert told["bleu"] == official.corpus_score(written, streams(gold)).score
    assert told["bleu_signature"] == str(official.get_signature())
    assert f"tok:{cut}|" in told["bleu_signature"] and f"version:{sacrebleu.__version__}" in told["bleu_signature"]
    official = sacrebleu.CHRF()
    assert told["chrf"] == official.corpus_score(written, streams(gold)).score
    assert told["chrf_signature"] == str(official.get_signature())
    for name in ("bleu", "chrf"):
        assert told[f"{name}_interval"][0] < told[name] < told[f"{name}_interval"][1]


def test_scores_are_of_sums_and_not_means_of_scores(sacrebleu):
    written, gold = some_texts("en")
    metric = bleu("en")
    rows = metric.rows(written, gold)
    parts = [metric.rows(written[part], gold[part]) for part in (slice(0, 11), slice(11, None))]
    assert (np.concatenate(parts) == rows).all()
    assert metric.score(sum(part.sum(0) for part in parts)) == metric.score(rows.sum(0))
    assert np.mean([metric.score(part.sum(0)) for part in parts]) != pytest.approx(metric.score(rows.sum(0)), abs=1e-3)


def test_the_interval_of_bleu_is_that_of_sacrebleus_own_bootstrap(sacrebleu):
    written, gold = some_texts("en", num=100)
    official = sacrebleu.BLEU(force=True).corpus_score(written, streams(gold), n_bootstrap=1000)
    low, high = translation_figures(written, gold, "en")["bleu_interval"]
    assert (high - low) / 2 == pytest.approx(official._ci, rel=0.15)


def test_chinese_is_not_cut_as_english(sacrebleu):
    """One row of 13a's pieces is a whole sentence."""
    written, gold = ["今天天气很好，我们去公园。"], [["今天天气不好，我们去公园。"]]
    by_letters, as_english = translation_figures(written, gold, "zh"), bleu("en")
    assert by_letters["bleu"] > 2 * as_english.score(as_english.rows(written, gold).sum(0))


def test_what_is_written_comes_first(sacrebleu):
    """Precision is of what is written."""
    metric = bleu("en")
    short = metric.score(metric.rows(["the cat sat on"], [["the cat sat on the mat"]]).sum(0))
    long = metric.score(metric.rows(["the cat sat on the mat"], [["the cat sat on"]]).sum(0))
    assert short == pytest.approx(100 * np.exp(1 - 6 / 4))
    assert long == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_nothing_written_scores_nothing(sacrebleu):
    told = translation_figures(["", ""], [["a b c d"], ["e"]], "en")
    assert told["bleu"] == told["chrf"] == 0.0 and told["bleu_interval"] == (0.0, 0.0)


def test_a_missing_cutter_or_library_is_told_in_one_line(sacrebleu, monkeypatch):
    for missing in ("MeCab", "ipadic", "sacrebleu.tokenizers.tokenizer_ja_mecab"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"ja-mecab, which is not installed; pip install 'sacrebleu\[ja\]', or"):
        bleu("ja")
    with pytest.raises(UserError, match="'mecab': there are 13a, intl, zh"):
        bleu("ja", tokenizer="mecab")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"need sacrebleu; pip install 'hvdlm\[tasks\]'"):
        chrf()


def test_a_language_is_said_by_its_code():
    assert language_of("zh_Hans") == language_of("zho") == "zh"
    for name in ("Chinese", "chinese", "", "e", "en "):
        with pytest.raises(UserError, match="say its code"):
            bleu(name)


@pytest.mark.parametrize(
    ("language", "written", "gold", "rouge1", "rouge2", "rouge_l"),
    [
        ("en", "the cat sat", "the cat sat", 1, 1, 1),
        ("en", "The cat, sat!", "the CAT sat", 1, 1, 1),
        ("en", "police killed the gunman", "police kill the gunman", 3 / 4, 1 / 3, 3 / 4),  # Lin 2004
        ("en", "the gunman kill police", "police kill the gunman", 1, 1 / 3, 1 / 2),  # its third sentence
        ("en", "the the the", "the cat", 2 / 5, 0, 2 / 5),
        ("en", "word", "word", 1, 0, 1),  # without a pair of words
        ("zh", "我爱北京天安门", "我爱北京天安门", 1, 1, 1),
        ("zh", "我爱北京", "北京爱我", 1, 1 / 3, 1 / 2),
        ("zh", "使用BERT模型", "BERT 模型", 2 * 3 / 8, 2 * 2 / 6, 2 * 3 / 8),
        ("ru", "Кот сел", "кот встал", 1 / 2, 0, 1 / 2),
        ("en", "", "cat", 0, 0, 0),
    ],
)
def test_rouge_by_hand(language, written, gold, rouge1, rouge2, rouge_l):
    told = rouge_figures([written], [[gold]], language)
    assert [told["rouge1"], told["rouge2"], told["rougeL"]] == pytest.approx([rouge1, rouge2, rouge_l], abs=1e-9)


def test_of_several_references_the_best_counts_and_records_are_averaged():
    told = rouge_figures(["a b", "a b"], [["c", "a b"], ["c d"]], "en")
    assert told["rouge1"] == 0.5 and told["rouge1_interval"] == (0.0, 1.0)
    rows = rouge_rows(["a b", "a b"], [["c", "a b"], ["c d"]], "en")
    assert rows.tolist() == [[UNIT] * 3, [0] * 3]


def test_words_of_other_scripts_stay_whole_between_lone_letters():
    assert rouge_tokens("GPT-2在2019年", "zh") == ["gpt", "2", "在", "2019", "年"]
    assert rouge_tokens("カタカナとASCII", "ja") == [*"カタカナと", "ascii"]
    assert rouge_tokens("snake_case, naïve", "en") == ["snake", "case", "naïve"]


def test_common_subsequences_and_runs_equal_the_slow_way():
    chooses = random.Random(0)
    for _ in range(100):
        one, other = ("".join(chooses.choices("abc", k=chooses.randint(0, 7))) for _ in range(2))
        kept = [set(combinations(text, size)) for text in (one, other) for size in range(8)]
        slow = max(size for size in range(8) if kept[size] & kept[8 + size])
        assert common_subsequence(one, other) == slow, (one, other)
        runs = (one[a:b] for a in range(len(one) + 1) for b in range(a, len(one) + 1))
        assert common_run(one, other) == max(len(run) for run in runs if run in other), (one, other)
    assert common_subsequence(list(range(1000)), list(range(500, 1500))) == 500


@pytest.mark.parametrize(
    ("language", "written", "gold", "exact", "f1"),
    [
        ("en", "The Eiffel-Tower!", "eiffeltower", True, 1),
        ("en", "an apple a day", "apple day", True, 1),
        ("en", "in the Eiffel Tower", "Eiffel tower", False, 0.8),
        ("en", "red red blue", "red", False, 0.5),
        ("en", "theatre", "atre", False, 0),  # an article is a word
        ("en", "", "", True, 1),
        ("en", "the", "a", True, 1),  # both nothing but articles
        ("en", "cat", "", False, 0),
        ("de", "die Katze", "Katze", False, 2 / 3),
        ("de", "„Katze“", "Katze", True, 1),
        ("zh", "《红楼梦》。", "红楼梦", True, 1),
        ("zh", "北京", "北京大学", False, 2 * 2 / 6),
        ("zh", "学大京北", "北京大学", False, 2 * 1 / 8),  # letters out of order are no run
        ("zh", "BERT模型", "bert", False, 2 * 1 / 4),
        ("zh", "1998年", "1998", False, 2 * 1 / 3),
        ("zh", "猫", "狗", False, 0),
    ],
)
def test_answers_by_hand(language, written, gold, exact, f1):
    assert exact_match(written, gold, language) is exact
    assert token_f1(written, gold, language) == pytest.approx(f1)


def test_chinese_answers_are_cut_into_letters_and_words_of_other_scripts():
    assert tokens("约3.14米（π）", "zh") == ["约", "3.14", "米", "π"]
    assert normalized("A, 的、B.", "zh") == "a, 的b."


def test_the_best_of_several_answers_counts():
    told = answer_figures(["Paris, France", "nowhere"], [["Lyon", "Paris"], [""]], "en")
    assert told["exact_match"] == 0.0
    assert told["token_f1"] == pytest.approx(1 / 3)
    told = answer_figures(["paris", ""], [["Lyon", "Paris"], [""]], "en")
    assert told["exact_match"] == told["token_f1"] == 1.0
    assert told["exact_match_interval"][0] < 0.5 and told["exact_match_interval"][1] == 1.0
    rows = answer_rows(["paris", "x"], [["Paris"], ["y"]], "en")
    assert rows.tolist() == [[UNIT, UNIT], [0, 0]]


def test_questions_with_and_without_an_answer_are_judged_apart_too():
    """As SQuAD 2's script: a word for none is wrong, no word for one is wrong."""
    found = of_answers(["a cat", "", "dog", ""], [["cat"], ["bird"], [""], [""]], "en", lines=False).figures
    assert (found["exact_match"], found["num_answerable"], found["num_unanswerable"]) == (0.5, 2, 2)
    assert (found["answerable_exact_match"], found["unanswerable_exact_match"]) == (0.5, 0.5)
    assert found["answerable_exact_match_interval"][0] < 0.5 < found["answerable_exact_match_interval"][1]
    assert "num_answerable" not in of_answers(["cat"], [["cat"]], "en", lines=False).figures
