"""The values that sbatch takes for its options: forms that raise ValueError for any other. Pure.

Held against sbatch 22.05 (tests/lint_values.yaml); what later releases take besides is taken too. Where sbatch leaves
out without a word what it does not know (`--mail-type=END,FAILED`), that is an error here.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

Form = Callable[[str], object]

# What --signal takes by name; SLURM knows no others.
_SIGNALS = "HUP INT QUIT ABRT KILL USR1 USR2 ALRM TERM CONT STOP TSTP TTIN TTOU URG XCPU"
SIGNALS = {name: int(signal.Signals[f"SIG{name}"]) for name in _SIGNALS.split()}  # Linux's numbers are SLURM's

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


def is_odd_time(text: str) -> bool:
    """Whether a part of a time is as much as one of the part before it, or more; sbatch adds all up without a word.

    >>> [is_odd_time(text) for text in ("1-12:99", "1-36", "0:90", "90", "90:00", "36:00:00", "1-12:30:59")]
    [True, True, True, False, False, False, False]
    """
    found = _TIME.fullmatch(text)
    if found is None or not found[2]:
        return False
    days, hours, *others = found.groups()
    return (days is not None and int(hours) >= 24) or any(int(part or 0) >= 60 for part in others)


@dataclass(frozen=True)
class Signal:
    """--signal: which, how many seconds before the end, and whether to the batch shell alone."""

    name: str  # without SIG; a number if SLURM has no name for it
    lead_s: int
    to_batch_shell: bool


def parse_signal(text: str) -> Signal:
    """`[{R|B}:]<name or number>[@<seconds>]`; ValueError if it is none.

    >>> parse_signal("B:USR1@120")
    Signal(name='USR1', lead_s=120, to_batch_shell=True)
    """
    found = re.fullmatch(r"(?:(R|B|RB|BR):)?(?:(\d+)|(?:SIG)?([A-Z]\w*))(?:@\+?(\d*))?", text.upper())
    number = int(found[2] or 0) if found else 0
    names = {each: name for name, each in SIGNALS.items()}
    name = names.get(number, str(number)) if number else found[3] if found else None
    if found is None or not (0 < number < 65536 or name in SIGNALS):
        raise ValueError(f"{text!r} is no signal of SLURM's")
    lead = 60 if found[4] is None else int(found[4] or 0)
    if lead > 65535:
        raise ValueError(f"{lead} s are more than SLURM's 65535")
    return Signal(str(name), lead, "B" in (found[1] or ""))


def parse_megabytes(text: str) -> float:
    """A memory size of SLURM's, megabytes unless a unit says otherwise; ValueError if it is none.

    >>> [parse_megabytes(text) for text in ("512", "4G", "4GB", "1T")]
    [512, 4096, 4096, 1048576]
    """
    found = re.fullmatch(r"\s*\+?(\d+)(?:([KMGT])B?)?", text.upper())
    if found is None:
        raise ValueError(f"{text!r} is no size of SLURM's")
    return int(found[1]) * {"K": 1 / 1024, None: 1, "M": 1, "G": 1024, "T": 1024**2}[found[2]]


def _count(text: str) -> None:
    if not re.fullmatch(r"\s*\+?0*[1-9][0-9]*", text):
        raise ValueError(f"{text!r} is no number above 0")


def _nodes(text: str) -> None:
    found = re.fullmatch(r"\s*[+-]?(\d+)[kKmM]?(?:\s*-\s*\+?(\d+)[kKmM]?)?", text)
    if found is None and not re.fullmatch(r"\d+(-\d+)?([,:]\d+(-\d+)?)+", text):  # lists of sizes came with 23.11
        raise ValueError(f"{text!r} is no number of nodes")
    if found and found[2] and text[-1].isdecimal() and int(found[2]) < int(found[1]):
        raise ValueError(f"{text!r} ends before it begins")


def _array(text: str) -> None:
    for item in text.partition("%")[0].strip(" []").split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+)(?::0*[1-9]\d*)?)?", item)
        if item.strip() and (found is None or int(found[2] or found[1]) < int(found[1])):
            raise ValueError(f"{item!r} is no range of array tasks")


_CLOCK = r"\d{1,2}:\d{2}(:\d{2})?\s*([AP]M)?"
_DATE = r"\d{4}-\d{2}-\d{2}|\d{1,2}[/.]\d{1,2}([/.]\d{2}(\d{2})?)?|\d{6}|today|tomorrow"
_MOMENT = rf"(?:{_CLOCK}|midnight|noon|fika|teatime)"
_NOW = r"now(\s*[+-]\s*\d+\s*((second|minute|hour|day|week)s?)?)?|uts\d+"
_WHEN = re.compile(rf"{_NOW}|(?:{_DATE})(?:[T\s-]\s*(?:{_MOMENT})?)?|{_MOMENT}(?:\s+(?:{_DATE}))?", re.IGNORECASE)


def _when(text: str) -> None:
    clock, date = re.search(r"(\d{1,2}):(\d{2})", text), re.match(r"\d{4}-(\d{2})-(\d{2})|(\d{1,2})[/.](\d{1,2})", text)
    month, day = (int(date[1] or date[3]), int(date[2] or date[4])) if date else (1, 1)
    is_wrong = not _WHEN.fullmatch(text) or (clock and (int(clock[1]) > 23 or int(clock[2]) > 59))
    if is_wrong or not 1 <= month <= 12 or not 1 <= day <= 31:
        raise ValueError(f"{text!r} is no moment of SLURM's")


_ID = r"\d+(_(\d+|\*|\[[\d,-]+\]))?(\+\d+)?(\(\w+\))?"
_AFTER = r"(?:after|afterany|afterburstbuffer|aftercorr|afternotok|afterok|expand)"
_AFTERS = rf"(?:singleton|{_AFTER}(?::-?{_ID})+|\d+)"


def _pattern(pattern: str, what: str, flags: re.RegexFlag = re.IGNORECASE) -> Form:
    compiled = re.compile(pattern, flags)

    def form(text: str) -> None:
        if not compiled.fullmatch(text):
            raise ValueError(f"{text!r} is no {what}")

    return form


def _words(known: str, *, all_of_them: bool = True) -> Form:
    """A list with commas of these words; sbatch takes some lists where it knows one of the words."""

    def form(text: str) -> None:
        words = [word for word in text.split(",") if word]
        unknown = [word for word in words if word.lower() not in known.split()]
        if not words or (unknown and (all_of_them or unknown == words)):
            raise ValueError(f"{(unknown or [text])[0]!r} is none of {', '.join(known.upper().split())}")

    return form


def _number(least: int, most: float) -> Form:
    def form(text: str) -> None:
        found = re.match(r"[+-]?\d+", text)
        if found and not least <= int(found[0]) <= most:
            raise ValueError(f"{text!r} is out of range")

    return form


def _brackets(text: str) -> None:
    if text.count("[") != text.count("]"):
        raise ValueError(f"{text!r} has a bracket without its partner")


_SPREAD = r"(block|cyclic|\*)?(:(block|cyclic|fcyclic|\*)?){0,2}"
_LEVEL = r"(\d+|low|medium|high|highm1)"
_GPU_SPEED = rf"({_LEVEL}|memory={_LEVEL}|verbose)"
_FREQUENCY = r"(\d\S*?|low|medium|high|highm1)"
_GOVERNOR = r"(cons\w*|on\w*|perf\w*|pow\w*|user\w*|sched\w*)"
_LIMIT = r"(RLIMIT_)?(AS|CORE|CPU|DATA|FSIZE|MEMLOCK|NOFILE|NPROC|RSS|STACK)"
_GPU = r"(\+?\d+[km]?|[a-z][\w.=-]*|[\w.-]+:\d+[km]?)"  # models may be called 3090 or 1g.10gb
_GPUS = rf"({_GPU}(,{_GPU})*)?"
_GRES = r"(?![^,]*[:=](-\d|\d+\.\d+(,|$)))(gres[:/])?[a-z][\w-]*([:=][\w.-]+)?([:=]\d+[kmgtp]?)?(\(\S*\))?"
_HINT = r"(compute_bound|memory_bound|(no)?multithread)"
_PERIOD = r"(task|energy|network|filesystem)=\d+\w*"
_MAIL = """
    none begin end fail requeue all invalid_depend stage_out time_limit time_limit_90 time_limit_80 time_limit_50
    array_tasks
