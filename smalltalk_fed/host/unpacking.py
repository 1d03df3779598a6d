"""Compressed bytes out of a journal, unpacked within a limit.

A few kilobytes can unpack to gigabytes, and a journal may come out of somebody's backup.
"""

from __future__ import annotations

import zlib

UNPACKED_BYTES_MAX = 1 << 30  # many times a large run's


def unpack(packed: bytes) -> bytes:
    """What `zlib.compress` made `packed` of.

    Raises:
        ValueError: it made something else, or of too much.
    """
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, UNPACKED_BYTES_MAX)
    except zlib.error:
        raise ValueError("it can't be unpacked") from None
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is cut off, or too large")
    return data
