"""What a search can be asked for: a file or DICOM folder, a volume of the snapshot, words, or vectors.

A query may be narrowed to a part of a volume (`slices`, `box`, `mask`), to the slices of a slice plan, and its slices
may have weights.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medret.embeddings import Aggregation, parse_aggregation
from medret.embeddings.parquet import RECIPE_KEY
from medret.embeddings.slices import UNKNOWN, Slices, slice_weights, volume_vector
from medret.errors import UsageError, VolumeError
from medret.recipe import PLANES
from medret.search.hit import Range, Sources
from medret.search.query_files import File

if TYPE_CHECKING:
    from medret.volume import Content, Limits
    from medret.volume.slicing import Region

Volume = tuple[str, int]  # a volume_id and the number of its store, 0 in a search of one store


@dataclass(frozen=True)
class VolumeName:
    """A query that is a volume of the snapshots, whatever files there are. store: its URI, where several are open."""

    volume_id: str
    store: str | None = None

    @property
    def text(self) -> str:
        """As `Corpus.find` takes it."""
        return f"{self.store}#{self.volume_id}" if self.store else self.volume_id


@dataclass(frozen=True)
class FileContent:
    """A query that was read already, and the mask on its grid, if the option `mask` names one.

    name: for messages. limits: None for those of an index run.
    """

    name: str
    content: Content = field(repr=False)
    limits: Limits | None = None
    mask: Content | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Words:
    """A query in words, such as "CT of the abdomen, liver with cysts", for models that put words beside images."""

    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UsageError("the text of a query is empty: say in words what the volumes show")


# A sequence: the files of one DICOM series.
Query = File | Sequence[File] | NDArray[Any] | VolumeName | FileContent | Words


@dataclass(frozen=True)
class QueryVectors:
    """A query, ready for the indices.

    label: how messages name it. volumes: those of the snapshots that are the query itself. volume: (dim,) float32 unit
    vector. slices: the vectors that slice-wise modes search with and hits are matched against; a query of one
    volume vector is its own only slice, without an index; their weights sum to 1.
    requested: first and last slice index of the range that the user asked for; it may reach beyond the slices of the
    volume. spacing_mm: of the volume along x, y, z, where it is known. sources: what its slices were made from.
    """

    label: str
    volumes: frozenset[Volume]
    volume: NDArray[np.float32]
    slices: Slices
    requested: Range | None = None
    spacing_mm: tuple[float, float, float] | None = None
    sources: Sources = field(default_factory=dict)

    @property
    def volume_ids(self) -> frozenset[str]:
        """The ids of the volumes that are the query itself."""
        return frozenset(volume_id for volume_id, _ in self.volumes)

    def slice_weights(self) -> NDArray[np.float64]:
        """The weight of each slice, summing to 1."""
        return slice_weights(self.slices)


def vector_query(query: NDArray[Any], dim: int, aggregation: Aggregation) -> QueryVectors:
    """A (dim,) volume vector or (n, dim) slice vectors; raises UsageError for what cannot be compared.

    Slice vectors have no positions: they count as evenly spaced from the first slice to the last.
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
        return QueryVectors(label, frozenset(), vectors[0], whole_volume(vectors))
    relative = np.linspace(0, 1, len(vectors), dtype=np.float32) if len(vectors) > 1 else np.full(1, 0.5, np.float32)
    planes = np.full(len(vectors), UNKNOWN, np.int8)
    slices = Slices(vectors, planes, np.arange(len(vectors)), relative, volume_id="query")
    return QueryVectors(label, frozenset(), aggregated(slices, aggregation), slices)


def whole_volume(vectors: NDArray[np.float32]) -> Slices:
    """A (1, dim) volume vector as its own only slice."""
    return Slices(vectors, np.full(1, UNKNOWN, np.int8), relative_position=np.full(1, 0.5, np.float32))


def load_array(data: bytes, name: str) -> NDArray[Any]:
    """The array in a .npy file's bytes; raises UsageError. Pickled objects are not read."""
    try:
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever its text leads to
        raise UsageError(f"query {name}: cannot be read as a .npy array of vectors: {error}") from error
    return array


def refuse_table(data: Content, name: str, digest: str) -> None:
    """Raise UsageError for a Parquet file, which holds the vectors of many volumes, perhaps of another recipe."""
    if isinstance(data, tuple) or data[:4] != b"PAR1":
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
        f"query {name} is a Parquet file, not a volume: give a NIfTI file, a DICOM folder, a volume_id or a .npy of "
        "vectors"
    )


def aggregated(slices: Slices, aggregation: Aggregation) -> NDArray[np.float32]:
    """The volume vector of slice vectors, rounded to float16 as stored ones are. Raises UsageError if it has none."""
    try:
        vector = volume_vector(slices, aggregation)
    except VolumeError as error:
        raise UsageError(f"query {slices.volume_id}: {error.reason}") from error
    return vector.astype(np.float16).astype(np.float32)


