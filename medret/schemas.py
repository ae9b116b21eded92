"""Arrow schemas of the tables that medret writes; docs/formats.md describes them in words.

On disk, the row table of an index shard has one more column (see medret.index.rows).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

# --- archive ---------------------------------------------------------------------------------------------------

# The volumes of an archive as they are listed, sorted by volume_id. It lives in memory only.
OBJECTS = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),  # path below the archive
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string()),  # without quotes; null if the store has none
        pa.field("mtime", pa.string()),  # ISO 8601, UTC
        pa.field("parts", pa.int32()),  # objects of a series; null: the volume is one object
        pa.field("names", pa.list_(pa.string())),  # of these objects; null: all instances in the volume's folder
    ]
)

# --- embeddings ------------------------------------------------------------------------------------------------

SLICE_COLUMNS: list[pa.Field] = [
    pa.field("volume_id", pa.string(), nullable=False),
    pa.field("plane", pa.string(), nullable=False),  # axial | coronal | sagittal
    pa.field("position", pa.int32(), nullable=False),  # voxel index along the plane's axis, RAS+ order
    pa.field("relative", pa.float32(), nullable=False),  # 0 first slice .. 1 last slice of the (uncropped) volume
    pa.field("position_mm", pa.float32(), nullable=False),  # scanner coordinate of the slice centre along the axis
    pa.field("source", pa.string()),  # SOP instance UID of the slice, with #7 for frame 7; null for NIfTI
    pa.field("norm", pa.float32(), nullable=False),  # length of the model's output; vector * norm restores it
]

VOLUME_COLUMNS: list[pa.Field] = [
    pa.field("volume_id", pa.string(), nullable=False),
    pa.field("slices", pa.int32(), nullable=False),  # number of slice vectors that were aggregated
]

# One row per preview, in the order of the shard's volumes.
PREVIEWS = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("plane", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # of the slice, as in SLICE_COLUMNS
        pa.field("image", pa.binary(), nullable=False),  # grey JPEG of at most 160 x 160 px
    ]
)


def vector_type(dim: int) -> pa.DataType:
    """Type of a unit vector: `fixed_size_list<float16>[dim]`."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), dim)


def slices_schema(dim: int) -> pa.Schema:
    """Schema with one row per slice vector."""
    return pa.schema([*SLICE_COLUMNS, pa.field("vector", vector_type(dim), nullable=False)])


def volumes_schema(dim: int) -> pa.Schema:
    """Schema with one row per volume vector."""
    return pa.schema([*VOLUME_COLUMNS, pa.field("vector", vector_type(dim), nullable=False)])


# --- index -----------------------------------------------------------------------------------------------------

# Row i of an index shard's row table describes vector i of the shard. Volume vectors have no plane or position.
ROWS = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("plane", pa.string()),
        pa.field("position", pa.int32()),
    ]
)

# --- snapshot --------------------------------------------------------------------------------------------------

LABELS = ("subject", "modality", "body_region", "organ")  # label columns of every ledger

# One row per listed volume: where its vectors are stored, or why it has none. The table of changes since the ledger's
# base has the same columns; there, the status GONE hides a volume of the base.
GONE = "gone"
LEDGER = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.string()),
        pa.field("content_sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # embedded | quarantined | GONE
        pa.field("code", pa.string()),  # QuarantineCode
        pa.field("reason", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("body_region", pa.string()),
        pa.field("organ", pa.string()),
        pa.field("metadata", pa.map_(pa.string(), pa.string())),  # other labels
        pa.field("origins", pa.map_(pa.string(), pa.string())),  # label -> table | dicom | bids | msd | path
        pa.field("found", pa.map_(pa.string(), pa.string())),  # labels in the volume's own tags, used or not
        pa.field("facts", pa.string()),  # medret.volume.read.VolumeFacts as JSON
        pa.field("slices", pa.int32(), nullable=False),  # slice vectors per model; 0 in quarantine
        pa.field("shards", pa.map_(pa.string(), pa.string())),  # recipe digest -> key of the embedding shard
        pa.field("judged_by", pa.string()),  # digest of the ruleset: code version, limits, recipes
    ]
)

# The labels of volumes, in memory only: columns of the ledger.
VOLUME_LABELS = pa.schema([LEDGER.field(name) for name in ("volume_id", *LABELS, "metadata", "origins")])

# One row per file of the snapshot.
FILES = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # below the store
        # slices | volumes | previews | hnsw | lsh | exact | rows | centre | quarantine
        pa.field("kind", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("recipe", pa.string()),  # digest; null for quarantine
        pa.field("aggregation", pa.string()),  # null: slice vectors, or previews
        pa.field("shard", pa.string()),  # key of its embedding shard or index shard
        pa.field("indexed_in", pa.string()),  # embedding files: key of the index shard with their vectors
        pa.field("recall", pa.float64()),  # indices: recall@10 against exact search when built
    ]
)

# Dead rows of index shards: their volume is gone, or its vectors are now in another shard.
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

# Arrow counts the bytes of a text array in 32 bits and joins all chunks into one array to take rows. For texts of more
# than 2 GiB (some millions of ledger rows), rows are taken with 64-bit offsets and returned in parts.
PART_ROWS = 100_000

_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK_BYTES = 128 * 2**10  # what glibc begins with


def taken(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Take rows of a table by number; the result is in parts, so text columns may have any size."""
    roomy = pa.schema([field.with_type(_roomy(field.type)) for field in table.schema])
    whole = table.cast(roomy).combine_chunks()
    parts = (whole.take(rows.slice(at, PART_ROWS)).cast(table.schema) for at in range(0, len(rows), PART_ROWS))
    return pa.concat_tables([table.schema.empty_table(), *parts])


def in_pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut tables of one schema into parts of PART_ROWS rows; the last part, which may be empty, has what is left."""
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        while rest.num_rows > PART_ROWS:
            yield rest.slice(0, PART_ROWS)
            rest = rest.slice(PART_ROWS)
    if rest is not None:
        yield rest


def in_order(table: pa.Table, column: str) -> pa.Table:
    """Sort the table by a short text column, unless it is sorted; a table that was not is returned in parts."""
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    values = table[column]
    if pc.all(pc.less_equal(values.slice(0, max(0, len(values) - 1)), values.slice(1)), min_count=0).as_py():
        return table
    order = pc.sort_indices(values.cast(_roomy(values.type)))
    return taken(table, order)


def in_parts(values: Sequence[Any], type_: pa.DataType) -> pa.ChunkedArray:
    """Make a column, in parts, from these values."""
    parts = [pa.array(values[at : at + PART_ROWS], type_) for at in range(0, len(values), PART_ROWS)]
    return pa.chunked_array(parts, type_)


def _roomy(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_map(type_):
        return pa.map_(_roomy(type_.key_type), _roomy(type_.item_type))
    return pa.large_string() if pa.types.is_string(type_) else type_


@contextmanager
def one_heap() -> Iterator[None]:
    """Let Arrow take its memory from the C library while the block runs, and the library return large blocks at once.

    Arrow's own allocator keeps what was freed for later tables of the same size: over a run of 100,000 volumes, the
    driver then holds twice as much per volume. By default, glibc keeps ever larger blocks too, once some were freed.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def give_back() -> None:
    """Return to the system what was freed; inside `one_heap`."""
    pa.default_memory_pool().release_unused()
