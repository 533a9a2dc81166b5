"""Each cleaner does what its key says in English and Chinese, leaves the rest alone, and is total, stable, linear."""

from collections import Counter

import pytest
from harness import check_time_is_linear
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.preprocessing.clean import CLEANERS, MAX_MARKS, CleanConfig, make_cleaner
from hvdlm.preprocessing.markup import MAX_PASSES

PROPERTY = settings(deadline=None, derandomize=True, database=None)
SWITCHES = [(name, value) for name, by_value in CLEANERS.items() for value in by_value]
EVERYTHING = {name: list(by_value)[-1] for name, by_value in CLEANERS.items()}

# Any str (surrogates, NUL, astral), and texts made of what the cleaners look for, which chance would not compose.
PIECES = (
    "a¦B¦é¦e\u0301¦\u0316¦汉¦字。¦ｶ¦ﾞ¦Ａ¦，¦１¦\u3000¦\xa0¦ ¦  ¦\t¦\n¦\n\n¦\r¦\r\n¦\x00¦\x0c¦\x85¦\x9f¦\u2028¦\ufeff¦"
    "\u200b¦\u200d¦\ud800¦\udc00¦😀¦Ã¦Ã©¦â€™¦Â\xa0¦œ¦<¦>¦</¦/>¦<b>¦</p>¦<T>¦<!--¦-->¦<script>¦</script>¦<ref>¦</ref>¦"
    "&¦amp;¦&lt;¦&#38;¦&#0;¦&#xd800;¦;¦#¦[[¦]]¦|¦File:¦{{¦}}¦'¦''¦'''¦==¦=¦**¦*¦![¦[¦](¦)¦x.org/"
)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=60),
    st.text(st.characters(max_codepoint=0x17F), max_size=60),
    st.lists(st.sampled_from(PIECES.split("¦")), max_size=25).map("".join),
)


def cleaned(text, **switches):
    return make_cleaner(CleanConfig(**switches))(text, Counter())


def test_everything_is_off_by_default_and_every_key_has_its_cleaners():
    assert list(CleanConfig.model_fields) == list(CLEANERS)
    assert all(default not in CLEANERS[name] for name, default in CleanConfig().model_dump().items())
    text = "\ufeff<b>ＡＢ</b>  \r\n"
    assert make_cleaner(CleanConfig())(text, Counter()) is text


@pytest.mark.parametrize(
    ("name", "value", "text", "expected"),
    [
        ("mojibake", True, "The Mona Lisa doesnâ€™t have eyebrows.", "The Mona Lisa doesn’t have eyebrows."),
        ("mojibake", True, "ä½\xa0å¥½\n好", "你好\n好"),
        ("mojibake", True, "naïve café – “quoted” ﬁne", "naïve café – “quoted” ﬁne"),
        ("mojibake", True, "他说：“你好！”", "他说：“你好！”"),
        ("unicode", "NFC", "e\u0301", "é"),
        ("unicode", "NFC", "ﬁ ① Ａ", "ﬁ ① Ａ"),
        ("unicode", "NFKC", "ﬁ ① Ａ，", "fi 1 A,"),
        ("width", "letters", "Ｐｙｔｈｏｎ３，好！　ｶﾞﾗｽ", "Python3，好！ ガラス"),
        ("width", "all", "（Ａ＋Ｂ）＝１００％，～！", "(A+B)=100%,~!"),
        ("width", "all", "汉字。「あ」ガ～ ①", "汉字。「あ」ガ~ ①"),
        ("control", True, "\ufeffa\x00b\x07\u200bc\xadd", "abcd"),
        ("control", True, "a\r\nb\rc\x0cd\u2028e\tf\n", "a\nb\nc\nd\ne\tf\n"),
        ("control", True, "👨\u200d👩\u200d👧 می\u200cخواهم \u200fעב é", "👨\u200d👩\u200d👧 می\u200cخواهم \u200fעב é"),
        ("control", True, "x\ud800y😀", "xy😀"),
        ("whitespace", True, "a  b \t c\xa0d \r\ne\t\n", "a b c d\ne\n"),
        ("whitespace", True, "a\n\n\n\n \n\nb", "a\n\n\nb"),
        ("whitespace", True, "def f():\n    return 1\n\n\n\tx\ty\n", "def f():\n    return 1\n\n\n\tx\ty\n"),
        ("whitespace", True, "\u3000\u3000段落。\u3000\n", "\u3000\u3000段落。\n"),
        ("repeated_lines", "consecutive", "a\na \n\n\nb\na\n", "a\n\n\nb\na\n"),
        ("repeated_lines", "document", "分享\n正文\n分享\n  分享\n", "分享\n正文\n  分享\n"),
        ("repeated_paragraphs", "consecutive", "a\nb\n\na\nb\n\n\nc\n\na\nb", "a\nb\n\n\nc\n\na\nb"),
        ("repeated_paragraphs", "document", "版权所有\n\n正文\n\n版权所有 \n\n完", "版权所有\n\n正文\n\n完"),
        ("html", True, "<p>Tom &amp; <b>Jerry</b></p>", "\nTom & Jerry\n"),
        ("html", True, "<div class='a'>中文<br/>换行&nbsp;&#20013;&#x6587;</div>", "\n中文\n换行\xa0中文\n"),
        ("html", True, "a<!-- b <i> -->c<script src=x>var a = '<p>';</script>d<STYLE>p {}</STYLE>e", "acde"),
        ("html", True, "<?xml version='1.0'?><!DOCTYPE html><doc id=\"1\">x</doc>", "x"),
        ("html", True, "<note>x</note> <img src=a.png> <custom/>", "x  "),
        ("html", True, "<tr><td>1</td><td>2</td></tr>", "\n 1  2 \n"),
        ("html", True, "&lt;b&gt;x&lt;/b&gt; &amp;amp;lt; &quot;y&quot;", 'x < "y"'),
        ("html", True, "1 < 2 and 3 > 2, a<b, c>d", None),
        ("html", True, "List<Integer> x = f<T>(y); if (a && b) x -> y <- z <3", None),
        ("html", True, "R&D; AT&T &unknown; &amp", None),
        ("html", True, "open <!-- for ever <b>bold</b>", "open <!-- for ever bold"),
        ("html", True, "<<b>b>x", "x"),
        ("wiki", True, "'''Paris''', ''capital'' of [[France]] ([[Lyon|not]]).", "Paris, capital of France (not)."),
        ("wiki", True, "== 历史 ==\n'''北京'''是[[中华人民共和国|中国]]首都。", "历史\n北京是中国首都。"),
        ("wiki", True, "[[File:a.jpg|thumb|A [[cat]]]]x[[分类:城市]][[Category:Y]]", "x"),
        ("wiki", True, "x{{cite|{{lang|fr}}|a}}<ref name=a>b</ref><ref name=a />y", "xy"),
        ("wiki", True, "m = [[1, 2], [3, 4]]; [[ -f x || -d y ]]; a == b == c; it's 'a' ''", None),
        ("markdown", True, 'See [the docs](https://x.org/a_b "title") and ![图](a.png)。', "See the docs and 图。"),
        ("markdown", True, "**Note:** 这是**重点**。", "Note: 这是重点。"),
        ("markdown", True, "[![badge](a.svg)](https://x.org)", "badge"),
        ("markdown", True, "f[i](x.y), a[0](b), 2**3**4, f(**a, **b), # heading, `code`, __init__, [x] (y)", None),
    ],
)
def test_examples(name, value, text, expected):
    assert cleaned(text, **{name: value}) == (text if expected is None else expected)


