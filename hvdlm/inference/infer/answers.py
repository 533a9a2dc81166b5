"""What a model of labelled records says of the records of a unit: classes, tags, answers, texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvdlm.errors import UserError
from hvdlm.inference.generate import count_unknown
from hvdlm.inference.infer.lines import Line, Unit, encodable, id_of
from hvdlm.inference.infer.wanted import Wanted
from hvdlm.inference.infer.work import Tell, Values, Work
from hvdlm.inference.load import Loaded, fields_in
from hvdlm.records.encoder import RecordEncoder
from hvdlm.records.fields import Record
from hvdlm.records.in_memory import RecordsInMemory, input_reader, words_of
from hvdlm.tasks.record_evaluation import predictions_of
from hvdlm.tasks.records import RecordTask
from hvdlm.tokenizer import Tokenizer

ROWS = 256  # records whose groups are formed together


class Given(NamedTuple):
    """A record's text and what stands beside it."""

    text: str
    record: Record


class Answering(Work):
    """Records by the names of the fields that the run was trained with; what is to be found is not looked at."""

    counted = ("tokens read",)

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer, wanted: Wanted, source: Path) -> None:
        task, kind = loaded.task, loaded.config.task.kind
        assert isinstance(task, RecordTask)
        if name := wanted.among(*sorted(wanted.given.keys() - {"batch", "int8"})):
            settings = ", ".join(f"task.{key}=…" for key in loaded.config.task.measuring)
            remedy = f"it takes {settings} and --batch" if settings else "leave it out"
            raise UserError(f"{name}: is of models that continue texts, and this is task: {kind}; {remedy}")
        trained = fields_in(loaded.state)
        self._task, self._loaded, self._tokenizer, self._source = task, loaded, tokenizer, source
        self._fields = {name: trained[name] for name in task.fields}
        self._reader = input_reader(trained, task.inputs)
        self._encoder = RecordEncoder(self._reader, tokenizer)
        self.rows, self._most = wanted.batch or ROWS, wanted.batch or 0

    def check(self, values: Values) -> None:
        _ = id_of(values)
        self._read(values)

    def lines(self, unit: Unit, given: Sequence[Line], tell: Tell) -> tuple[list[dict[str, Any]], Counter[str]]:
        seq_len = self._loaded.config.data.seq_len
        place = f"those from {unit.first} on (line {unit.line})"
        read = [self._read(line.values) for line in given]
        how = self._encoder, self._fields, self._tokenizer
        try:
            records = RecordsInMemory(read, *how, source=self._source, place=place)
        except UserError:
            self._check_spelling(given, read)
            raise
        layout = self._task.layout(records, seq_len)
        found: list[np.ndarray] = [np.empty(0)] * layout.num_examples
        precision, left = self._loaded.config.train.precision, layout.num_examples
        for group, predictions in predictions_of(
            self._task, self._loaded.model, layout, seq_len=seq_len, precision=precision, most=self._most
        ):
            for example, prediction in zip(group.tolist(), predictions, strict=True):
                found[example] = prediction
            left -= len(group)
            tell(int(layout.lengths[group].sum()), is_last=not left)
        is_cut = np.zeros(len(given), bool) if layout.is_cut is None else layout.is_cut
        said = self._task.said(records, layout, found, self._tokenizer)
        lines = [
            {**id_of(line.values), "index": unit.first + place, **one, "truncated": bool(cut)}
            for place, (line, one, cut) in enumerate(zip(given, said, is_cut, strict=True))
        ]
        counts = Counter({"truncated": int(is_cut.sum()), "prompt_tokens": int(records.num_tokens().sum())})
        counts["unknown_tokens"] = self._num_unknown(records, read)
        counts.update(f"finish_{one['finish_reason']}" for one in said if "finish_reason" in one)
        return lines, counts

    def _check_spelling(self, given: Sequence[Line], read: Sequence[Given]) -> None:
        """UserError, with its line, for a record that the vocabulary cannot spell."""
        for line, one in zip(given, read, strict=True):
            try:
                self._encoder.encode([one])
            except UserError as error:
                raise UserError(f"{self._source}:{line.number}: {error}") from None

    def _num_unknown(self, records: RecordsInMemory, given: Sequence[Given]) -> int:
        """In the text and in what stands beside it."""
        found = 0
        for number, (text, record) in enumerate(given):
            found += count_unknown(self._tokenizer, text, records.tokens(number).tolist())
            for name, value in record.values.items():
                if self._fields[name].type == "pair":
                    found += count_unknown(self._tokenizer, value[0], records.ids(name, number).tolist())
        return found

    def _read(self, values: Values) -> Given:
        """ValueError for a record without what the task reads. A text alone is the only input, where there is one."""
        names = self._reader.names
        if len(names) == 1 and (isinstance(values, str) or names[0] not in values):
            values = {names[0]: values if isinstance(values, str) else values.get("prompt")}
        wanted = "{" + ", ".join(f'"{name}": …' for name in names) + "}"
        if isinstance(values, str):
            raise ValueError(f"is a text, and task: {self._loaded.config.task.kind} reads {wanted}: make it JSON lines")
        if lacking := [name for name in names if values.get(name) is None]:
            raise ValueError(f"has no {lacking[0]!r}; a record here is {wanted}")
        for name in names:
            for text in _texts_in(values[name]):
                encodable(name, text)
        return Given(*self._reader.read([words_of(values[name], self._reader.entries[name]) for name in names]))


def _texts_in(value: Any) -> Iterator[str]:
    """A text, or those of a list of words."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (text for one in value for text in _texts_in(one))
