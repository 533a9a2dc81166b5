"""What scores of text must know of its language: whether blanks part its words, and which letters stand alone."""

from __future__ import annotations

import re

from hvdlm.errors import UserError

# Languages that put no blanks between words; their letters are what is compared.
WITHOUT_BLANKS = ("zh", "yue", "ja")
_CODE = re.compile(r"([a-z]{2,3})([-_][A-Za-z0-9]+)*", re.ASCII)
_CHINESE = ("cmn", "zho", "chi")  # other codes of zh
# Han with its extensions, and kana.
LONE_LETTER = r"\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"


def language_of(code: str) -> str:
    """The language of a code such as en, pt-BR or zh_Hans; a name is refused, for it would pass for another language.

    >>> language_of("zh-CN"), language_of("cmn"), language_of("de")
    ('zh', 'zh', 'de')
    """
    matched = _CODE.fullmatch(code)
    if not matched:
        raise UserError(f"language {code!r}: say its code, as en, de, zh or zh-CN")
    return "zh" if matched[1] in _CHINESE else matched[1]
