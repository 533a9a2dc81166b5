"""YAML files and `key.sub=value` overrides become validated, frozen models.

This is mechanism only: each part of the project owns the model of its own section, and train/config.py and
preprocessing/plan.py compose them.
"""

from hvdlm.config.loading import load, opened, to_yaml, validate
from hvdlm.config.sections import FREE, Free, Section, by_name, changes, choice_of, free_on_resume, tagged_union

__all__ = [
    "FREE",
    "Free",
    "Section",
    "by_name",
    "changes",
    "choice_of",
    "free_on_resume",
    "load",
    "opened",
    "tagged_union",
    "to_yaml",
    "validate",
]
