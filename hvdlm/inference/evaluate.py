"""A checkpoint evaluated on a whole split."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from hvdlm import checkpoint
from hvdlm.data.corpora import Corpora, open_corpora
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.inference.evaluate_records import evaluate_records
from hvdlm.inference.load import Loaded, as_int8, load_checkpoint_model, tokenizer_of
from hvdlm.partition import slice_of
from hvdlm.scoring.confusion import check_drawing
from hvdlm.tasks import Task
from hvdlm.tasks.evaluate import Evaluation, Protocol, SplitEvaluation
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
    draws: bool = False,
    int8: bool = False,
) -> dict:
    """Evaluate a checkpoint on a whole split with all ranks; the result is equal on each.

    With `carry` a recurrent state runs through the split in `streams` streams (1), which are shared among the ranks;
    None: where the run was trained so. With a `stride` windows overlap, so that tokens are predicted from a past.
    With `words` perplexity is told by the word too, which is the same measure for all tokenizers. Of labelled records
    a line of JSON each goes to `predictions`, in the order of the input; with `draws` the result must have a confusion
    matrix. With `int8` the model's matrices are rounded to that.
    """
    path, loaded, corpora = _open(target, overrides, world)
    if int8:
        with world.together():
            loaded = as_int8(loaded)
    if draws:
        with world.together():
            _check_picture(loaded.task)
    if loaded.config.task.reads_records:
        given = {"carry": carry, "streams": streams, "stride": stride, "words": words}
        with world.together():
            if name := next((name for name, value in given.items() if value), ""):
                kind = loaded.config.task.kind
                raise UserError(f"--{name}: is of text; task: {kind} reads labelled records, each once; leave it out")
        return evaluate_records(loaded, corpora, split, world, path=path, predictions=predictions)
    if predictions is not None:
        kind = loaded.config.task.kind
        raise UserError.shared(f"--predictions: is of labelled records, not of task: {kind}; leave it out")
    if words and not loaded.task.predicts_text:
        kind = loaded.config.task.kind
        raise UserError.shared(f"--words: task: {kind} does not predict each token of a text; leave it out")
    with world.together():
        protocol = protocol_of(loaded, carry, streams, stride)
        evaluation = _text_split(corpora, split, protocol, loaded)
    return _of_text(loaded, corpora, evaluation, protocol, world, split=split, path=path, words=words)


def _check_picture(task: Task) -> None:
    if not (isinstance(task, RecordTask) and task.has_confusion):
        raise UserError("--picture: is of a confusion matrix, which this task has not; leave it out")
    check_drawing()


def _open(target: Path, overrides: tuple[str, ...], world: World) -> tuple[Path, Loaded, Corpora]:
    """The checkpoint that is meant, what it holds, and its data. UserError where they are of two tokenizers."""
    path = world.on_root(lambda: checkpoint.resolve(target))
    place = find_place(world)
    with world.together():
        loaded = load_checkpoint_model(path, overrides, place)
        corpora = open_corpora(loaded.config.data)
        found, trained = corpora.manifest.tokenizer_digest, loaded.state["tokenizer_digest"]
        if found != trained:
            raise UserError(
                f"{corpora}: was made with tokenizer {found}, {path} was trained with {trained}; set data.path to data"
                " of the same tokenizer"
            )
    return path, loaded, corpora


def _text_split(corpora: Corpora, split: str, protocol: Protocol, loaded: Loaded) -> SplitEvaluation:
    """UserError where it has fewer windows than streams are wanted."""
    evaluation = SplitEvaluation(corpora, split, protocol)
    if protocol.streams > (most := evaluation.most_streams):
        seq_len = loaded.config.data.seq_len
        raise UserError(f"--streams: {protocol.streams} are more than the {most} windows of {seq_len} tokens")
    return evaluation


def _of_text(  # noqa: PLR0913 - what a result tells of
    loaded: Loaded,
    corpora: Corpora,
    evaluation: SplitEvaluation,
    protocol: Protocol,
    world: World,
    *,
    split: str,
    path: Path,
    words: bool,
) -> dict:
    config, state = loaded.config, loaded.state
    if protocol.streams and protocol.streams < world.size:
        text = "%s: read by as many of the %d ranks, the others wait (--streams gives them work, and another protocol)"
        log.info(text, evaluation.protocol, world.size)
    batch = max(1, EVAL_BATCH_TOKENS // config.data.seq_len)
    result, by_corpus = evaluation.run(
        loaded.model, loaded.task, batch=batch, precision=config.train.precision, world=world
    )
    parts = {"corpora": {name: part.to_dict() for name, part in by_corpus.items()}} if by_corpus else {}
    how = {
        "protocol": evaluation.protocol,
        "streams": protocol.streams,
        "stride": protocol.stride or config.data.seq_len,
        "seq_len": config.data.seq_len,
        **loaded.how,
    }
    if words:
        with world.together():
            tokenizer = tokenizer_of(path, state)
        how |= _by_the_word(result, corpora, split, tokenizer, world)
    if loaded.task.predicts_text:
        _remark_unknown(corpora)
    how["data"] = str(corpora)
    return {**result.to_dict(), **parts, **how, "split": split, "step": state["step"], "checkpoint": str(path)}


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


def protocol_of(loaded: Loaded, carry: bool | None, streams: int | None, stride: int | None) -> Protocol:
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
