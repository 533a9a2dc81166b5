"""What a user should look at twice: settings that had no effect, text that may be none, what came back changed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hvdlm.data.manifest import SPLITS, Manifest
from hvdlm.tables import counted

from .documents import one_line
from .overlap import key_of as overlap_key
from .plan import PreprocessConfig
from .readers import FORMATS
from .splits import SplitPlan, named_as_splits

log = logging.getLogger("hvdlm")

RECORDS = {"jsonl", "json", "csv", "tsv", "parquet", "arrow"}  # formats with keys or columns
ROWS = {"csv", "tsv"}
UNKNOWN_SHARE = 0.1  # of the tokens; a vocabulary of PTB's words has 0.05
OVERLAP_SHARE = 0.1  # of a split's documents; short sentences of a benchmark come again by chance
MOST_DAMAGED = 5  # files that are named with their bad records
# Statistics about texts.
TOLD = (
    "replaced_characters",
    "nul_characters",
    "lost_characters",
    "unknown_tokens",
    "cut_documents",
)
OVERLAPS = tuple(overlap_key(later, earlier) for earlier, later in itertools.combinations(SPLITS, 2))


def of_settings(config: PreprocessConfig, formats: Iterable[str]) -> list[str]:
    """A line for each setting that no file of these formats heeds, or no split."""
    found = sorted(set(formats))
    readers = {
        "text_key": RECORDS,
        "id_key": RECORDS | {"squad"},
        "label_key": RECORDS,
        "table": ROWS,
        "encoding": FORMATS.keys() - {"parquet", "arrow"},
    }
    lines = [
        f"{key} has no effect: all input is {' or '.join(found)}"
        for key, heeded in readers.items()
        if getattr(config, key) != type(config).model_fields[key].default and heeded.isdisjoint(found)
    ]
    if config.dedup.is_on and "train" not in config.splits.sources:
        lines.append("dedup has no effect: named val and test splits keep all of their documents")
    return lines


def of_names(splits: SplitPlan, paths: Collection[str]) -> list[str]:
    """A line where one input holds files that are named as splits."""
    named = {} if splits.is_predefined else named_as_splits(paths)
    if not named:
        return []
    told = ", ".join(f"{split}: {one_line(path)}" for split, path in named.items())
    return [
        "files of the input are named as splits, and all go to one pool that a hash parts; if they are splits, name "
        f"them: input={{{told}}}"
    ]


def of_shares(splits: SplitPlan, manifest: Manifest) -> list[str]:
    """A line for each split that is far from its fraction, as of few or of very long documents."""
    cut = splits.filled_by("train")
    if len(cut) == 1 or "train" not in splits.sources:
        return []
    fractions = {"train": 1 - sum(splits.fractions.values()), **splits.fractions}
    entries = {split: manifest.splits[split] for split in cut}
    num_tokens = sum(entry.num_tokens for entry in entries.values())
    num_documents = sum(entry.num_documents for entry in entries.values())
    lines = []
    for split, entry in entries.items():
        share, fraction = entry.num_tokens / num_tokens, fractions[split]
        if not share:
            lines.append(f"no document fell into {split} (a share of {fraction:g} of {num_documents})")
        elif abs(share - fraction) > max(0.05, fraction):
            lines.append(
                f"{split} has {share:.0%} of the tokens, as documents differ in length; asked for {fraction:g}"
            )
    return lines


def of_overlap(manifest: Manifest) -> list[str]:
    """A line for each split much of which stands in one before it, as where a file was copied."""
    lines = []
    for earlier, later in itertools.combinations(SPLITS, 2):
        same, total = manifest.statistics.get(overlap_key(later, earlier), 0), manifest.splits[later].num_documents
        if same and same / total >= OVERLAP_SHARE:
            lines.append(
                f"{same:,} of {counted(total, 'document')} of {later} stand in {earlier} too; are these the files that "
                "you mean?"
            )
    return lines


def tell(balance: Mapping[str, Any], statistics: Mapping[str, int], config: PreprocessConfig) -> None:
    """The balance in a line or two, and what is wrong in it."""
    fates = {"kept": balance["documents_kept"], **balance["documents_lost"]}
    log.info("read %s: %s", counted(balance["documents_read"], "document"), _listed(fates))
    if found := {name: statistics[name] for name in TOLD if statistics.get(name)}:
        log.info("in their texts: %s", _listed(found))
    if found := {name: statistics[name] for name in OVERLAPS if statistics.get(name)}:
        log.info("the same texts in two splits: %s", _listed(found))
    trip = balance["round_trip"]
    if trip["white_space"] and not trip["changed"]:
        changed = f"{trip['white_space']} of {counted(trip['excerpts'], 'excerpt')}"
        log.info("%s come back from their ids with different white space: %s", changed, trip["example"])
    for remark in of_balance(balance, statistics, config):
        log.warning("%s", remark)


def of_balance(balance: Mapping[str, Any], statistics: Mapping[str, int], config: PreprocessConfig) -> list[str]:
    """A line for each thing that may not be as it was meant."""
    lines = []
    if without := balance["first_files_without_documents"]:
        num_files = counted(balance["files_without_documents"], "file")
        lines.append(f"{num_files} without any document, such as {one_line(without[0])}")
    if balance["files_with_bad_records"] > 1:
        worst = list(balance["first_files_with_bad_records"].items())[:MOST_DAMAGED]
        told = ", ".join(f"{one_line(path)} {found['bad_records']:,} of {found['of']:,}" for path, found in worst)
        others = balance["files_with_bad_records"] - len(worst)
        more = f", and {others:,} more in preprocess.json" if others else ""
        lines.append(f"bad records by file: {told}{more}")
    if config.separator and balance["files_of_one_text"] + balance["files_without_documents"] == balance["files"]:
        lines.append(f"separator {config.separator!r} parts none of {counted(balance['files'], 'file')}")
    for path, share in list(balance["first_files_with_suspect_text"].items())[:1]:
        num_files = counted(balance["files_with_suspect_text"], "file")
        lines.append(
            f"{num_files} with much that is no text, such as {one_line(path)}: {share:.0%} of it is U+FFFD (a lost "
            "character) or NUL; is it text, in this encoding?"
        )
    for name, key in (("id", config.id_key), ("label", config.label_key)):
        missing = statistics.get(f"documents_without_{name}", 0)
        if 0 < missing < balance["documents_kept"]:
            lines.append(f"{counted(missing, 'document')} without {key!r}; their {name} is empty")
    unknown = statistics.get("unknown_tokens", 0)
    if unknown and (share := unknown / statistics["encoded_tokens"]) >= UNKNOWN_SHARE:
        lines.append(f"{share:.0%} of the tokens are unknown to the vocabulary; is it one for this text?")
    found = balance["round_trip"]
    if changed := found["changed"]:
        lines.append(
            f"of {counted(found['excerpts'], 'excerpt')} {changed} come back from their ids changed, such as "
            f"{one_line(found['place'])}: {found['example']}"
        )
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
