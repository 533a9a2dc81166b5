"""What a file is by its first bytes, where whoever meets it must tell the same."""

from __future__ import annotations

import zlib

FEWEST_EXPANDED = 64  # bytes that show that they were compressed


def is_zlib(head: bytes) -> bool:
    """Whether this is a zlib stream, which has no more than two bytes to be known by: by what it expands to."""
    if head[:1] != b"x" or int.from_bytes(head[:2], "big") % 31:
        return False
    decoder = zlib.decompressobj()
    try:
        return len(decoder.decompress(head, FEWEST_EXPANDED)) == FEWEST_EXPANDED or decoder.eof
    except zlib.error:
        return False
