"""What a volume may ask for before it is refused. Every limit is checked before the memory is taken."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20

# One deflate symbol of at most 258 bytes costs at least two bits, so no honest stream expands further than this.
DEFLATE_MAX_RATIO = 1032


@dataclass(frozen=True)
class Limits:
    """Bounds of one volume.

    max_voxels_bytes: decoded size that a header may declare (all time points). No more than the header declares is
        inflated, so this bounds the memory too, however well a volume compresses.
    max_header_bytes: where the voxels must begin at the latest (header and extensions).
    max_slices: that the slice plan may take from one volume, all planes together.
    min_side_voxels: the two longest sides of a volume must have as many voxels.
    refuse_masks: whether a volume that looks like a segmentation is refused.
    min_finite_share: of the voxels must be finite; NaN is what many programs write outside the brain.
    """

    max_voxels_bytes: int = 4096 * MIB
    max_header_bytes: int = 16 * MIB
    max_slices: int = 8192
    min_side_voxels: int = 8
    min_finite_share: float = 0.05
    refuse_masks: bool = False
