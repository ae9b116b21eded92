"""The limits for a volume, whatever its format: checked before memory is taken."""

from __future__ import annotations

from dataclasses import dataclass

from medret.errors import QuarantineCode, VolumeError
from medret.volume.inflate import MIB


@dataclass(frozen=True)
class Limits:
    """Limits per volume.

    max_voxels_bytes: decoded size that a header may declare (all time points). No more than that is inflated, so this
        also bounds the memory, however well a volume compresses.
    max_header_bytes: maximum size of header and extensions, before the voxels.
    max_slices: maximum number of slices from one volume, all planes together.
    min_side_voxels: minimum number of voxels of each of the two longest sides.
    min_finite_share: minimum share of finite voxels; many programs write NaN outside the brain.
    refuse_masks: whether to refuse a volume that looks like a segmentation.
    """

    max_voxels_bytes: int = 4096 * MIB
    max_header_bytes: int = 16 * MIB
    max_slices: int = 8192
    min_side_voxels: int = 8
    min_finite_share: float = 0.05
    refuse_masks: bool = False


def check_sides(sides: tuple[int, ...], limits: Limits) -> None:
    """Raise VolumeError TOO_SMALL if two of three sides, in voxels, are too short for an image."""
    if sorted(sides)[1] < limits.min_side_voxels:
        raise VolumeError(
            QuarantineCode.TOO_SMALL,
            f"{' x '.join(map(str, sides))} voxels; two sides must have at least {limits.min_side_voxels}",
        )