"""
_SHARING = "enforce-binding disable-binding allow-task-sharing multiple-tasks-per-sharing one-task-per-sharing"
_COUNTS = """
    ntasks ntasks-per-node ntasks-per-socket ntasks-per-core ntasks-per-gpu cpus-per-task cpus-per-gpu mincpus
    threads-per-core sockets-per-node cores-per-socket thread-spec
"""

_GPU_BINDING = r"((v|q)\w*,)?(c\w*|no.*|map_gpu:[\dx].*|mask_gpu:[\da-f].*|(per_task|single):.+)"
_MEM_BINDING = r"((verbose|v|quiet|q|sort|nosort|prefer|p|no\w*|rank|local|(map|mask)_mem:.+)(,|$))+"
_CPU_FREQUENCY = rf"{_GOVERNOR}|{_FREQUENCY}(-{_FREQUENCY}(:{_GOVERNOR})?)?"
_DISTRIBUTION = rf"arbitrary|plane=0*[1-9]\d*|(no)?pack|(?=[^,]){_SPREAD}(,(no)?pack)?"
_PROFILES = "all none energy task filesystem lustre network"

# options, what reads their values, and how they are written
_FORMS: tuple[tuple[str, Form, str], ...] = (
    ("time time-min delay-boot", parse_minutes, "write minutes, hours:minutes:seconds or days-hours:minutes:seconds"),
    ("signal", parse_signal, "write for example B:USR1@120"),
    ("mem mem-per-cpu mem-per-gpu tmp", parse_megabytes, "write a whole number, perhaps with K, M, G or T"),
    ("nodes", _nodes, "write a number, or from-to"),
    (_COUNTS, _count, "write a whole number"),
    ("core-spec", _pattern(r"\s*\+?\d*", "number"), "write a whole number"),
    ("array", _array, "write for example 0-9, 1,3,5 or 0-99%4"),
    ("begin deadline", _when, "write for example now+2hours, 16:00 or 2027-01-31T08:00"),
    ("dependency", _pattern(rf"({_AFTERS}([,?]{_AFTERS})*)?", "dependency"), "write for example afterok:1234"),
    ("mail-type", _words(_MAIL), "write for example END,FAIL, without blanks"),
    ("hint", _pattern(rf"{_HINT}(,{_HINT})*", "hint"), "write multithread or nomultithread"),
    ("distribution", _pattern(_DISTRIBUTION, "distribution"), "write for example block:cyclic or plane=4"),
    ("exclusive", _pattern("|user|mcs|topo|exclusive|oversubscribe", "form of it"), "write it alone, or =user"),
    ("open-mode", _pattern("[at].*", "mode (append or truncate)"), "write append or truncate"),
    ("gpus gpus-per-node gpus-per-task gpus-per-socket", _pattern(_GPUS, "number of GPUs"), "write 4 or a100:4"),
    ("gres", _pattern(rf"{_GRES}(,{_GRES})*", "generic resource"), "write for example gpu:4 or gpu:a100:4"),
    ("gres-flags", _words(_SHARING), "write enforce-binding or disable-binding"),
    ("gpu-bind", _pattern(_GPU_BINDING, "binding of GPUs"), "write none, closest, single:1 or map_gpu:0,1"),
    (
        "gpu-freq",
        _pattern(rf"{_GPU_SPEED}(,{_GPU_SPEED})*", "frequency of GPUs", re.ASCII),
        "write medium or a number of MHz",
    ),
    ("cpu-freq", _pattern(_CPU_FREQUENCY, "frequency of CPUs"), "write low, high, kilohertz or a governor"),
    ("mem-bind", _pattern(_MEM_BINDING, "binding of memory"), "write local or none"),
    ("profile", _words(_PROFILES, all_of_them=False), "write all, none or task"),
    ("propagate", _pattern(rf"(ALL|NONE|{_LIMIT}(,({_LIMIT})?)*)?", "limit", re.ASCII), "write names such as STACK"),
    ("wait-all-nodes", _pattern("[01]?", "0 or 1"), "write 0 or 1"),
    ("switches", _pattern(r"\s*\+?0*[1-9]\d*(@.*)?", "number of switches"), "write for example 1@60"),
    ("kill-on-invalid-dep", _pattern("yes|no", "yes or no"), "write yes or no"),
    ("get-user-env", _pattern(r"\d*[sl]?", "time-out"), "write --get-user-env alone"),
    ("no-kill", _pattern("|off|set", "form of it"), "write --no-kill alone"),
    ("acctg-freq", _pattern(rf"(\d+\w*|{_PERIOD}(,{_PERIOD})*)?", "interval"), "write for example task=30"),
    ("priority", _number(0, 4294967293), "write a number from 0"),
    ("nice", _number(-2147483645, 2147483645), "write a number"),
    ("extra-node-info", _pattern(r"([\d*][\d*-]*(:[\d*-]+)*)?", "sockets[:cores[:threads]]"), "write for example 2:8"),
    ("nodelist exclude constraint prefer", _brackets, "close the brackets"),
    ("partition", _pattern(".+", "partition"), "name one, see sinfo"),
)

FORMS = {key: (form, remedy) for keys, form, remedy in _FORMS for key in keys.split()}
