"""Files by column put one behind the other: the last footer counts from the first byte, so it leads to other data.

Parquet and Arrow's IPC file both end with a footer that says where everything is; a stream has none and can go on.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

PARQUET_MAGIC, ARROW_MAGIC = b"PAR1", b"ARROW1"
ARROW_START_BYTES = 8  # magic and padding, before the first message
LENGTH_BYTES = 4  # of a footer, which stand behind it
BLOCK_BYTES = 1 << 20
LONGEST_FOOTER = 64 << 20  # that is looked through

REMEDY = "holds files put one behind the other, of which the last footer alone is known; give them apart"


def is_joined_parquet(file: BinaryIO) -> bool:
    """Whether another Parquet file ends inside this one, where the next begins; reads all of it once."""
    seam, kept, start = PARQUET_MAGIC * 2, b"", 0
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        data = kept + block
        place = -1
        while (place := data.find(seam, place + 1)) >= 0:
            if _ends_parquet(file, start + place):
                return True
        file.seek(start + len(data))
        kept = data[-len(seam) + 1 :]
        start += len(data) - len(kept)
    return False


def _ends_parquet(file: BinaryIO, end: int) -> bool:
    """Whether a footer that can be read stands before the magic at `end`; the two words may be text."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

    file.seek(max(0, end - LENGTH_BYTES))
    num_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if not 0 < num_bytes <= end - LENGTH_BYTES - len(PARQUET_MAGIC):
        return False
    file.seek(end - LENGTH_BYTES - num_bytes)
    footer = file.read(num_bytes + LENGTH_BYTES + len(PARQUET_MAGIC))
    try:
        read_metadata(io.BytesIO(PARQUET_MAGIC + footer))
    except (pyarrow.ArrowException, OSError):
        return False
    return True


def is_joined_arrow(source: Any) -> bool:
    """Whether an IPC file ends behind the messages that its beginning leads to, and not at the end.

    `source` is a pyarrow file; of memory-mapped ones the heads of messages alone are read.
    """
    import pyarrow

    trailer = LENGTH_BYTES + len(ARROW_MAGIC)
    source.seek(source.size() - trailer)
    footer = source.size() - trailer - int.from_bytes(source.read(LENGTH_BYTES), "little")
    source.seek(ARROW_START_BYTES)
    messages = pyarrow.ipc.MessageReader.open_stream(source)
    try:
        while True:
            messages.read_next_message()
    except StopIteration:
        pass
    except (pyarrow.ArrowException, OSError):  # damaged, or of a writer that marks no end: each batch is told apart
        return False
    between = max(0, footer - source.tell())
    return ARROW_MAGIC in source.read(min(between, LONGEST_FOOTER))
