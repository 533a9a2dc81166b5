"""What is personal is masked and counted, what only looks so stays; masks are total, stable, linear."""

from collections import Counter

import pytest
from harness import check_time_is_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdlm.preprocessing.pii import MASKS, PiiConfig, make_masker

PROPERTY = settings(deadline=None, derandomize=True, database=None)
ALL = PiiConfig(**dict.fromkeys(MASKS, True))
PIECES = (
    "a¦Z¦7¦0¦12¦-¦.¦:¦/¦@¦ ¦+¦(¦)¦（¦x¦_¦%¦版本¦电话¦v¦元¦\n¦138¦0013¦8000¦13800138000¦+86¦010-¦62345678¦(212)¦"
    "555-0123¦+1 212 555 0123¦1.2.3.4¦10.0.0.7¦2001:db8::7¦fe80:¦::¦a@b.org¦@b.org¦http://¦https://a.org/x¦www.¦.com¦[¦"
    "11010519491231002X¦110105491231002¦110105¦19491231¦<EMAIL>¦<PHONE>¦\ud800¦\x00¦😀¦７"
)
COMPOSED = st.lists(st.sampled_from(PIECES.split("¦")), max_size=20).map("".join)
TEXTS = st.one_of(st.text(st.characters(), max_size=60), COMPOSED)


def masked(text, *kinds):
    return make_masker(PiiConfig(**dict.fromkeys(kinds, True)))(text, Counter())


def test_everything_is_off_by_default():
    text = "a@b.org 13800138000 10.0.0.7 11010519491231002X https://a.org"
    statistics = Counter()
    assert make_masker(PiiConfig())(text, statistics) is text
    assert not statistics
    assert list(PiiConfig.model_fields) == list(MASKS)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("url", "See https://a.org/x?y=1#z, or (http://b.cn).", "See <URL>, or (<URL>)."),
        ("url", "详见https://例.cn 和www.example.com/a_b。FTP://h:21/f", "详见https://例.cn 和<URL>。<URL>"),
        ("url", '<a href="http://user:pw@10.0.0.1:80/">', '<a href="<URL>">'),
        ("email", "Mail Zhang.San+tag@mail.example.co.uk, or x_1@b.cn.", "Mail <EMAIL>, or <EMAIL>."),
        ("email", "联系邮箱：li-si@163.com，或wang@qq.com。", "联系邮箱：<EMAIL>，或<EMAIL>。"),
        ("email", "<a@b.org> mailto:c@d.org ...e@f.org", "<<EMAIL>> mailto:<EMAIL> ...<EMAIL>"),
        ("ip", "host 192.168.1.254:8080, 10.0.0.0/8, [2001:db8::ff00:42:8329]:80", "host <IP>:8080, <IP>/8, [<IP>]:80"),
        ("ip", "服务器地址是8.8.8.8，网关fe80::1%eth0。", "服务器地址是<IP>，网关<IP>%eth0。"),
        ("ip", "2001:0db8:0000:0000:0000:ff00:0042:8329 ::ffff:1.2.3.4", "<IP> ::ffff:<IP>"),
        ("ip", "10.1.1.1-10.1.1.9", "<IP>-<IP>"),
        ("ip", "host = 172.16.0.9", "host = <IP>"),
        ("id_number", "身份证号：11010519491231002X。110105 19491231 002x", "身份证号：<ID>。<ID>"),
        ("id_number", "旧号110105491231002，新号440524188001010014", "旧号<ID>，新号440524188001010014"),
        ("phone", "手机13800138000，138-0013-8000，138 0013 8000", "手机<PHONE>，<PHONE>，<PHONE>"),
        ("phone", "+86 13800138000 +86-138-0013-8000 008613800138000 8613800138000", "<PHONE> <PHONE> <PHONE> <PHONE>"),
        ("phone", "(+86)13800138000、（+86）13800138000/13900139000", "<PHONE>、<PHONE>/<PHONE>"),
        ("phone", "座机010-62345678，（0571）87654321，021-12345678", "座机<PHONE>，<PHONE>，021-12345678"),
        ("phone", "，0755 2345 6789，", "，<PHONE>，"),
        ("phone", "分机010-62345678-801；热线400-810-8888；+86 10 6234 5678", "分机<PHONE>；热线<PHONE>；<PHONE>"),
        ("phone", "**13800138000** 电话:+86 13800138000", "**<PHONE>** 电话:<PHONE>"),
        ("phone", "Call (212) 555-0123, 212-555-0123, 212.555.0123.", "Call <PHONE>, <PHONE>, <PHONE>."),
        ("phone", "or +1 212 555 0123.", "or <PHONE>."),
        ("phone", "1-212-555-0123; +12125550123; +1 (212) 555-0123", "<PHONE>; <PHONE>; <PHONE>"),
        ("phone", "+44 20 7946 0958, +49 30 901820", "<PHONE>, <PHONE>"),
        ("phone", "+33 6 12 34 56 78, +4915112345678", "<PHONE>, <PHONE>"),
    ],
)
def test_what_is_personal_is_masked(kind, text, expected):
    assert masked(text, kind) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("url", "a://b http: // www . https:// awww.b 和://"),
        ("email", "@property\ndef f(a): a @ b; x@y; lodash@4.17.21; logo@2x.png; user@localhost; 微博@张三"),
        ("ip", "version 1.2.3.4, v1.2.3.4, Firefox/1.2.3.4, pkg-1.2.3.4,"),
        ("ip", "pkg==1.2.3.4, >= 1.2.3.4, 1.2.3.4-beta, 1.2.3.4rc1"),
        ("ip", "版本1.2.3.4，第1.2.3.4节，版本号：2.0.0.1；__version__ = '1.2.3.4';"),
        ("ip", "Release: 5.6.7.8; 1.3.6.1.4.1; §1.2.3.4"),
        ("ip", "256.1.1.1 1.2.3 01.2.3.4 0.0.0.0 1.2.3.4.5 1234.5.6.7 127.0.0.1x"),
        ("ip", "std::vector a::b x[1::2] ::1 12:30:45 00:11:22:33:44:55 face::add 2024:01:02 12345:db8::1 dead:beef"),
        ("id_number", "110105194912310021 11010519491331002X 990105194912310029"),
        ("id_number", "A11010519491231002X 1101051949123100210"),
        ("id_number", "110105491331002 123456789012345 991105491231002 0.110105491231002 3.11010519491231002"),
        ("phone", "1234567890 12345678901 10000000000 138001380001"),
        ("phone", "1.13800138000 0.13800138000 $13800138000 13800138000元"),
        ("phone", "2024-01-02 12:30:45 2024/01/02 20240102123045 1700000000 1700000000000 01-02-2024 12.30.2024"),
        ("phone", "978-7-111-54742-6 978-0-13-468599-1 0-306-40615-2 9787111547426 ISSN 1234-5678 4111 1111 1111 1111"),
        ("phone", "3.14159265358979 +1.234567890 -2.7182818284"),
        ("phone", "1e+10000000 6.02214076e+23 1,234,567,890 +1 000 000 000"),
        ("phone", "3.11.7 2.0.0.1 192.168.100.1000 v10.20.300.4000"),
        ("phone", "1-2-3 555-0123 100-200-3000 123-45-6789 x+123456789012"),
        ("phone", "123e4567-e89b-12d3-a456-426614174000 0x13800138000 a13800138000 13800138000b +0800 (1990) 1234"),
        ("phone", "54*249 + 13478400000*I"),
    ],
)
def test_what_only_looks_personal_stays(kind, text):
    assert masked(text, kind) == text