AXES = ("sagittal", "coronal", "axial")  # the plane whose slices follow one another along x, y, z
_NUMBER = r"([+-]?\d{1,9}(?:\.\d+)?)"
_VOXELS = re.compile(r"(\d{1,9}):(\d{1,9})")
_MM = re.compile(rf"{_NUMBER}\s*mm:{_NUMBER}\s*mm")


@dataclass(frozen=True)
class SliceRange:
    """First and last slice along a plane's axis, inclusive: slice indices, or scanner coordinates with `mm`."""

    plane: str
    first: float
    last: float
    mm: bool

    def region(self) -> Region:
        """The same as bounds of a volume."""
        from medret.volume.slicing import Region

        x, y, z = ((self.first, self.last) if plane == self.plane else None for plane in AXES)
        return Region((x, y, z), self.mm)

    def __str__(self) -> str:
        unit = "mm" if self.mm else ""
        return f"{self.plane} {self.first:g}{unit}:{self.last:g}{unit}"


def parse_range(text: str, plane: str) -> SliceRange:
    """`40:58` or `-12.5mm:30mm`; raises UsageError."""
    if plane not in PLANES:
        raise UsageError(f"plane '{plane}' is not available; there are {', '.join(PLANES)}")
    match = _VOXELS.fullmatch(text.strip()) or _MM.fullmatch(text.strip())
    if match is None or float(match[1]) > float(match[2]):
        problem = "ends before it begins" if match else "is not understood"
        raise UsageError(f"slices '{text}' {problem}; expected FIRST:LAST such as 40:58, or 40mm:58.5mm")
    return SliceRange(plane, float(match[1]), float(match[2]), match.re is _MM)


def parse_box(text: str) -> Region:
    """`x0:x1,y0:y1,z0:z1`; raises UsageError."""
    from medret.volume.slicing import Region

    matches = [_VOXELS.fullmatch(part.strip()) for part in text.split(",")]
    bounds = [(float(match[1]), float(match[2])) for match in matches if match]
    if len(matches) != 3 or len(bounds) != 3 or any(first > last for first, last in bounds):
        raise UsageError(
            f"box '{text}' is not understood; expected X0:X1,Y0:Y1,Z0:Z1, first and last voxel in RAS+ order, such as "
            "40:120,30:90,10:25"
        )
    return Region((bounds[0], bounds[1], bounds[2]))


def within(slices: Slices, slice_range: SliceRange) -> Slices:
    """The slices in a range; raises UsageError that says where the slices lie."""
    at = slices.position_mm if slice_range.mm else slices.slice_indices
    assert at is not None
    in_plane = slices.planes == PLANES.index(slice_range.plane)
    kept = np.flatnonzero(in_plane & (at >= slice_range.first) & (at <= slice_range.last))
    if not len(kept):
        unit = " mm" if slice_range.mm else ""
        present = ", ".join(f"{value:.5g}" for value in at[in_plane]) or "nowhere"
        raise UsageError(
            f"query '{slices.volume_id}': no stored slice of it lies in {slice_range}; they lie at {present}{unit}. "
            "Give the NIfTI file itself to slice it again"
        )
    return slices.take(kept)


def embedding_order(slices: Slices, planes: Sequence[str]) -> NDArray[np.int64]:
    """(n,) the slices in the order in which a recipe with these planes embeds them: `uniform` and `random` count it."""
    places = {name: place for place, name in enumerate(planes)}
    return np.argsort([places.get(str(plane), 0) for plane in slices.plane_names], kind="stable")


def chosen_slices(plan: str, slices: Slices, label: str) -> Slices:
    """The slices that a slice plan keeps, in each plane on its own."""
    from medret.volume.slicing import parse_slice_plan

    parsed = parse_slice_plan(plan)
    at_mm = slices.position_mm
    if at_mm is None:
        if parsed.gap_mm is not None:
            raise UsageError(f"query '{slices.volume_id}': where its slices lie is not known, which {plan} needs")
        at_mm = np.arange(len(slices), dtype=np.float32)
    chosen = []
    for code, plane in dict(zip(slices.planes.tolist(), slices.plane_names, strict=True)).items():
        of_plane = np.flatnonzero(slices.planes == code)
        chosen.append(of_plane[parsed.indices(at_mm[of_plane], f"{label}\0{plane}")])
    return slices.take(np.sort(np.concatenate(chosen)))


def weighted(slices: Slices, text: str, label: str) -> Slices:
    """Give slices weights that sum to 1: `uniform` or `gaussian:CENTRE,SIGMA`; raises UsageError."""
    if text == "uniform":
        return replace(slices, weights=None)
    if not text.startswith("gaussian:"):
        raise UsageError(f"query weights '{text}' are not understood; expected uniform or gaussian:CENTRE,SIGMA")
    assert slices.relative_position is not None
    return replace(slices, weights=parse_aggregation(text).weights(slices.relative_position, label))
