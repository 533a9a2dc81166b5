"""What sbatch reads in a script: the #SBATCH lines, taken apart as sbatch itself does. Pure.

sbatch stops at the first line that is neither empty nor a comment, splits each #SBATCH line into words with quotes,
backslashes and `#` comments of its own, and hands them to getopt_long, which takes unambiguous abbreviations.
Checked against sbatch 22.05; the options of later releases up to 24.11 are known as well.
"""

from __future__ import annotations

import difflib
import math
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from .findings import UNKNOWN, Facts, Finding, error
from .shell import Body, read_body

PREFIX = "#SBATCH"

_WANT_VALUE = """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude export export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type mail-user
    mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks ntasks-per-core
    ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile qos
    reservation resv-ports segment signal sockets-per-node switches tasks-per-node thread-spec threads-per-core
    time time-min tmp tres-bind tres-per-task uid wait-all-nodes wckey wrap
"""
_MAY_HAVE_VALUE = "exclusive get-user-env nice no-kill oom-kill-step propagate"
_FLAGS = """
    contiguous help hold ignore-pbs no-requeue overcommit oversubscribe parsable quiet reboot requeue spread-job stepmgr
    test-only usage use-min-nodes verbose version wait
"""
# long name -> whether it wants a value: "yes", "no", or "maybe" (then only as --name=value)
OPTIONS = {
    name: wants
    for wants, names in (("yes", _WANT_VALUE), ("maybe", _MAY_HAVE_VALUE), ("no", _FLAGS))
    for name in names.split()
}


def named(pairs: str) -> dict[str, str]:
    """Short and long names in turn.

    >>> named("N nodes n ntasks")
    {'N': 'nodes', 'n': 'ntasks'}
    """
    words = pairs.split()
    return dict(zip(words[::2], words[1::2], strict=True))


SHORT = named("""
    A account B extra-node-info C constraint D chdir F nodefile G gpus H hold J job-name L licenses M clusters
    N nodes O overcommit Q quiet S core-spec V version W wait a array b begin c cpus-per-task d dependency
    e error h help i input k no-kill m distribution n ntasks o output p partition q qos s oversubscribe t time
    v verbose w nodelist x exclude
""")

_ALIASES = {"tasks-per-node": "ntasks-per-node"}  # sbatch knows it, its manual does not

# What --signal takes, by name or number; SLURM knows no others.
_SIGNALS = "HUP INT QUIT ABRT KILL USR1 USR2 ALRM TERM CONT STOP TSTP TTIN TTOU URG XCPU"
SIGNALS = {name: int(signal.Signals[f"SIG{name}"]) for name in _SIGNALS.split()}  # Linux's numbers are SLURM's


@dataclass(frozen=True)
class Directive:
    """One option of a #SBATCH line: its line (from 1), its long name, its value if any, and the line as written."""

    line: int
    key: str
    value: str | None
    raw: str


@dataclass(frozen=True)
class Script:
    """A batch script, taken apart. Lines count from 1."""

    text: str
    shebang: str  # "" if the first line is none
    directives: tuple[Directive, ...]
    faults: tuple[Finding, ...]  # what sbatch refuses in these
    unread: tuple[tuple[int, str], ...]  # lines that look like directives and are none for sbatch
    num_components: int  # more than one: a heterogeneous job
    body: Body  # the commands; empty if the script is no shell script
    facts: Facts  # what is known besides

    def directive(self, key: str) -> Directive | None:
        """The one that counts: sbatch lets the last of several win."""
        found = [directive for directive in self.directives if directive.key == key]
        return found[-1] if found else None

    def get(self, key: str) -> str | None:
        directive = self.directive(key)
        return directive.value if directive else None

    def has(self, key: str) -> bool:
        return self.directive(key) is not None

    def number(self, key: str) -> int | None:
        """A value that is a whole number; None for any other, and for none."""
        value = self.get(key) or ""
        return int(value) if value.isdecimal() else None

    def line_of(self, *keys: str) -> int:
        """Where the first of these options stands that there is; 1 if none."""
        return next((found.line for key in keys if (found := self.directive(key))), 1)


