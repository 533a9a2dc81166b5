"""Labelled records: raw values become typed ones, or a bad record with its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hvdlm.records.fields import FieldReader, Fields, Refused, texts_of

from .. import documents
from ..documents import BadRecord, Document, Part


def any_fields(fields: Fields) -> Fields:
    """Those of a format in which records may have any keys."""
    return fields


def typed(
    given: Iterable[Document | BadRecord], counts: str, part: Part, fields: FieldReader
) -> Iterator[Document | BadRecord]:
    """Documents with their text and record; `counts` is what their positions are numbers of."""
    for found in given:
        if isinstance(found, BadRecord):
            yield found
            continue
        try:
            text, record = fields.read(found.raw)
            if len(text) > documents.MAX_DOCUMENT_BYTES // 4:
                raise Refused(f"its text has {len(text)} characters; a labelled record is not cut")
            longest = max((len(one) for one in texts_of(record)), default=0)
            if longest > documents.MAX_DOCUMENT_BYTES // 4:
                raise Refused(f"a second text has {longest} characters; a labelled record is not cut")
        except Refused as error:
            yield refused(found, counts, part, str(error))
        except (TypeError, ValueError, OverflowError, AttributeError) as error:  # of a shape that nobody thought of
            yield refused(found, counts, part, f"one of its values cannot be read ({type(error).__name__}: {error})")
        else:
            yield found._replace(text=text, record=record, raw=())


def refused(document: Document, counts: str, part: Part, reason: str) -> BadRecord:
    """The bad record that a document is for `reason`."""
    place = document.place or f"{part.path}: {counts} {document.position}"
    return BadRecord(place, reason, document.position if counts == "byte" else None)
