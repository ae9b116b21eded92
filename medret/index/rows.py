"""The row table of an index shard: the volume and slice of each vector, memory-mapped, searched by volume_id.

On disk it is an uncompressed Arrow IPC file of one record batch, sorted by volume_id (as UTF-8 bytes), name of the
plane and slice index. The rows of a volume are therefore neighbours, found by binary search in a shard of any size.
Columns: those of `schemas.ROWS`, and `same_as`, the first row that holds the same vector (possibly its own).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import CorruptError, MedretError, first_line
from medret.index.columns import Strings, Utf8, has_plain_buffers, index_array, int32_view
from medret.recipe import PLANES
from medret.schemas import ROWS

SAME_AS = "same_as"
ROW_FILE = ROWS.append(pa.field(SAME_AS, pa.int32(), nullable=False))
NO_ROWS = slice(0, 0)
MARKED = 32  # every 32nd id is kept in memory


def row_order(rows: pa.Table) -> NDArray[np.int64]:
    """(n,) the order that sorts the rows by volume_id, plane and slice index."""
    import pyarrow.compute as pc

    order: NDArray[np.int64] = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in ROWS.names]).to_numpy()
    return order.astype(np.int64)


def serialise_rows(rows: pa.Table, same_as: NDArray[np.int32]) -> bytes:
    """The bytes of a row table's file; equal rows give equal bytes. Raises MedretError for columns other than ROWS'."""
    if rows.schema.names != ROWS.names or rows.column("volume_id").null_count:
        raise MedretError(
            f"row table has columns {rows.schema.names} and {rows.column(0).null_count} nulls in the first, expected "
            f"{ROWS.names} with a volume_id in every row"
        )
    # Rebuilt from values: the buffers of a sliced or chunked table differ although its rows are the same.
    columns = [pa.array(rows.column(field.name).to_pylist(), field.type) for field in ROWS]
    batch = pa.record_batch([*columns, pa.array(same_as, pa.int32())], schema=ROW_FILE)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, ROW_FILE) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_rows(data: bytes, name: str) -> pa.Table:
    """The checked rows of a row table's file; raises CorruptError naming it."""
    return pa.Table.from_batches([_judged(pa.py_buffer(data), name)])


def _judged(data: pa.Buffer, name: str) -> pa.RecordBatch:
    if not has_plain_buffers(memoryview(data)):
        raise CorruptError(f"{name} is not a row table that medret writes: its batch is compressed or missing")
    batch = _batch(data, name)
    if problem := _problem(batch):
        raise CorruptError(f"{name} is not a row table that medret writes: {problem}")
    return batch


def _batch(source: pa.Buffer | Path, name: str) -> pa.RecordBatch:
    """The single batch of a row table; that of a file is memory-mapped."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(source)) if isinstance(source, Path) else source)
        if reader.schema != ROW_FILE or reader.num_record_batches != 1:
            raise CorruptError(
                f"{name} is not a row table: found columns {reader.schema.names} in {reader.num_record_batches} "
                f"batches, expected {ROW_FILE.names} in one"
            )
        return reader.get_batch(0)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise CorruptError(f"{name} cannot be read as a row table: {first_line(error)}") from error


def _problem(batch: pa.RecordBatch) -> str:
    """What is wrong with a row table's batch; empty if nothing."""
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        return first_line(error)
    nulls = [batch.column(name).null_count for name in ROW_FILE.names]
    if nulls not in ([0, 0, 0, 0], [0, len(batch), len(batch), 0]):
        return f"its columns have {nulls} nulls in {len(batch)} rows"
    if len(batch):
        rows, first = np.arange(len(batch)), int32_view(batch.column(SAME_AS))
        if ((first < 0) | (first > rows)).any() or (first[first] != first).any():
            return f"its {SAME_AS} names rows that are not the first with their vector"
    return ""


