"""Tasks of running text: a document is read as `hvdlm eval` reads a split of that one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hvdlm.compute.device import autocast
from hvdlm.data.windows import IGNORED, Examples
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import EVAL_BATCH_TOKENS, protocol_of
from hvdlm.inference.inspect.asked import Asked, Looked, Subject
from hvdlm.inference.inspect.surprisal import HOW, OneText, Surprisal, judged, passage_of
from hvdlm.models import State
from hvdlm.models.latent import LatentModel
from hvdlm.tasks.elbo import Elbo, kl_of
from hvdlm.tasks.evaluate import Read, batch_of, in_pieces
from hvdlm.tasks.interface import Batch
from hvdlm.tasks.masked import MaskedTokens
from hvdlm.world.serial import SerialWorld

MOST_TOKENS = 50_000  # of a text: no browser shows a page of many more
HIDDEN = "bits = -log2 p(token | all others of its window), each hidden in turn: their sum is the pseudo-log-likelihood"
LATENT = "bits = -log2 p(token | z, those before it), z as evaluation draws it from q(z | x); with the KL it is a bound"


def look_on(subject: Subject, asked: Asked) -> Looked:
    """Each token from those before it."""
    loaded = subject.loaded
    found, read = _begun(subject, asked)
    state: State | None = None
    inputs: Tensor | None = None
    for examples, batch, state_before in _batches(subject, read):
        state = state if state_before is None else state_before
        if inputs is None:
            inputs = batch.inputs[:1, : int((examples.ids[0, 1:] != IGNORED).sum())]
        _mark_begins(found, examples, is_stream=state is not None)
        with autocast(loaded.model.device, loaded.config.train.precision):
            hidden, state = loaded.model(batch.inputs, state)
            _take(found, subject, asked, hidden, batch.targets)
    assert inputs is not None, "a document has its end at least"
    first = inputs
    return Looked(passage_of(found, subject.tokenizer), lambda: loaded.model(first), first[0].tolist())


def look_through(subject: Subject, asked: Asked) -> Looked:
    """Each token from a latent vector and those before it."""
    loaded = subject.loaded
    task, model = cast(Elbo, loaded.task), cast(LatentModel, loaded.model)
    found, read = _begun(subject, asked)
    found.notes, found.latent_nats, passes = (LATENT,), 0.0, []
    for examples, batch, _ in _batches(subject, read):
        _mark_begins(found, examples, is_stream=False)
        with autocast(model.device, loaded.config.train.precision):
            posterior, is_there, z = task.drawn(model, batch, None)
            hidden, _ = model.decode(batch.inputs, z)
            _take(found, subject, asked, hidden, batch.targets)
        found.latent_nats += float(kl_of(posterior, is_there).double().sum())
        num = int(cast(Tensor, batch.lengths)[0])
        passes.append((batch.targets[:1, :num], batch.inputs[:1, :num], z[:1]))
    source, inputs, z = passes[0]

    def read_once() -> None:
        model.encode(source, torch.tensor([source.shape[1]], device=model.device))
        model.decode(inputs, z)

    return Looked(passage_of(found, subject.tokenizer), read_once, inputs[0].tolist(), source[0].tolist())


def look_behind_masks(subject: Subject, asked: Asked) -> Looked:
    """Each token from all others, hidden one after the other; an end of text is never hidden, as in training."""
    loaded, unasked = subject.loaded, set[int]()
    found, read = _begun(subject, asked)
    found.title, found.notes, found.text_bytes, first = "Surprisal behind a mask", (HIDDEN,), None, None
    for examples, _ in in_pieces(loaded.model, read, 1, SerialWorld()):
        tokens = torch.from_numpy(examples.ids[0, 1:][examples.ids[0, 1:] != IGNORED]).to(loaded.model.device)
        first = tokens.unsqueeze(0) if first is None else first
        begin = int(examples.context[0])  # what was predicted in another window
        _mark_begins(found, examples, is_stream=False)
        special = [number for number in (loaded.state["eos_id"], loaded.state.get("bos_id")) if number is not None]
        places = [place for place, id_ in enumerate(tokens.tolist()) if place >= begin and id_ not in special]
        unasked |= set(range(len(found.ids), len(found.ids) + len(tokens) - begin))
        unasked -= {len(found.ids) + place - begin for place in places}
        found.ids += tokens[begin:].tolist()
        _hide_each(found, subject, asked, tokens, torch.tensor(places, dtype=torch.int64, device=tokens.device))
    found.unasked = frozenset(unasked)
    if not found.parts:
        raise UserError("the text has no token that could be hidden; give a longer one")
    assert first is not None
    once = first
    return Looked(passage_of(found, subject.tokenizer), lambda: loaded.model(once), once[0].tolist())


def _hide_each(found: Surprisal, subject: Subject, asked: Asked, tokens: Tensor, places: Tensor) -> None:
    """Of tokens (T,), of which those at `places` are hidden in a copy each."""
    loaded, mask_id = subject.loaded, cast(MaskedTokens, subject.loaded.task).mask_id
    for some in places.split(max(1, EVAL_BATCH_TOKENS // len(tokens))):
        rows = torch.arange(len(some), device=tokens.device)
        copies = tokens.repeat(len(some), 1)
        copies[rows, some] = mask_id
        with autocast(loaded.model.device, loaded.config.train.precision):
            hidden, _ = loaded.model(copies)
            targets = torch.full_like(copies, IGNORED)
            targets[rows, some] = tokens[some]
            found.parts += judged_of(subject, asked, hidden, targets)


def judged_of(subject: Subject, asked: Asked, hidden: Tensor, targets: Tensor) -> Iterator:
    """Of hidden vectors (B, T, …) those that have a target (B, T), in order."""
    is_target, vocab_size = targets != IGNORED, subject.tokenizer.vocab_size
    model = subject.loaded.model
    return judged(model, hidden[is_target], targets[is_target], most=asked.likeliest, vocab_size=vocab_size)


def _take(found: Surprisal, subject: Subject, asked: Asked, hidden: Tensor, targets: Tensor) -> None:
    found.ids += targets[targets != IGNORED].tolist()
    found.parts += judged_of(subject, asked, hidden, targets)


def _begun(subject: Subject, asked: Asked) -> tuple[Surprisal, Read]:
    """Nothing found yet, and how the text is read."""
    loaded, text = subject.loaded, asked.text or ""
    ids, _ = subject.tokenizer.encode_documents([text])
    if len(ids) > MOST_TOKENS:
        raise UserError(f"the text has {len(ids):,} tokens; give at most {MOST_TOKENS:,} of it")
    protocol = protocol_of(loaded, None, None, asked.stride)
    read = protocol.reader(OneText(ids).as_stream(), loaded.state["eos_id"])
    return Surprisal(protocol=str(read), how=f"read as {read}", notes=(HOW,), text_bytes=len(text.encode())), read


def _batches(subject: Subject, read: Read) -> Iterator[tuple[Examples, Batch, State | None]]:
    loaded = subject.loaded
    rows = max(1, EVAL_BATCH_TOKENS // loaded.config.data.seq_len)
    for examples, state in in_pieces(loaded.model, read, rows, SerialWorld()):
        yield examples, batch_of(loaded.model, loaded.task, examples), state


def _mark_begins(found: Surprisal, examples: Examples, *, is_stream: bool) -> None:
    """Where windows begin of which the first token is predicted from what stands right before it alone."""
    if is_stream:
        return
    lengths = (examples.ids[:, 1:] != IGNORED).sum(1) - examples.context
    starts = len(found.ids) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    found.begins |= set(starts[(examples.context == 0) & (starts > 0)].tolist())
