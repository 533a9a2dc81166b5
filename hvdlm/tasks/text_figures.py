"""What written texts and answers are worth, and the line that each record's is."""

from __future__ import annotations

from collections.abc import Sequence

from hvdlm.tasks.records import Judged


def of_answers(written: Sequence[str], gold: Sequence[Sequence[str]], language: str, *, lines: bool) -> Judged:
    return of_texts(written, gold, language, ["exact_match"], lines=lines)


def of_texts(
    written: Sequence[str], gold: Sequence[Sequence[str]], language: str, metrics: Sequence[str], *, lines: bool
) -> Judged:
    right = sum(one in truth for one, truth in zip(written, gold, strict=True))
    told = [{"target": truth[0], "predicted": one} for one, truth in zip(written, gold, strict=True)] if lines else []
    return Judged({"exact_match": right / max(1, len(written))}, told)
