"""A checkpoint evaluated on a whole split."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np

from hvdlm import checkpoint
from hvdlm.data.corpora import Corpora, open_corpora
from hvdlm.data.records import Records
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.files import write_text_durably
from hvdlm.inference.load import Loaded, fields_in, load_checkpoint_model, tokenizer_of
from hvdlm.partition import slice_of
from hvdlm.tasks.evaluate import Evaluation, Protocol, SplitEvaluation
from hvdlm.tasks.record_evaluation import RecordSplit
from hvdlm.tasks.records import RecordTask
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.interface import World
from hvdlm.world.place import find_place

log = logging.getLogger("hvdlm")

EVAL_BATCH_TOKENS = 8192


def evaluate_checkpoint(  # noqa: PLR0913 - the protocol, each part of it a keyword
    target: Path,
    overrides: tuple[str, ...],
    split: str,
    world: World,
    *,
    carry: bool | None = None,
    streams: int | None = None,
    stride: int | None = None,
    words: bool = False,
    predictions: Path | None = None,
) -> dict:
    """Evaluate a checkpoint on a whole split with all ranks; the result is equal on each.

    With `carry` a recurrent state runs through the split in `streams` streams (1), which are shared among the ranks;
    None: where the run was trained so. With a `stride` windows overlap, so that tokens are predicted from a past.
    With `words` perplexity is told by the word too, which is the same measure for all tokenizers. Of labelled records
    a line of JSON each goes to `predictions`, in the order of the input.
    """
    path = world.on_root(lambda: checkpoint.resolve(target))
    place = find_place(world)
    with world.together():
        loaded = load_checkpoint_model(path, overrides, place)
        config, state = loaded.config, loaded.state
        corpora = open_corpora(config.data)
        found = corpora.manifest.tokenizer_digest
        if found != state["tokenizer_digest"]:
            raise UserError(
                f"{corpora}: was made with tokenizer {found}, {path} was trained with "
                f"{state['tokenizer_digest']}; set data.path to data of the same tokenizer"
            )
        if config.task.reads_records:
            _refuse_text_protocols(config.task.kind, carry=carry, streams=streams, stride=stride, words=words)
            records = _record_split(loaded, corpora, split, path)
    if config.task.reads_records:
        return _of_records(loaded, records, world, split=split, path=path, predictions=predictions)
    if predictions is not None:
        raise UserError.shared(f"--predictions: is of labelled records, not of task: {config.task.kind}; leave it out")
    with world.together():
        protocol = _protocol(loaded, carry, streams, stride)
        evaluation, num_streams = SplitEvaluation(corpora, split, protocol), protocol.streams
        if num_streams > (most := evaluation.most_streams):
            raise UserError(
                f"--streams: {num_streams} are more than the {most} windows of {config.data.seq_len} tokens"
            )
    if num_streams and num_streams < world.size:
        text = "%s: read by as many of the %d ranks, the others wait (--streams gives them work, and another protocol)"
        log.info(text, evaluation.protocol, world.size)
    if words and not loaded.task.predicts_text:
        raise UserError.shared(f"--words: task: {config.task.kind} does not predict each token of a text; leave it out")
    batch = max(1, EVAL_BATCH_TOKENS // config.data.seq_len)
    result, by_corpus = evaluation.run(
        loaded.model, loaded.task, batch=batch, precision=config.train.precision, world=world
    )
    parts = {"corpora": {name: part.to_dict() for name, part in by_corpus.items()}} if by_corpus else {}
    how = {
        "protocol": evaluation.protocol,
        "streams": num_streams,
        "stride": stride or config.data.seq_len,
        "seq_len": config.data.seq_len,
    }
    if words:
        with world.together():
            tokenizer = tokenizer_of(path, state)
        how |= _by_the_word(result, corpora, split, tokenizer, world)
    if loaded.task.predicts_text:
        _remark_unknown(corpora)
    how["data"] = str(corpora)
    return {**result.to_dict(), **parts, **how, "split": split, "step": state["step"], "checkpoint": str(path)}


def _refuse_text_protocols(kind: str, **given: object) -> None:
    for name, value in given.items():
        if value:
            raise UserError(f"--{name}: is of text; task: {kind} reads labelled records, each once; leave it out")


def _record_split(loaded: Loaded, corpora: Corpora, split: str, path: Path) -> RecordSplit:
    """The records of a split; UserError where their labels are not those that were trained with."""
    task, manifest = loaded.task, corpora.manifest
    assert isinstance(task, RecordTask)
    records = Records(corpora.corpora[0].path, split, manifest)
    for name, field in fields_in(loaded.state).items():
        now = manifest.fields.get(name)
        if now is None or now.type != field.type:
            raise UserError(f"{corpora}: has no field {name} of type {field.type}, which {path} was trained with")
        if now.labels != field.labels:
            raise UserError(
                f"{corpora}: {name} has labels {', '.join(now.labels[:6])}, {path} was trained with"
                f" {', '.join(field.labels[:6])} (digest {field.labels_digest}); preprocess with"
                f" fields.{name}.labels set to those of {path.resolve().parent.parent}"
            )
    return RecordSplit(task, records, loaded.config.data.seq_len)


def _of_records(
    loaded: Loaded, split_: RecordSplit, world: World, *, split: str, path: Path, predictions: Path | None
) -> dict:
    config, task = loaded.config, loaded.task
    assert isinstance(task, RecordTask)
    precision = config.train.precision
    found = split_.evaluate(loaded.model, task, precision, world, judges=True, lines=predictions is not None)
    if predictions is not None:
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found.lines)
        world.on_root(lambda: write_text_durably(predictions, lines))
    how = {"protocol": str(split_), "seq_len": config.data.seq_len, "data": str(split_.records.folder)}
    return {**found.to_dict(), **how, "split": split, "step": loaded.state["step"], "checkpoint": str(path)}


def _by_the_word(result: Evaluation, corpora: Corpora, split: str, tokenizer: Tokenizer, world: World) -> dict:
    """Words of a split, and the perplexity of one; collective."""
    with world.together():
        num = np.array([num_words(corpora, split, tokenizer, rank=world.rank, size=world.size)], dtype=np.int64)
    world.sum_(num)
    nats = result.loss * result.num_tokens
    return {"num_words": int(num[0]), "word_perplexity": math.exp(min(nats / int(num[0]), 700.0))}


def _remark_unknown(corpora: Corpora) -> None:
    """Say where a closed vocabulary makes a model look better than one that spells every word."""
    for corpus in corpora.corpora:
        found = corpus.manifest.statistics
        if num_unknown := found.get("unknown_tokens", 0):
            log.warning(
                "%s: %.2g %% of its tokens are unknown to the vocabulary, and what they stand for is not predicted:"
                " bits per byte and perplexity by the word are not to be compared with those of other vocabularies",
                *(corpus.name, 100 * num_unknown / max(1, found.get("encoded_tokens", 0))),
            )


def num_words(corpora: Corpora, split: str, tokenizer: Tokenizer, *, rank: int, size: int) -> int:
    """Words of the split in this rank's share of its documents: what white space parts, and an end a document.

    So Penn Treebank's are counted: a sentence's end is a word (Mikolov et al. 2010).
    """
    total = 0
    for corpus in corpora.having(split):
        stream = TokenStream(corpus.path, split, corpus.manifest)
        starts = stream.document_starts()
        mine = slice_of(rank, size, len(starts) - 1)
        for number in mine:
            ids = stream.read(int(starts[number]), int(starts[number + 1] - starts[number]))
            total += len(tokenizer.decode(ids[ids != corpus.manifest.eos_id]).split()) + 1
    return total


def _protocol(loaded: Loaded, carry: bool | None, streams: int | None, stride: int | None) -> Protocol:
    """As the user says; else windows or a stream, as the run was trained: one stream, as the literature has it."""
    config, data = loaded.config, loaded.config.data
    if stride is not None:
        if not loaded.task.takes_context:
            raise UserError(f"--stride: task: {config.task.kind} is of a sequence as a whole; leave it out")
        if carry or streams is not None:
            raise UserError("--stride is of windows, --carry and --streams of a state that goes on; leave one out")
        if stride > data.seq_len:
            raise UserError(f"--stride: {stride} is more than data.seq_len {data.seq_len}, so tokens would be missed")
        return Protocol(data.seq_len, stride=stride)
    carries = config.reads_streams or streams is not None if carry is None else carry
    if carries and not config.model.carries_state:
        raise UserError(
            f"--carry: model.family: {config.model.family} has no state to carry from window to window; leave it out"
            f"{', and take --stride for windows that overlap' if loaded.task.takes_context else ''}"
        )
    if streams is not None and not carries:
        raise UserError("--streams is of --carry; leave one of --streams and --no-carry out")
    if carries:
        return Protocol(data.seq_len, streams=streams or 1, forgets=config.model.forgets)
    return Protocol(data.seq_len, documents=data.order == "documents" and carry is None)
