"""Find the body in the field of view: a threshold, and the box around the voxels above it.

Both are computed from the coarse sample, in a millisecond. The box decides the crop and where slices are taken; the
threshold decides which voxels the percentiles are computed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medret.volume.sample import Sample, quantile

# Between air (-1000) and fat (-100): lungs are below, the chest around them is above.
BODY_ABOVE_HU = -500.0
_DARKEST = 0.02  # share of voxels that is surely background; the brightest share of equal size is surely tissue
_RISE = 0.1  # share of the way from background to bright tissue, as in FSL's robust brain threshold
_LEAST_SAMPLES_TO_ERODE = 16
_LEAST_CORE = 0.2  # share of the mask; with less, the foreground is thin (vessels) and an erosion destroys it
_LEAST_SLAB = 0.02  # share of the fullest slab
_LEAST_GROUP = 0.05  # share of the body
_LEAST_SIDE_VOXELS = 8


@dataclass(frozen=True)
class Box:
    """Voxel bounds along the RAS+ axes, first inclusive, last exclusive."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in an array in RAS+ order."""
        x, y, z = (slice(first, last) for first, last in zip(self.first, self.last, strict=True))
        return x, y, z


def whole(shape: tuple[int, ...]) -> Box:
    """The box of the whole field of view."""
    return Box((0, 0, 0), (shape[0], shape[1], shape[2]))


def threshold(sample: Sample, *, is_hu: bool) -> float:
    """The real value above which a voxel counts as body; non-finite voxels never do.

    If more than a few voxels are not finite, they stand for the background: for zeros around magnitudes, which are
    hardly ever negative, or for everything outside the body around signed values (statistics, differences).
    """
    if is_hu:
        return BODY_ABOVE_HU
    ordered = sample.ordered
    if not ordered.size:
        return -math.inf
    if sample.void_share > _DARKEST:
        if quantile(ordered, _DARKEST) < -_RISE * abs(quantile(ordered, 1 - _DARKEST)):
            return -math.inf
        ordered = np.concatenate([np.zeros(round(ordered.size * sample.void_share / (1 - sample.void_share))), ordered])
    dark, bright = quantile(ordered, _DARKEST), quantile(ordered, 1 - _DARKEST)
    level = dark + _RISE * (bright - dark)
    above = ordered[np.searchsorted(ordered, level, side="right") :]
    # A few very bright voxels (tumours in PET) must not turn the rest of the body into background.
    if 0 < above.size < ordered.size // 4:
        level = dark + _RISE * (quantile(above, 0.5) - dark)
    return level


def foreground_box(sample: Sample, above: float, shape: tuple[int, ...]) -> Box:
    """The box around the body, in voxels of the full volume, with a margin of about one sample.

    above: the threshold. shape: of the volume in RAS+ order. An erosion removes what is one sample thin (noise, a
    single bright voxel, the patient table). Returns the whole field of view if there is no sensible box.
    """
    mask = np.isfinite(sample.values) & (sample.values > above)
    core = _erode(mask)
    if not core.any() or float(np.count_nonzero(core)) < _LEAST_CORE * float(np.count_nonzero(mask)):
        core = mask
    first, last = [0, 0, 0], [0, 0, 0]
    for axis, counts in enumerate(_counts(core)):
        extent = _extent(counts)
        if extent is None:
            return whole(shape)
        eroded = mask.shape[axis] >= _LEAST_SAMPLES_TO_ERODE and core is not mask
        margin = sample.steps[axis] * (2 if eroded else 1)
        first[axis] = max(0, sample.starts[axis] + extent[0] * sample.steps[axis] - margin)
        last[axis] = min(shape[axis], sample.starts[axis] + extent[1] * sample.steps[axis] + margin + 1)
        if last[axis] - first[axis] < min(_LEAST_SIDE_VOXELS, shape[axis]):
            return whole(shape)
    return Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))


def _counts(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The number of mask voxels in each slab along each axis."""
    ones = mask.view(np.uint8)  # 8-bit sums are the fastest and hold a side of the sample
    columns, rows = ones.sum(axis=2, dtype=np.uint8), ones.sum(axis=0, dtype=np.uint8)
    return [columns.sum(axis=1, dtype=np.int64), columns.sum(axis=0, dtype=np.int64), rows.sum(axis=0, dtype=np.int64)]


def _extent(counts: NDArray[np.int64]) -> tuple[int, int] | None:
    """First and last slab of the body along one axis; None without a body. counts: body voxels per slab.

    Almost empty slabs do not count, nor do small separate groups of slabs (a head rest, the tip of an arm). Two legs
    with a gap between them are both kept.
    """
    solid = counts > _LEAST_SLAB * counts.max()
    edges = [number for number, (a, b) in enumerate(pairwise([False, *solid.tolist(), False])) if a != b]
    groups = list(zip(edges[::2], edges[1::2], strict=True))
    total = int(counts.sum())
    kept = [(start, stop) for start, stop in groups if counts[start:stop].sum() >= _LEAST_GROUP * total]
    return (kept[0][0], kept[-1][1] - 1) if kept and total else None


def _erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop voxels that lack a neighbour on either side, along axes that are long enough; borders count as body."""
    core = mask
    for axis in range(3):
        if mask.shape[axis] < _LEAST_SAMPLES_TO_ERODE:
            continue
        ahead = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
        behind = tuple(slice(None, -1) if other == axis else slice(None) for other in range(3))
        eroded = core.copy()
        eroded[ahead] &= core[behind]
        eroded[behind] &= core[ahead]
        core = eroded
    return core
