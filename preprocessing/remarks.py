"""What a user should look at twice: settings that had no effect, text that may be none, what came back changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from hvdlm.tables import counted

from .documents import one_line
from .plan import PreprocessConfig
from .readers import FORMATS

log = logging.getLogger("hvdlm")

RECORDS = {"jsonl", "json", "csv", "tsv", "parquet", "arrow"}  # formats with keys or columns
ROWS = {"csv", "tsv"}
UNKNOWN_SHARE = 0.1  # of the tokens; a vocabulary of PTB's words has 0.05
MOST_DAMAGED = 5  # files that are named with their bad records
# Statistics about texts.
TOLD = (
    "replaced_characters",
    "nul_characters",
    "lost_characters",
    "unknown_tokens",
    "cut_documents",
)


def of_settings(config: PreprocessConfig, formats: Iterable[str]) -> list[str]:
    """A line for each setting that no file of these formats heeds."""
    found = sorted(set(formats))
    readers = {
        **dict.fromkeys(("text_key", "id_key", "label_key"), RECORDS),
        "table": ROWS,
        "encoding": FORMATS.keys() - {"parquet", "arrow"},
    }
    return [
        f"{key} has no effect: all input is {' or '.join(found)}"
        for key, heeded in readers.items()
        if getattr(config, key) != type(config).model_fields[key].default and heeded.isdisjoint(found)
    ]


def tell(balance: Mapping[str, Any], statistics: Mapping[str, int], config: PreprocessConfig) -> None:
    """The balance in a line or two, and what is wrong in it."""
    fates = {"kept": balance["documents_kept"], **balance["documents_lost"]}
    log.info("read %s: %s", counted(balance["documents_read"], "document"), _listed(fates))
    if found := {name: statistics[name] for name in TOLD if statistics.get(name)}:
        log.info("in their texts: %s", _listed(found))
    trip = balance["round_trip"]
    if trip["white_space"] and not trip["changed"]:
        changed = f"{trip['white_space']} of {counted(trip['excerpts'], 'excerpt')}"
        log.info("%s come back from their ids with other white space: %s", changed, trip["example"])
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