def test_masks_are_counted_by_kind():
    statistics = Counter()
    mask = make_masker(ALL)
    text = mask("https://a.org/?u=x@b.org x@b.org y@b.org 10.0.0.7 11010519491231002X", statistics)
    assert text == "<URL> <EMAIL> <EMAIL> <IP> <ID>"
    assert mask("电话13800138000", statistics) == "电话<PHONE>"
    assert statistics == {"pii_url": 1, "pii_email": 2, "pii_ip": 1, "pii_id_number": 1, "pii_phone": 1}


def test_an_identity_number_needs_its_checksum():
    body = "11010519491231002"
    hits = [last for last in "0123456789X" if masked(body + last, "id_number") == "<ID>"]
    assert hits == ["X"]


def test_text_without_matches_is_returned_itself():
    text = "Plain text, 12345 and 3.14. 正文，2024年。"
    assert make_masker(ALL)(text, Counter()) is text


@PROPERTY
@given(text=TEXTS)
def test_masks_are_total_and_mask_nothing_the_second_time(text):
    mask = make_masker(ALL)
    once = mask(text, Counter())
    again = Counter()
    assert mask(once, again) == once
    assert not again


HOSTILE = (
    "a¦1¦1.¦1.2.3.4.¦1.2.3.4-¦1 ¦(¦+¦+1¦+1 ¦-¦(1¦138¦13800138000¦13800138000-¦a@¦@¦@a.¦a@a.¦a@b.org¦a@b.org@¦http://¦"
    "http://!¦www.¦www.a!¦https://a ¦:¦::¦abcd:¦abcd::¦0¦110105¦11010519491231002X¦1.1.1.1¦010-¦ ¦a-¦（¦86¦+86¦(0571)"
)


@pytest.mark.parametrize("kind", MASKS)
def test_time_is_linear_in_hostile_text(kind):
    check_time_is_linear(lambda text: masked(text, kind), HOSTILE.split("¦"))
