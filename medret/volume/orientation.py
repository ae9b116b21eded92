"""The geometry of voxels: affine, closest-canonical RAS+ order, spacing.

The frame is NIfTI's: millimetres, x to the patient's Right, y to Anterior, z to Superior. In RAS+ order voxel (0, 0, 0)
is the most left, posterior and inferior one, and indices grow along x, y and z.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.header import NiftiHeader

AffineSource = Literal["sform", "qform", "assumed"]

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
# Below this ratio of smallest to largest scale an affine flattens space, in any unit.
_FLAT = 1e-6
_LEAST_MM, _MOST_MM = 1e-6, 1e6
_SAME = 1e-3  # of a voxel spacing
_HALF_TURN = {1: 3 * 2.0**-23, 2: 3 * 2.0**-52}  # rounding of the stored floats per version; nibabel has the same


@dataclass(frozen=True)
class Geometry:
    """How stored voxels are reordered to RAS+.

    axes: RAS+ axis -> stored axis.
    flips: RAS+ axis -> whether it runs against the stored one.
    affine_ras: (4, 4), RAS+ voxel index -> mm.
    spacing_mm: along the RAS+ axes.
    orientation: the directions in which the stored axes point, such as "LPS".
    source: where the affine comes from.
    spacing_assumed: whether 1 mm was taken along an axis without a usable spacing.
    passed_over: why the form preferred to `source` was not used; None if there is none.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    affine_ras: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    orientation: str
    source: AffineSource
    spacing_assumed: bool
    passed_over: str | None

    def to_ras(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """(x, y, z) view of stored voxels in RAS+ order, not copied."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return voxels.transpose(self.axes)[steps]


def geometry_of(header: NiftiHeader) -> Geometry:
    """The geometry of a volume from its sform, else from its qform, else assumed.

    Raises VolumeError AFFINE_INVALID if it has forms but all are singular or not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # values that overflow are refused
        placement = _placement(header)
    affine = placement.affine
    axes, flips = closest_canonical(affine[:3, :3])
    shape = header.shape[:3]
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
        source=placement.source,
        spacing_assumed=placement.spacing_assumed,
        passed_over=placement.passed_over,
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


@dataclass(frozen=True)
class _Placement:
    """affine: (4, 4), stored voxel index -> mm. Other fields: as in Geometry."""

    affine: NDArray[np.float64]
    source: AffineSource
    spacing_assumed: bool = False
    passed_over: str | None = None


def _placement(header: NiftiHeader) -> _Placement:
    """The first usable form; the assumed geometry if no form is set. Raises AFFINE_INVALID."""
    forms = [form for form in (_sform(header), _qform(header)) if form]
    if not forms:
        return _assumed(header)
    usable, refusals = [], []
    for form in forms:
        try:
            _check(form.affine, form.source)
        except VolumeError as error:
            refusals.append(error)
        else:
            usable.append(form)
    if not usable:
        raise refusals[0]
    if len(usable) > 1 and _is_placeholder(header):
        return replace(usable[1], passed_over="the sform is a unit matrix, which the stored voxel spacing contradicts")
    return usable[0] if usable[0] is forms[0] else replace(usable[0], passed_over=refusals[0].reason)


def _sform(header: NiftiHeader) -> _Placement | None:
    if header.sform_code <= 0:
        return None
    affine = np.eye(4)
    affine[:3] = np.reshape(header.srow, (3, 4)) * header.unit_mm
    return _Placement(affine, "sform")


def _qform(header: NiftiHeader) -> _Placement | None:
    if header.qform_code <= 0:
        return None
    spacing, spacing_assumed = _spacing(header)
    handedness = -1.0 if header.pixdim[0] < 0 else 1.0  # 0 means 1 (nifti1.h)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(header) * spacing * (1.0, 1.0, handedness)
    affine[:3, 3] = np.array(header.qoffset) * header.unit_mm
    return _Placement(affine, "qform", spacing_assumed)


def _is_placeholder(header: NiftiHeader) -> bool:
    """Whether the sform is a placeholder: a unit matrix, although the stored spacing is not 1 mm."""
    is_unit = np.array_equal(np.reshape(header.srow, (3, 4))[:, :3], np.eye(3))
    return is_unit and not np.allclose(np.abs(header.pixdim[1:4]), 1, rtol=_SAME)


def _assumed(header: NiftiHeader) -> _Placement:
    """nibabel's assumption (docs/decisions/0008): centred, stored from right to left, back to front, bottom to top."""
    spacing, spacing_assumed = _spacing(header)
    spacing *= (-1.0, 1.0, 1.0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(header.shape[:3]) - 1) / 2
    return _Placement(affine, "assumed", spacing_assumed)


def _spacing(header: NiftiHeader) -> tuple[NDArray[np.float64], bool]:
    """(3,) mm along the stored axes, and whether 1 mm replaces an impossible spacing, as in every reader."""
    stored = np.abs(np.array(header.pixdim[1:4], dtype=np.float64)) * header.unit_mm
    usable = (stored > _LEAST_MM) & (stored < _MOST_MM)
    spacing = np.where(usable, stored, 1.0)
    if not _plausible(spacing):
        return np.ones(3), True
    return spacing, not usable.all()


def _rotation(header: NiftiHeader) -> NDArray[np.float64]:
    """(3, 3) rotation from the three stored parts of a unit quaternion (nifti1.h, method 2)."""
    b, c, d = header.quatern
    square = b * b + c * c + d * d
    if (
        square > 1 - _HALF_TURN[header.version]
    ):  # a half turn up to rounding: its real part is 0 (non-finite values fail later)
        scale = 1 / math.sqrt(square)
        b, c, d = b * scale, c * scale, d * scale
        square = 1.0
    a = math.sqrt(1 - square)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _plausible(spacing_mm: NDArray[np.float64]) -> bool:
    least, most = float(spacing_mm.min()), float(spacing_mm.max())
    return least > _LEAST_MM and most < _MOST_MM and least > _FLAT * most


def _check(affine: NDArray[np.float64], source: AffineSource) -> None:
    if not np.all(np.isfinite(affine)):
        raise VolumeError(QuarantineCode.AFFINE_INVALID, f"the {source} holds values that are not finite")
    if np.abs(affine[:3, 3]).max() >= _MOST_MM:
        raise VolumeError(
            QuarantineCode.AFFINE_INVALID, f"the {source} places the volume more than 1 km from the scanner"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rounded = " x ".join(f"{length:.3g}" for length in spacing)
    if not _plausible(spacing):
        raise VolumeError(QuarantineCode.AFFINE_INVALID, f"the {source} gives a voxel spacing of {rounded} mm")
    if _rectangular(affine[:3, :3]):
        return
    # Compare directions only: thick slices do not make an affine singular.
    if np.linalg.svd(affine[:3, :3] / spacing, compute_uv=False)[-1] < _FLAT:
        raise VolumeError(
            QuarantineCode.AFFINE_INVALID, f"the {source} is singular: its axes lie in one plane (spacing {rounded} mm)"
        )
