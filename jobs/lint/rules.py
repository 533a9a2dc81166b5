"""Checks of batch scripts, rendered or written by hand: `check` finds what would fail or waste the job. Pure.

One small function a rule, each naming the trap that it guards against. A rule that cannot know is silent: what is
right is never reported, and values that only the job's shell knows count as right.
"""

from __future__ import annotations

from collections.abc import Callable

from .findings import UNKNOWN, Facts, Finding, Findings
from .header_rules import HEADER_RULES
from .launch_rules import LAUNCH_RULES
from .sbatch import Script, parse
from .size_rules import SIZE_RULES
from .stop_rules import STOP_RULES

JOB_RULES = (*SIZE_RULES, *LAUNCH_RULES, *STOP_RULES)
RULES: tuple[Callable[[Script], Findings], ...] = (*HEADER_RULES, *JOB_RULES)


def check(text: str, facts: Facts = UNKNOWN) -> list[Finding]:
    """All findings on a batch script's text, in the order of its lines."""
    script = parse(text, facts)
    # What the parts of a heterogeneous job ask for cannot be told apart here.
    rules = RULES if script.num_components == 1 else HEADER_RULES
    found = dict.fromkeys(finding for rule in rules for finding in rule(script))
    return sorted(found, key=lambda finding: finding.line)