def parse(text: str, facts: Facts = UNKNOWN) -> Script:
    """Take a batch script apart; faults are reported in it and never raised."""
    lines = text.replace("\r\n", "\n").split("\n")
    shebang = lines[0].rstrip() if lines[0].startswith("#!") else ""
    directives: list[Directive] = []
    faults: list[Finding] = []
    unread: list[tuple[int, str]] = []
    num_components = 1
    first_command = len(lines) + 1
    for number, line in enumerate(lines, 1):
        if line.startswith(PREFIX):
            try:
                words = split_words(line[len(PREFIX) :])
                num_components += words in (["hetjob"], ["packjob"])
                for key, value in _options(words):
                    directives.append(Directive(number, _ALIASES.get(key, key), value, line))
            except _Refused as refusal:
                faults.append(error(number, *refusal.args))
        elif _looks_like_directive(line):
            unread.append((number, line.strip()))
        elif line.strip() and not line.startswith("#"):
            first_command = number
            break
    is_shell = not shebang or re.search(r"\b(ba|z|k|da)?sh\b", shebang) is not None
    body = read_body("\n".join(lines[first_command - 1 :]), first_command) if is_shell else Body()
    unread += [(number, line) for number, line in body.comments if _looks_like_directive(line)]
    return Script(text, shebang, tuple(directives), tuple(faults), tuple(unread), num_components, body, facts)


class _Refused(Exception):
    """What sbatch has against a line: message, remedy."""


def split_words(rest: str) -> list[str]:
    """The words of a #SBATCH line, behind that word.

    Unlike the shell's: a backslash keeps the next character, but a space ends the word even so; `#` starts a comment
    within a word too; nothing is expanded.

    >>> split_words(r'''--comment="two words" -N2 # and this is none''')
    ['--comment=two words', '-N2']
    """
    words = [""]
    quote, escaped = "", False
    for char in rest:
        if char.isspace() and not quote:
            words.append("")
            escaped = False
        elif escaped:
            words[-1] += char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == quote:
            quote = ""
        elif quote:
            words[-1] += char
        elif char in "\"'":
            quote = char
        elif char == "#":
            break
        else:
            words[-1] += char
    if quote:
        raise _Refused(f"a {quote} without its partner", "close the quotes")
    return [word for word in words if word]


def _options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """(long name, value) of each option. sbatch stops at the first fault, and so does this."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("hetjob", "packjob", ":"):
            continue
        if word.startswith("--"):
            yield _long(word, rest)
        elif word.startswith("-") and len(word) > 1:
            yield from _short(word, rest)
        else:
            name = word.partition("=")[0].lstrip("-–—")  # word processors make one dash of two
            hint = f"write --{name}" if name in OPTIONS else "quote values that have spaces"
            raise _Refused(f"{word!r} is no option", hint)


def _long(word: str, rest: list[str]) -> tuple[str, str | None]:
    name, equals, value = word[2:].partition("=")
    key = _resolve(name)
    if equals and OPTIONS[key] == "no":
        raise _Refused(f"--{key} takes no value", f"write --{key} alone")
    if equals or OPTIONS[key] != "yes":
        return key, value if equals else None
    if not rest:
        raise _Refused(f"--{key} has no value", f"write --{key}=…")
    return key, rest.pop(0)


def _resolve(name: str) -> str:
    """The option's full name, as getopt_long finds it."""
    longer = [option for option in OPTIONS if name and option.startswith(name)]
    if name in OPTIONS or len(longer) == 1:
        return name if name in OPTIONS else longer[0]
    near = longer or difflib.get_close_matches(name.lower().replace("_", "-"), OPTIONS, n=1, cutoff=0.6)
    hint = "did you mean " + " or ".join(f"--{option}" for option in near[:4]) + "?" if near else "see man sbatch"
    raise _Refused(f"sbatch has no option --{name}", hint)


