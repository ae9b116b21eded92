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

from dataclasses import asdict

import pyarrow as pa

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


def ipc_bytes(table: pa.Table) -> bytes:
    """Serialise a table as one Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class Gathered:
    """Gathers the tables that come from shards, and joins many small ones to few large ones: each takes some KB."""

    def __init__(self, schema: pa.Schema) -> None:
        self._large = [schema.empty_table()]
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
            self._large.append(pa.concat_tables(self._small).combine_chunks())
        self._small, self._rows = [], 0


def pixels_column(images: Images) -> str:
    """Name of the column with a volume's images: (n, *stack_shape(images)) of stack_dtype(images), as bytes."""
    return f"pixels_{images if isinstance(images, int) else digest_of(asdict(images))}"


def vectors_column(recipe: Recipe) -> str:
    """Name of the column with a model's outputs: (n, dim) float32, as bytes."""
    return f"vectors_{recipe.digest}"
