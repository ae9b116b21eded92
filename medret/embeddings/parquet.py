"""Parquet files of a store: tables of vectors and previews to write, and any table to read, in bounded memory.

Slice vectors are stored as float16 unit vectors with their original length. Volume vectors are aggregated from these
stored values, so anyone can derive the same volume vectors from a slices file.

A few kilobytes of Parquet can ask for any amount of memory: compressed pages, runs of one value, long texts stored once
and repeated in every row. So the counts in the footer are checked first. Texts are read as dictionary codes, which
cannot grow, and become plain texts only after their total size is known.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medret.embeddings.slices import Aggregation, Slices, volume_vector
from medret.errors import CorruptError, first_line
from medret.schemas import PREVIEWS, slices_schema, volumes_schema

ROW_GROUP_ROWS = 16_384
PREVIEW_ROWS = 64  # per row group: the previews of one volume are one small read
PLAIN = {"vector": "vector.list.element", "image": "image"}  # columns that are stored as they are -> their Parquet name
RECIPE_KEY = b"medret.recipe"
AGGREGATION_KEY = b"medret.aggregation"

# Memory that a file may take: FREE_BYTES whatever its size, or EXPANSION_MAX times its size if that is more.
FREE_BYTES = 1 << 28
EXPANSION_MAX = 100
FIXED_BYTES = 8  # per value of other types, at most


def slice_table(volumes: Sequence[Slices], dim: int, recipe: str) -> pa.Table:
    """Make one table of the slice vectors of all volumes, in order. recipe: digest."""
    schema = slices_schema(dim)
    counts = [len(volume) for volume in volumes]
    columns = [
        pa.array(np.repeat(np.array([v.volume_id for v in volumes], dtype=object), counts), pa.string()),
        pa.array([plane for volume in volumes for plane in volume.plane_names], pa.string()),
        pa.array(_joined(volumes, "slice_indices", np.int32)),
        pa.array(_joined(volumes, "relative_position", np.float32)),
        pa.array(_joined(volumes, "position_mm", np.float32)),
        pa.array(np.concatenate([_sources(v) for v in volumes]) if volumes else [], pa.string()),
        pa.array(_joined(volumes, "norms", np.float32)),
        _vectors(np.concatenate([v.vectors for v in volumes]) if volumes else np.empty((0, dim), np.float16), schema),
    ]
    return pa.table(columns, schema=schema.with_metadata({RECIPE_KEY: recipe.encode()}))


def volume_table(volumes: Sequence[Slices], aggregation: Aggregation, dim: int, recipe: str) -> pa.Table:
    """Make a table of one vector per volume, in order; raise VolumeError if a volume has none (see `reducible`)."""
    schema = volumes_schema(dim)
    vectors = np.empty((len(volumes), dim), np.float16)
    for row, volume in enumerate(volumes):
        vectors[row] = volume_vector(volume, aggregation)
    columns = [
        pa.array([volume.volume_id for volume in volumes], pa.string()),
        pa.array([len(volume) for volume in volumes], pa.int32()),
        _vectors(vectors, schema),
    ]
    metadata = {RECIPE_KEY: recipe.encode(), AGGREGATION_KEY: aggregation.name.encode()}
    return pa.table(columns, schema=schema.with_metadata(metadata))


def preview_table(rows: Sequence[Mapping[str, Any]], recipe: str) -> pa.Table:
    """Make a table of previews from rows with the columns of schemas.PREVIEWS. recipe: digest."""
    return pa.Table.from_pylist(list(rows), schema=PREVIEWS.with_metadata({RECIPE_KEY: recipe.encode()}))


def as_it_is(table: pa.Table) -> pa.Table:
    """The table itself."""
    return table


def parquet_bytes(table: pa.Table, filled: Callable[[pa.Table], pa.Table] = as_it_is) -> bytes:
    """Encode the table as a Parquet file; the same rows give the same bytes, however they are divided into chunks.

    filled: makes the rows to write of those of a row group, so that large texts need not be in the table.
    Vectors and pictures are neither compressed nor dictionary-encoded, which would save almost nothing and slow down
    reading.
    """
    buffer = io.BytesIO()  # hands its bytes out without a copy
    plain = PLAIN.keys() & {*table.schema.names}
    encoded = [name for name in table.schema.names if name not in plain]
    rows = PREVIEW_ROWS if "image" in plain else ROW_GROUP_ROWS
    with pq.ParquetWriter(
        buffer,
        table.schema,
        use_dictionary=[name for name in encoded if pa.types.is_string(table.schema.field(name).type)],
        compression={**dict.fromkeys(encoded, "zstd"), **{PLAIN[name]: "none" for name in plain}},
        write_statistics=encoded,
    ) as writer:
        for at in range(0, max(1, table.num_rows), rows):  # a large table is not copied as a whole
            writer.write_table(filled(table.slice(at, rows)).combine_chunks(), rows)
    return buffer.getvalue()


def open_parquet(source: bytes | Path, name: str, fields: Sequence[pa.Field] = (), **options: Any) -> pq.ParquetFile:
    """Open a file after checking its footer; texts are read as dictionaries.

    fields: columns that the file must have, with these types. options: of pq.ParquetFile. Raises CorruptError.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    with as_corrupt(name):
        reader = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
        footer = pq.read_metadata(reader)
        schema = footer.schema
        width = len(schema)
        columns = [schema.column(number) for number in range(width)]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        needed_bytes = 0
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            chunks = [group.column(at) for at in range(width)]
            sizes = [(chunk.num_values, chunk.total_uncompressed_size) for chunk in chunks]
            if min(group.num_rows, *(min(pair) for pair in sizes)) < 0:
                raise ValueError(f"row group {number} has counts below 0")
            needed_bytes += sum(max(FIXED_BYTES * values, size_bytes) for values, size_bytes in sizes)
        _judge_size(needed_bytes, size)
        if isinstance(source, bytes):
            reader = pa.BufferReader(source)
        file = pq.ParquetFile(reader, metadata=footer, read_dictionary=texts, **options)
        for field in fields:
            column = file.schema_arrow.field(field.name)  # raises KeyError if the file has no such column
            if not _same_type(column.type, field.type):
                raise TypeError(f"column {field.name} is of {column.type}, expected {field.type}")
    return file


