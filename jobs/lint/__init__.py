"""Batch scripts are read and judged, whoever wrote them."""

from .findings import Facts, Finding
from .rules import RULES, check

__all__ = ["RULES", "Facts", "Finding", "check"]
