"""A text as a task of labelled records reads it: encoded and laid out as preprocessing and evaluation do."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hvdlm.data.record_batches import Layout
from hvdlm.errors import UserError
from hvdlm.inference.inspect.asked import Asked, Subject
from hvdlm.inference.load import fields_in
from hvdlm.records.encoder import RecordEncoder
from hvdlm.records.fields import Record, Refused
from hvdlm.records.in_memory import RecordsInMemory, input_reader, words_of
from hvdlm.tasks.interface import Batch
from hvdlm.tasks.records import RecordTask


class Given(NamedTuple):
    """A text and what stands beside it, typed."""

    text: str
    record: Record


class OneRecord(NamedTuple):
    """The record, how it is laid out, and its first example as a batch."""

    records: RecordsInMemory
    layout: Layout
    batch: Batch


def record_of(subject: Subject, asked: Asked, *, beside: str = "") -> OneRecord:
    """The record of what is asked; `--pair` is the task's second input, or its field `beside` them.

    UserError for what is no record of the task, and where an input that it reads is not given.
    """
    loaded, task = subject.loaded, subject.loaded.task
    assert isinstance(task, RecordTask)
    fields = fields_in(loaded.state)
    text = next(name for name in task.inputs if fields[name].type == "text")
    second = next((name for name in task.inputs if name != text), beside)
    if second and asked.pair is None:
        raise UserError(f"--pair: task: {loaded.config.task.kind} reads {second} beside {text}; give it")
    if not second and asked.pair is not None:
        raise UserError(f"--pair: task: {loaded.config.task.kind} reads {text} alone; leave it out")
    names = [name for name in (text, second) if name]
    reader = input_reader(fields, names)
    raw = {text: words_of(asked.text or "", fields[text]), second: asked.pair}
    try:
        given = Given(*reader.read([raw[name] for name in reader.names]))
    except Refused as error:
        remedy = str(error).replace("leave the record out", "give another text")
        raise UserError(f"TEXT, --pair: {remedy}") from None
    encoder = RecordEncoder(reader, subject.tokenizer)
    records = RecordsInMemory([given], encoder, fields, subject.tokenizer, source=Path("TEXT"), place="TEXT")
    layout = task.layout(records, loaded.config.data.seq_len)
    return OneRecord(records, layout, batch_of_example(subject, layout, 0))


def batch_of_example(subject: Subject, layout: Layout, example: int) -> Batch:
    """One example as the task is evaluated on it."""
    ids = torch.from_numpy(layout.rows(np.array([example]))).to(subject.loaded.model.device)
    return subject.loaded.task.batch(ids, None, None, training=False)


def cut_note(layout: Layout) -> tuple[str, ...]:
    """Where the text is longer than what the model reads, that it is."""
    return ("the text is longer than data.seq_len: its end is not read",) if layout.num_cut else ()
