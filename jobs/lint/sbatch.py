"""What sbatch reads in a script: the #SBATCH lines, taken apart as sbatch itself does. Pure.

sbatch stops at the first line that is neither empty nor a comment, splits each #SBATCH line into words with quotes,
backslashes and `#` comments of its own, and hands them to getopt_long, which takes unambiguous abbreviations.
Checked against sbatch 22.05; the options of later releases up to 24.11 are known as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .findings import UNKNOWN, Facts, Finding, error, warning
from .names import nearest
from .shell import Body, interpreter, is_shell, read_body

PREFIX = "#SBATCH"

_WANT_VALUE = """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude export export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type mail-user
    mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks ntasks-per-core
    ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile qos
    reservation segment signal sockets-per-node switches tasks-per-node thread-spec threads-per-core
    time time-min tmp tres-bind tres-per-task uid wait-all-nodes wckey wrap
"""
_MAY_HAVE_VALUE = "exclusive get-user-env nice no-kill oom-kill-step propagate resv-ports"
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

# srun's alone. (Other names that sbatch does not know may be a site's own: its plug-ins bring options to sbatch.)
SRUN_OPTIONS = """
    accel-bind bcast bcast-exclude compress cpu-bind disable-status epilog exact het-group immediate interactive
    jobid join kill-on-bad-exit label launch-cmd mpi msg-timeout multi-prog overlap preserve-env prolog pty
    quit-on-interrupt relative resv-ports send-libs slurmd-debug task-epilog task-prolog threads unbuffered
"""
# what people write for an option who know another release or scheduler, or guess
_MEANT = named("""
    workdir chdir cwd chdir share oversubscribe shared oversubscribe walltime time wall-time time timelimit time
    time-limit time queue partition memory mem mem-per-node mem name job-name project account stdout output
    stderr error stdin input log output ncpus cpus-per-task np ntasks nprocs ntasks processes ntasks email mail-user
    mail-address mail-user mail-events mail-type notify mail-type hosts nodelist ppn ntasks-per-node
    no-requeueing no-requeue rerun requeue
""")
_COUNTED = re.compile(r"(n?tasks?|procs?|cpus?|gpus?|cores?|threads?|sockets?|mem|nodes?)-per-\w+")


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
    language: str  # whose body is not read: python3, perl; "" for a shell's
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
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
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
                    if key not in OPTIONS:
                        message = f"sbatch itself has no option --{key}, and refuses it where no plug-in brings it"
                        faults.append(warning(number, message, "see `sbatch --help` on your cluster"))
            except _Refused as refusal:
                faults.append(error(number, *refusal.args))
        elif _looks_like_directive(line):
            unread.append((number, line.strip()))
        elif line.strip() and not line.startswith("#"):
            first_command = number
            break
    language = interpreter(shebang)
    is_read = not shebang or is_shell(language)
    body = read_body("\n".join(lines[first_command - 1 :]), first_command) if is_read else Body()
    unread += [(number, line) for number, line in body.comments if _looks_like_directive(line)]
    parts = (tuple(directives), tuple(faults), tuple(unread), num_components, body, facts)
    return Script(text, shebang, "" if is_read else language or "no program", *parts)


class _Refused(Exception):
    """What sbatch has against a line: message, remedy."""


_BLANKS = " \t\n\v\f\r"  # what isspace() of C takes for one: no others, which word processors and web pages put in


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
        if char in _BLANKS and not quote:
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
    if key not in OPTIONS:  # a plug-in's; whether it wants a value only the plug-in knows
        takes_next = not equals and rest and not rest[0].startswith("-")
        return key, rest.pop(0) if takes_next else value if equals else None
    if equals and OPTIONS[key] == "no":
        raise _Refused(f"--{key} takes no value", f"write --{key} alone")
    if equals or OPTIONS[key] != "yes":
        return key, value if equals else None
    if not rest:
        raise _Refused(f"--{key} has no value", f"write --{key}=…")
    return key, rest.pop(0)


def _resolve(name: str) -> str:
    """The option's full name, as getopt_long finds it; the name itself where it can only be a plug-in's."""
    longer = [option for option in OPTIONS if name and option.startswith(name)]
    if name in OPTIONS or len(longer) == 1:
        return name if name in OPTIONS else longer[0]
    alike = name.lower().replace("_", "-")
    if alike in SRUN_OPTIONS.split():
        raise _Refused(f"--{name} is an option of srun, sbatch has none", "write it on the srun line")
    near = longer or [found for found in (_MEANT.get(alike), nearest(alike, OPTIONS)) if found]
    if near or not re.fullmatch(r"[A-Za-z]\S*", name) or _COUNTED.fullmatch(alike):
        hint = f"did you mean {' or '.join(f'--{option}' for option in near[:4])}?" if near else "see man sbatch"
        raise _Refused(f"sbatch has no option --{name}", hint)
    return name


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
    """`# SBATCH`, an indented one, `#sbatch`, `#SBACTH`, with an option behind: a slip.

    `##SBATCH` puts one aside, `# sbatch -N 4 x.sbatch` says how the script is called: both are meant.
    """
    found = re.match(r"\s*#(\s*)([A-Za-z]{4,9})[:\s]\s*--?[A-Za-z]", line)
    if found is None or (found[1] and found[2].islower()):
        return False
    return difflib.SequenceMatcher(None, found[2].upper(), "SBATCH").ratio() > 0.7
