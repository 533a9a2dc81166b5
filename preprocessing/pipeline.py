"""What happens to a document between its file and the tokenizer: clean, mask, filter. One unit at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hvdlm.data.compression import break_of
from hvdlm.errors import UserError

from .clean import make_cleaner
from .documents import BadRecord, Document, Part, one_line
from .fence import found_in, line_of, reason_of, refused
from .filters import make_filter
from .pii import make_masker
from .plan import PreprocessConfig, Unit
from .readers import first_of_formats

log = logging.getLogger("hvdlm")

Drop = Callable[[dict[str, Any]], None]  # takes a line of dropped.jsonl

# Bad records that a rank tells of: the first ones, and then the first of each file and what ends a file.
SHOWN_BAD_RECORDS, SHOWN_FILES = 5, 50


class Pipeline:
    """Documents of a unit as the tokenizer shall see them; one for all units of a rank."""

    def __init__(self, config: PreprocessConfig, is_quiet: bool = False) -> None:
        self._config, self._is_quiet = config, is_quiet  # quiet about bad records: another reading reports them
        self._clean, self._mask = make_cleaner(config.clean), make_masker(config.pii)
        self._filter = make_filter(config.filter)
        self._pairs = [name for name, field in config.fields.items() if field.type == "pair"]
        self._shown = 0
        self._is_more_told = False
        self._shown_files: set[str] = set()
        self.read: Counter[int] = Counter()  # documents and bad records of the unit under way, by number of its part
        self.texts: Counter[int] = Counter()  # the same without the later pieces of texts that were cut
        self.bad: Counter[str] = Counter()  # bad records of the unit under way, by file
        self.first_bad: dict[str, str] = {}  # of each file, or what ends it

    def documents(self, unit: Unit, statistics: Counter[str], drop: Drop = lambda line: None) -> Iterator[Document]:
        """Documents to keep, in input order; counts what happens to all others, and hands each of them to `drop`."""
        self.read, self.texts, self.bad, self.first_bad = Counter(), Counter(), Counter(), {}
        for number, part in enumerate(unit.parts):
            num_read = num_later = 0
            for found in found_in(part, self._config.read_options):
                num_read += 1
                if isinstance(found, BadRecord):
                    self._pass_over(found, part, statistics, drop)
                    continue
                if found.piece:
                    num_later += 1
                    if found.piece == 1:  # each long document has just one
                        statistics["cut_documents"] += 1
                try:
                    document, reason = self._prepare(found, statistics)
                except BaseException as error:
                    self.refuse(found, part, f"clean, pii or filter fails ({reason_of(error)})", statistics, drop)
                    continue
                if reason is None:
                    yield document._replace(part=number) if number else document
                else:
                    statistics[reason] += 1
                    drop(dropped_line(part.path, found.position, found.id, reason))
            self.read[number], self.texts[number] = num_read, num_read - num_later

    def _prepare(self, document: Document, statistics: Counter[str]) -> tuple[Document, str | None]:
        text = self._mask(self._clean(document.text, statistics), statistics)
        if self._pairs:
            document = self._prepare_pairs(document, statistics)
        if not text or text.isspace():
            return document, "empty_documents"
        return document if text is document.text else document._replace(text=text), self._filter(text)

    def _prepare_pairs(self, document: Document, statistics: Counter[str]) -> Document:
        """With the second texts of a record cleaned as its first one is."""
        assert document.record is not None
        values = document.record.values
        prepared = {
            name: [self._mask(self._clean(text, statistics), statistics) for text in values[name]]
            for name in self._pairs
        }
        if not all(text and not text.isspace() for texts in prepared.values() for text in texts):
            raise ValueError("nothing is left of a second text")
        return document._replace(record=document.record._replace(values={**values, **prepared}))

    def refuse(self, document: Document, part: Part, reason: str, statistics: Counter[str], drop: Drop) -> None:
        """A document that something behind the reader cannot take is a bad record: the end, or passed over."""
        self._pass_over(refused(document, part, self._config.read_options, reason), part, statistics, drop, document.id)

    def _pass_over(
        self, bad: BadRecord, part: Part, statistics: Counter[str], drop: Drop, id_: str | None = None
    ) -> None:
        self._report(bad, part)
        statistics["bad_records"] += 1
        self.bad[part.path] += 1
        if part.path not in self.first_bad or bad.place == part.path:
            self.first_bad[part.path] = f"{bad.place}: {bad.reason}"
        drop(dropped_line(part.path, bad.position, id_, f"bad record: {bad.reason}", bad.place))

    def _report(self, bad: BadRecord, part: Part) -> None:
        if self._config.on_error == "fail":
            is_counted = bad.position is not None and bad.wrong_byte is None and self._config.is_utf8
            place = line_of(part.path, bad.position or 0) if is_counted else bad.place
            broken = break_of(part.path) if bad.place != part.path else None
            cause = f"; perhaps because the file is {broken}" if broken else ""
            raise UserError(f"{one_line(place)}: {bad.reason}{cause} (on_error: skip would pass over it)")
        if self._is_quiet:
            return
        ends_file = bad.place == part.path
        is_new = part.path not in self._shown_files and len(self._shown_files) < SHOWN_FILES
        if self._shown < SHOWN_BAD_RECORDS or is_new or ends_file:
            self._shown += 1
            self._shown_files.add(part.path)
            log.error("%s: %s; skipped", one_line(bad.place), bad.reason)
        elif not self._is_more_told:
            self._is_more_told = True
            where = f"{self._config.output}/dropped.jsonl" if self._config.dropped else "a file by dropped: true"
            log.error("further bad records are counted, and listed in %s", where)


def check_first_records(config: PreprocessConfig, inputs: Mapping[str, Sequence[str]]) -> None:
    """Of labelled records the first of each split and format: UserError before any work, as where it lacks a key."""
    pipeline = Pipeline(config, is_quiet=True)
    for split, paths in inputs.items():
        for path in first_of_formats(paths, config.format).values():
            unit = Unit(0, (Part(path, 0, None),), 0, split)
            found = next(pipeline.documents(unit, Counter()), None)
            if found is None and len(paths) == 1 and not pipeline.bad:
                raise UserError(
                    f"{one_line(path)}: gives no record of the fields {', '.join(config.fields)}; is it empty, or"
                    " CoNLL-U without the frames that roles are of?"
                )


def dropped_line(path: str, position: int | None, id_: str | None, reason: str, place: str = "") -> dict[str, Any]:
    """A line of dropped.jsonl: the same keys for every reason, and `place` where a bad record has a nearer one."""
    return {"path": path, "position": position, "id": id_, "reason": reason} | ({"place": place} if place else {})
