"""The commands of a shell script, found without running it: enough for the checks of job scripts. Pure.

Not a shell: it knows words, quotes, comments, here-documents, redirections, groups, functions and loops, and leaves
words as written, so that a check sees what the shell would expand. What it cannot read it passes over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

KEYWORDS = {"if", "then", "elif", "else", "while", "until", "do", "!", "time", "{"}
OPENING = {"{": "{", "do": "do", "then": "then", "(": "("}
CLOSING = {"}": "{", "done": "do", "fi": "then", ")": "("}
WORD_ENDS = " \t\n;&|<>()"

_OPERATOR = re.compile(r"&&|\|\||\|&|;;&|;&|;;|[\n;|()]|&(?!>)")
_REDIRECTION = re.compile(r"(?:\d*|&)(<<<|<<-?|>>|[<>]&|<>|>\||[<>])")


@dataclass(frozen=True)
class ShellCommand:
    """One simple command, words as written (quotes and `$` kept)."""

    line: int
    words: tuple[str, ...]
    targets: tuple[str, ...] = ()  # of its redirections
    in_background: bool = False
    in_loop: bool = False
    is_tested: bool = False  # its status is looked at: by if, while, !, && or ||, or it is lost in a pipeline
    function: str = ""  # whose body it stands in
    in_subshell: bool = False  # whose settings end with it

    @cached_property
    def name(self) -> str:
        """The program or builtin, without its folder and what only sets it up; "" for bare assignments."""
        found = self.arguments
        return base_name(found[0]) if found else ""

    @property
    def assignments(self) -> dict[str, str]:
        """NAME=value before the command, or of `export`."""
        words = self.words
        if words and words[0] in ("export", "declare", "typeset", "readonly"):
            words = tuple(word for word in words[1:] if not word.startswith("-"))
        found = {}
        for word in words:
            match = re.match(r"([A-Za-z_]\w*)=", word)
            if match is None:
                break
            found[match[1]] = word[match.end() :]
        return found

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The words from the program's name on."""
        for at, word in enumerate(self.words):
            if not re.match(r"[A-Za-z_]\w*=", word):
                return behind_wrappers(self.words[at:])
        return ()

    @cached_property
    def substitutions(self) -> tuple[ShellCommand, ...]:
        """The commands in `$(…)` of its words, with its line. The shell waits for them: none is in the background."""
        found: list[ShellCommand] = []
        here = replace(self, in_background=False, is_tested=True)
        for word in self.words:
            at = -1 if word.startswith("'") else word.find("$(")
            while at >= 0:
                end = _parenthesis_end(word, at + 2)
                inside = read_body(word[at + 2 : end - 1], self.line).commands
                found += [replace(here, words=each.words, targets=each.targets) for each in inside]
                at = word.find("$(", end)
        return tuple(found)


@dataclass(frozen=True)
class Body:
    """A script below its #SBATCH lines."""

    text: str = ""
    commands: tuple[ShellCommand, ...] = ()
    comments: tuple[tuple[int, str], ...] = ()
    documents: tuple[tuple[int, str], ...] = ()  # here-documents that the shell expands: the first line, the text

    def named(self, *names: str) -> list[ShellCommand]:
        return [command for command in self.commands if command.name in names]

    @property
    def exports(self) -> dict[str, str]:
        """What the script sets in the environment, as written; the last value of each."""
        found: dict[str, str] = {}
        for command in self.commands:
            if command.name in ("", "export", "declare", "typeset"):
                found |= command.assignments
        return found


# What starts another program in its own place, and which of its options are followed by a word of theirs.
_WRAPPERS = dict.fromkeys(["nohup", "command", "setsid", "chrt", "catchsegv", "eval"], "") | {
    "exec": "-a",
    "env": "-u --unset -C --chdir",
    "time": "-f -o",
    "timeout": "-s --signal -k --kill-after",
    "stdbuf": "-i -o -e",
    "nice": "-n",
    "ionice": "-c -n",
    "numactl": "-N -m -C -p -i --cpunodebind --membind --physcpubind",
    "taskset": "-c",
}


def base_name(word: str) -> str:
    """A program's name without its folder and quotes."""
    return unquote(word).rpartition("/")[2]


def behind_wrappers(words: tuple[str, ...]) -> tuple[str, ...]:
    """Past exec, env, timeout and their like, whose own options and numbers are skipped too."""
    at = 0
    while at < len(words) and (wrapper := base_name(words[at])) in _WRAPPERS:
        at += 1
        while at < len(words) and re.match(r"-|(0x)?[\d,-]+[smhd]?$|[A-Za-z_]\w*=", words[at]):
            at += 1 + (words[at] in _WRAPPERS[wrapper].split())
    return words[at:] or words[:1]


