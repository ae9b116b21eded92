"""Arrow columns to and from numpy by their buffers, and a check that a file holds its buffers uncompressed.

pyarrow's own to_numpy, array and compute functions import pandas where it is installed, which takes longer than a
search; pyarrow.compute (and with it take, cast and filter) is imported only by what needs it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def int32_view(column: pa.Int32Array) -> NDArray[np.int32]:
    """A view of the values of a column without nulls."""
    values = np.frombuffer(column.buffers()[1], np.int32)
    return values[column.offset : column.offset + len(column)]


def index_array(rows: NDArray[np.int64] | Sequence[int]) -> pa.Int64Array:
    """Convert row numbers to an Arrow array, for `take`."""
    values = np.ascontiguousarray(rows, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


class Utf8:
    """Single values of a string array without nulls, as UTF-8 bytes, read from its buffers without Arrow scalars."""

    def __init__(self, values: pa.StringArray) -> None:
        _, offsets, data = values.buffers()
        first, self._count = values.offset, len(values)
        all_offsets = memoryview(offsets if self._count else b"").cast("i")
        self.offsets = all_offsets[first : first + self._count + 1]
        self.data = memoryview(data if data is not None else b"")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> bytes:
        return bytes(self.data[self.offsets[place] : self.offsets[place + 1]])


class Strings:
    """Single values of a string array, None for nulls; see `Utf8`."""

    def __init__(self, values: pa.StringArray) -> None:
        whole = Utf8(values)
        self._offsets, self._data = whole.offsets, whole.data
        self._valid = _bits(values) if values.null_count else None

    def __getitem__(self, place: int) -> str | None:
        if self._valid is not None and not self._valid[place]:
            return None
        return str(self._data[self._offsets[place] : self._offsets[place + 1]], "utf-8")


class Coded:
    """Single values of a dictionary-encoded string array, None for nulls: for columns with few distinct values."""

    def __init__(self, values: pa.DictionaryArray) -> None:
        self._names = Strings(values.dictionary)
        self._codes = memoryview(int32_view(values.indices).data)
        self._none = len(values.dictionary)
        if values.null_count:
            valid = np.frombuffer(_bits(values), np.uint8).astype(np.bool_)
            self._codes = memoryview(np.where(valid, int32_view(values.indices), self._none).data)

    def __getitem__(self, place: int) -> str | None:
        code = self._codes[place]
        return None if code == self._none else self._names[code]


def _texts(values: pa.StringArray | pa.DictionaryArray) -> Strings | Coded:
    return Coded(values) if pa.types.is_dictionary(values.type) else Strings(values)


class Maps:
    """Single values of an array of maps from string to string."""

    def __init__(self, values: pa.MapArray) -> None:
        self._valid = _bits(values) if values.null_count else None
        first = values.offset
        self._offsets = memoryview(values.buffers()[1]).cast("i")[first : first + len(values) + 1]
        self._keys, self._items = _texts(values.keys), _texts(values.items)

    def __getitem__(self, place: int) -> list[tuple[str, str | None]]:
        """The entries in order; an empty list for a null."""
        if self._valid is not None and not self._valid[place]:
            return []
        keys, items = self._keys, self._items
        return [(str(keys[at]), items[at]) for at in range(self._offsets[place], self._offsets[place + 1])]


def _bits(values: pa.Array) -> memoryview:
    """One byte per value: 1 if it is valid, 0 if it is null."""
    bits = np.unpackbits(np.frombuffer(values.buffers()[0], np.uint8), bitorder="little")
    return memoryview(bits.data)[values.offset : values.offset + len(values)]


MAGIC = b"ARROW1"
FOOTER_BATCHES, MESSAGE_KIND, MESSAGE_BATCH, BATCH_COMPRESSION = 3, 1, 2, 3  # field numbers in their tables
RECORD_BATCH = 3  # a kind of message


def has_plain_buffers(data: Any) -> bool:
    """Whether the bytes (or memory map) of an Arrow file hold exactly one record batch, uncompressed and undamaged.

    Compressed buffers state their unpacked size, so a small file can ask for any amount of memory, and pyarrow unpacks
    them as soon as it reads a batch. Only the flatbuffers that say so are read
    (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format).
    """
    try:
        return _is_plain(data)
    except (struct.error, ValueError):  # an offset leads out of the file
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
    message = _follow(data, start + 8)  # after the message's marker and length
    kind, header = _field(data, message, MESSAGE_KIND), _field(data, message, MESSAGE_BATCH)
    if kind is None or header is None or data[kind] != RECORD_BATCH:
        return False
    return _field(data, _follow(data, header), BATCH_COMPRESSION) is None


def _follow(data: Any, place: int) -> int:
    """The place that the offset at `place` points to."""
    (offset,) = struct.unpack_from("<I", data, _within(data, place))
    return _within(data, place + int(offset))


def _field(data: Any, table: int, number: int) -> int | None:
    """The place of a field of a table; None if the table omits it."""
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
