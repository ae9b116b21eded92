"""Parquet files of a store, judged before their rows are read.

A few kilobytes of Parquet can ask for any amount of memory: pages that unpack, runs of one value, long texts named once
and repeated in every row. So the footer's own counts are judged first; texts are read as codes of what they say, which
cannot grow, and are spelt out only when what that takes is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medret.errors import CorruptError, first_line

# What a file may take in memory: so much whatever its size, and beyond it so many times its own size.
FREE_BYTES = 1 << 28
EXPANSION_MAX = 100
FIXED_BYTES = 8  # of a value of the other types, at most


@contextmanager
def as_corrupt(name: str) -> Iterator[None]:
    """Turn whatever pyarrow, or a caller that takes the content for granted, makes of a damaged file into one line."""
    try:
        yield
    except (FileNotFoundError, CorruptError):
        raise
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CorruptError(f"{name} cannot be read as a table: {first_line(error)}") from error


def open_parquet(source: bytes | Path, name: str, fields: Sequence[pa.Field] = (), **options: Any) -> pq.ParquetFile:
    """Open a file whose footer asks for no more than a file of its size may; texts are read as dictionaries.

    fields: the columns that it must have, of these types. options: of pq.ParquetFile. Raises CorruptError naming it.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    with as_corrupt(name):
        given = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
        footer = pq.read_metadata(given)
        schema = footer.schema
        width = len(schema)
        columns = [schema.column(number) for number in range(width)]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        asked = 0
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            chunks = [group.column(at) for at in range(width)]
            if min([group.num_rows, *(min(one.num_values, one.total_uncompressed_size) for one in chunks)]) < 0:
                raise ValueError(f"row group {number} has counts below 0")
            asked += sum(max(FIXED_BYTES * one.num_values, one.total_uncompressed_size) for one in chunks)
        _judge_size(asked, size)
        if isinstance(source, bytes):
            given = pa.BufferReader(source)
        file = pq.ParquetFile(given, metadata=footer, read_dictionary=texts, **options)
        found = file.schema_arrow
        for field in fields:
            own = found.field(field.name)  # raises KeyError where there is none
            if not _same_type(own.type, field.type):
                raise TypeError(f"column {field.name} is of {own.type}, expected {field.type}")
    return file


def read_parquet(
    data: bytes,
    columns: list[str] | None = None,
    *,
    name: str = "a table of the store",
    fields: Sequence[pa.Field] = (),
) -> pa.Table:
    """A table from a Parquet file's bytes; raises CorruptError naming it. fields: see `open_parquet`.

    Not by `pyarrow.parquet.read_table`, and by no thread but this one: pyarrow's threads let go of the bytes when they
    like, and a process that ends meanwhile is aborted.
    """
    file = open_parquet(data, name, fields, pre_buffer=False)
    with as_corrupt(name):
        missing = set(columns or ()) - set(file.schema_arrow.names)
        if missing:
            raise KeyError(f"it has no column {min(missing)}")
        return spelt_out(file.read(columns, use_threads=False), len(data))


def spelt_out(table: pa.Table, size_bytes: int) -> pa.Table:
    """The table with plain texts instead of dictionaries; raises ValueError if they take too much for their file."""
    judged(table, size_bytes)
    plain = pa.schema([field.with_type(_plain(field.type)) for field in table.schema], table.schema.metadata)
    return table if plain == table.schema else table.cast(plain)


def judged(table: pa.Table, size_bytes: int) -> pa.Table:
    """The same table; raises ValueError if it is not sound or its texts, spelt out, take too much for their file."""
    table.validate(full=True)
    _judge_size(sum(_spelt_bytes(chunk) for column in table.columns for chunk in column.chunks), size_bytes)
    return table


def check_required(table: pa.Table | pa.RecordBatch, schema: pa.Schema) -> None:
    """Raise ValueError for a null in a column that has none by its schema."""
    for field in schema:
        if not field.nullable and field.name in table.schema.names and table.column(field.name).null_count:
            raise ValueError(f"column {field.name} has rows without a value")


def _judge_size(asked: int, size_bytes: int) -> None:
    allowed = max(FREE_BYTES, EXPANSION_MAX * size_bytes)
    if asked > allowed:
        raise ValueError(f"its {size_bytes} bytes unpack to {asked}, expected at most {allowed}")


def _spelt_bytes(values: pa.Array) -> int:
    """What the texts of an array of dictionaries, or of maps of them, take when each value has its own."""
    kind = values.type
    if pa.types.is_map(kind):
        return _spelt_bytes(values.keys) + _spelt_bytes(values.items)
    if not pa.types.is_dictionary(kind) or not len(values):
        return 0
    lengths = np.array([0, *_lengths(values.dictionary)], np.int64)
    codes = np.frombuffer(values.indices.buffers()[1], np.int32)[values.indices.offset :][: len(values)]
    counts = np.bincount(np.where((codes < 0) | (codes >= len(lengths) - 1), -1, codes) + 1, minlength=len(lengths))
    return int(counts @ lengths)


def _lengths(texts: pa.Array) -> Any:
    dtype = np.int64 if pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type) else np.int32
    offsets = np.frombuffer(texts.buffers()[1], dtype)[texts.offset :][: len(texts) + 1] if len(texts) else [0]
    return np.diff(offsets)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    return kind


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column can be read as what is expected: texts may be of either size."""

    def base(kind: pa.DataType) -> pa.DataType:
        plain = _plain(kind)
        if pa.types.is_map(plain):
            return pa.map_(base(plain.key_type), base(plain.item_type))
        return pa.string() if pa.types.is_large_string(plain) else plain

    return bool(base(found) == base(expected))
