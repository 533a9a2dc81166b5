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
    """Answers that were found in a text, each with its gold ones, of which "" says that there is none.

    Where some have none, both kinds are judged by themselves too, as by the script of SQuAD 2.
    """
    judged = of_texts(written, gold, language, ["exact_match"], lines=lines)
    has_answer = ["" not in answers for answers in gold]
    if len(set(has_answer)) < 2:
        return judged
    figures = dict(judged.figures)
    for kind, wanted in (("answerable", True), ("unanswerable", False)):
        chosen = [record for record, there in enumerate(has_answer) if there == wanted]
        found = answer_figures([written[n] for n in chosen], [gold[n] for n in chosen], language)
        figures[f"num_{kind}"] = len(chosen)
        figures |= {f"{kind}_{name}": value for name, value in found.items()}
    return Judged(figures, judged.lines)


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
