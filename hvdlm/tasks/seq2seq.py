"""A text from a text (`task: {kind: seq2seq}`): translation, summaries, answers that are written.

An encoder reads the source, or a decoder reads it as what stands before the target; the loss is of the target alone.
What is measured is written freely, word after word, never with the truth before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from hvdlm.compute.draws import Draws
from hvdlm.config import choice_of
from hvdlm.data.manifest import TOKENIZER
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.data.windows import IGNORED
from hvdlm.decoding import Decoding
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, State
from hvdlm.records.in_memory import RecordsInMemory
from hvdlm.scoring.languages import language_of
from hvdlm.tasks.interface import Batch, Measured, Sums, Task, TaskContext, less, more, without_padding
from hvdlm.tasks.language_model import ObjectiveConfig, judged_at
from hvdlm.tasks.layouts import PackedLayout, PairLayout, PrefixLayout, Text
from hvdlm.tasks.records import Judged, RecordTask, RecordTaskConfig, field_of, lengths_of, need_raw
from hvdlm.tasks.text_figures import METRICS, of_texts
from hvdlm.tasks.writing import written
from hvdlm.tokenizer import Tokenizer, load

Metric = Annotated[str, choice_of(METRICS)]


class Seq2seqConfig(RecordTaskConfig):
    """`task: {kind: seq2seq}`: a target text for a source text."""

    kind: Literal["seq2seq"] = "seq2seq"
    target: str | None = Field(None, description="field of type pair; null: the only one")
    language: Measured[str | None] = Field(
        None, description="of the target, as en, de, zh: by whose rules texts are compared"
    )
    metrics: Measured[list[Metric]] = Field(["bleu"], description="bleu has chrf beside it, exact_match token_f1")
    beams: Measured[int] = Field(
        1, ge=1, le=100, description="of the search in evaluation; 1: the likeliest token each time"
    )
    length_penalty: Measured[float] = Field(1.0, ge=0, le=10, description="a of the score log p / length^a")
    packing: bool = Field(
        False, description="in training of a decoder alone: several records in a sequence, each as if it stood alone"
    )
    most_tokens: Measured[int | None] = Field(None, ge=1, description="of a text that is written; null: data.seq_len")

    @field_validator("language")
    @classmethod
    def _check_language(cls, language: str | None) -> str | None:
        try:
            return None if language is None else language_of(language) and language
        except UserError as error:
            raise ValueError(str(error)) from None

    def build(self, context: TaskContext) -> Task:
        return Seq2seq(self, context)


class Seq2seq(RecordTask):
    """The denominator is the number of the targets' tokens, their ends of text among them."""

    sums = ("loss", "targets", "correct")
    better = less("loss") | more("token_accuracy")  # no figures of predictions: writing takes far longer than reading
    predicts_tokens = True
    continues_whole = True

    def __init__(self, config: Seq2seqConfig, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig)
        context.objective.refuse_hidden(config.kind)
        if config.language is None:
            raise UserError("task.language: say the target's, as en, de or zh: BLEU and ROUGE part words by it")
        fields, vocabulary = context.fields, context.vocabulary
        self.config, self._objective = config, context.objective
        self._vocabulary = vocabulary
        source = field_of(fields, None, ("text",), "source") or ""
        self.target = field_of(fields, config.target, ("pair",), "target") or ""
        # What is written first is the target's first word.
        self._texts = (Text(source), Text(self.target, skipped=vocabulary.num_begins))
        self.inputs, self.fields, self.raw_fields = (source,), (source, self.target), (self.target,)
        need_raw(fields, self.target, config.kind)
        self._has_encoder = False
        self.columns = 3 if config.packing else 2

    def fit(self, model: LanguageModel) -> None:
        self._has_encoder = model.reads_source
        if self.config.packing and not model.takes_segments:
            raise UserError("task.packing: is for a transformer without an encoder; leave it out")

    def layout(self, records: Records, seq_len: int, *, training: bool = False) -> Layout:
        if self._has_encoder:
            return PairLayout(records, *self._texts, seq_len)
        layout = PrefixLayout(records, *self._texts, seq_len)
        return PackedLayout(layout, 2, seq_len) if training and self.config.packing else layout

    def count(self, ids: np.ndarray) -> int:
        return int((ids[:, 1 :: self.columns] != IGNORED).sum())

    def count_of(self, lengths: np.ndarray) -> int | None:
        return int(lengths.sum())

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        columns = self.columns if training else 2
        tokens, targets = ids[:, ::columns], ids[:, 1::columns]
        segments = ids[:, 2::columns] if columns > 2 else None
        return Batch(without_padding(tokens, self._vocabulary.eos_id), targets, lengths_of(tokens), segments=segments)

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        hidden = self.hidden(model, batch, draws)
        is_target = batch.targets != IGNORED
        targets = batch.targets[is_target]  # (M,)
        aim, nll, correct = judged_at(model, hidden[is_target], targets, self._objective)  # at the targets alone
        num = is_target.sum()
        return Sums(aim, torch.stack((nll.double(), num.double(), correct.double()))), None

    def hidden(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> Tensor:
        """(B, T, C), from which the targets (B, T) are predicted, each with the truth before it."""
        if self._has_encoder:
            source: Any = model
            begun = source.encode(batch.inputs, batch.lengths, draws)
            return model(source.decoder_inputs(batch.targets), begun, draws)[0]
        if batch.segments is not None:
            return model(batch.inputs, None, draws, segments=batch.segments)[0]
        return model(batch.inputs, None, draws)[0]

    def figures(self, sums: dict[str, float]) -> dict[str, float]:  # type: ignore[override]
        """`token_accuracy` has the truth before each token, so that it says little of what is written freely."""
        return {**super().figures(sums), "token_accuracy": sums["correct"] / max(1.0, sums["targets"])}

    def predict(self, model: LanguageModel, batch: Batch, seq_len: int) -> list[np.ndarray]:
        assert batch.lengths is not None
        lengths = batch.lengths if self._has_encoder else (batch.targets != IGNORED).long().argmax(1) + 1
        config, most = self.config, self.config.most_tokens or seq_len
        how = Decoding(most, self._vocabulary.eos_id, beams=config.beams, length_penalty=config.length_penalty)
        return written(model, self._vocabulary, batch.inputs, lengths, how)

    def said(
        self, records: RecordsInMemory, layout: Layout, predictions: Sequence[np.ndarray], tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        lines = []
        for ids in predictions:
            has_ended = bool(len(ids)) and int(ids[-1]) == self._vocabulary.eos_id
            reason, num_tokens = "stop" if has_ended else "length", len(ids) - has_ended
            text = tokenizer.decode(ids).strip()
            lines.append({"text": text, "finish_reason": reason, "num_tokens": num_tokens})
        return lines

    def judge(self, records: Records, layout: Layout, predictions: Sequence[np.ndarray], *, lines: bool) -> Judged:
        tokenizer = load(records.folder / TOKENIZER)
        written = [tokenizer.decode(ids).strip() for ids in predictions]
        gold = [records.texts(self.target, record) for record in range(len(records))]
        assert self.config.language is not None
        return of_texts(written, gold, self.config.language, self.config.metrics, lines=lines)
