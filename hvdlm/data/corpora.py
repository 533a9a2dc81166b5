"""The data section opened: each corpus checked against its tokenizer.json and against the others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hvdlm.data.config import DataConfig
from hvdlm.data.manifest import Manifest, read_manifest, tokenizer_of
from hvdlm.data.mixture import Mixture
from hvdlm.data.orders import MixedStreams
from hvdlm.data.records import Records
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError


@dataclass(frozen=True)
class OpenCorpus:
    """A data folder that takes part in training."""

    name: str
    path: Path
    weight: float
    manifest: Manifest


@dataclass(frozen=True)
class Corpora:
    """The corpora of a run, all of one tokenizer; one is a mixture of one."""

    corpora: tuple[OpenCorpus, ...]

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

    def records(self, split: str) -> Records:
        """Of the only corpus; UserError where it holds none, or where there are several."""
        if len(self.corpora) > 1:
            raise UserError("data.mixture: labelled records are of one corpus; set data.path")
        return Records(self.corpora[0].path, split, self.manifest)

    def having(self, split: str) -> list[OpenCorpus]:
        """The corpora with tokens in this split."""
        return [
            corpus
            for corpus in self.corpora
            if split in corpus.manifest.splits and corpus.manifest.splits[split].num_tokens
        ]

    def unigram_loss(self, split: str) -> float | None:
        """What each corpus's own token frequencies reach on the split."""
        entries = [corpus.manifest.splits[split] for corpus in self.having(split)]
        return mean_by_tokens([(entry.unigram_loss, entry.num_tokens) for entry in entries])


def open_corpora(data: DataConfig) -> Corpora:
    """Read and check the manifests of all corpora; UserError names the two folders that do not fit together."""
    opened = [
        OpenCorpus(name, corpus.path, corpus.weight, _open(corpus.path))
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
    tokenizer_of(path, manifest)
    return manifest


def mean_by_tokens(values: list[tuple[float | None, int]]) -> float | None:
    """The mean by number of tokens, unless some value is unknown."""
    known = [(value, num) for value, num in values if value is not None]
    if not values or len(known) < len(values):
        return None
    if len(known) == 1:
        return known[0][0]
    return sum(value * num for value, num in known) / sum(num for _, num in known)
