"""Checks of batch scripts, rendered or written by hand: `check` finds what would fail or waste the job. Pure.

One small function a rule, each naming the trap that it guards against. An error is what sbatch or SLURM certainly
refuses or what certainly loses work; what may be right on some site is a warning. Values that only the job's shell
knows count as right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType

from . import command_rules, header_rules, launch_rules, log_rules, size_rules, stop_rules, trap_rules, variable_rules
from .findings import UNKNOWN, Facts, Finding, Findings
from .sbatch import Script, parse

Rules = tuple[Callable[[Script], Findings], ...]


def _rules_of(module: ModuleType) -> Rules:
    """Every function of a module that returns Findings, in their order: none can be forgotten."""
    functions = [each for each in vars(module).values() if inspect.isfunction(each)]
    return tuple(each for each in functions if each.__annotations__.get("return") == "Findings")


HEADER_RULES = _rules_of(header_rules) + _rules_of(log_rules)
_BODY_RULES = (size_rules, launch_rules, command_rules, variable_rules, stop_rules, trap_rules)
RULES: Rules = sum(map(_rules_of, _BODY_RULES), HEADER_RULES)


def check(text: str, facts: Facts = UNKNOWN) -> list[Finding]:
    """All findings on a batch script's text, in the order of its lines."""
    script = parse(text, facts)
    # What the parts of a heterogeneous job ask for cannot be told apart here.
    rules = RULES if script.num_components == 1 else HEADER_RULES
    found = dict.fromkeys(finding for rule in rules for finding in rule(script))
    return sorted(found, key=lambda finding: finding.line)
