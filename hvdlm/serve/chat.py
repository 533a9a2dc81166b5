"""Messages to ids: by the chat template of the run's tokenizer, or plainly where it has none.

A template is a program from a stranger, so jinja runs it in a sandbox. What it writes itself may be special tokens;
what people wrote never becomes one.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hvdlm.errors import UserError
from hvdlm.exchange.manners import read_template, template_in
from hvdlm.exchange.tokenizer_files import files_if_any
from hvdlm.serve.faults import wrong
from hvdlm.serve.requests import Message
from hvdlm.tokenizer import Tokenizer

PLAIN = "plain: the texts of all messages with a blank line between them"
APART = "\ufdd0"  # no character; put into what people wrote, so that no special token's name stands there


class Specials:
    """Tokens that stand for themselves alone, by name; none where the vocabulary has no file that tells of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        files = files_if_any(tokenizer)
        self.ids, self.config = files.special_ids, files.config
        longest_first = sorted(self.ids, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first))) if self.ids else None

    def hidden(self, text: str) -> str:
        """A text in which no special token's name stands any more."""
        text = text.replace(APART, "")
        return self._names.sub(lambda found: found[0][:1] + APART + found[0][1:], text) if self._names else text

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which the names of special tokens are tokens, but for what was `hidden`; no ends added."""
        ids: list[int] = []
        start = 0
        for found in self._names.finditer(text) if self._names else ():
            ids += [*self._plain(text[start : found.start()]), self.ids[found[0]]]
            start = found.end()
        return ids + self._plain(text[start:])

    def _plain(self, text: str) -> list[int]:
        text = text.replace(APART, "")
        return self._tokenizer.encode(text).tolist() if text else []


class Chat:
    """How messages become a prompt; `origin` says by what."""

    def __init__(self, specials: Specials, template: str | None, origin: str, begin: Sequence[int]) -> None:
        self.specials, self.origin, self._begin = specials, origin if template is not None else PLAIN, list(begin)
        self._template = None
        if template is not None:
            try:
                self._template = _environment().from_string(template)
            except TemplateError as error:
                raise UserError(f"{origin}: is no chat template ({error}); mend it, or give another one") from None

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's; a Fault where the template refuses the messages."""
        return self.encode(self.text(messages))

    def encode(self, text: str) -> list[int]:
        """Ids of what `text` gives."""
        return [*(self._begin if self._template is None else ()), *self.specials.encode(text)]

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt with the names of special tokens; a Fault where the template refuses the messages."""
        if self._template is None:
            return self.specials.hidden("\n\n".join(message.content for message in messages))
        try:
            return self._template.render(
                messages=[self._shown(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                bos_token=self.specials.config.get("bos_token", ""),
                eos_token=self.specials.config.get("eos_token", ""),
            )
        except Exception as error:  # whatever a stranger's program does wrong with these messages
            # What a template says of itself may be shown; any other error could hold a part of a message.
            why = str(error) if isinstance(error, TemplateError) else type(error).__name__
            raise wrong("messages", f"messages: the chat template refuses them ({why[:200]})") from None

    def _shown(self, message: Message) -> dict[str, str]:
        role = "system" if message.role == "developer" else message.role
        name = {} if message.name is None else {"name": self.specials.hidden(message.name)}
        return {"role": role, "content": self.specials.hidden(message.content), **name}


def find_template(run: Path, given: Path | None) -> tuple[str | None, str]:
    """The text of a chat template and where it is from: the file given, or what lies beside the run's tokenizer."""
    return template_in(run) if given is None else (read_template(given), str(given))


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up, which templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: time.strftime(form)
    return environment


def _as_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own would write < and > as HTML does."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
