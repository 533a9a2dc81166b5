"""The closing balance: the bytes listed were read, and every document read was kept or lost for a counted reason."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import read_json, write_text_durably
from hvdlm.tables import counted

from .documents import Part, Stamp, stamp_of, stat_of
from .plan import PreprocessConfig
from .records import digest_of
from .spool import Batch

LOST = (  # and filter_KEY
    *("bad_records", "empty_documents", "duplicate_documents", "near_duplicate_documents"),
    "unknown_label_records",
)
LISTED = "listed.json"  # in the spool's folder: the files as they were when the job was begun
MOST_NAMED = 100  # files of a kind
SUSPECT_SHARE = 0.01  # of a file's text that is U+FFFD or NUL


def check_parts(parts: Iterable[Part], listed: Mapping[str, Stamp]) -> dict[str, int]:
    """The inode of each file; UserError for one that is no longer what was listed.

    Inodes are no part of what is listed: a copy of the input may continue a job, and some network file systems number
    their files anew.
    """
    inodes = {}
    for path in dict.fromkeys(part.path for part in parts):
        stat = stat_of(path)
        inodes[path] = stat.st_ino
        if (now := stamp_of(stat)) != listed[path]:
            raise UserError(
                f"{path}: changed while the job ran ({_told(listed[path])} when it was listed, now {_told(now)}); "
                "start the job again once nothing writes to it"
            )
    return inodes


def check_replaced(part: Part, digest: str, before: Mapping[str, int], now: Mapping[str, int]) -> None:
    """UserError if another file took a file's name since its `digest`: one of the same size and time may be a copy."""
    if before[part.path] != now[part.path] and digest_of(part)[0] != digest:
        raise UserError(f"{part.path}: another file took its place while it was read; start the job again")


def check_read(part: Part, num_bytes: int, listed: Mapping[str, Stamp]) -> None:
    """UserError unless all bytes of a part were read."""
    expected = (listed[part.path][0] if part.stop is None else part.stop) - part.start
    if num_bytes != expected:
        raise UserError(f"{part.path}: gave {num_bytes} bytes from byte {part.start} on, {expected} were listed")


def note_listed(work: Path, config_digest: str, listed: Mapping[str, Stamp]) -> None:
    write_text_durably(work / LISTED, json.dumps({"config": config_digest, "files": listed}) + "\n")


def forget_listed(work: Path) -> None:
    """After an error that a user mends: a changed file is then what the next start is for."""
    (work / LISTED).unlink(missing_ok=True)


