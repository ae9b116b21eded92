"""What may be asked: a NIfTI file or URI, a volume of the snapshot, a volume vector, or slice vectors."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medret.embeddings import Aggregation
from medret.embeddings.shards import RECIPE_KEY
from medret.errors import UsageError, VolumeError
from medret.search.hit import Range
from medret.search.matching import SliceVectors
from medret.storage import normalise_uri

Query = str | os.PathLike[str] | NDArray[Any]


@dataclass(frozen=True)
class QueryVectors:
    """A query, ready for the indices.

    label: how messages name it. own_ids: volumes of the snapshot that are the query itself. volume: (dim,) float32 unit
    vector. slices: what `slice` searches with and hits are matched against; a query that is one
    volume vector stands here as its own only slice, without a position. weights: (slices,) summing to 1, None for equal
    ones. asked: the slice positions that a range named, first and last, which may reach beyond the slices there are.
    spacing_mm: of the volume along x, y, z, where it is known.
    """

    label: str
    own_ids: frozenset[str]
    volume: NDArray[np.float32]
    slices: SliceVectors
    weights: NDArray[np.float64] | None = None
    asked: Range | None = None
    spacing_mm: tuple[float, float, float] | None = None

    def slice_weights(self) -> NDArray[np.float64]:
        """The weight of each slice, summing to 1."""
        return np.full(len(self.slices), 1 / max(1, len(self.slices))) if self.weights is None else self.weights


def is_file(query: str | os.PathLike[str]) -> bool:
    """Whether a text or path names a file (or any URI) rather than a volume_id; raises UsageError for a folder."""
    text = os.fspath(query)
    if not text:
        raise UsageError("query is empty: give a NIfTI file or URI, a volume_id or an array of vectors")
    if "://" in text:
        return True
    path = Path(normalise_uri(text))
    if path.is_file():
        return True
    if isinstance(query, os.PathLike):
        raise UsageError(f"query {text}: no such file")
    return False


def vector_query(query: NDArray[Any], dim: int, aggregation: Aggregation) -> QueryVectors:
    """A (dim,) volume vector or (n, dim) slice vectors; raises UsageError for what cannot be compared.

    Slice vectors come without positions: they count as evenly spaced from the first slice to the last.
    """
    label = f"array of shape {query.shape}"
    if query.ndim not in (1, 2) or query.shape[-1] != dim or not query.size:
        raise UsageError(
            f"query is an {label}, expected ({dim},), one volume vector, or (n, {dim}), slice vectors: this model's "
            f"vectors have {dim} numbers"
        )
    if query.dtype.kind not in "fiu":
        raise UsageError(f"query is an {label} of {query.dtype}, expected numbers")
    wide = query.reshape(-1, dim).astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    good = (lengths >= 1e-12) & (lengths < np.inf)
    if not good.all():
        bad = np.flatnonzero(~good)
        what = "zero" if lengths[bad[0]] == 0 else "not finite"
        raise UsageError(f"query is an {label} whose row {bad[0]} is {what}: a vector needs a direction")
    vectors = (wide / lengths[:, None]).astype(np.float32)
    if query.ndim == 1:
        return QueryVectors(label, frozenset(), vectors[0], SliceVectors(vectors, [None], None))
    slices = SliceVectors(vectors, [None] * len(vectors), np.arange(len(vectors)))
    relative = np.linspace(0, 1, len(vectors), dtype=np.float32) if len(vectors) > 1 else np.full(1, 0.5, np.float32)
    return QueryVectors(label, frozenset(), aggregated(slices, relative, aggregation, "query"), slices)


def load_array(data: bytes, name: str) -> NDArray[Any]:
    """The array in a .npy file's bytes; raises UsageError. Pickled objects are not read."""
    try:
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever its text leads to
        raise UsageError(f"query {name}: cannot be read as a .npy array of vectors: {error}") from error
    return array


def refuse_table(data: bytes, name: str, digest: str) -> None:
    """Raise UsageError for a Parquet file, which holds the vectors of many volumes, perhaps of another recipe."""
    if not data.startswith(b"PAR1"):
        return
    try:
        recipe = (pq.read_schema(pa.BufferReader(data)).metadata or {}).get(RECIPE_KEY, b"").decode()
    except (pa.ArrowException, UnicodeDecodeError):
        recipe = ""
    if recipe and recipe != digest:
        raise UsageError(
            f"query {name} holds vectors of recipe {recipe}, this model's are of {digest}: vectors of different "
            "recipes cannot be compared"
        )
    raise UsageError(
        f"query {name} is a Parquet file, not a volume: give a NIfTI file, a volume_id or a .npy of vectors"
    )


def aggregated(
    slices: SliceVectors, relative: NDArray[np.float32], aggregation: Aggregation, volume_id: str
) -> NDArray[np.float32]:
    """The volume vector of slice vectors, rounded to float16 as stored ones are. Raises UsageError if it has none."""
    try:
        vector = aggregation.aggregate(slices.vectors, relative, volume_id)
    except VolumeError as error:
        raise UsageError(f"query {volume_id}: {error.reason}") from error
    return vector.astype(np.float16).astype(np.float32)
