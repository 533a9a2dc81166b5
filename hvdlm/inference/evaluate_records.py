"""A checkpoint evaluated on a split of labelled records: metrics, and a line for each record's prediction."""

from __future__ import annotations

from pathlib import Path

from hvdlm.data.corpora import Corpora
from hvdlm.errors import UserError
from hvdlm.files import write_text_durably
from hvdlm.inference.load import Loaded, fields_in
from hvdlm.inference.prediction_lines import lines_of
from hvdlm.tasks.record_evaluation import RecordSplit
from hvdlm.tasks.records import RecordTask
from hvdlm.world.interface import World


def evaluate_records(
    loaded: Loaded, corpora: Corpora, split: str, world: World, *, path: Path, predictions: Path | None
) -> dict:
    """Each record once; equal on all ranks. `predictions` takes a line of JSON each, in the order of the input."""
    task, precision = loaded.task, loaded.config.train.precision
    assert isinstance(task, RecordTask)
    with world.together():
        _check_labels(loaded, corpora, path)
        records = RecordSplit(task, corpora.records(split), loaded.config.data.seq_len)
    found = records.evaluate(loaded.model, precision, world, judges=True, lines=predictions is not None)
    if predictions is not None:
        begins = int(corpora.manifest.bos_id is not None)
        lines = lines_of(records.records, task.inputs, found.lines, begins)
        world.on_root(lambda: write_text_durably(predictions, "".join(lines)))
    how = {"protocol": str(records), "seq_len": loaded.config.data.seq_len, "data": str(corpora), **loaded.how}
    cut = {"cut_records": records.layout.num_cut} if records.layout.num_cut else {}
    return {**found.to_dict(), **cut, **how, "split": split, "step": loaded.state["step"], "checkpoint": str(path)}


def _check_labels(loaded: Loaded, corpora: Corpora, path: Path) -> None:
    """UserError where fields that the task reads are not those that were trained with: numbers would mean others."""
    assert isinstance(loaded.task, RecordTask)
    trained = fields_in(loaded.state)
    for name in loaded.task.fields:
        field, now = trained[name], corpora.manifest.fields.get(name)
        if now is None or now.type != field.type:
            raise UserError(f"{corpora}: has no field {name} of type {field.type}, which {path} was trained with")
        if now.labels != field.labels:
            raise UserError(
                f"{corpora}: {name} has the labels {_listed(now.labels)}; {path} was trained with"
                f" {_listed(field.labels)}; preprocess with those listed as fields.{name}.labels"
            )
        if name in loaded.task.raw_fields and not now.raw:
            raise UserError(f"{corpora}: {name} has no characters; preprocess with fields.{name}.raw: true")
        for key in ("several", "scheme", "words", "places"):
            if getattr(now, key) != getattr(field, key):
                told = f"{getattr(now, key)}, and {path} was trained with {getattr(field, key)}"
                raise UserError(f"{corpora}: {name} has {key}: {told}; preprocess the data as those of the run")


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
