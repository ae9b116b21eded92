"""The slices of a volume, or of several: their vectors, and where in the volume each lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.recipe import PLANES

_PER_SLICE = ("vectors", "planes", "slice_indices", "relative_position", "position_mm", "norms", "sources", "weights")
UNKNOWN = -1  # plane of a slice whose vector came without one


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of one volume, or of several, one volume after another. What is not known is None.

    vectors: (n, dim), unit length: float16 as stored, float32 or float64 where they are compared.
    planes: (n,) int8 index in PLANES, or UNKNOWN.
    slice_indices: (n,) int32 or int64 voxel index along the plane's axis, RAS+ order, ascending in each plane of a
    volume; None for a vector that stands for a whole volume.
    relative_position: (n,) float32, 0 for the first slice of the volume, 1 for the last.
    position_mm: (n,) float32 scanner coordinate along the plane's axis.
    norms: (n,) float32 lengths of the vectors before they were normalised.
    sources: (n,) what each slice was made from, str or None: see `medret.volume.SliceRef`.
    weights: (n,) float64; None: all slices weigh the same.
    starts: (volumes,) int64 first slice of each volume, strictly ascending from 0; None: the slices are of one volume.
    volume_id: of that one volume.
    """

    vectors: NDArray[np.floating[Any]]
    planes: NDArray[np.int8]
    slice_indices: NDArray[np.integer[Any]] | None = None
    relative_position: NDArray[np.float32] | None = None
    position_mm: NDArray[np.float32] | None = None
    norms: NDArray[np.float32] | None = None
    sources: NDArray[np.object_] | None = None
    weights: NDArray[np.float64] | None = None
    starts: NDArray[np.int64] | None = None
    volume_id: str = ""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def firsts(self) -> NDArray[np.int64]:
        """(volumes,) the first slice of each volume."""
        return np.zeros(min(len(self), 1), np.int64) if self.starts is None else self.starts

    @property
    def owners(self) -> NDArray[np.int64]:
        """(n,) the number of the volume that each slice belongs to."""
        return np.repeat(np.arange(len(self.firsts)), np.diff(self.firsts, append=len(self)))

    @property
    def plane_names(self) -> list[str | None]:
        """The name of each slice's plane; None where it is not known."""
        return [None if code == UNKNOWN else PLANES[code] for code in self.planes.tolist()]

    def take(self, rows: NDArray[np.integer[Any]] | NDArray[np.bool_] | slice) -> Slices:
        """Some slices, as those of one volume. rows: their numbers, or a mask."""
        arrays = {name: getattr(self, name) for name in _PER_SLICE}
        taken: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return replace(self, **taken, starts=None)

    def of_volumes(self, chosen: NDArray[np.bool_]) -> Slices:
        """The slices of some volumes. chosen: (volumes,)."""
        lengths = np.diff(self.firsts, append=len(self))[chosen]
        return replace(self.take(chosen[self.owners]), starts=np.cumsum(lengths) - lengths)


def joined(volumes: Sequence[Slices]) -> Slices:
    """The vectors, planes and weights of several volumes as one; weights sum to 1 in each volume without any."""
    lengths = np.array([len(slices) for slices in volumes])
    return Slices(
        np.concatenate([slices.vectors for slices in volumes]),
        np.concatenate([slices.planes for slices in volumes]),
        weights=np.concatenate([slice_weights(slices) for slices in volumes]),
        starts=np.cumsum(lengths) - lengths,
    )


def slice_weights(slices: Slices) -> NDArray[np.float64]:
    """(n,) the weights of the slices of one volume, summing to 1."""
    return np.full(len(slices), 1 / max(1, len(slices))) if slices.weights is None else slices.weights


def plane_codes(planes: Sequence[str | None]) -> NDArray[np.int8]:
    """Convert names of planes to their indices in PLANES; UNKNOWN for None."""
    codes: dict[str | None, int] = {name: code for code, name in enumerate(PLANES)}
    return np.array([codes.get(plane, UNKNOWN) for plane in planes], np.int8)