class SortedIds:
    """Binary search in a string array sorted by UTF-8 bytes. It reads only the entries that it compares."""

    def __init__(self, ids: pa.StringArray) -> None:
        self._ids = Utf8(ids)

    @cached_property
    def _marks(self) -> list[bytes]:
        """Evenly spaced entries, in which a search begins."""
        return [self._ids[place] for place in range(0, len(self._ids), MARKED)]

    def find(self, text: str) -> slice:
        """The places that hold `text`; an empty slice if there are none."""
        ids, key, count = self._ids, text.encode(), len(self._ids)
        mark = bisect_left(self._marks, key) * MARKED
        first = bisect_left(ids, key, max(0, mark - MARKED), min(mark, count))
        if first == count or ids[first] != key:
            return NO_ROWS
        low, step = first, 1  # all rows up to `low` match; the steps double
        while low + step < count and ids[low + step] == key:
            low, step = low + step, 2 * step
        return slice(first, bisect_right(ids, key, low + 1, min(low + step, count)))


class RowTable:
    """An opened row table."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._ids = SortedIds(batch.column("volume_id"))

    @staticmethod
    def judge(path: Path) -> None:
        """Check a whole file that anyone may have made; raises CorruptError unless it is a sound row table.

        `open` and all methods trust its offsets and row numbers.
        """
        with pa.memory_map(str(path)) as file:
            _judged(file.read_buffer(), str(path))

    @classmethod
    def open(cls, path: Path) -> RowTable:
        """Map the file; raises CorruptError if it is not a row table."""
        return cls(_batch(path, str(path)))

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    @property
    def same_as(self) -> NDArray[np.int32]:
        """For each row, the first row that holds the same vector."""
        return int32_view(self._batch.column(SAME_AS))

    def rows_of(self, volume_id: str) -> slice:
        """The rows of one volume; an empty slice if the shard has none."""
        return self._ids.find(volume_id)

    @cached_property
    def volumes(self) -> tuple[pa.StringArray, NDArray[np.int64]]:
        """The distinct volumes of the table, and the first row of each, ascending."""
        import pyarrow.compute as pc

        ids = self._batch.column("volume_id")
        if not len(ids):
            return ids, np.empty(0, np.int64)
        differs = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).cast(pa.uint8())
        changes = np.frombuffer(differs.buffers()[1], np.uint8)[differs.offset : differs.offset + len(differs)]
        firsts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(changes) + 1])
        return ids.take(index_array(firsts)), firsts

    def volume_ids(self, rows: NDArray[np.int64] | Sequence[int] | slice) -> list[str]:
        """The volume_id of each row."""
        picked: list[str] = self._picked("volume_id", rows)
        return picked

    def volume_id(self, row: int) -> str:
        """The volume_id of one row."""
        return str(self._volume_names[row])

    def slice_at(self, row: int) -> tuple[str, int]:
        """Plane and slice index of one row; not for volume vectors."""
        return str(self._plane_names[row]), int(self._slice_indices[row])

    @cached_property
    def _volume_names(self) -> Strings:
        return Strings(self._batch.column("volume_id"))

    @cached_property
    def _plane_names(self) -> Strings:
        return Strings(self._batch.column("plane"))

    @cached_property
    def _slice_indices(self) -> NDArray[np.int32]:
        return int32_view(self._batch.column("position"))

    def planes(self, rows: NDArray[np.int64] | Sequence[int] | slice) -> list[str | None]:
        """The plane of each row; None for volume vectors."""
        picked: list[str | None] = self._picked("plane", rows)
        return picked

    def plane_codes(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """The plane of each row, as its index in PLANES; -1 for volume vectors."""
        import pyarrow.compute as pc

        names = self._batch.column("plane").take(index_array(rows))
        codes = pc.fill_null(pc.index_in(names, value_set=pa.array(PLANES)), -1).cast(pa.int8())
        return np.frombuffer(codes.buffers()[1], np.int8)[codes.offset : codes.offset + len(codes)]

    def slice_indices(self, rows: NDArray[np.int64] | Sequence[int] | slice) -> list[int | None]:
        """The slice index (voxel index along the plane's axis, RAS+ order) of each row; None for volume vectors."""
        picked: list[int | None] = self._picked("position", rows)
        return picked

    def _picked(self, column: str, rows: NDArray[np.int64] | Sequence[int] | slice) -> Any:
        array = self._batch.column(column)
        if isinstance(rows, slice):
            return array.slice(rows.start, rows.stop - rows.start).to_pylist()
        return array.take(index_array(rows)).to_pylist()
