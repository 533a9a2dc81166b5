"""The cause of a failed step, out of the log of pip, cmake, make and the compiler (standard library only)."""

from __future__ import annotations

import re
from dataclasses import dataclass

NETWORK = (
    "is the package index reachable from here? Set https_proxy or PIP_INDEX_URL to what this site uses, or run this on"
    " a login node"
)
CERTIFICATES = "PIP_CERT=FILE names this site's certificates to pip"
NO_VERSION = "Could not find a version that satisfies the requirement"
COMPILER = "load a newer compiler (`module load gcc`), or name it by CC and CXX"


class SetupError(Exception):
    """A step failed; the message says what is missing and the command that mends it."""


class NotServed(SetupError):
    """No index gave the package: none can be reached, or none has that build of it."""


@dataclass(frozen=True)
class Sign:
    """What a line of a log looks like that tells the cause; group 1 is shown, or the whole line."""

    pattern: str
    remedy: str = ""  # "": what the step itself advises


# The earlier in this list, the nearer to the cause: a full disk makes compilers fail, which makes make and pip fail.
SIGNS = [
    Sign(r"^.*No space left on device.*$", "free space there, or set TMPDIR and XDG_CACHE_HOME to a larger disk"),
    Sign(r"^.*Disk quota exceeded.*$", "free space there, or set TMPDIR and XDG_CACHE_HOME to a larger disk"),
    Sign(r"^.*Read-only file system.*$", "use a checkout in a folder that can be written to"),
    Sign(
        r"^.*(?:Killed signal|Killed \(program|virtual memory exhausted|out of memory allocating).*$",
        "not enough memory for the compiler; MAX_JOBS=1 lets one run at a time",
    ),
    Sign(r"^.*#error (.*(?:GCC|C\+\+\d\d|compiler).*)$", COMPILER),
    Sign(r"^.*\b(?:error|fatal)\b.*(?:unrecognized|unknown|invalid value).*-std=\S*.*$", COMPILER),
    Sign(r"^.*fatal error: mpi\.h: No such file.*$", "the MPI on PATH has no headers; install its -dev package"),
    Sign(
        r"^.*fatal error: Python\.h: No such file.*$",
        "Python's headers are missing; `apt-get install python3-dev`, or PYTHON=… one that has them",
    ),
    Sign(r"^\S.*:\d+(?::\d+)?: (?:fatal )?error: .*$"),
    Sign(r"^.*\(\d+\): (?:catastrophic |fatal )?error\b.*$"),  # nvcc
    Sign(r"^\S*\b(?:ld|collect2)\S*: (?:error: )?(?:cannot|.*undefined|.*not found|skipping incompatible).*$"),
    Sign(r"^.*undefined reference to .*$"),
    Sign(r"^(CMake Error\b.*)$"),
    Sign(r"^.*(?:CERTIFICATE_VERIFY_FAILED).*$", CERTIFICATES),
    Sign(r"^.*ProxyError\('([^']*).*$", NETWORK),
    Sign(r"^.*connection broken by .*: ([^']+)'\).*$", NETWORK),
    Sign(r"^.*(Read timed out|ReadTimeoutError).*$", NETWORK),
    Sign(r"^.*(?:HTTP error |ERROR: .*\b)(?:401|403|407|5\d\d) .*$", NETWORK),
    Sign(r"^ERROR: (.*THESE PACKAGES DO NOT MATCH THE HASHES.*)$", "the download was damaged; try again"),
    Sign(r"^.*(?:PermissionError|Errno 13).*$", "that place is somebody else's; XDG_CACHE_HOME and TMPDIR name others"),
    Sign(rf"^ERROR: ({NO_VERSION} [^(]*).*$"),
    Sign(r"^\s+(The user requested \(constraint\) .*)$", "pip's own constraint file excludes what is needed here"),
    Sign(r"^ *((?:\w+\.)*\w+(?:Error|Exception)\b: .*)$"),
    Sign(r"^make(?:\[\d+\])?: \*\*\* .*$"),
    Sign(r"^ *error: (?!subprocess-exited|metadata-generation|legacy-install|command ).*$"),
    Sign(r"^ *ERROR: .*$"),
]
CONSEQUENCES = re.compile(r"Failed building wheel|Could not build wheels|subprocess-exited|non-zero exit status")


def first_cause(log: str) -> tuple[str, str]:
    """The line of a log that names the cause, and a remedy where the line alone tells one, else "".

    >>> first_cause("cc a.c\\na.c:1:10: fatal error: mpi.h: No such file or directory\\nmake: *** [a.o] Error 1")[0]
    'a.c:1:10: fatal error: mpi.h: No such file or directory'
    """
    # pip sets off by six blanks what a build printed.
    lines = [line.rstrip().removeprefix("      ") for line in log.splitlines()]
    for sign in SIGNS:
        for number, line in enumerate(lines):
            found = re.match(sign.pattern, line)
            if found and not CONSEQUENCES.search(line):
                said = found.group(1) if found.lastindex else line
                return shorten(_with_message(said, lines[number + 1 :])), sign.remedy
    said = [line.strip() for line in lines if line.strip() and not line.startswith("$ ")]
    return shorten(said[-1] if said else "it printed nothing"), ""


def step_error(step: str, log: str, *, remedy: str, where: str = "") -> SetupError:
    """What to raise for a step that failed with this log: its cause, with `remedy` where the cause has none."""
    cause, better = first_cause(log)
    kind = NotServed if better in (NETWORK, CERTIFICATES) or cause.startswith(NO_VERSION) else SetupError
    return kind(f"{step}: {cause}; {better or remedy}{where}")


def _with_message(said: str, following: list[str]) -> str:
    """CMake says where on the line and what on the indented ones below."""
    if not said.startswith("CMake Error"):
        return said
    message: list[str] = []
    for line in following:
        if line.strip() and not line.startswith(" "):
            break
        if not line.strip() and message:
            break
        message.append(line.strip())
    return " ".join([said, *filter(None, message)])


def shorten(text: str, width: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 2] + " …"
