"""Tables of slice vectors, of volume vectors and of previews, and their Parquet files.

Slice vectors are stored as float16 unit vectors with their original length. Volume vectors are aggregated from these
stored values, so anyone can derive the same volume vectors from a slices file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medret.embeddings.aggregate import Aggregation
from medret.embeddings.slices import Slices
from medret.errors import CorruptError, QuarantineCode, VolumeError
from medret.schemas import PREVIEWS, slices_schema, volumes_schema

ROW_GROUP_ROWS = 16_384
PREVIEW_ROWS = 64  # per row group: the previews of one volume are one small read
PLAIN = {"vector": "vector.list.element", "image": "image"}  # columns that are stored as they are -> their Parquet name
RECIPE_KEY = b"medret.recipe"
AGGREGATION_KEY = b"medret.aggregation"


def unit_slices(raw: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Normalise model outputs (n, d) to unit float16 vectors (n, d); also return their lengths (n,).

    Raises VolumeError (embedding_failed) if an output is not finite or has no length.
    """
    norms = np.linalg.norm(raw.astype(np.float64), axis=1)
    bad = ~np.isfinite(norms) | (norms < 1e-12)
    if bad.any():
        raise VolumeError(
            QuarantineCode.EMBEDDING_FAILED,
            f"{int(bad.sum())} of {len(raw)} slice vectors are zero or not finite; try --precision fp32",
        )
    return (raw / norms[:, None]).astype(np.float16), norms.astype(np.float32)


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


def volume_vector(volume: Slices, aggregation: Aggregation) -> NDArray[np.float32]:
    """Aggregate the slices of one volume to its (dim,) unit vector; raise VolumeError if it has none."""
    assert volume.relative_position is not None
    return aggregation.aggregate(volume.vectors.astype(np.float32), volume.relative_position, volume.volume_id)


def reducible(
    volumes: Sequence[Slices], aggregations: Sequence[Aggregation]
) -> tuple[list[Slices], dict[str, VolumeError]]:
    """Return the volumes that every aggregation can reduce to a vector, and the errors of the others by id."""
    reduced, errors = [], {}
    for volume in volumes:
        try:
            for aggregation in aggregations:
                volume_vector(volume, aggregation)
        except VolumeError as error:
            errors[volume.volume_id] = error
        else:
            reduced.append(volume)
    return reduced, errors


def parquet_bytes(table: pa.Table) -> bytes:
    """Encode the table as a Parquet file; the same rows give the same bytes, however they are divided into chunks.

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
            writer.write_table(table.slice(at, rows).combine_chunks(), rows)
    return buffer.getvalue()


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


def _sources(volume: Slices) -> NDArray[np.object_]:
    return np.full(len(volume), None, object) if volume.sources is None else volume.sources


def _joined(volumes: Sequence[Slices], name: str, dtype: type) -> NDArray[Any]:
    parts = [getattr(volume, name) for volume in volumes]
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def _vectors(vectors: NDArray[np.float16], schema: pa.Schema) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
