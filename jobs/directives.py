"""Options of a scheduler as a site's file has them: text for sbatch, qsub or bsub, whatever YAML takes it for."""

from __future__ import annotations

import re
from typing import Any

from hvdlm.numerals import whole_number

from .lint.sbatch import OPTIONS, SHORT

# Options that are no site's: what the job itself decides, or what would keep `hvdlm submit` from its work.
OWN = {
    "array": "only the points of `hvdlm submit scale` are arrays",
    "chdir": "it runs where you call `hvdlm submit`",
    "cpus-per-task": "use --cores-per-rank, or cores_per_node of the site",
    "dependency": "use --after JOB",
    "nodes": "use --nodes",
    "ntasks": "use --nodes and --ranks-per-node",
    "ntasks-per-node": "use --ranks-per-node, or ranks_per_node of the site",
    "signal": "use signal_lead_s of the site",
    "tasks-per-node": "use --ranks-per-node, or ranks_per_node of the site",
    "wrap": "it is the script",
    **dict.fromkeys(("help", "test-only", "usage", "version", "wait"), "with it nothing would be queued"),
}
OWN["wait"] = "`hvdlm submit` returns at once; see `hvdlm jobs`"

_TRUTH = {"true": True, "yes": True, "on": True, "": True, "false": False, "no": False, "off": False}
_NUMBERS = ("nice", "priority")
_NO_LISTS = ("cluster-constraint", "constraint", "prefer")  # a comma is none of their signs


def long_name(key: str) -> str:
    """Of an option of sbatch that may be named by its letter.

    >>> long_name("p"), long_name("container-image")
    ('partition', 'container-image')
    """
    return SHORT.get(key, key)


def as_flag(value: Any) -> bool | None:
    """Whether an option is on; None for what is no word for yes or no. Without a value it is on."""
    return True if value is None else _TRUTH.get(str(value).lower())


def without_requeue(options: dict[str, Any]) -> tuple[dict[str, Any], bool | None]:
    """sbatch has two options for what a site says by one key; the other options, and which of the two it was, if any.

    >>> without_requeue({"mem": "0", "no-requeue": None})
    ({'mem': '0'}, False)
    """
    others, wanted = dict(options), None
    for option, meaning in (("requeue", True), ("no-requeue", False)):
        if option in others:
            is_on = as_flag(others.pop(option))
            if is_on is None or wanted is not None:
                raise ValueError(f"directives: {option} takes no value; write requeue: true or false beside directives")
            wanted = is_on == meaning
    return others, wanted


def as_text(option: str, value: Any, *, is_slurm: bool) -> str | None:
    """An option's value, "" for a flag; None for one that is switched off. ValueError for what no option can be.

    >>> [as_text(*pair, is_slurm=True) for pair in (("mem", 0), ("exclusive", True), ("gres", ["a", "b"]))]
    ['0', '', 'a,b']
    """
    if isinstance(value, dict):
        raise ValueError(f"{option} is a text, not a section; quote a value that holds a colon and a blank")
    if isinstance(value, list):
        if not is_slurm or option in _NO_LISTS:
            raise ValueError(f"{option} is one text, not a list; quote it")
        return ",".join(str(each) for each in value)
    wants = OPTIONS.get(option, "yes") if is_slurm else "yes"
    if isinstance(value, bool) or value is None or wants != "yes":
        wanted = as_flag(value)
        if wanted is not None:
            return "" if wanted else None
    text = unquoted(str(value))
    return _digits(option, text) if is_slurm and option in _NUMBERS else text


def _digits(option: str, text: str) -> str:
    """A number as sbatch reads it: of 1e3 it would take the 1, without a word."""
    number = whole_number(text.strip())
    if number is None and not (option == "priority" and text.lower() == "top"):
        raise ValueError(f"{option} is a whole number, got {text!r}")
    return text if number is None else str(number)


def unquoted(text: str) -> str:
    """A text without the quotes that somebody has put around it for sbatch or for the shell of the job.

    >>> unquoted('"two words"'), unquoted("'1'"), unquoted('"a" and "b"')
    ('two words', '1', '"a" and "b"')
    """
    return text[1:-1] if re.fullmatch(r""" "[^"]*" | '[^']*' """, text, re.VERBOSE) else text


def directive_word(value: str) -> str:
    """A value as sbatch reads it back from a #SBATCH line.

    >>> directive_word("two words"), directive_word('say "a"'), directive_word("a[1-3]")
    ('"two words"', '"say \\\\"a\\\\""', 'a[1-3]')
    """
    if not re.search(r"""[\s'"#\\]""", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
