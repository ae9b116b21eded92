"""The Arrow schemas of the tables that medret writes; docs/formats.md describes them in words.

The row table of an index shard has one more column on disk: medret.index.rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

# --- embeddings ------------------------------------------------------------------------------------------------

SLICE_COLUMNS: list[pa.Field] = [
    pa.field("volume_id", pa.string(), nullable=False),
    pa.field("plane", pa.string(), nullable=False),  # axial | coronal | sagittal
    pa.field("position", pa.int32(), nullable=False),  # voxel index along the plane's axis, RAS+ order
    pa.field("relative", pa.float32(), nullable=False),  # 0 first slice .. 1 last slice of the (uncropped) volume
    pa.field("position_mm", pa.float32(), nullable=False),  # scanner coordinate of the slice centre along the axis
    pa.field("norm", pa.float32(), nullable=False),  # length of the model's output; vector * norm restores it
]

VOLUME_COLUMNS: list[pa.Field] = [
    pa.field("volume_id", pa.string(), nullable=False),
    pa.field("slices", pa.int32(), nullable=False),  # how many slice vectors went in
]


def vector_type(dim: int) -> pa.DataType:
    """`fixed_size_list<float16>[dim]`: unit vectors."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), dim)


def slices_schema(dim: int) -> pa.Schema:
    """One row per slice vector."""
    return pa.schema([*SLICE_COLUMNS, pa.field("vector", vector_type(dim), nullable=False)])


def volumes_schema(dim: int) -> pa.Schema:
    """One row per volume vector."""
    return pa.schema([*VOLUME_COLUMNS, pa.field("vector", vector_type(dim), nullable=False)])


# --- index -----------------------------------------------------------------------------------------------------

# Row i of an index shard's row table says what vector i of the shard is. Volume vectors have no plane or position.
ROWS = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("plane", pa.string()),
        pa.field("position", pa.int32()),
    ]
)

# --- snapshot --------------------------------------------------------------------------------------------------

# One row per listed volume: where its vectors are stored, or why it has none.
LABELS = ("subject", "modality", "body_region", "organ")  # columns of the ledger that every archive may have

LEDGER = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.string()),
        pa.field("content_sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # embedded | quarantined
        pa.field("code", pa.string()),  # QuarantineCode
        pa.field("reason", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("body_region", pa.string()),
        pa.field("organ", pa.string()),
        pa.field("metadata", pa.map_(pa.string(), pa.string())),  # further label columns
        pa.field("facts", pa.string()),  # JSON of medret.volume.facts.VolumeFacts
        pa.field("slices", pa.int32(), nullable=False),  # slice vectors per model; 0 in quarantine
        pa.field("shards", pa.map_(pa.string(), pa.string())),  # recipe digest -> key of the embedding shard
        pa.field("judged_by", pa.string()),  # ruleset digest: of the code version, limits and recipes that decided
    ]
)

# One row per file of the snapshot.
FILES = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # below the store
        # slices | volumes | hnsw | lsh | exact | rows | centre | quarantine
        pa.field("kind", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("recipe", pa.string()),  # digest; null for quarantine
        pa.field("aggregation", pa.string()),  # null: slice vectors
        pa.field("shard", pa.string()),  # what belongs together: an embedding shard's or an index shard's key
        pa.field("indexed_in", pa.string()),  # of an embedding file: the index shard that holds its vectors
        pa.field("recall", pa.float64()),  # of an index: recall@10 against exact search, measured when it was built
    ]
)

# Dead rows of index shards: their volume is gone, or its vectors are stored elsewhere now.
TOMBSTONES = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),  # key of an index shard
        pa.field("volume_id", pa.string(), nullable=False),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

# --- tables of any size ----------------------------------------------------------------------------------------

# Arrow counts the bytes of a text array in 32 bits, and joins all chunks into one array when it takes rows. So texts of
# more than 2 GiB (some millions of ledger rows) are taken with 64-bit offsets and returned in parts.
PART_ROWS = 100_000


def taken(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Take rows of a table by number, in parts, whatever the size of its text columns."""
    roomy = pa.schema([field.with_type(_roomy(field.type)) for field in table.schema])
    whole = table.cast(roomy).combine_chunks()
    parts = (whole.take(rows.slice(at, PART_ROWS)).cast(table.schema) for at in range(0, len(rows), PART_ROWS))
    return pa.concat_tables([table.schema.empty_table(), *parts])


def in_pieces(table: pa.Table) -> list[pa.Table]:
    """Cut the table into parts, at least one."""
    return [table.slice(at, PART_ROWS) for at in range(0, max(1, table.num_rows), PART_ROWS)]


def in_order(table: pa.Table, column: str) -> pa.Table:
    """Sort the table by a short text column; the result is in parts."""
    import pyarrow.compute as pc  # longer to import than all else that searching needs of this module

    order = pc.sort_indices(table[column].cast(_roomy(table[column].type)))
    return taken(table, order)


def in_parts(values: Sequence[Any], type_: pa.DataType) -> pa.ChunkedArray:
    """Make a column of these values, in parts."""
    parts = [pa.array(values[at : at + PART_ROWS], type_) for at in range(0, len(values), PART_ROWS)]
    return pa.chunked_array(parts, type_)


def _roomy(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_map(type_):
        return pa.map_(_roomy(type_.key_type), _roomy(type_.item_type))
    return pa.large_string() if pa.types.is_string(type_) else type_