SHELLS = ("bash", "rbash", "sh", "dash", "ash", "ksh", "mksh")  # whose commands look alike; not csh, fish and zsh


def interpreter(text: str) -> str:
    """The program that runs a script, as its first line names it; "" if that names none.

    >>> interpreter("#!/usr/bin/env -S python3.11 -u"), interpreter("#! /bin/bash -l"), interpreter("true")
    ('python3.11', 'bash', '')
    """
    line = text.partition("\n")[0]
    words = line[2:].replace("env -S", "env ").split() if line.startswith("#!") else []
    while len(words) > 1 and (base_name(words[0]) in ("env", "busybox") or re.match(r"-|\w+=", words[0])):
        words.pop(0)
    return base_name(words[0]) if words else ""


def is_shell(program: str) -> bool:
    """Whether a program is a shell that is read here, of whatever version (`ksh93`, `bash-5.2`)."""
    return re.sub(r"[-\d.]+$", "", program) in SHELLS


def unquote(word: str) -> str:
    """A word without its quotes and backslashes."""
    return re.sub(r"\\([\s\S])|[\"']", lambda found: found[1] or "", word)


def expanded_names(word: str) -> set[str]:
    """The variables that the shell expands in a word: not those in single quotes or behind a backslash.

    >>> sorted(expanded_names('''"$A/${B:-1}" '$C' \\\\$D'''))
    ['A', 'B']
    """
    bare = re.sub(r"\\[\s\S]", "", word)
    parts = re.findall(r'"[^"]*"|\'[^\']*\'|[^"\']+', bare)
    visible = "".join(part for part in parts if not part.startswith("'"))
    return set(re.findall(r"\$\{?[#!]?([A-Za-z_]\w*)", visible))


def read_body(text: str, first_line: int = 1) -> Body:
    """Find the commands of a shell script whose first line has the number `first_line`."""
    reader = _Reader(text, first_line)
    reader.read()
    backgrounded = {command.name for command in reader.commands if command.in_background}
    commands = [
        replace(command, in_background=True) if command.function in backgrounded else command
        for command in reader.commands
    ]
    return Body(text, tuple(commands), tuple(reader.comments), tuple(reader.documents))


def inner_text(words: Sequence[str]) -> str | None:
    """The script in `bash -c 'script'`, as the inner shell gets it; None for other commands."""
    if not words or base_name(words[0]) not in (*SHELLS, "zsh"):
        return None
    at = next((at for at, word in enumerate(words) if re.fullmatch(r"-[a-z]*c", word)), len(words))
    return unquote(words[at + 1]) if at + 1 < len(words) else None


@dataclass
class _Block:
    kind: str
    function: str = ""
    list_start: int = 0  # the first command of the list that a following & would send to the background


