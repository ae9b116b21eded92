"""Which structures each slice of a volume shows: voxels of its masks, counted where the slice was taken.

A mask is read like its volume: in RAS+ order, on the same grid, never resampled. A slice shows of a structure what lies
inside the box that was cropped before slicing; voxels outside it were never seen by a model. The counts of a volume are
computed once and kept under a digest of what they depend on: the contents of the volume and of its masks, the names,
the box and the planes. docs/evaluating.md has the definitions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medret.embeddings import Slices
from medret.errors import UsageError, VolumeError
from medret.evaluate.masks import Mask
from medret.recipe import digest_of
from medret.search import Snapshot
from medret.storage import reaching, read_uri, redacted
from medret.storage.objects import default_cache_dir, write_atomically
from medret.volume import Content, Limits, content_sha256
from medret.volume.open import fetch_volume, open_volume
from medret.volume.orientation import geometry_of
from medret.volume.sample import ROUNDING, Box, whole
from medret.volume.slicing import AXIS, grids_differ
from medret.volume.stored import Scaling, StoredVolume

Report = Callable[[str], None]

VERSION = 1  # of the counts: part of their digest
FOLDER = "slice-truth"  # in the cache folder
MOST = (1 << 16) - 1  # the largest value in a mask
AT_ONCE = 8  # masks of a volume that are read side by side
STRUCTURES_KEY = b"medret.structures"

COUNTS = pa.schema(
    [
        pa.field("plane", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # voxel index along the plane's axis, RAS+ order
        pa.field("structure", pa.string(), nullable=False),
        pa.field("voxels", pa.int64(), nullable=False),  # of the structure in the slice and in the box; at least 1
    ]
)


@dataclass(frozen=True)
class SliceCounts:
    """The structures in the slices of one volume.

    structures: those that the masks would show if they were there. table: COUNTS, all slices inside the box.
    """

    structures: frozenset[str]
    table: pa.Table

    def shown(self, slices: Slices, names: Sequence[str], least_voxels: int) -> NDArray[np.bool_]:
        """Whether each slice shows at least so many voxels of each structure: (slices, names)."""
        assert slices.slice_indices is not None
        shown = np.zeros((len(slices), len(names)), bool)
        numbers = zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)
        rows, columns = {key: row for row, key in enumerate(numbers)}, {name: at for at, name in enumerate(names)}
        for plane, position, structure, voxels in zip(*(column.to_pylist() for column in self.table), strict=True):
            row, column = rows.get((plane, position)), columns.get(structure)
            if row is not None and column is not None and voxels >= least_voxels:
                shown[row, column] = True
        return shown


def count_voxels(
    stored: StoredVolume, masks: Sequence[tuple[Mask, Content]], box: Box | None, planes: Sequence[str]
) -> SliceCounts:
    """Count the voxels of each structure in each slice of a volume.

    masks: each with its content. box: what was sliced, in RAS+ voxels; None: all. A structure that several masks or
    values show counts with the voxels of all. Raises UsageError for a mask that is none, or not on the volume's grid.
    """
    counts: dict[tuple[str, str], NDArray[np.int64]] = {}  # plane, structure -> voxels of each slice
    structures = frozenset[str]().union(*(mask.annotated for mask, _ in masks))
    for mask, content in masks:
        voxels = _labels(mask, content, stored)
        inside = voxels[(box or whole(voxels.shape)).slices]
        names = {value: mask.name_of(value) for value in _values(voxels)}
        structures |= set(names.values())
        for plane in planes:
            by_value = _by_slice(np.moveaxis(inside, AXIS[plane], 0), max(names, default=0))
            for value, name in names.items():
                counts[plane, name] = counts.get((plane, name), 0) + by_value[value]
    rows: list[dict[str, Any]] = []
    for (plane, name), found in sorted(counts.items()):
        first = 0 if box is None else box.first[AXIS[plane]]
        rows += [
            {"plane": plane, "position": first + at, "structure": name, "voxels": int(found[at])}
            for at in np.flatnonzero(found).tolist()
        ]
    return SliceCounts(structures, pa.Table.from_pylist(rows, schema=COUNTS))


def _labels(mask: Mask, content: Content, volume: StoredVolume) -> NDArray[np.uint16]:
    """The voxels of a mask in RAS+ order: whole numbers from 0; 0 and 1 for a mask of one structure."""
    name = f"mask {redacted(mask.uri)}"
    try:
        marks = open_volume(content, Limits())
        voxels = marks.voxels(0)
    except VolumeError as error:
        raise UsageError(f"{name} cannot be read: {error.code}: {error.reason}") from error
    if marks.time_points != 1:
        raise UsageError(f"{name} has {marks.time_points} time points, expected one")
    if problem := grids_differ(marks, volume):
        raise UsageError(f"{name} has {problem}: a mask must be drawn on its volume's own grid; it is not resampled")
    voxels = geometry_of(marks.placement, marks.shape).to_ras(voxels)
    if voxels.dtype.kind != "u" or voxels.itemsize > 2 or marks.scaling != Scaling():
        voxels = marks.scaling.real(voxels)
        whole_numbers = np.round(voxels)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            apart = np.abs(voxels - whole_numbers)
        odd = voxels[~((whole_numbers >= 0) & (whole_numbers <= MOST) & (apart <= ROUNDING))]
        if odd.size:
            raise UsageError(
                f"{name} holds the value {odd[0]:g}, expected whole numbers from 0 to {MOST}: is it a segmentation?"
            )
        voxels = whole_numbers
    return (voxels != 0).astype(np.uint16) if mask.structure is not None else voxels.astype(np.uint16)


def _values(voxels: NDArray[np.uint16]) -> list[int]:
    """The values of a mask but 0."""
    present = np.zeros(MOST + 1, bool)
    for slab in voxels:  # slab by slab: an index takes eight bytes for each voxel
        present[slab] = True
    return (np.flatnonzero(present[1:]) + 1).tolist()


def _by_slice(slices: NDArray[np.uint16], most: int) -> NDArray[np.int64]:
    """(most + 1, slices) how often each value occurs in each slice. slices: (slices, rows, columns)."""
    found = np.zeros((len(slices), most + 1), np.int64)
    for row, voxels in zip(found, slices, strict=True):
        row[:] = np.bincount(voxels.ravel(), minlength=most + 1)
    return found.T


def read_counts(
    snapshot: Snapshot,
    masks: Mapping[str, Sequence[Mask]],
    planes: Mapping[str, Sequence[str]],
    crop: bool,
    report: Report = lambda _: None,
) -> dict[str, SliceCounts]:
    """The counts of every volume that has masks: computed now, or those that were kept.

    planes: of each volume's slices. crop: whether the recipe crops.

    Raises UsageError, naming both, for a mask on another grid than its volume, and for a volume that changed since it
    was embedded.
    """
    folder = default_cache_dir() / FOLDER
    found = {}
    for number, (volume_id, own) in enumerate(sorted(masks.items()), start=1):
        report(f"masks {number}/{len(masks)} {volume_id}")
        found[volume_id] = _counts_of(snapshot, volume_id, own, planes[volume_id], crop, folder)
    return found


def _counts_of(
    snapshot: Snapshot, volume_id: str, masks: Sequence[Mask], planes: Sequence[str], crop: bool, folder: Path
) -> SliceCounts:
    contents = snapshot.corpus.stores[0]
    sha256 = contents.ledger.content_sha256(volume_id)
    corners = contents.ledger.crop_box(volume_id) if crop else None
    box = None if corners is None else Box(*corners)  # type: ignore[arg-type]  # three sides each
    if crop and box is None:
        raise UsageError(f"{volume_id}: {snapshot.uri} does not say what was cropped of it; index it again")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        read = list(pool.map(lambda mask: _read(mask, volume_id), masks))
    digest = digest_of(
        {
            "version": VERSION,
            "volume": sha256,
            "masks": [
                [mask.structure, sorted(mask.names.items()), hashlib.sha256(data).hexdigest()]
                for mask, data in zip(masks, read, strict=True)
            ],
            "box": corners,
            "planes": sorted(planes),
        }
    )
    kept = folder / f"{digest}.parquet"
    if (counts := _kept(kept)) is not None:
        return counts
    row = contents.ledger.row(volume_id)
    assert row is not None  # it has labels
    try:
        content = fetch_volume(contents.readable(row), Limits())
        if sha256 is not None and content_sha256(content) != sha256:
            raise UsageError(f"{volume_id} is not the file that was embedded: its bytes changed; index it again")
        stored = open_volume(content, Limits())
    except VolumeError as error:
        raise UsageError(f"{volume_id} cannot be read: {error.code}: {error.reason}") from error
    try:
        counts = count_voxels(stored, list(zip(masks, read, strict=True)), box, planes)
    except UsageError as error:
        raise UsageError(f"{volume_id}: {error}") from error
    with contextlib.suppress(OSError):  # without a writable cache, masks are counted again next time
        _keep(kept, counts)
    return counts


def _read(mask: Mask, volume_id: str) -> bytes:
    try:
        return read_uri(mask.uri)
    except FileNotFoundError as error:
        raise UsageError(f"{volume_id}: mask {redacted(mask.uri)} does not exist") from error


def _kept(path: Path) -> SliceCounts | None:
    """Counts that were kept; None if there are none, or if the file is not what medret writes."""
    try:
        table = pq.read_table(path, memory_map=False)
        names = json.loads((table.schema.metadata or {})[STRUCTURES_KEY])
        if not table.schema.equals(COUNTS, check_metadata=False) or not isinstance(names, list):
            return None
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return SliceCounts(frozenset(map(str, names)), table.replace_schema_metadata(None))


def _keep(path: Path, counts: SliceCounts) -> None:
    metadata = {STRUCTURES_KEY: json.dumps(sorted(counts.structures)).encode()}
    _write(path, counts.table.replace_schema_metadata(metadata))


def write_counts(path: Path, counts: Mapping[str, SliceCounts]) -> None:
    """Write all counts as one Parquet file: volume_id, then COUNTS. Raises StorageError."""
    with reaching(str(path), "written"):
        _write(path, counts_table(counts))


def counts_table(counts: Mapping[str, SliceCounts]) -> pa.Table:
    """All counts as one table: volume_id, then COUNTS."""
    pairs = counts.items()
    tables = [one.table.add_column(0, "volume_id", pa.repeat(name, one.table.num_rows)) for name, one in pairs]
    return pa.concat_tables(tables)


def _write(path: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
