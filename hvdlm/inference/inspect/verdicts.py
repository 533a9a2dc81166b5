"""What taggers say of each word, readers of each place of an answer, and writers of their target, with how sure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from hvdlm.compute.device import autocast
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.inference.inspect.asked import Asked, Looked, Subject
from hvdlm.inference.inspect.one_record import OneRecord, batch_of_example, cut_note, record_of
from hvdlm.inference.inspect.passages import Cell, Choice, Detail, Passage, Scale
from hvdlm.inference.inspect.pieces import pieces_of
from hvdlm.inference.inspect.reading import judged_of
from hvdlm.inference.inspect.surprisal import Surprisal, passage_of
from hvdlm.tasks.interface import Batch
from hvdlm.tasks.records import hidden_of, on_host
from hvdlm.tasks.seq2seq import Seq2seq
from hvdlm.tasks.span import Span
from hvdlm.tasks.tag import Tag
from hvdlm.tasks.tag_figures import OUTSIDE

SURE = Scale(0.0, 1.0, "probability", "cool")
LEAST_SHOWN = 0.05  # of the ends of an answer, for a label


def look_at_words(subject: Subject, asked: Asked) -> Looked:
    """A label for each word, and its probability over all labels of the others."""
    loaded, task = subject.loaded, cast(Tag, subject.loaded.task)
    one = record_of(subject, asked)
    with autocast(loaded.model.device, loaded.config.train.precision):
        (found,) = task.predict(loaded.model, one.batch, loaded.config.data.seq_len)
        (shares,) = task.shares(loaded.model, one.batch)
    cells, said = [], []
    for number, word in enumerate(one.records.words(0)):
        if number >= len(found):  # cut away
            cells.append(Cell(_spaced(word, number, one)))
            continue
        label, row = task.outputs[found[number]], shares[number]
        share = float(row[found[number]])
        best = np.argsort(-row)[: asked.likeliest].tolist()
        choices = tuple(Choice(task.outputs[place], float(row[place])) for place in best)
        is_shown = label != OUTSIDE or not task.scheme
        detail = Detail(word, f"{label} {share:.3f}", choices)
        text = f"{label} {share:.2f}" if is_shown or share < 0.5 else ""
        cells.append(Cell(_spaced(word, number, one), text, share if is_shown else None, (detail,)))
        likeliest = {choice.text: choice.probability for choice in choices}
        said.append({"word": word, "label": label, "probability": share, "likeliest": likeliest})
    notes = ("under a word its label, and the label's probability over all labels of the others",)
    passage = Passage("Labels of words", (), tuple(cells), SURE, (*notes, *cut_note(one.layout)), True, {"words": said})
    return Looked(passage, *_body_pass(subject, one.batch))


def _spaced(word: str, number: int, one: OneRecord) -> str:
    """A word with what stands before it in the text."""
    given = one.records.given[0]
    assert given.record is not None and given.record.words is not None
    words = given.record.words
    return given.text[words[number - 1][1] if number else 0 : words[number][0]] + word


def look_for_answer(subject: Subject, asked: Asked) -> Looked:
    """Where an answer begins and ends, in the window that has the best one."""
    loaded, task = subject.loaded, cast(Span, subject.loaded.task)
    one, seq_len = record_of(subject, asked), subject.loaded.config.data.seq_len
    batches = [batch_of_example(subject, one.layout, number) for number in range(one.layout.num_examples)]
    with autocast(loaded.model.device, loaded.config.train.precision):
        found = [task.predict(loaded.model, batch, seq_len)[0] for batch in batches]
        window = int(np.argmax([score for score, *_ in found]))
        scores = task.scores(loaded.model, batches[window], None)[0]  # (T, 2)
    (said,) = task.said(one.records, one.layout, found, subject.tokenizer)
    batch = batches[window]
    assert batch.lengths is not None
    begin, stop = int(batch.targets[0, 2]), int(batch.lengths[0])
    starts, ends = on_host(scores.softmax(0)).T.astype(np.float64)
    # That an answer covers a place, were its ends drawn each for itself.
    covers = np.cumsum(starts[begin:stop]) * np.cumsum(ends[begin:stop][::-1])[::-1]
    ids = batch.inputs[0, begin:stop].tolist()
    cells, places = [], []
    for piece in pieces_of(subject.tokenizer, ids):
        inside = slice(begin + piece.first, begin + piece.stop)
        start, end = float(starts[inside].sum()), float(ends[inside].sum())
        label = " ".join(f"{kind}{share:.2f}" for kind, share in (("s", start), ("e", end)) if share >= LEAST_SHOWN)
        detail = Detail(piece.text, f"begins here {start:.3f}, ends here {end:.3f}")
        cells.append(Cell(piece.text, label, float(covers[piece.first : piece.stop].max()), (detail,)))
        places.append({"text": piece.text, "start": start, "end": end})
    facts = (f"question: {asked.pair}", f"answer: {said['answer'] or '(none)'}", *_windows_told(window, len(batches)))
    notes = (
        f"coloured by how likely the answer covers a place; s, e: that it starts, ends there; none: {starts[0]:.3f}",
    )
    numbers = {**said, "no_answer": float(starts[0] * ends[0]), "places": places}
    return Looked(Passage("Answer", facts, tuple(cells), SURE, notes, numbers=numbers), *_body_pass(subject, batch))


def _windows_told(window: int, num: int) -> tuple[str, ...]:
    return (f"shown is window {window + 1} of {num}, which has the best answer",) if num > 1 else ()


def _body_pass(subject: Subject, batch: Batch) -> tuple:
    """One pass of the body over an example, and what it reads."""
    loaded = subject.loaded
    assert batch.lengths is not None
    ids = batch.inputs[:, : int(batch.lengths[0])]
    once = Batch(ids, batch.targets, batch.lengths)
    return lambda: hidden_of(loaded.model, once, None, loaded.state["eos_id"]), ids[0].tolist()


def look_at_target(subject: Subject, asked: Asked) -> Looked:
    """Each token of a target from its source and those before it; without a target of the one that the model writes."""
    loaded, task, model = subject.loaded, cast(Seq2seq, subject.loaded.task), subject.loaded.model
    whose = "the target is the one that was given"
    if asked.pair is None:
        asked, whose = (
            replace(asked, pair=_written(subject, asked)),
            "the target is what the model itself writes, read again",
        )
    one = record_of(subject, asked, beside=task.target)
    batch = one.batch
    assert batch.lengths is not None
    found = Surprisal(protocol=whose, how=whose, title="Surprisal of the target")
    with autocast(model.device, loaded.config.train.precision):
        hidden = task.hidden(model, batch, None)
        found.parts += judged_of(subject, asked, hidden, batch.targets)
    found.ids = batch.targets[batch.targets != IGNORED].tolist()
    found.notes = (f"source: {asked.text}", *found.notes, *cut_note(one.layout))
    source, inputs = batch.inputs[0, : int(batch.lengths[0])].tolist(), list[int]()
    if model.reads_source:
        encoding: Any = model
        inputs = encoding.decoder_inputs(batch.targets)[0, : len(found.ids)].tolist()
    else:
        source, inputs = inputs, source
    return Looked(passage_of(found, subject.tokenizer), lambda: task.hidden(model, batch, None), inputs, source)


def _written(subject: Subject, asked: Asked) -> str:
    loaded, task = subject.loaded, cast(Seq2seq, subject.loaded.task)
    one = record_of(subject, asked)
    with torch.no_grad(), autocast(loaded.model.device, loaded.config.train.precision):
        (ids,) = task.predict(loaded.model, one.batch, loaded.config.data.seq_len)
    text = subject.tokenizer.decode(ids).strip()
    if not text:
        raise UserError("--pair: the model itself writes nothing for this source; give a target")
    return text
