"""A decoded volume as it was stored: what sampling, windows and slices need to know, of NIfTI and DICOM alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.volume.orientation import Placement


@dataclass(frozen=True)
class Scaling:
    """Stored values to real ones: real = stored * slope + inter."""

    slope: float = 1.0
    inter: float = 0.0

    def real(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Real values in a new array; not finite where they exceed the range of float64."""
        with np.errstate(over="ignore", invalid="ignore"):
            real = stored.astype(np.float64)
            if (self.slope, self.inter) != (1.0, 0.0):
                real *= self.slope
                real += self.inter
        return real


@dataclass(frozen=True)
class SeriesFacts:
    """How a DICOM series was read.

    instances: images of the series. syntaxes: UIDs of their transfer syntaxes.
    left_out: kind -> number of other objects: localizer, other, colour, not DICOM.
    duplicates: instances that are there more than once.
    repeated_frames: beyond whole volumes; at some positions there are more frames than at others.
    frames_of_other_stacks: of another shape, orientation or spacing.
    taken: which of several volumes is the first, in words; None if there is one.
    tilt_degrees: between the line through the slices and their normal: a gantry tilt.
    gaps_mm: least and greatest distance between slices along their normal if they are uneven; None if they are not.
    missing_slices: how many the gaps have room for.
    """

    instances: int
    syntaxes: tuple[str, ...]
    left_out: Mapping[str, int]
    duplicates: int
    repeated_frames: int
    frames_of_other_stacks: int
    taken: str | None
    tilt_degrees: float
    gaps_mm: tuple[float, float] | None
    missing_slices: int


@dataclass(frozen=True)
class StoredVolume:
    """A volume before it is sampled, windowed and sliced. All its sizes are within the limits.

    format: "NIfTI-1", "NIfTI-2" or "DICOM".
    shape: sides in voxels as stored, without trailing ones: three, or four with time.
    dtype: of one voxel.
    voxels: time point -> (x, y, z) stored values, first axis fastest in memory. Those of DICOM are decoded by the call.
    trailing_bytes: bytes in the file after the last voxel.
    sources: time point -> per stored slice (along z) what it was made from; empty for NIfTI. See SliceRef.source.
    labels: found in the volume's own tags, under medret's names.
    series: how a DICOM series was read; None for NIfTI.
    """

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scaling: Scaling
    placement: Placement
    voxels: Callable[[int], NDArray[Any]]
    trailing_bytes: int = 0
    sources: tuple[tuple[str, ...], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    series: SeriesFacts | None = None

    @property
    def time_points(self) -> int:
        """1 for a 3D volume."""
        return self.shape[3] if len(self.shape) == 4 else 1
