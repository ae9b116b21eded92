"""The geometry of voxels: affine, closest-canonical RAS+ order, spacing.

The frame is NIfTI's: millimetres, x to the patient's Right, y to Anterior, z to Superior. In RAS+ order voxel (0, 0, 0)
is the most left, posterior and inferior one, and indices grow along x, y and z.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError

AffineSource = Literal["sform", "qform", "dicom", "assumed"]

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
# Below this ratio of smallest to largest scale an affine flattens space, in any unit.
_FLAT = 1e-6
LEAST_MM, MOST_MM = 1e-6, 1e6


@dataclass(frozen=True)
class Placement:
    """Where stored voxels lie.

    affine: (4, 4), stored voxel index -> mm.
    source: where the affine comes from.
    spacing_assumed: whether 1 mm was taken along an axis without a usable spacing.
    passed_over: why the form preferred to `source` was not used; None if there is none.
    deviations_mm: (slices, 3), how far the true position of each stored slice (along the third axis) lies from that of
        the affine, where the slices are not evenly spaced; None where the affine is exact.
    """

    affine: NDArray[np.float64]
    source: AffineSource
    spacing_assumed: bool = False
    passed_over: str | None = None
    deviations_mm: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Geometry:
    """How stored voxels are reordered to RAS+.

    axes: RAS+ axis -> stored axis.
    flips: RAS+ axis -> whether it runs against the stored one.
    affine_ras: (4, 4), RAS+ voxel index -> mm.
    spacing_mm: along the RAS+ axes.
    orientation: the directions in which the stored axes point, such as "LPS".
    placement: of the stored voxels.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    affine_ras: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    orientation: str
    placement: Placement

    def to_ras(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """(x, y, z) view of stored voxels in RAS+ order, not copied."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return voxels.transpose(self.axes)[steps]

    def stored_indices(self, axis: int, side: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices along the stored axis for those along a RAS+ axis, whose side in voxels is given."""
        return side - 1 - indices if self.flips[axis] else indices


def slice_centres_mm(
    geometry: Geometry, shape: tuple[int, ...], axis: int, slice_indices: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(n,) scanner coordinates of the centres of slices along a RAS+ axis. shape: of the volume, in RAS+ order."""
    centres = np.tile([(side - 1) / 2 for side in shape] + [1.0], (len(slice_indices), 1))
    centres[:, axis] = slice_indices
    along: NDArray[np.float64] = (centres * geometry.affine_ras[axis]).sum(axis=1)
    deviations = geometry.placement.deviations_mm
    if deviations is not None and geometry.axes[axis] == 2:
        along += deviations[geometry.stored_indices(axis, shape[axis], slice_indices), axis]
    return along


def geometry_of(placement: Placement, shape: tuple[int, ...]) -> Geometry:
    """The geometry of a volume whose stored voxels have this shape; sides beyond the third do not matter."""
    affine = placement.affine
    axes, flips = closest_canonical(affine[:3, :3])
    to_stored = np.zeros((4, 4))  # RAS+ index -> stored index
    to_stored[3, 3] = 1
    for axis in range(3):
        stored = axes[axis]
        to_stored[stored, axis] = -1 if flips[axis] else 1
        to_stored[stored, 3] = shape[stored] - 1 if flips[axis] else 0
    affine_ras = affine @ to_stored
    spacing = np.linalg.norm(affine_ras[:3, :3], axis=0)
    towards = {axes[axis]: _LETTERS[axis][0 if flips[axis] else 1] for axis in range(3)}
    return Geometry(
        axes=axes,
        flips=flips,
        affine_ras=affine_ras,
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        orientation="".join(towards[stored] for stored in range(3)),
        placement=placement,
    )


def closest_canonical(matrix: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """The axis order and flips that bring the voxel axes closest to R, A and S.

    matrix: (3, 3), regular, columns are the stored axes in mm. The voxel axes are first replaced by the nearest
    orthogonal ones (polar decomposition), so that a shear has no effect; then the order with the largest sum of cosines
    is chosen from all 48.
    Returns (RAS+ axis -> stored axis, RAS+ axis -> whether it is flipped).
    """
    if _rectangular(matrix):
        cosines = np.sign(matrix)  # row: RAS+ axis, column: stored axis
    else:
        left, _, right = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0))
        cosines = left @ right
    orders = list(itertools.permutations(range(3)))
    best = max(orders, key=lambda order: sum(abs(cosines[axis, order[axis]]) for axis in range(3)))
    flipped = [bool(cosines[axis, best[axis]] < 0) for axis in range(3)]
    return (best[0], best[1], best[2]), (flipped[0], flipped[1], flipped[2])


def _rectangular(matrix: NDArray[np.float64]) -> bool:
    """Whether each voxel axis is parallel to an axis of the frame, as in most volumes: no decomposition is needed."""
    nonzero = matrix != 0
    return bool((nonzero.sum(axis=0) == 1).all() and (nonzero.sum(axis=1) == 1).all())


def is_plausible(spacing_mm: NDArray[np.float64]) -> bool:
    """Whether lengths in mm can be the sides of a voxel."""
    least, most = float(spacing_mm.min()), float(spacing_mm.max())
    return least > LEAST_MM and most < MOST_MM and least > _FLAT * most


def check_affine(affine: NDArray[np.float64], source: AffineSource) -> None:
    """Raise VolumeError AFFINE_INVALID for a singular affine, one that is not finite, or one far from the scanner."""
    name = "geometry of the DICOM series" if source == "dicom" else source
    if not np.all(np.isfinite(affine)):
        raise VolumeError(QuarantineCode.AFFINE_INVALID, f"the {name} holds values that are not finite")
    if np.abs(affine[:3, 3]).max() >= MOST_MM:
        raise VolumeError(
            QuarantineCode.AFFINE_INVALID, f"the {name} places the volume more than 1 km from the scanner"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rounded = " x ".join(f"{length:.3g}" for length in spacing)
    if not is_plausible(spacing):
        raise VolumeError(QuarantineCode.AFFINE_INVALID, f"the {name} gives a voxel spacing of {rounded} mm")
    if _rectangular(affine[:3, :3]):
        return
    # Compare directions only: thick slices do not make an affine singular.
    if np.linalg.svd(affine[:3, :3] / spacing, compute_uv=False)[-1] < _FLAT:
        raise VolumeError(
            QuarantineCode.AFFINE_INVALID, f"the {name} is singular: its axes lie in one plane (spacing {rounded} mm)"
        )
