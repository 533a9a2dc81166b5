"""Markup to plain text: HTML/XML, MediaWiki, Markdown. What each removes is listed at its function.

These are for crawled text. In source code they would take templates (`vector<p>`), `[[x]]` and `a**b**c` apart.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable
from html.entities import name2codepoint

# Removing markup can complete other markup (`<<b>b>`, `&amp;lt;`), so passes repeat until nothing changes.
# Real text needs 2 or 3; one that needs more is a puzzle, not a document, and stays as it is.
MAX_PASSES = 16


def _until_stable(one_pass: Callable[[str], str]) -> Callable[[str], str]:
    """Repeat `one_pass` until it changes nothing; the text itself where MAX_PASSES are too few."""

    @functools.wraps(one_pass)
    def strip(text: str) -> str:
        current = text
        for _ in range(MAX_PASSES):
            before, current = current, one_pass(current)
            if current == before:
                return current
        return text

    return strip


# --- HTML -----------------------------------------------------------------------------------------------------

_BLOCKS = frozenset(
    "address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure "  # noqa: SIM905
    "footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main menu nav ol option p pre section summary "
    "table tbody tfoot thead title tr ul".split()
)
_CELLS = frozenset(["td", "th"])
_INLINE = frozenset(
    "a abbr acronym area audio b base bdi bdo big button canvas cite code col colgroup data datalist del dfn em "  # noqa: SIM905
    "embed font frame frameset i iframe img input ins kbd label link map mark meta meter noframes noscript object "
    "optgroup output param picture progress q rp rt ruby s samp script select small source span strike strong style "
    "sub sup svg template textarea time track tt u var video wbr".split()
)
_KNOWN = _BLOCKS | _CELLS | _INLINE

# Neither < nor > inside: each search ends at the next bracket, so all of them together are linear. sre has no
# such bound for a lazy `.*?`, therefore _cut looks for the ends of comments and scripts.
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9:._-]*)((?:[\s/][^<>]*)?)>")
_DECLARATION = re.compile(r"<[!?][A-Za-z\[][^<>]*>")
_CLOSED_NAME = re.compile(r"</([A-Za-z][A-Za-z0-9:._-]*)\s*>")
_HIDDEN = re.compile(r"<(script|style)(?:[\s/][^<>]*)?>", re.IGNORECASE)
_HIDDEN_END = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in ("script", "style")}
_ATTRIBUTES = re.compile(r"""\s+[\w:.-]+\s*=\s*["'\w]""")
# & written once or more times over, then the others; html.unescape knows the odd numbers (0, 0x80, surrogates).
_AMPERSANDS = re.compile(r"&(?:amp;|#0{0,5}38;|#[xX]0{0,5}26;)+")
_ENTITY = re.compile(r"&(?:([A-Za-z][A-Za-z0-9]{1,7})|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")


@_until_stable
def strip_html(text: str) -> str:
    """Remove tags, comments, declarations, scripts and styles; decode entities.

    A tag is removed if HTML knows its name, or if it closes, has attributes or closes itself; of unknown names
    (`<T>`) only when the text closes them too. So `a < b > c` and `List<Integer>` stay. Block tags and <br>
    become a newline, cells a space, others nothing. Entities are those of HTML 4 and numbers, with their
    semicolon. Escaped tags go like others: `&lt;b&gt;` is how XML dumps hold markup.

    >>> strip_html("<p>Fish &amp; <b class='x'>chips</b><br/>1 < 2</p>")
    '\\nFish & chips\\n1 < 2\\n'
    """
    if "<!--" in text:
        text = _cut_comments(text)
    if "<" in text and ">" in text:
        text = _cut_hidden(text)
        text = _DECLARATION.sub("", text)
        closed = {name.lower() for name in _CLOSED_NAME.findall(text)}
        text = _TAG.sub(lambda match: _without_tag(match, closed), text)
    if "&" in text:
        text = _AMPERSANDS.sub("&", text)
        text = _ENTITY.sub(_decode_entity, text)
    return text


def _cut_comments(text: str) -> str:
    first, *rest = text.split("<!--")
    kept, open_from = [first], len(rest)
    for i, piece in enumerate(rest):
        _, end, after = piece.partition("-->")
        if end:
            kept.append(after)
            open_from = len(rest)
        elif open_from == len(rest):
            open_from = i
    # A comment that nothing closes hides nothing: its start and all that follows stay.
    return "".join(kept) + "".join("<!--" + piece for piece in rest[open_from:])


