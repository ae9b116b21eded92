"""Whether an Arrow file holds one batch whose buffers lie in it as they are.

Compressed buffers name the size that they unpack to, so a small file can ask for any amount of memory, and pyarrow
unpacks them as soon as a batch is asked for. What says so stands in the file's flatbuffers, of which just that is read
(https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format).
"""

from __future__ import annotations

import struct
from typing import Any

MAGIC = b"ARROW1"
FOOTER_BATCHES, MESSAGE_KIND, MESSAGE_BATCH, BATCH_COMPRESSION = 3, 1, 2, 3  # numbers of fields in their tables
RECORD_BATCH = 3  # the kind of message


def has_plain_buffers(data: Any) -> bool:
    """True for the bytes (or a map) of a file of one uncompressed record batch; False for any other, damaged too."""
    try:
        return _is_plain(data)
    except (struct.error, ValueError):  # a number in it leads out of it
        return False


def _is_plain(data: Any) -> bool:
    size = len(data)
    if data[:6] != MAGIC or data[-6:] != MAGIC:
        return False
    (footer_bytes,) = struct.unpack_from("<i", data, size - 10)
    footer = _follow(data, size - 10 - footer_bytes)
    batches = _field(data, footer, FOOTER_BATCHES)
    if batches is None:
        return False
    vector = _follow(data, batches)
    count, start = struct.unpack_from("<Iq", data, vector)
    if count != 1:
        return False
    message = _follow(data, start + 8)  # after the mark of a message and its length
    kind, header = _field(data, message, MESSAGE_KIND), _field(data, message, MESSAGE_BATCH)
    if kind is None or header is None or data[kind] != RECORD_BATCH:
        return False
    return _field(data, _follow(data, header), BATCH_COMPRESSION) is None


def _follow(data: Any, place: int) -> int:
    """Where the offset at a place leads."""
    (offset,) = struct.unpack_from("<I", data, _within(data, place))
    return _within(data, place + int(offset))


def _field(data: Any, table: int, number: int) -> int | None:
    """Where a field of a table lies; None where the table leaves it out."""
    (back,) = struct.unpack_from("<i", data, table)
    listed = _within(data, table - int(back))
    (listed_bytes,) = struct.unpack_from("<H", data, listed)
    if 4 + 2 * number + 2 > listed_bytes:
        return None
    (offset,) = struct.unpack_from("<H", data, listed + 4 + 2 * number)
    return _within(data, table + int(offset)) if offset else None


def _within(data: Any, place: int) -> int:
    if not 0 <= place < len(data):
        raise ValueError(f"place {place} of {len(data)}")
    return place
