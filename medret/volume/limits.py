"""The limits beyond which a volume is refused, each checked before memory is allocated."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20

# A deflate symbol of at most 258 bytes takes at least two bits, so no valid stream expands further than this.
DEFLATE_MAX_RATIO = 1032


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