def read_parquet(
    data: bytes,
    columns: list[str] | None = None,
    *,
    name: str = "a table of the store",
    fields: Sequence[pa.Field] = (),
) -> pa.Table:
    """Read a table from a Parquet file's bytes; raise CorruptError naming the file. fields: see `open_parquet`.

    Does not use `pyarrow.parquet.read_table`, nor other threads: pyarrow's threads release the bytes at any time, and
    a process that ends at that moment is aborted.
    """
    file = open_parquet(data, name, fields, pre_buffer=False)
    with as_corrupt(name):
        missing = set(columns or ()) - set(file.schema_arrow.names)
        if missing:
            raise KeyError(f"it has no column {min(missing)}")
        return spelt_out(file.read(columns, use_threads=False), len(data))


def read_vectors(table: pa.Table) -> NDArray[np.float16]:
    """Return the `vector` column as (rows, d) float16; raise CorruptError if it has another type or nulls."""
    kind = table.schema.field("vector").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float16() or table["vector"].null_count:
        raise CorruptError(f"the vectors have type {kind} and {table['vector'].null_count} nulls")
    column = table["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # a table without rows keeps no chunk
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    flat: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(len(column), column.type.list_size)


def spelt_out(table: pa.Table, size_bytes: int) -> pa.Table:
    """Decode dictionaries to plain texts; raise ValueError if they take too much memory for the size of their file."""
    judged(table, size_bytes)
    plain = pa.schema([field.with_type(_plain(field.type)) for field in table.schema], table.schema.metadata)
    return table if plain == table.schema else table.cast(plain)


def judged(table: pa.Table, size_bytes: int) -> pa.Table:
    """Return the table; raise ValueError if it is invalid or its decoded texts would take too much memory."""
    table.validate(full=True)
    _judge_size(sum(_spelt_bytes(chunk) for column in table.columns for chunk in column.chunks), size_bytes)
    return table


def check_required(table: pa.Table | pa.RecordBatch, schema: pa.Schema) -> None:
    """Raise ValueError for a null in a column that is not nullable in the schema."""
    for field in schema:
        if not field.nullable and field.name in table.schema.names and table.column(field.name).null_count:
            raise ValueError(f"column {field.name} has rows without a value")


@contextmanager
def as_corrupt(name: str) -> Iterator[None]:
    """Raise CorruptError, in one line, for every error that a damaged file causes in pyarrow or in the block."""
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


def _sources(volume: Slices) -> NDArray[np.object_]:
    return np.full(len(volume), None, object) if volume.sources is None else volume.sources


def _joined(volumes: Sequence[Slices], name: str, dtype: type) -> NDArray[Any]:
    parts = [getattr(volume, name) for volume in volumes]
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def _vectors(vectors: NDArray[np.float16], schema: pa.Schema) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)


def _judge_size(needed_bytes: int, size_bytes: int) -> None:
    allowed = max(FREE_BYTES, EXPANSION_MAX * size_bytes)
    if needed_bytes > allowed:
        raise ValueError(f"its {size_bytes} bytes unpack to {needed_bytes}, expected at most {allowed}")


def _spelt_bytes(values: pa.Array) -> int:
    """Bytes that the texts of a dictionary array (or of a map of them) take when every value is a copy of its own."""
    kind = values.type
    if pa.types.is_map(kind):
        return _spelt_bytes(values.keys) + _spelt_bytes(values.items)
    if not pa.types.is_dictionary(kind) or not len(values):
        return 0
    lengths = np.append(np.int64(0), _lengths(values.dictionary))
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


def _same_type(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column can be read as the expected type: texts may have 32-bit or 64-bit offsets."""

    def base(kind: pa.DataType) -> pa.DataType:
        plain = _plain(kind)
        if pa.types.is_map(plain):
            return pa.map_(base(plain.key_type), base(plain.item_type))
        return pa.string() if pa.types.is_large_string(plain) else plain

    return bool(base(actual) == base(expected))