@dataclass
class _Reader:
    text: str
    first_line: int
    commands: list[ShellCommand] = field(default_factory=list)
    comments: list[tuple[int, str]] = field(default_factory=list)
    documents: list[tuple[int, str]] = field(default_factory=list)
    _blocks: list[_Block] = field(default_factory=lambda: [_Block("")])
    _words: list[str] = field(default_factory=list)
    _targets: list[str] = field(default_factory=list)
    _line: int = 0  # of the command's first word
    _is_condition: bool = False  # of a while or until
    _is_branch: bool = False  # the condition of an if
    _is_tested: bool = False
    _next_function: str = ""
    _due: list[tuple[str, bool, bool]] = field(default_factory=list)  # here-documents that begin on the next line

    def read(self) -> None:
        at, text = 0, self.text
        while at < len(text):
            operator = _OPERATOR.match(text, at)
            redirection = _REDIRECTION.match(text, at)
            if text[at] in " \t" or text.startswith("\\\n", at):
                at += 2 if text[at] == "\\" else 1
            elif text[at] == "#":
                end = _find(text, "\n", at)
                self.comments.append((self._number(at), text[at:end]))
                at = end
            elif redirection and not text.startswith(("<(", ">("), at):
                at = self._redirect(redirection)
            elif operator:
                at = self._operator(operator[0], at)
            else:
                end = max(_word_end(text, at), at + 1)
                self._word(text[at:end], at)
                at = end
        self._end_command("\n")

    def _number(self, at: int) -> int:
        return self.first_line + self.text.count("\n", 0, at)

    def _redirect(self, found: re.Match[str]) -> int:
        start = found.end()
        while start < len(self.text) and self.text[start] in " \t":
            start += 1
        end = _word_end(self.text, start)
        target = self.text[start:end]
        if found[1] in ("<<", "<<-"):
            self._due.append((unquote(target), found[1] == "<<-", unquote(target) == target))
        else:
            self._targets.append(target)
        return end

    def _word(self, word: str, at: int) -> None:
        if not self._words:
            self._line = self._number(at)
            if word in CLOSING:
                self._close(word)
                return
            if word in KEYWORDS:
                self._is_condition = self._is_condition or word in ("while", "until")
                self._is_branch = word in ("if", "elif") or (self._is_branch and word != "then")
                self._is_tested = word == "!"
                if word in OPENING:
                    self._open(word)
                return
        if word == "{" and len(self._words) == 2 and self._words[0] == "function":
            self._next_function = self._words[1]
            self._words = []
            self._open(word)
            return
        self._words.append(word)

    def _operator(self, operator: str, at: int) -> int:
        end = at + len(operator)
        if self.text.startswith("((", at):  # arithmetic
            end = _parenthesis_end(self.text, at + 1)
            self._word(self.text[at:end], at)
        elif operator == "(":
            definition = re.compile(r"\(\s*\)").match(self.text, at)
            if definition and (len(self._words) == 1 or self._words[:1] == ["function"]):
                self._next_function = self._words.pop()
                self._words = []
                return definition.end()
            self._end_command(";")
            self._open("(")
        elif operator == ")":
            self._end_command(";")
            self._close(")")
        else:
            self._end_command(operator)
        return self._skip_documents(end) if operator == "\n" else end

    def _open(self, word: str) -> None:
        self._is_condition = False
        self._blocks.append(_Block(OPENING[word], self._next_function, len(self.commands)))
        self._next_function = ""

    def _close(self, word: str) -> None:
        if self._blocks[-1].kind == CLOSING[word]:
            self._blocks.pop()

    def _end_command(self, operator: str) -> None:
        goes_on = operator in ("&&", "||", "|", "|&")
        if self._words or self._targets:
            in_loop = self._is_condition or any(block.kind == "do" for block in self._blocks)
            function = next((block.function for block in reversed(self._blocks) if block.function), "")
            command = ShellCommand(self._line, tuple(self._words), tuple(self._targets))
            command = replace(command, in_loop=in_loop, function=function)
            is_tested = self._is_tested or self._is_condition or self._is_branch
            in_subshell = any(block.kind == "(" for block in self._blocks)
            self.commands.append(replace(command, is_tested=is_tested, in_subshell=in_subshell))
            self._is_tested = False
        self._words, self._targets = [], []
        block = self._blocks[-1]
        if goes_on:  # that of a whole { … } or loop, too
            listed = self.commands[block.list_start :]
            self.commands[block.list_start :] = [replace(command, is_tested=True) for command in listed]
            return
        if operator == "&":
            listed = self.commands[block.list_start :]
            self.commands[block.list_start :] = [replace(command, in_background=True) for command in listed]
        block.list_start = len(self.commands)

    def _skip_documents(self, at: int) -> int:
        for delimiter, strips_tabs, is_expanded in self._due:
            start = at
            while at < len(self.text):
                end = _find(self.text, "\n", at)
                line, at = self.text[at:end], end + 1
                if (line.lstrip("\t") if strips_tabs else line) == delimiter:
                    break
            if is_expanded:
                self.documents.append((self._number(start), self.text[start:at]))
        self._due = []
        return min(at, len(self.text))


def _find(text: str, what: str, at: int) -> int:
    found = text.find(what, at)
    return len(text) if found < 0 else found


def _word_end(text: str, at: int) -> int:
    while at < len(text):
        if text.startswith(("$(", "<(", ">(", "=("), at):  # the last: an array
            at = _parenthesis_end(text, at + 2)
        elif text[at] in WORD_ENDS:
            return at
        else:
            at = _past(text, at)
    return len(text)


def _past(text: str, at: int) -> int:
    """Behind one character, or behind the whole of what it quotes."""
    if text[at] == "\\":
        return at + 2
    if text[at] in "'`":
        return _find(text, text[at], at + 1) + 1
    if text.startswith("${", at):
        return _find(text, "}", at) + 1
    if text[at] != '"':
        return at + 1
    at += 1
    while at < len(text) and text[at] != '"':
        at = _parenthesis_end(text, at + 2) if text.startswith("$(", at) else at + 1 + (text[at] == "\\")
    return at + 1


def _parenthesis_end(text: str, at: int) -> int:
    depth = 1
    while at < len(text) and depth:
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at = _past(text, at) if text[at] not in "()" else at + 1
    return at
