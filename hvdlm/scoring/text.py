"""Written texts against references: BLEU and chrF by sacrebleu (Post 2018), ROUGE (Lin 2004).

Texts are compared as people read them, not as a model's tokens. What a record adds to a score are integers; a score of
many records is made of their sums.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hvdlm.errors import UserError
from hvdlm.scoring.intervals import bootstrap, middle, resampled
from hvdlm.scoring.languages import LONE_LETTER, WITHOUT_BLANKS, language_of

UNIT = 1 << 32  # shares of records are added up in integers of 1 / UNIT, so that no order of ranks can matter

# How BLEU cuts words (`tok:` of its signature): a Chinese text has 34 BLEU by one and 56 by another.
BLEU_TOKENIZERS = ("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none")
_TOKENIZER_OF = {"zh": "zh", "yue": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # all others: 13a, as WMT


class Metric:
    """BLEU or chrF of sacrebleu: `rows` of records, `score` of their sum."""

    def __init__(self, name: str, metric: Any) -> None:
        self.name, self._metric = name, metric

    def rows(self, written: Sequence[str], gold: Sequence[Sequence[str]]) -> np.ndarray:
        """Matches, totals and lengths of each record, int64 (n, K); of `gold` each has one reference or more."""
        most = max(map(len, gold))
        streams = [[one[place] if place < len(one) else None for one in gold] for place in range(most)]
        # sacrebleu's own significance tests are made of these numbers; setup.py pins the versions that have them.
        return np.array(self._metric._extract_corpus_statistics(list(written), streams), dtype=np.int64)

    def score(self, sums: np.ndarray) -> float:
        """0 to 100, of summed rows (K,)."""
        return float(self._metric._compute_score_from_stats([round(one) for one in sums.tolist()]).score)

    @property
    def signature(self) -> str:
        """How it was counted, to be told beside the score; known after `rows`."""
        return str(self._metric.get_signature())


def bleu(language: str, *, tokenizer: str | None = None) -> Metric:
    """BLEU for texts of a language (Papineni et al. 2002), whose words are cut as is usual there unless it is said."""
    chosen = tokenizer or _TOKENIZER_OF.get(language_of(language), "13a")
    if chosen not in BLEU_TOKENIZERS:
        raise UserError(f"BLEU tokenizer {chosen!r}: there are {', '.join(BLEU_TOKENIZERS)}")
    metrics = _sacrebleu()
    try:
        return Metric("bleu", metrics.BLEU(tokenize=chosen, force=True))  # force: without advice on standard error
    except (RuntimeError, ImportError):
        short = chosen.removesuffix("-mecab")
        raise UserError(
            f"BLEU of {language} cuts words by {chosen}, which is not installed; pip install 'sacrebleu[{short}]', or"
            " take the tokenizer char"
        ) from None


def chrf() -> Metric:
    """chrF2, which needs no words (Popovic 2015)."""
    return Metric("chrf", _sacrebleu().CHRF())


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise UserError("BLEU and chrF need sacrebleu; pip install 'hvdlm[tasks]'") from None
    return metrics


def translation_figures(
    written: Sequence[str], gold: Sequence[Sequence[str]], language: str, *, tokenizer: str | None = None
) -> dict[str, Any]:
    """`bleu` and `chrf` over all records, 0 to 100, with intervals by bootstrap over records, and signatures."""
    told: dict[str, Any] = {}
    for metric in (bleu(language, tokenizer=tokenizer), chrf()):
        rows = metric.rows(written, gold)
        told[metric.name] = metric.score(rows.sum(0))
        told[f"{metric.name}_interval"] = bootstrap(rows, metric.score)
        told[f"{metric.name}_signature"] = metric.signature
    return told


ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge_figures(written: Sequence[str], gold: Sequence[Sequence[str]], language: str) -> dict[str, Any]:
    """F1 of shared words, pairs of words, and of the longest common subsequence of whole texts; 0 to 1, means.

    Of several references the best counts. Words are lower-case and not stemmed; in Chinese and Japanese letters.
    """
    return share_figures(ROUGE, rouge_rows(written, gold, language))


def rouge_rows(written: Sequence[str], gold: Sequence[Sequence[str]], language: str) -> np.ndarray:
    """Of each record F1 by the names of ROUGE in 1 / UNIT, int64 (n, 3); they add up over records."""
    rows = np.zeros((len(written), len(ROUGE)), dtype=np.int64)
    for row, text, references in zip(rows, written, gold, strict=True):
        found = rouge_tokens(text, language)
        every = [_rouge(found, rouge_tokens(reference, language)) for reference in references]
        row[:] = np.rint(np.max(every, axis=0) * UNIT)
    return rows


def share_figures(names: Sequence[str], rows: np.ndarray) -> dict[str, Any]:
    """Means of rows (n, K) of shares in 1 / UNIT, with intervals by bootstrap over records."""
    whole = UNIT * max(1, len(rows))
    again = resampled(rows) / whole
    told: dict[str, Any] = {}
    for column, name in enumerate(names):
        told[name] = int(rows[:, column].sum()) / whole
        told[f"{name}_interval"] = middle(again[:, column])
    return told


def rouge_tokens(text: str, language: str) -> list[str]:
    """What ROUGE counts: in languages without blanks letters, but words of other scripts; elsewhere words.

    >>> rouge_tokens("The cat's 2 mats", "en"), rouge_tokens("我爱BERT模型。", "zh")
    (['the', 'cat', 's', '2', 'mats'], ['我', '爱', 'bert', '模', '型'])
    """
    pattern = _LETTERS if language_of(language) in WITHOUT_BLANKS else _WORDS
    return pattern.findall(text.lower())


_WORDS = re.compile(r"[^\W_]+")
_LETTERS = re.compile(rf"[{LONE_LETTER}]|[^\W_{LONE_LETTER}]+")


def _rouge(found: Sequence[str], wanted: Sequence[str]) -> tuple[float, float, float]:
    return (
        f1_of_bags(found, wanted),
        f1_of_bags(pairwise(found), pairwise(wanted)),
        f1_of_common(common_subsequence(found, wanted), len(found), len(wanted)),
    )


def f1_of_bags(found: Iterable[Any], wanted: Iterable[Any]) -> float:
    """F1 of what two bags have in common."""
    one, other = Counter(found), Counter(wanted)
    return f1_of_common((one & other).total(), one.total(), other.total())


def f1_of_common(common: int, num_found: int, num_wanted: int) -> float:
    """0 where nothing is common, though both be empty."""
    return 2 * common / (num_found + num_wanted) if common else 0.0


def common_subsequence(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of the longest common subsequence, a row of its table at once in the bits of a number (Hyyrö 2004).

    >>> common_subsequence("the cat sat".split(), "a cat then sat".split())
    2
    """
    places: dict[Any, int] = {}
    for place, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << place
    everywhere = (1 << len(one)) - 1
    row = everywhere  # a 0 where the length goes up
    for item in other:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(one) - row.bit_count()
