"""The schemas of the batches between stages: one row is one volume from the first stage to the last.

Nothing is shuffled, and a volume that failed stays in its row, with a code. These tables are private to the pipeline;
the ledger, files and journal that are made from them have their schemas in medret.schemas.

    read    in:  volume_id, uri, size_bytes, etag, mtime, parts, names, modality, canary
            out: + content_sha256, code, reason, facts, found, planes, positions, relative, positions_mm,
                 sources, previews, pixels_<images>...
    embed   out: + vectors_<recipe digest>, raw model outputs (n, dim) float32; the last user of pixels drops them
    write   out: one row per shard: its part of the ledger, of the file table and of the canaries, as Arrow IPC

Once a run is stopping, its remaining rows pass through with the code STOPPED, and nothing is written for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.embeddings.parquet import as_it_is
from medret.recipe import Images, Recipe, digest_of
from medret.schemas import LEDGER, OBJECTS, PREVIEWS

SOURCE = pa.schema(
    [
        pa.field("volume_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.string()),
        OBJECTS.field("parts"),
        OBJECTS.field("names"),
        pa.field("modality", pa.string()),
        pa.field("canary", pa.bool_()),  # embedded again to compare with the stored vectors; not written
    ]
)

CANARIES = pa.schema(
    [
        pa.field("volume_id", pa.string()),
        pa.field("recipe", pa.string()),
        pa.field("content_sha256", pa.string()),
        pa.field("vectors", pa.large_binary()),  # (n, dim) float16 unit slice vectors
    ]
)

STOPPED = "stopped"
GATHERED_ROWS = 4096
MARK = "#"  # before the number of packed facts; no JSON begins with it

SLICED = [
    pa.field("content_sha256", pa.string()),
    pa.field("code", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("facts", pa.string()),
    pa.field("found", LEDGER.field("found").type),  # labels in the volume's own tags
    pa.field("planes", pa.list_(pa.string())),
    pa.field("positions", pa.list_(pa.int32())),
    pa.field("relative", pa.list_(pa.float32())),
    pa.field("positions_mm", pa.list_(pa.float32())),
    pa.field("sources", pa.list_(pa.string())),
    pa.field("previews", pa.list_(pa.struct([PREVIEWS.field(name) for name in ("plane", "position", "image")]))),
]


def ipc_bytes(table: pa.Table, compression: str | None = None) -> bytes:
    """Serialise a table as one Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class Gathered:
    """Gathers the tables that come from shards, and joins many small ones to few large ones: each takes some KB.

    pack: what becomes of each large one.
    """

    def __init__(self, schema: pa.Schema, pack: Callable[[pa.Table], pa.Table] = as_it_is) -> None:
        self._large = [schema.empty_table()]
        self._pack = pack
        self._small: list[pa.Table] = []
        self._rows = 0

    def add(self, cells: pa.ChunkedArray) -> None:
        """Add tables. cells: binary, each written by `ipc_bytes`."""
        for cell in cells:
            table = pa.ipc.open_stream(cell.as_buffer()).read_all()
            self._small.append(table)
            self._rows += table.num_rows
        if self._rows >= GATHERED_ROWS:
            self._join()

    def table(self) -> pa.Table:
        """All rows, in the order in which they came."""
        self._join()
        return pa.concat_tables(self._large)

    def _join(self) -> None:
        if self._small:
            self._large.append(self._pack(pa.concat_tables(self._small).combine_chunks()))
        self._small, self._rows = [], 0


class PackedFacts:
    """The facts of volumes, compressed outside the ledger rows, which hold the numbers of their facts instead.

    The driver keeps them from the stream until it writes the ledger: half a KB of JSON for each new volume, most of it
    alike in all of them.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._starts = [0]  # number of the first facts of each part, and of those that come next

    def packed(self, ledger: pa.Table) -> pa.Table:
        """The rows with numbers for facts."""
        first, end = self._starts[-1], self._starts[-1] + ledger.num_rows
        self._parts.append(ipc_bytes(ledger.select(["facts"]), compression="zstd"))
        self._starts.append(end)
        numbers = pc.binary_join_element_wise(MARK, pa.array(np.arange(first, end)).cast(pa.string()), "")
        return _with_facts(ledger, pc.if_else(ledger["facts"].is_valid(), numbers, None))

    def unpacked(self, ledger: pa.Table) -> pa.Table:
        """The rows with their facts again. Facts that were never packed, as those of stored rows, stay."""
        column = ledger["facts"]
        parts = [self._texts(column.slice(at, GATHERED_ROWS)) for at in range(0, len(column), GATHERED_ROWS)]
        return _with_facts(ledger, pa.chunked_array([chunk for part in parts for chunk in part.chunks], column.type))

    def _texts(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        marked = pc.fill_null(pc.starts_with(column, MARK), False)
        numbers = pc.utf8_slice_codeunits(column.filter(marked), len(MARK)).cast(pa.int64()).to_numpy()
        if not len(numbers):
            return column
        starts = np.array(self._starts)
        parts, part = np.unique(np.searchsorted(starts, numbers, "right") - 1, return_inverse=True)
        offsets = np.cumsum([0, *np.diff(starts)[parts]])
        order = np.arange(len(column))
        order[marked.to_numpy()] = len(column) + offsets[part] + numbers - starts[parts][part]
        texts = [pa.ipc.open_stream(self._parts[number]).read_all()["facts"] for number in parts]
        chunks = [chunk for each in (column, *texts) for chunk in each.chunks]
        return pa.chunked_array(chunks, column.type).take(pa.array(order))


def _with_facts(ledger: pa.Table, facts: pa.ChunkedArray) -> pa.Table:
    return ledger.set_column(ledger.schema.get_field_index("facts"), LEDGER.field("facts"), facts)


def pixels_column(images: Images) -> str:
    """Name of the column with a volume's images: (n, *stack_shape(images)) of stack_dtype(images), as bytes."""
    return f"pixels_{images if isinstance(images, int) else digest_of(asdict(images))}"


def vectors_column(recipe: Recipe) -> str:
    """Name of the column with a model's outputs: (n, dim) float32, as bytes."""
    return f"vectors_{recipe.digest}"
