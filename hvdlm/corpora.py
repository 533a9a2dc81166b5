"""The data section opened: each corpus checked against its tokenizer.json and against the others."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hvdlm.batches import DataConfig, EvaluationWindows, MixedStreams
from hvdlm.errors import UserError
from hvdlm.evaluate import Evaluation, evaluate
from hvdlm.manifest import TOKENIZER, Manifest, SplitEntry, read_manifest
from hvdlm.mixture import Mixture
from hvdlm.shards import TokenStream
from hvdlm.tokenizer import digest, load
from hvdlm.world.interface import World


@dataclass(frozen=True)
class Corpus:
    """A data folder that takes part in training."""

    name: str
    path: Path
    weight: float
    manifest: Manifest


@dataclass(frozen=True)
class Corpora:
    """The corpora of a run, all of one tokenizer; one is a mixture of one."""

    corpora: tuple[Corpus, ...]

    @property
    def manifest(self) -> Manifest:
        """The first corpus's, for what all have in common: tokenizer, vocabulary, end of text."""
        return self.corpora[0].manifest

    @property
    def digest(self) -> str:
        """Names the training tokens and their shares: the data order is a function of it, the seed and the batch."""
        if len(self.corpora) == 1:
            return self.manifest.train_digest
        shares = Mixture([corpus.weight for corpus in self.corpora], seed=0).shares
        parts = [[corpus.manifest.train_digest, str(share)] for corpus, share in zip(self.corpora, shares, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def __str__(self) -> str:
        return ", ".join(str(corpus.path) for corpus in self.corpora)

    def train_source(self) -> TokenStream | MixedStreams:
        streams = [TokenStream(corpus.path, "train", corpus.manifest) for corpus in self.corpora]
        if len(streams) == 1:
            return streams[0]
        names, weights = zip(*((corpus.name, corpus.weight) for corpus in self.corpora), strict=True)
        return MixedStreams(tuple(streams), weights, names)

    def having(self, split: str) -> list[Corpus]:
        """The corpora with tokens in this split."""
        return [
            corpus
            for corpus in self.corpora
            if split in corpus.manifest.splits and corpus.manifest.splits[split].num_tokens
        ]

    def unigram_loss(self, split: str) -> float | None:
        """What each corpus's own token frequencies reach on the split."""
        return _mean([(c.manifest.splits[split].unigram_loss, c.manifest.splits[split].num_tokens)
                      for c in self.having(split)])  # fmt: skip


def open_corpora(data: DataConfig) -> Corpora:
    """Read and check the manifests of all corpora; UserError names the two folders that do not fit together."""
    opened = [
        Corpus(name, corpus.path, corpus.weight, _open(corpus.path))
        for name, corpus in zip(data.names, data.corpora, strict=True)
    ]
    first = opened[0]
    for other in opened[1:]:
        if other.manifest.tokenizer_digest != first.manifest.tokenizer_digest:
            raise UserError(
                f"{first.path} was made with tokenizer {first.manifest.tokenizer_digest}, {other.path} with "
                f"{other.manifest.tokenizer_digest}; preprocess one of them again with the other's tokenizer.json"
            )
    return Corpora(tuple(opened))


def _open(path: Path) -> Manifest:
    """The manifest of a data folder, after checking that tokenizer.json is the shards' own."""
    manifest = read_manifest(path)
    found = digest(load(path / TOKENIZER))
    if found != manifest.tokenizer_digest:
        raise UserError(
            f"{path / TOKENIZER}: is tokenizer {found}, the shards were made with "
            f"{manifest.tokenizer_digest}; put theirs back or rerun `hvdlm preprocess`"
        )
    return manifest


class SplitEvaluation:
    """A split of all corpora, opened once: each token is a target exactly once.

    `max_tokens` keeps the beginning of each corpus's split, 0 all of it. UserError if no corpus has the split.
    """

    def __init__(self, corpora: Corpora, split: str, *, seq_len: int, max_tokens: int = 0) -> None:
        eos_id = corpora.manifest.eos_id
        self._parts: list[tuple[str, EvaluationWindows, SplitEntry]] = []
        for corpus in corpora.having(split) or corpora.corpora[:1]:
            stream = TokenStream(corpus.path, split, corpus.manifest)
            windows = EvaluationWindows(stream, seq_len, eos_id, max_tokens)
            self._parts.append((corpus.name, windows, corpus.manifest.splits[split]))
        self._has_several = len(corpora.corpora) > 1

    def run(
        self, model: nn.Module, *, batch: int, precision: str, world: World
    ) -> tuple[Evaluation, dict[str, Evaluation]]:
        """The result over all tokens, and by corpus where there are several; equal on all ranks."""
        results = [
            evaluate(model, windows, entry, batch=batch, precision=precision, world=world)
            for _, windows, entry in self._parts
        ]
        by_corpus = {name: result for (name, _, _), result in zip(self._parts, results, strict=True)}
        return pool(results, [entry for _, _, entry in self._parts]), by_corpus if self._has_several else {}


def pool(results: list[Evaluation], entries: list[SplitEntry]) -> Evaluation:
    """One result over the tokens of several splits; of one it is that one, to the last bit."""
    if len(results) == 1:
        return results[0]
    num_tokens = sum(result.num_tokens for result in results)
    loss = sum(result.loss * result.num_tokens for result in results) / num_tokens
    is_whole = all(result.bits_per_byte is not None for result in results)
    text_bytes = sum(entry.text_bytes for entry in entries)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=loss * num_tokens / math.log(2) / text_bytes if is_whole else None,
        num_tokens=num_tokens,
        unigram_loss=_mean([(result.unigram_loss, result.num_tokens) for result in results]),
    )


def _mean(values: list[tuple[float | None, int]]) -> float | None:
    """The mean by number of tokens, unless some value is unknown."""
    known = [(value, num) for value, num in values if value is not None]
    if not values or len(known) < len(values):
        return None
    if len(known) == 1:
        return known[0][0]
    return sum(value * num for value, num in known) / sum(num for _, num in known)
