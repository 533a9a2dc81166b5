"""What written texts and answers are worth, and the line that each record's is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hvdlm.scoring.answers import answer_figures
from hvdlm.scoring.text import rouge_figures, translation_figures
from hvdlm.tasks.records import Judged

Score = Callable[[Sequence[str], Sequence[Sequence[str]], str], dict[str, Any]]  # written, gold, language

# By what a task's config asks for: `bleu` has chrF beside it, `exact_match` token F1.
METRICS: dict[str, Score] = {"bleu": translation_figures, "rouge": rouge_figures, "exact_match": answer_figures}


def of_answers(written: Sequence[str], gold: Sequence[Sequence[str]], language: str, *, lines: bool) -> Judged:
    """Answers that were found in a text, each with its gold ones, of which "" says that there is none."""
    return of_texts(written, gold, language, ["exact_match"], lines=lines)


def of_texts(
    written: Sequence[str], gold: Sequence[Sequence[str]], language: str, metrics: Sequence[str], *, lines: bool
) -> Judged:
    """Texts that were written, each with one reference or more."""
    figures: dict[str, Any] = {}
    for name in metrics:
        figures |= METRICS[name](written, gold, language)
    told: list[dict[str, Any]] = []
    for text, references in zip(written, gold, strict=True) if lines else ():
        own = {"target": references[0]} if len(references) == 1 else {"targets": list(references)}
        told.append({**own, "predicted": text})
    return Judged(figures, told)
