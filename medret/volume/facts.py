"""A volume after reading: facts for the ledger, one reference per slice, and the slices' pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.volume.orientation import AffineSource


@dataclass(frozen=True)
class SliceRef:
    """One slice of a volume (the columns of schemas.SLICE_COLUMNS).

    plane: axial, coronal or sagittal.
    slice_index: voxel index along the plane's axis, in RAS+ order of the uncropped volume (0 is the most inferior,
        posterior or left slice). On disk: the column `position`.
    relative_position: 0 for the first slice of the uncropped volume, 1 for the last, 0.5 for a single one. On disk:
        `relative`.
    position_mm: scanner coordinate of the slice's centre along that axis, in mm.
    """

    plane: str
    slice_index: int
    relative_position: float
    position_mm: float


@dataclass(frozen=True)
class VolumeFacts:
    """How a volume was stored and how it was read.

    shape: as stored, without trailing ones; the fourth side is time.
    time_point: the one that was used, from 0: the first that contains an image.
    spacing_mm: along the RAS+ axes (x, y, z).
    orientation: the directions in which the stored axes point, such as "LPS".
    affine_source: "assumed" if the file has neither sform nor qform.
    affine_passed_over: why the preferred form was not used; None if it was.
    spacing_assumed: whether 1 mm was taken along an axis without a usable spacing.
    modality_source: where `modality` comes from.
    intensity: "hu:<preset>" or "percentile".
    intensity_range: real values shown as black and white.
    ct_without_hu: labelled CT, but the voxels are not Hounsfield units.
    non_finite_voxels: number of NaN or infinite voxels, shown black.
    trailing_bytes: bytes in the file after the last voxel.
    crop_box: ((x, y, z) first, (x, y, z) last) RAS+ voxel bounds, last exclusive.
    planes: the planes that were sliced.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    orientation: str
    datatype: str
    nifti_version: int
    affine_source: AffineSource
    affine_passed_over: str | None
    spacing_assumed: bool
    time_points: int
    time_point: int
    modality: str
    modality_source: Literal["label", "guessed"]
    intensity: str
    intensity_range: tuple[float, float]
    ct_without_hu: bool
    non_finite_voxels: int
    trailing_bytes: int
    crop_box: tuple[tuple[int, int, int], tuple[int, int, int]]
    planes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class SlicedVolume:
    """A volume ready for the models. pixels: side in px -> (n, side, side) uint8, one image per slice, in order."""

    slices: tuple[SliceRef, ...]
    pixels: Mapping[int, NDArray[np.uint8]]
    facts: VolumeFacts
