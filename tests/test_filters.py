"""The first broken rule names the reason; ratios are those of the cited rules; scripts are told apart in any text."""

import unicodedata

import pytest
from harness import check_time_is_linear
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hvdlm.preprocessing.filters import FILTERS, FilterConfig, make_filter, repeated_ratio, script_shares, symbol_ratio

PROPERTY = settings(deadline=None, derandomize=True, database=None)
ANY_TEXT = st.text(st.characters(), max_size=80)
STRICTEST = FilterConfig(
    min_chars=5,
    max_chars=70,
    max_symbol_ratio=0.1,
    max_repeated_line_ratio=0.3,
    max_repeated_paragraph_ratio=0.3,
    scripts=["latin", "cjk"],
    min_script_ratio=0.5,
)


def reason(text, **rules):
    return make_filter(FilterConfig(**rules))(text)


def test_everything_is_off_by_default():
    assert make_filter(FilterConfig())("") is None
    assert make_filter(FilterConfig())("# # # ...\n# # # ...") is None
    assert set(FILTERS) | {"scripts"} == set(FilterConfig.model_fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("An ordinary sentence.\nAnother one.", None),
        ("这是一个普通的句子。\n另一个。", None),
        ("abc", "filter_min_chars"),
        ("a" * 71, "filter_max_chars"),
        ("#love #fun #cats today", "filter_max_symbol_ratio"),
        ("read more... or less...", "filter_max_symbol_ratio"),
        ("one\none\none\ntwo", "filter_max_repeated_line_ratio"),
        ("one\nx\n\none\nx\n\n", "filter_max_repeated_line_ratio"),
        ("Обычное предложение.", "filter_min_script_ratio"),
        ("12345 67890", "filter_min_script_ratio"),
    ],
)
def test_the_first_broken_rule_is_the_reason(text, expected):
    assert make_filter(STRICTEST)(text) == expected


def test_limits_are_inclusive():
    assert reason("abc", min_chars=3, max_chars=3) is None
    assert reason("# a b c", max_symbol_ratio=0.25) is None
    assert reason("a\na", max_repeated_line_ratio=0.5) is None
    assert reason("a\n\na", max_repeated_paragraph_ratio=0.5) is None
    assert reason("aб", scripts=["latin"], min_script_ratio=0.5) is None
    assert reason("aбα漢かな한", scripts=["latin", "cyrillic", "greek", "cjk"], min_script_ratio=1.0) is None


def test_repeated_paragraphs_are_told_from_repeated_lines():
    assert reason("a\nb\n\na\nb\n \nc", max_repeated_paragraph_ratio=0.3) == "filter_max_repeated_paragraph_ratio"
    assert reason("a\nb\n\na\nc", max_repeated_paragraph_ratio=0) is None


def test_symbols_count_per_word_and_han_and_kana_are_words():
    assert symbol_ratio("") == symbol_ratio("plain text. 句子。") == 0
    assert symbol_ratio("#") == 1
    assert symbol_ratio("a… b... c d") == 0.5
    assert symbol_ratio("他走了……") == 0.25  # 3 characters and a run without blanks; ...... in Chinese is one ellipsis
    assert symbol_ratio("#标签 正文正文") == 1 / 8


def test_blank_lines_repeat_nothing():
    assert repeated_ratio(["", " ", "", "a"]) == 0
    assert repeated_ratio([]) == 0


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Straße ﬁancé Ａ", "latin"),
        ("Привет", "cyrillic"),
        ("Ελληνικά ἀρχή", "greek"),
        ("שלום", "hebrew"),
        ("مرحبا ﷺ", "arabic"),
        ("नमस्ते", "devanagari"),
        ("বাংলা", "bengali"),
        ("தமிழ்", "tamil"),
        ("తెలుగు", "telugu"),
        ("ภาษาไทย", "thai"),
        ("ქართული", "georgian"),
        ("Հայերեն", "armenian"),
        ("汉字漢字〇々𠀀豈", "han"),
        ("ひらがなカタカナｶﾅー", "kana"),
        ("한국어ㄱ", "hangul"),
        ("አማርኛ", "other"),
    ],
)
def test_scripts(text, script):
    assert script_shares(text) == {script: 1.0}
    assert script_shares(f"1, 2: {text} \U0001f600!") == {script: 1.0}


def test_only_letters_count():
    assert script_shares("") == script_shares("123 ,。！😀\u0301×÷ª"[:-1]) == {}
    assert script_shares("ab12, 汉字。") == {"latin": 0.5, "han": 0.5}


def test_cjk_is_han_kana_and_hangul():
    for text in ("汉字", "かな", "한글", "漢字かな한글"):
        assert reason(text, scripts=["cjk"], min_script_ratio=1.0) is None
    assert reason("汉字", scripts=["kana", "hangul"], min_script_ratio=0.1) == "filter_min_script_ratio"


def test_script_names_agree_with_the_names_of_the_characters():
    """A letter whose name begins with a script's counts for it; but a few phonetic ones amid another script's block."""
    own = "latin greek cyrillic armenian hebrew arabic devanagari bengali tamil telugu thai georgian hangul"
    prefixes = {name.upper(): name for name in own.split()} | {"CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana"}
    wrong = []
    for char in map(chr, range(0x10000)):
        expected = prefixes.get(unicodedata.name(char, "").partition(" ")[0])
        if expected and unicodedata.category(char)[0] == "L" and script_shares(char) != {expected: 1.0}:
            wrong.append(unicodedata.name(char))
    assert len(wrong) <= 13, wrong


@pytest.mark.parametrize(
    "rules",
    [
        {"min_chars": 9, "max_chars": 8},
        {"scripts": ["latin"]},
        {"min_script_ratio": 0.5},
        {"scripts": ["klingon"], "min_script_ratio": 0.5},
        {"max_repeated_line_ratio": 1.5},
        {"min_chars": -1},
    ],
)
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(ValidationError):
        FilterConfig(**rules)


@PROPERTY
@given(text=ANY_TEXT)
def test_filters_are_total_and_shares_add_up(text):
    assert make_filter(STRICTEST)(text) in {None, *(f"filter_{key}" for key in FILTERS)}
    shares = script_shares(text)
    assert all(share > 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1 if shares else 0)


@PROPERTY
@given(text=st.text(st.characters(max_codepoint=127), max_size=80))
def test_ascii_goes_the_short_way_to_the_same_shares(text):
    letters = script_shares(text + "é")
    assert letters == {"latin": 1.0}
    assert script_shares(text) == ({"latin": 1.0} if any(map(str.isalpha, text)) else {})


def test_time_is_linear_in_hostile_text():
    check = make_filter(STRICTEST.model_copy(update={"max_chars": None, "min_chars": None}))
    check_time_is_linear(check, ("\n ", "\n", " ", ".", "…", "#", "é", "汉", "a\n\n"))
