"""Batch scripts are read and judged, whoever wrote them."""

from .findings import UNKNOWN, Facts, Finding
from .rules import RULES, check
from .syntax import find_shellcheck, shellcheck_findings, syntax_complaint, syntax_findings

__all__ = [
    "RULES",
    "UNKNOWN",
    "Facts",
    "Finding",
    "check",
    "find_shellcheck",
    "shellcheck_findings",
    "syntax_complaint",
    "syntax_findings",
]
