"""A label for each word (`task: {kind: tag}`): names, chunks, semantic roles.

A word's first token carries its label, so that no entity counts more for being spelled in many (Devlin et al. 2019,
section 5.3). With `crf` labels of a sentence are chosen together (Lafferty et al. 2001; Lample et al. 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hvdlm.compute.draws import Draws, dropout
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.exchange.heads import TaskHead
from hvdlm.models import LanguageModel, State
from hvdlm.records.in_memory import RecordsInMemory
from hvdlm.scoring.spans import entities, legal_transitions
from hvdlm.tasks import tag_figures
from hvdlm.tasks.crf import LinearChainCrf, best_path, legal_scores
from hvdlm.tasks.heads import HEAD_SITE, TagHead, state_of
from hvdlm.tasks.interface import Batch, Sums, Task, TaskContext, without_padding
from hvdlm.tasks.language_model import ObjectiveConfig
from hvdlm.tasks.layouts import TagFields, TagLayout
from hvdlm.tasks.records import Judged, RecordTask, RecordTaskConfig, field_of, hidden_of, lengths_of, on_host
from hvdlm.tokenizer import Tokenizer


class TagConfig(RecordTaskConfig):
    """`task: {kind: tag}`: a label for each word of a text."""

    kind: Literal["tag"] = "tag"
    labels: str | None = Field(None, description="field of type labels; null: the only one")
    predicate: str | None = Field(
        None, description="field of type number: which word, from 0, is asked about; it is marked in the input (SRL)"
    )
    crf: bool = Field(True, description="labels of a sentence are chosen together, in legal order alone")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the hidden vectors before the head")

    @property
    def extra_ids(self) -> int:  # type: ignore[override]
        """The mark before a predicate."""
        return 1 if self.predicate is not None else 0

    def build(self, context: TaskContext) -> Task:
        return Tag(self, context)


class Tag(RecordTask):
    """The denominator is the number of words, of a CRF that of sentences."""

    columns = 2

    def __init__(self, config: TagConfig, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig)
        context.objective.refuse_all_but((), config.kind)
        vocabulary, fields = context.vocabulary, context.fields
        self.config, self._eos_id = config, vocabulary.eos_id
        text = field_of(fields, None, ("text",), "text") or ""
        labels = field_of(fields, config.labels, ("labels",), "labels") or ""
        named = config.predicate
        predicate = named if named is None else field_of(fields, named, ("number",), "predicate")
        self.inputs = (text,) if predicate is None else (text, predicate)
        self.fields = (*self.inputs, labels)
        self._fields = TagFields(text, labels, predicate, vocabulary.size, vocabulary.num_begins)
        self.outputs, self.scheme = fields[labels].labels, fields[labels].scheme
        self.better_predictions = tag_figures.OF_SPANS if self.scheme else tag_figures.OF_LABELS
        self._legal = legal_transitions(self.outputs, self.scheme) if self.scheme else None
        self.takes_draws = config.dropout > 0

    def fit(self, model: LanguageModel) -> None:
        model.head = TagHead(model.hidden_width, len(self.outputs), self._legal, crf=self.config.crf)

    def layout(self, records: Records, seq_len: int, *, training: bool = False) -> Layout:
        return TagLayout(records, self._fields, seq_len)

    def count(self, ids: np.ndarray) -> int:
        return len(ids) if self.config.crf else int((ids[:, 1::2] != IGNORED).sum())

    def count_of(self, lengths: np.ndarray) -> int | None:
        return len(lengths) if self.config.crf else int(lengths.sum())

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        tokens, labels = ids[:, ::2], ids[:, 1::2]
        inputs, lengths = without_padding(tokens, self._eos_id), lengths_of(tokens)
        return Batch(inputs, labels, lengths, draws if training else None)

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        scores, labels, num_words = self._of_words(model, batch, draws)
        crf = self._crf_of(model)
        if crf is None:
            is_word = torch.arange(scores.shape[1], device=scores.device) < num_words.unsqueeze(1)
            target = labels.masked_fill(~is_word, IGNORED)
            losses = F.cross_entropy(scores.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none")
            count = num_words.sum()
        else:
            losses = -crf.log_likelihood(scores, labels, num_words)  # (B,)
            count = torch.tensor(len(losses), device=losses.device)
        return Sums(losses.sum(), torch.stack((losses.detach().double().sum(), count.double()))), None

    def _of_words(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, W, K) and labels (B, W) of words alone, in order, and how many each sentence has (B,)."""
        hidden = hidden_of(model, batch, draws, self._eos_id)
        is_first = batch.targets != IGNORED
        order = (~is_first).to(torch.int8).argsort(dim=1, stable=True)  # words before all else, (B, T)
        num_words = is_first.sum(1)
        words = hidden.gather(1, order.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
        scores = model.head(dropout(words, self.config.dropout, batch.draws, HEAD_SITE)).float()
        return scores, batch.targets.gather(1, order).clamp(min=0), num_words

    def _crf_of(self, model: LanguageModel) -> LinearChainCrf | None:
        assert isinstance(model.head, TagHead)
        return model.head.crf

    def head_for_exchange(self, model: LanguageModel) -> TaskHead | None:
        if self._crf_of(model) is not None:
            raise UserError(
                "task.crf: true: transformers has no such head; train on with task.crf=false and init.from=this run,"
                " and export that"
            )
        if self._fields.predicate is not None:
            raise UserError("task.predicate: transformers has no tagger that is asked about a word")
        assert isinstance(model.head, TagHead)
        return TaskHead(self.config.kind, state_of(model.head.out), self.outputs)

    def predict(self, model: LanguageModel, batch: Batch, seq_len: int) -> list[np.ndarray]:
        scores, _, num_words = self._of_words(model, batch, None)
        crf = self._crf_of(model)
        if crf is not None:
            found = on_host(crf.decode(scores, num_words))
        elif self._legal is not None:  # legal labels alone, without trained scores of steps
            found = on_host(best_path(scores, num_words, legal_scores(self._legal, scores.device)))
        else:
            found = on_host(scores.argmax(-1))
        return [row[:num] for row, num in zip(found, num_words.tolist(), strict=True)]

    def shares(self, model: LanguageModel, batch: Batch) -> list[np.ndarray]:
        """Of each sentence the probabilities of each word's labels, (words, K), over all labels of the others."""
        scores, _, num_words = self._of_words(model, batch, None)
        crf = self._crf_of(model)
        found = on_host(scores.softmax(-1) if crf is None else crf.marginals(scores, num_words))
        return [row[:num] for row, num in zip(found, num_words.tolist(), strict=True)]

    def said(
        self, records: RecordsInMemory, layout: Layout, predictions: Sequence[np.ndarray], tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        lines = []
        for record, found in enumerate(predictions):
            words = records.words(record)
            cut = [tag_figures.OUTSIDE] * (len(words) - len(found))
            labels = [self.outputs[label] for label in found.tolist()] + cut
            line: dict[str, Any] = {"words": words, "labels": labels}
            if self.scheme:
                line["entities"] = [
                    {"type": one.type, "start": one.start, "stop": one.end}
                    for one in entities(labels, self.scheme, reading="conlleval")
                ]
            lines.append(line)
        return lines

    def judge(self, records: Records, layout: Layout, predictions: Sequence[np.ndarray], *, lines: bool) -> Judged:
        gold = [records.values(self._fields.labels, record) for record in range(len(records))]
        tagging = tag_figures.Tagging(self.outputs, self.scheme, self._fields.predicate is not None)
        return tag_figures.judged(tagging, gold, predictions, lines=lines)