def _short(word: str, rest: list[str]) -> Iterator[tuple[str, str | None]]:
    """-N2, -N 2, and several flags in one word."""
    name = word[1:].partition("=")[0]
    if name in OPTIONS:  # -output=x would send the log to "utput=x"
        raise _Refused(f"{word} is -{word[1]} with the value {word[2:]!r} to sbatch", f"write --{name}")
    for at, letter in enumerate(word[1:], 2):
        key, value = SHORT.get(letter), word[at:]
        if key is None:
            raise _Refused(f"sbatch has no option -{letter}", "see man sbatch")
        if OPTIONS[key] == "yes" and not value and not rest:
            raise _Refused(f"-{letter} has no value", f"write --{key}=…")
        if OPTIONS[key] != "no":
            yield key, value or (rest.pop(0) if OPTIONS[key] == "yes" else None)
            return
        yield key, None


def _looks_like_directive(line: str) -> bool:
    """`# SBATCH`, `##SBATCH`, an indented one, `#sbatch`, `#SBACTH`: with an option behind, and not sbatch's word."""
    found = re.match(r"\s*##?\s*([A-Za-z]{4,9})\s+--?[A-Za-z]", line)
    return found is not None and difflib.SequenceMatcher(None, found[1].upper(), "SBATCH").ratio() > 0.7


_TIME = re.compile(r"(?:(\d+)-)?(\d*)(?::(\d+))?(?::(\d+))?")


def parse_minutes(text: str) -> float:
    """Minutes of a SLURM time, rounded up to whole ones as SLURM does; `math.inf` for none; ValueError if it is none.

    >>> [parse_minutes(text) for text in ("90", "90:30", "1:30:00", "1-12", "1-12:30", "1-12:30:00", "0")]
    [90, 91, 90, 2160, 2190, 2190, inf]
    """
    if text in ("0", "-1") or text.lower() in ("unlimited", "infinite"):
        return math.inf
    found = _TIME.fullmatch(text)
    if found is None or not (found[1] or found[2]) or (found[2] == "" and found[3]):
        raise ValueError(f"{text!r} is no time of SLURM's")
    days = found[1]
    parts = [int(part) for part in found.groups()[1:] if part]
    if days is None and len(parts) < 3:  # minutes, minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0, 0][:3]
    return math.ceil(int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60)


@dataclass(frozen=True)
class Signal:
    """--signal: which, how many seconds before the end, and whether to the batch shell alone."""

    name: str  # without SIG
    lead_s: int
    to_batch_shell: bool


def parse_signal(text: str) -> Signal:
    """`[{R|B}:]<name or number>[@<seconds>]`; ValueError if it is none.

    >>> parse_signal("B:USR1@120")
    Signal(name='USR1', lead_s=120, to_batch_shell=True)
    """
    found = re.fullmatch(r"(?:([RB]{1,2}):)?(?:SIG)?(\w+)(?:@(\d*))?", text.upper())
    name = next((key for key, number in SIGNALS.items() if found and found[2] in (key, str(number))), None)
    if found is None or name is None:
        raise ValueError(f"{text!r} is no signal of SLURM's")
    lead = 60 if found[3] is None else int(found[3] or 0)
    if lead > 65535:
        raise ValueError(f"{lead} s are more than SLURM's 65535")
    return Signal(name, lead, "B" in (found[1] or ""))


def parse_megabytes(text: str) -> float:
    """A memory size of SLURM's, megabytes unless a unit says otherwise; ValueError if it is none.

    >>> [parse_megabytes(text) for text in ("512", "4G", "4GB", "1T")]
    [512, 4096, 4096, 1048576]
    """
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if found is None:
        raise ValueError(f"{text!r} is no size of SLURM's")
    return int(found[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2]]