def check_resumed(other: Path, config_digest: str, listed: Mapping[str, Stamp]) -> None:
    """UserError if the same config began in the folder `other` with a file that has changed since."""
    try:
        noted = read_json(other / LISTED)
        is_same, before = noted["config"] == config_digest, dict(noted["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # ended by an error, or begun by another version: nothing of it is used
    for path, stamp in before.items() if is_same else ():
        if path in listed and list(listed[path]) != list(stamp):
            raise UserError(
                f"{path}: changed since this job was begun ({_told(stamp)} then, now {_told(listed[path])}); put the "
                f"old file back to continue, or remove {other.parent} to begin anew"
            )


def _told(stamp: Stamp) -> str:
    changed = datetime.datetime.fromtimestamp(stamp[1] / 1e9, datetime.timezone.utc)
    return f"{stamp[0]} bytes of {changed:%Y-%m-%d %H:%M:%S.%f} UTC"


def count_suspect(batch: Batch, reads: Sequence[dict[str, Any]], statistics: Counter[str]) -> None:
    """Count U+FFFD and NUL, in all and for each part: text that was damaged before, or is none."""
    texts = [document.text for document in batch.documents]
    parts, sizes = [document.part for document in batch.documents], batch.text_bytes
    counts = {"replaced_characters": [text.count("\ufffd") for text in texts]}
    if batch.has_nul:
        counts["nul_characters"] = [text.count("\0") for text in texts]
    for name, numbers in counts.items():
        statistics[name] += sum(numbers)
        for part, number in zip(parts, numbers, strict=True) if any(numbers) else ():
            reads[part][name] = reads[part].get(name, 0) + number
    if parts and parts[0] == parts[-1]:  # one sum is enough
        parts, sizes = parts[:1], [sum(sizes)]
    for part, size in zip(parts, sizes, strict=True):
        reads[part]["text_bytes"] = reads[part].get("text_bytes", 0) + size


def passed_over(statistics: Mapping[str, int], config: PreprocessConfig) -> str | None:
    """What is wrong where an earlier start passed over bad records, and this one shall have none."""
    passed = statistics.get("bad_records", 0)
    if config.on_error == "skip" or not passed:
        return None
    return (
        f"{config.output}: {counted(passed, 'bad record')} passed over by an earlier start with on_error: skip; "
        "set that again, or remove the folder to begin anew"
    )


def close_balance(
    listed: Mapping[str, Stamp], reads: Iterable[Mapping[str, Any]], statistics: Mapping[str, int], kept: int
) -> dict[str, Any]:
    """What preprocess.json keeps of the balance; UserError for a sum that does not come out.

    `reads` are of all parts: `path`, `bytes`, how many `documents` (bad records among them) its reader gave, pieces of
    how many `texts` those are, what `count_suspect` found, `bad_records` and the `first_bad` one.
    """
    num_bytes, documents, bad, texts, text_bytes, suspect = (Counter[str]() for _ in range(6))
    first_bad: dict[str, str] = {}
    for read in reads:
        num_bytes[read["path"]] += read["bytes"]
        documents[read["path"]] += read["documents"]
        texts[read["path"]] += read["texts"]
        if "first_bad" in read:
            bad[read["path"]] += read["bad_records"]
            first_bad.setdefault(read["path"], read["first_bad"])
        text_bytes[read["path"]] += read.get("text_bytes", 0)
        suspect[read["path"]] += 3 * read.get("replaced_characters", 0) + read.get("nul_characters", 0)  # bytes
    for path, (size, _) in listed.items():
        if num_bytes[path] != size:
            raise UserError.shared(f"{path}: {num_bytes[path]} bytes were read of {size}; please report this")
    lost = {
        name: count
        for name, count in sorted(statistics.items())
        if count and (name in LOST or name.startswith("filter_"))
    }
    if documents.total() != kept + sum(lost.values()):
        told = "".join(f" + {name} {count}" for name, count in lost.items())
        raise UserError.shared(
            f"the balance does not come out: read {documents.total()} documents, kept {kept}{told}; please report this"
        )
    without = [path for path in listed if documents[path] == bad[path]]
    damaged = sorted(bad, key=lambda path: -bad[path] / documents[path])
    shares = {path: round(suspect[path] / text_bytes[path], 4) for path in listed if suspect[path]}
    odd = sorted((path for path in shares if shares[path] >= SUSPECT_SHARE), key=lambda path: -shares[path])
    return {
        "files": len(listed),
        "bytes": num_bytes.total(),
        "documents_read": documents.total(),
        "documents_kept": kept,
        "documents_lost": lost,
        "files_without_documents": len(without),
        "first_files_without_documents": without[:MOST_NAMED],
        "files_with_bad_records": len(damaged),
        "first_files_with_bad_records": {
            path: {"bad_records": bad[path], "of": documents[path], "first": first_bad[path]}
            for path in damaged[:MOST_NAMED]
        },
        "files_of_one_text": sum(texts[path] == 1 for path in listed),
        "files_with_suspect_text": len(odd),
        "first_files_with_suspect_text": {path: shares[path] for path in odd[:MOST_NAMED]},
    }


def sum_round_trips(units: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all units' excerpts how many there are and how many come back changed, with the first example."""
    counts, examples = Counter[str](), []
    for unit in units:
        counts.update({name: unit[name] for name in ("excerpts", "changed", "white_space") if name in unit})
        if "example" in unit:
            examples.append((not unit["changed"], {name: unit[name] for name in ("example", "place")}))
    example = min(examples, key=lambda pair: pair[0])[1] if examples else {}
    return {**{name: counts[name] for name in ("excerpts", "changed", "white_space")}, **example}
