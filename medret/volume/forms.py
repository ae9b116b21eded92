"""Where a NIfTI volume lies: the affine from its sform, else from its qform, else assumed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medret.errors import VolumeError
from medret.volume.header import NiftiHeader
from medret.volume.orientation import LEAST_MM, MOST_MM, Placement, check_affine, is_plausible

_SAME = 1e-3  # of a voxel spacing
_HALF_TURN = {1: 3 * 2.0**-23, 2: 3 * 2.0**-52}  # rounding of the stored floats per version; nibabel has the same


def placement_of(header: NiftiHeader) -> Placement:
    """The first usable form; the assumed placement if no form is set.

    Raises VolumeError AFFINE_INVALID if it has forms but all are singular or not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # values that overflow are refused
        forms = [form for form in (_sform(header), _qform(header)) if form]
        if not forms:
            return _assumed(header)
        return _first_usable(forms, header)


def _first_usable(forms: list[Placement], header: NiftiHeader) -> Placement:
    usable, refusals = [], []
    for form in forms:
        try:
            check_affine(form.affine, form.source)
        except VolumeError as error:
            refusals.append(error)
        else:
            usable.append(form)
    if not usable:
        raise refusals[0]
    if len(usable) > 1 and _is_placeholder(header):
        return replace(usable[1], passed_over="the sform is a unit matrix, which the stored voxel spacing contradicts")
    return usable[0] if usable[0] is forms[0] else replace(usable[0], passed_over=refusals[0].reason)


def _sform(header: NiftiHeader) -> Placement | None:
    if header.sform_code <= 0:
        return None
    affine = np.eye(4)
    affine[:3] = np.reshape(header.srow, (3, 4)) * header.unit_mm
    return Placement(affine, "sform")


def _qform(header: NiftiHeader) -> Placement | None:
    if header.qform_code <= 0:
        return None
    spacing, spacing_assumed = _spacing(header)
    handedness = -1.0 if header.pixdim[0] < 0 else 1.0  # 0 means 1 (nifti1.h)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(header) * spacing * (1.0, 1.0, handedness)
    affine[:3, 3] = np.array(header.qoffset) * header.unit_mm
    return Placement(affine, "qform", spacing_assumed)


def _is_placeholder(header: NiftiHeader) -> bool:
    """Whether the sform is a placeholder: a unit matrix, although the stored spacing is not 1 mm."""
    is_unit = np.array_equal(np.reshape(header.srow, (3, 4))[:, :3], np.eye(3))
    return is_unit and not np.allclose(np.abs(header.pixdim[1:4]), 1, rtol=_SAME)


def _assumed(header: NiftiHeader) -> Placement:
    """nibabel's assumption (docs/decisions/0008): centred, stored from right to left, back to front, bottom to top."""
    spacing, spacing_assumed = _spacing(header)
    spacing *= (-1.0, 1.0, 1.0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(header.shape[:3]) - 1) / 2
    return Placement(affine, "assumed", spacing_assumed)


def _spacing(header: NiftiHeader) -> tuple[NDArray[np.float64], bool]:
    """(3,) mm along the stored axes, and whether 1 mm replaces an impossible spacing, as in every reader."""
    stored = np.abs(np.array(header.pixdim[1:4], dtype=np.float64)) * header.unit_mm
    usable = (stored > LEAST_MM) & (stored < MOST_MM)
    spacing = np.where(usable, stored, 1.0)
    if not is_plausible(spacing):
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
