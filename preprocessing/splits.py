"""Which split a document goes to: that of the input it stands in, or one by a hash of its text."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import Field, model_validator

from hvdlm.config import Section
from hvdlm.data.manifest import OTHER_NAMES, SPLITS, Splitting
from hvdlm.errors import UserError
from hvdlm.partition import fraction_of

from .documents import Stamp, find_stamps, one_line

Sources = str | list[str]


class SplitInputs(Section):
    """The `input` section of predefined splits: what each is made of. Any of them may be left out."""

    other_names = OTHER_NAMES

    train: Sources | None = Field(None, description="file, folder, glob or list of these to train on")
    val: Sources | None = Field(None, description="the same to validate on")
    test: Sources | None = Field(None, description="the same for the final test")


class SplitConfig(Section):
    """The `split` section: fractions of documents; the rest is train."""

    other_names = OTHER_NAMES

    val: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="share of the documents for validation; where `input` names splits of those of input.train, and 0 "
        "by default",
    )
    test: float = Field(0.0, ge=0, lt=1, description="share of the documents for the final test, likewise")

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} + test {self.test} leave nothing to train on")
        return self


def named_as_splits(paths: Collection[str]) -> dict[str, str]:
    """By split a file whose name, or a folder's above it, says that it is of it; nothing unless of train and another.

    >>> named_as_splits(["ptb/ptb.train.txt", "ptb/ptb.valid.txt", "ptb/README"])
    {'train': 'ptb/ptb.train.txt', 'val': 'ptb/ptb.valid.txt'}
    """
    names = {**OTHER_NAMES, **{split: split for split in SPLITS}}
    found: dict[str, str] = {}
    whole = {path: os.path.abspath(path) for path in paths}  # noqa: PTH100 - there may be a million
    common = os.path.commonpath(whole.values())  # tells no two files apart
    for path in paths:
        said = {names[word] for word in re.split("[^a-z]+", whole[path][len(common) :].lower()) if word in names}
        if len(said) == 1:  # one that says several, as in test/train.txt, says nothing sure
            found.setdefault(said.pop(), path)
    return {split: found[split] for split in SPLITS if split in found} if "train" in found and len(found) > 1 else {}


@dataclass(frozen=True)
class SplitPlan:
    """What each split is made of. One input is all train's, of which fractions go elsewhere."""

    sources: Mapping[str, list[str]]  # by split, in the order of SPLITS; a split that is not named is not there
    fractions: Mapping[str, float]  # that a hash of the text takes out of train
    is_predefined: bool  # whether the input names its splits

    @classmethod
    def of(cls, given: Sources | SplitInputs, split: SplitConfig) -> SplitPlan:
        named = dict(given) if isinstance(given, SplitInputs) else {"train": given}
        sources = {
            name: [found] if isinstance(found, str) else list(found)
            for name, found in named.items()
            if found is not None
        }
        return cls(sources, dict(split), isinstance(given, SplitInputs))

    def key_of(self, split: str) -> str:
        """The key of the config that names the sources of a split."""
        return f"input.{split}" if self.is_predefined else "input"

    def told(self, split: str) -> str:
        """The key and what it names, for messages."""
        sources = self.sources[split]
        return f"{self.key_of(split)} {(sources[0] if len(sources) == 1 else sources)!r}"

    def filled_by(self, named: str) -> list[str]:
        """The splits that documents of an input may go to."""
        return [named, *(split for split, fraction in self.fractions.items() if fraction and named == "train")]

    @property
    def made(self) -> set[str]:
        """The splits that there will be, if every fraction finds a document."""
        return {split for named in self.sources for split in self.filled_by(named)}

    def check(self) -> None:
        """ValueError for what contradicts itself."""
        if not self.sources:
            raise ValueError("input: names no split; give input.train, input.val or input.test")
        for split, sources in self.sources.items():
            if not all(source.strip() for source in sources or [""]):  # an empty path would be the current folder
                remedy = "leave it out, or name some" if self.is_predefined else "name some"
                raise ValueError(f"{self.key_of(split)}: names no file; {remedy}")
        for split, fraction in self.fractions.items():
            if fraction and "train" not in self.sources:
                raise ValueError(f"split.{split} {fraction:g} would come out of input.train, which is not there")
            if fraction and split in self.sources:
                raise ValueError(
                    f"split.{split} {fraction:g} would come out of input.train, and input.{split} is named already; "
                    f"set split.{split} to 0, or leave input.{split} out"
                )

    def find(self) -> dict[str, dict[str, Stamp]]:
        """The files of each split, as `find_stamps` finds them; UserError for one in two splits, or nothing in one."""
        found: dict[str, dict[str, Stamp]] = {}
        owners: dict[str, str] = {}  # of files by their real paths
        for split, sources in self.sources.items():
            found[split] = find_stamps(sources, self.key_of(split))
            for path in found[split]:
                other = owners.setdefault(os.path.realpath(path), split)
                if other != split:
                    raise UserError(
                        f"{one_line(path)}: is a file of {self.told(other)} and of {self.told(split)}; a file belongs "
                        "to one split: name it in one alone, as by a narrower glob"
                    )
            if not sum(size for size, _ in found[split].values()):
                raise UserError(f"{self.told(split)}: nothing but empty files ({len(found[split])})")
        return found

    def of_document(self, text: bytes, named: str, seed: int) -> str:
        """The split of a document whose input is that of `named`: of train by its text and the seed alone.

        So a document never moves when others are added.
        """
        if named != "train" or not any(self.fractions.values()):
            return named
        fraction = fraction_of(text, seed)
        if fraction < self.fractions["val"]:
            return "val"
        return "test" if fraction < self.fractions["val"] + self.fractions["test"] else "train"

    @property
    def splitting(self) -> Splitting:
        """What the manifest tells of it."""
        fractions = {split: fraction for split, fraction in self.fractions.items() if fraction}
        if not self.is_predefined:
            return Splitting(kind="hash", fractions=fractions)
        inputs = {split: tuple(sources) for split, sources in self.sources.items()}
        return Splitting(kind="predefined", inputs=inputs, fractions=fractions)