def _cut_hidden(text: str) -> str:
    """Without <script> and <style>, contents included; an unclosed one is left to be a tag."""
    kept, position = [], 0
    unclosed: set[str] = set()
    for match in _HIDDEN.finditer(text):
        name = match[1].lower()
        if match.start() < position or name in unclosed:
            continue
        end = _HIDDEN_END[name].search(text, match.end())
        if end is None:
            unclosed.add(name)  # nor does anything close a later one
            continue
        kept.append(text[position : match.start()])
        position = end.end()
    return "".join(kept) + text[position:] if kept else text


def _without_tag(match: re.Match[str], closed: set[str]) -> str:
    slash, name, rest = match[1], match[2].lower(), match[3]
    if not (slash or name in _KNOWN or name in closed or rest.endswith("/") or _ATTRIBUTES.match(rest)):
        return match[0]
    return "\n" if name in _BLOCKS else " " if name in _CELLS else ""


def _decode_entity(match: re.Match[str]) -> str:
    is_known = match[1] is None or match[1] in name2codepoint or match[1] == "apos"
    return html.unescape(match[0]) if is_known else match[0]


# --- MediaWiki ------------------------------------------------------------------------------------------------

_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_LINK = re.compile(r"\[\[([^\[\]|\n]+)((?:\|[^\[\]|\n]*)*)\]\]")
_MEDIA = re.compile(r"\s*:?\s*(?:file|image|media|category|文件|檔案|图像|圖像|分类|分類)\s*:", re.IGNORECASE)
_REFERENCE = re.compile(r"<ref(?:\s[^<>]*)?(?:/>|(?<!/)>[^<>]*</ref\s*>)", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!')('{2,3}|'{5})((?:[^'\n]|(?<!')'(?!'))+)\1(?!')")
_HEADING = re.compile(r"^(={2,6})([^=\n]+)\1[ \t]*$", re.MULTILINE)


@_until_stable
def strip_wiki(text: str) -> str:
    """Remove MediaWiki markup: `[[target|label]]` and `[[target]]` (their last part stays; files and categories
    go), `''italic''` and `'''bold'''`, `== heading ==`, `{{template}}`, `<ref>...</ref>`. Tables stay.

    >>> strip_wiki("== Mozart ==\\n'''Mozart''' was born in [[Salzburg|the city]].<ref>A</ref>{{cn}}")
    'Mozart\\nMozart was born in the city.'
    """
    if "<ref" in text:
        text = _REFERENCE.sub("", text)
    if "{{" in text:
        text = _TEMPLATE.sub("", text)
    if "[[" in text:
        text = _LINK.sub(_link_label, text)
    if "''" in text:
        text = _QUOTED.sub(r"\2", text)
    if "==" in text:
        text = _HEADING.sub(lambda match: match[2].strip(), text)
    return text


def _link_label(match: re.Match[str]) -> str:
    """`[[Target|label]]` -> label. A target starts with a letter, so that [[1, 2]] is still a matrix."""
    target, label = match[1], match[2].rpartition("|")[2]
    if _MEDIA.match(target):
        return ""
    if not target[0].isalpha() or match[2].startswith("||"):
        return match[0]
    return label or target


# --- Markdown -------------------------------------------------------------------------------------------------

# The target is a word with a dot, slash, hash or colon, or is empty: f[i](x) is no link.
_MARKDOWN_LINK = re.compile(
    r"(?<![\w\])])!?\[([^\[\]\n]*)\]\(<?(?=[^\s()<>]*[./#:])[^\s()<>]*>?(?:[ \t]+\"[^\"\n()]*\")?\)"
)
_MARKDOWN_BOLD = re.compile(r"(?<![\w*])\*\*(?=[^\s*])([^*\n]+)(?<!\s)\*\*(?![\w*])", re.ASCII)


@_until_stable
def strip_markdown(text: str) -> str:
    """`![alt](url)` and `[text](url)` become alt and text, `**bold**` becomes bold. Headings, lists, tables and
    code stay: their signs mean other things elsewhere, or carry the structure.

    >>> strip_markdown("**Read** [the docs](https://x.org/a) ![logo](a.png)")
    'Read the docs logo'
    """
    if "](" in text:
        text = _MARKDOWN_LINK.sub(r"\1", text)
    if "**" in text:
        text = _MARKDOWN_BOLD.sub(r"\1", text)
    return text