def test_statistics_count_the_documents_that_each_cleaner_changed():
    statistics = Counter()
    clean = make_cleaner(CleanConfig(unicode="NFC", control=True, whitespace=True))
    assert [clean(text, statistics) for text in ("e\u0301  x", "a  b", "ok", "\x00")] == ["é x", "a b", "ok", ""]
    assert statistics == {"clean_unicode": 1, "clean_whitespace": 2, "clean_control": 1}


def test_text_that_no_cleaner_changes_is_returned_itself():
    text = "Plain text.\n\n" + "正文。" * 9
    assert make_cleaner(CleanConfig(**EVERYTHING))(text, Counter()) is text


def test_damage_that_holds_a_line_separator_character_is_repaired():
    broken = "兄".encode().decode("latin-1")
    assert "\x85" in broken
    assert cleaned(broken + "\n好", mojibake=True) == "兄\n好"


@pytest.mark.parametrize(("name", "value"), SWITCHES)
@PROPERTY
@given(text=TEXTS)
@example(text="\u0f73" * (MAX_MARKS + 1))
@example(text="&" + "amp;" * 99 + "lt;")
@example(text="<" * (2 * MAX_PASSES) + "b>" * (2 * MAX_PASSES))
def test_every_cleaner_is_total_and_changes_nothing_the_second_time(name, value, text):
    clean = CLEANERS[name][value]
    once = clean(text)
    assert clean(once) == once


@PROPERTY
@given(text=TEXTS)
def test_all_cleaners_together_are_total(text):
    assert isinstance(cleaned(text, **EVERYTHING), str)


ADVERSARIES = (
    "          ¦\n ¦\n \n¦<¦>¦<b¦<b>¦<!--¦<script>¦<script¦</b¦<ref>¦<ref ¦<ref/¦{{¦{{a¦[[¦[[a|¦[[a¦''a ¦'''a''b¦"
    "'''''a¦**a ¦**a¦[¦[a](¦[a](b¦[a](b \"¦=¦\n==a¦&¦&amp;¦&#38;¦&amp¦Ã¦Â ¦â€¦\u0301\u0316¦a\u0301¦ﾞ¦\u3000¦\r¦\x00¦"
    "<a b='"
)


@pytest.mark.parametrize(("name", "value"), SWITCHES)
def test_time_is_linear_in_hostile_text(name, value):
    check_time_is_linear(CLEANERS[name][value], ADVERSARIES.split("¦"))


def test_a_wrong_key_or_value_is_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'unicode'"):
        validate(CleanConfig, {"unicod": "NFC"}, tmp_path / "a.yaml")
    with pytest.raises(UserError, match="NFKC"):
        validate(CleanConfig, {"unicode": "nfd"}, tmp_path / "a.yaml")
