"""Batch scripts are read and judged, whoever wrote them."""

from .findings import UNKNOWN, Facts, Finding
from .rules import RULES, check
from .syntax import syntax_complaint

__all__ = ["RULES", "UNKNOWN", "Facts", "Finding", "check", "syntax_complaint"]
