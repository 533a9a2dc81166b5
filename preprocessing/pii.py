"""Masking personal data: what looks like an address, number or link of a person becomes `<KIND>`.

Patterns find, and code checks (ranges, checksums, dates, neighbours), so ordinary numbers stay. Numbers are ASCII
digits; `clean.width` turns full-width ones into these first. Names and postal addresses are not found.
Nothing here keeps or logs what it masked. Every search is linear: repetitions are bounded, or end where the next
begins.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pydantic import Field

from hvdlm.config import Section


class PiiConfig(Section):
    """The `pii` section: which kinds to mask, in the order of application. All are off by default."""

    url: bool = Field(False, description="http, https, ftp and www. links become <URL>")
    email: bool = Field(False, description="e-mail addresses become <EMAIL>")
    ip: bool = Field(False, description="IPv4 and IPv6 addresses become <IP>; version numbers stay")
    id_number: bool = Field(False, description="Chinese resident identity numbers of 18 and 15 digits become <ID>")
    phone: bool = Field(False, description="Chinese, North American and +country phone numbers become <PHONE>")


# A mask can free its neighbour (`1.2.3.4-13800138000`: the dash and digit are gone), so passes repeat until none
# masks anything; the bound is for adversaries.
MAX_PASSES = 8


def make_masker(config: PiiConfig) -> Callable[[str, Counter[str]], str]:
    """The function that masks what `config` switches on, and counts the masks as `pii_KEY`.

    >>> statistics = Counter()
    >>> make_masker(PiiConfig(email=True, phone=True))("a@b.org 或 138-0013-8000", statistics)
    '<EMAIL> 或 <PHONE>'
    >>> sorted(statistics.items())
    [('pii_email', 1), ('pii_phone', 1)]
    """
    chosen = [(f"pii_{name}", mask) for name, mask in MASKS.items() if getattr(config, name)]

    def mask_all(text: str, statistics: Counter[str]) -> str:
        for _ in range(MAX_PASSES if chosen else 0):
            before = text
            for name, mask in chosen:
                text, num_masked = mask(text)
                if num_masked:
                    statistics[name] += num_masked
            if text is before:
                break
        return text

    return mask_all


def _substitute(spans: Iterable[tuple[int, int]], mask: str, text: str) -> tuple[str, int]:
    """Put `mask` for the spans [start, end), which ascend; (`text` itself, 0) when there are none."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [text[position:start], mask]
        position = end
    return ("".join(pieces) + text[position:], len(pieces) // 2) if pieces else (text, 0)


# --- Links and addresses of mail ------------------------------------------------------------------------------

# The characters of RFC 3986, so a link ends where Chinese text begins; the last of a link is no punctuation.
_URL = re.compile(
    r"(?:(?:https?|ftp)://|(?<![a-z0-9])www\.)[a-z0-9\[](?:[a-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*[a-z0-9_~/#=&%+-])?",
    re.IGNORECASE | re.ASCII,
)


def mask_url(text: str) -> tuple[str, int]:
    """(masked text, number of links); host names of ASCII only.

    >>> mask_url("见https://a.org/x?y=1。 (www.b.cn/z).")
    ('见<URL>。 (<URL>).', 2)
    """
    if "://" not in text and "www." not in text and "WWW." not in text:
        return text, 0
    return _substitute((match.span() for match in _URL.finditer(text)), "<URL>", text)


# From the @ on: sre finds one character far faster than a class that most of the text belongs to, and looking
# back from it keeps a long word without @ from being tried at each letter. `logo@2x.png` is a file.
_AT_DOMAIN = re.compile(r"@(?!\dx\.)(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")
_LOCAL_PART_BACKWARDS = re.compile(r"[A-Za-z0-9._%+-]{0,63}[A-Za-z0-9_%+]")
MAX_LOCAL_PART = 64  # RFC 5321


def mask_email(text: str) -> tuple[str, int]:
    """(masked text, number of addresses): local@domain.tld in ASCII.

    >>> mask_email("邮箱zhang.san+a@mail.example.cn。 @decorator x@2")
    ('邮箱<EMAIL>。 @decorator x@2', 1)
    """
    return _substitute(_emails(text), "<EMAIL>", text)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    position = 0
    for match in _AT_DOMAIN.finditer(text):
        at = match.start()
        local = _LOCAL_PART_BACKWARDS.match(text[max(position, at - MAX_LOCAL_PART) : at][::-1])
        if local:
            position = match.end()
            yield at - local.end(), position


# --- Addresses of machines ------------------------------------------------------------------------------------

_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_VERSION_BEFORE = re.compile(
    r"(?:(?<![a-z])(?:v|ver|version|release|rev|revision|build|section|sec|chapter)[\W_]{0,8}"
    r"|(?:版本号?|版|第|章|节|§)[\W_]{0,4}|[=~<>!^]=\s?|[a-z]/|[a-z_]-|[a-z0-9_]\.|[a-z0-9_])\Z",
    re.IGNORECASE,
)
_VERSION_AFTER = re.compile(r"[A-Za-z0-9_]|\.[0-9]|-[A-Za-z]|\s?[版节章条]")

# The first group of every address in use has 4 digits (2000::/3, fc00::/7, fe80::/10, ff00::/8), which tells it
# from slices (1::2) and C++ names (a::b).
_IPV6 = re.compile(r"[0-9A-Fa-f]{4}:(?:[0-9A-Fa-f]{0,4}:){1,6}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4})")
_MAYBE_IPV6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
_WORD_BEFORE = re.compile(r"[\w:]\Z", re.ASCII)
_WORD_AFTER = re.compile(r"[\w:]|\.[0-9]", re.ASCII)


def mask_ip(text: str) -> tuple[str, int]:
    """(masked text, number of addresses); versions, 0.x.x.x, and addresses as short as `::1` stay.

    >>> mask_ip("from 10.0.0.7:80 and 2001:db8::7, version 1.2.3.4, 12:30:45")
    ('from <IP>:80 and <IP>, version 1.2.3.4, 12:30:45', 2)
    """
    num_ipv6 = 0
    if _MAYBE_IPV6.search(text):
        text, num_ipv6 = _substitute((m.span() for m in _IPV6.finditer(text) if _is_ipv6(m)), "<IP>", text)
    text, num_ipv4 = _substitute((m.span() for m in _IPV4.finditer(text) if _is_ipv4(m)), "<IP>", text)
    return text, num_ipv6 + num_ipv4


def _is_ipv4(match: re.Match[str]) -> bool:
    octets = match[0].split(".")
    # 0.x.x.x is no host, and many versions begin so.
    if octets[0] == "0" or any(int(octet) > 255 or (octet[0] == "0" and octet != "0") for octet in octets):
        return False
    return _stands_alone(match, _VERSION_BEFORE, _VERSION_AFTER)


def _is_ipv6(match: re.Match[str]) -> bool:
    if not any(char.isdigit() for char in match[0]) or not _stands_alone(match, _WORD_BEFORE, _WORD_AFTER):
        return False
    try:
        ipaddress.IPv6Address(match[0])
    except ValueError:
        return False
    return True


def _stands_alone(match: re.Match[str], before: re.Pattern[str], after: re.Pattern[str]) -> bool:
    """Whether neither `before` ends where the match starts nor `after` starts where it ends."""
    text, start = match.string, match.start()
    return not before.search(text[max(0, start - 24) : start]) and not after.match(text, match.end())


# --- Numbers of persons ---------------------------------------------------------------------------------------

_ID_NUMBER = re.compile(r"[1-9][0-9]{5}[ -]?(?:19|20)[0-9]{6}[ -]?[0-9]{3}[0-9Xx](?![0-9])|[1-9][0-9]{14}(?![0-9])")
_NUMBER_BEFORE = re.compile(r"(?:[A-Za-z0-9_]|[0-9][.-])\Z")
_NUMBER_AFTER = re.compile(r"[A-Za-z0-9_]|[.-][0-9]")
# GB/T 2260: provinces, Taiwan, Hong Kong, Macau; 81-83 and 91 are on residence permits and for foreigners.
_REGIONS = frozenset(
    [*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83, 91]
)


def mask_id_number(text: str) -> tuple[str, int]:
    """(masked text, number of Chinese resident identity numbers): region, valid date, checksum (GB 11643-1999).

    >>> mask_id_number("身份证11010519491231002X，编号110105194912310021")
    ('身份证<ID>，编号110105194912310021', 1)
    """
    return _substitute((match.span() for match in _ID_NUMBER.finditer(text) if _is_id_number(match)), "<ID>", text)


def _is_id_number(match: re.Match[str]) -> bool:
    digits = match[0].replace(" ", "").replace("-", "").upper()
    if int(digits[:2]) not in _REGIONS or not _stands_alone(match, _NUMBER_BEFORE, _NUMBER_AFTER):
        return False
    if len(digits) == 15:  # issued up to 1999: a year of two digits, no checksum
        return _is_date("19" + digits[6:12])
    return _is_date(digits[6:14]) and _has_mod_11_2_checksum(digits)


def _is_date(digits: str) -> bool:
    try:
        datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


def _has_mod_11_2_checksum(digits: str) -> bool:
    """ISO 7064 MOD 11-2, where X is 10: the digits weighted by powers of 2 leave 1.

    >>> _has_mod_11_2_checksum("11010519491231002X")
    True
    """
    values = [10 if digit == "X" else int(digit) for digit in digits]
    return sum(value << power for power, value in enumerate(reversed(values))) % 11 == 1


# Where a phone number may be; the costly pattern runs there alone. Runs are taken whole, so this is linear.
_PHONE_RUN = re.compile(r"[0-9+(（][0-9 ()（）.+-]{6,}")
_PHONE = re.compile(
    r"""
    (?:(?:\+|00)86[ -]?|[(（]\+?86[)）][ -]?|86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}  # Chinese mobile
    | (?:(?:\+|00)86[ -]?)?                                                             # Chinese landline
      (?:[(（]0(?:10|2[0-9]|[3-9][0-9]{2})[)）][ -]?|0(?:10|2[0-9]|[3-9][0-9]{2})[ -])
      [2-9][0-9]{2,3}[ -]?[0-9]{4}(?:-[0-9]{1,5})?
    | [48]00-[0-9]{3}-[0-9]{4}                                                          # Chinese service
    | (?:\+?1[ .-]?)?(?:\([2-9][0-9]{2}\)[ ]?[2-9][0-9]{2}[ .-]?|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1)[0-9]{4}  # NANP
    | \+[1-9][0-9]{0,2}(?:[ .-]?(?:\([0-9]{1,4}\)|[0-9]{1,5})){1,6}                     # ITU-T E.164
    """,
    re.VERBOSE,
)
_PHONE_BEFORE = re.compile(r"(?:[A-Za-z0-9_$¥￥€£+]|[0-9][.-])\Z")
_PHONE_AFTER = re.compile(r"[A-Za-z0-9_%]|[.-][0-9]|\s?(?:元|美元|万|亿|bytes\b)|\*[A-Za-z0-9]")
_NOT_E164 = re.compile(r"\+[0-9]+\.[0-9]+\Z|\+1[ .-]?\(?[01]|.*(?:[ .]000){2}")


def mask_phone(text: str) -> tuple[str, int]:
    """(masked text, number of phone numbers). A number of 11 digits that begins like a Chinese mobile counts as one.

    >>> mask_phone("电话：010-62345678、+86 13800138000；(212) 555-0123, 2024-01-02, 1234567890, 3.14159265")
    ('电话：<PHONE>、<PHONE>；<PHONE>, 2024-01-02, 1234567890, 3.14159265', 3)
    """
    runs = _PHONE_RUN.finditer(text)
    matches = (match for run in runs for match in _PHONE.finditer(text, run.start(), run.end()))
    return _substitute((match.span() for match in matches if _is_phone(match)), "<PHONE>", text)


def _is_phone(match: re.Match[str]) -> bool:
    if match[0].startswith("+"):
        num_digits = sum(char.isdigit() for char in match[0])
        if not 9 <= num_digits <= 15 or _NOT_E164.match(match[0]):
            return False
    return _stands_alone(match, _PHONE_BEFORE, _PHONE_AFTER)


# Links first, as they hold the others; identity numbers before phones, as they are stricter.
MASKS: dict[str, Callable[[str], tuple[str, int]]] = {
    "url": mask_url,
    "email": mask_email,
    "ip": mask_ip,
    "id_number": mask_id_number,
    "phone": mask_phone,
}
