"""A coarse grid of voxels, and what is decided by it: whether the voxels are an image, and where the body lies.

Statistics of 10^5 voxels on a regular grid are as good as those of 10^8, at a thousandth of the cost. The grid is
centred and follows RAS+ order, so it does not depend on the order in which the voxels are stored. Where the grid is not
enough for a decision, all voxels are examined.

A label map consists of regions of equal whole numbers. An image with as few grey levels has noise: its neighbouring
voxels differ. Among 68 real masks the smallest share of equal neighbours is 62 %, among 169 real volumes the largest is
22 %.

The body is what lies above a threshold. The box around it decides the crop and where slices are taken; the threshold
decides which voxels the percentiles are computed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.content import Limits
from medret.volume.stored import Scaling

MOST_PER_AXIS = 48
MOST_ORDERED = 32_768
_GREATEST_LABEL = 127
ROUNDING = 1e-4  # how far labels may be from whole numbers: an image's header can scale them
_LEAST_ALIKE = 0.45
_MOST_FOR_BACKGROUND = 1 << 16

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
class Sample:
    """Every `steps[a]`-th voxel along RAS+ axis a, from `starts[a]` on, as real values (scaled by slope and inter).

    values: (x, y, z) float64, NaN or infinite where the voxels are. ordered: finite values in ascending order, for
    percentiles; of a large grid, only every other point along an axis.
    """

    values: NDArray[np.float64]
    ordered: NDArray[np.float64]
    starts: tuple[int, int, int]
    steps: tuple[int, int, int]

    @property
    def void_share(self) -> float:
        """Share of non-finite voxels in the grid, 0..1."""
        return 1 - float(np.count_nonzero(np.isfinite(self.values))) / self.values.size


def take_sample(ras: NDArray[Any], scaling: Scaling) -> Sample:
    """Sample at most `MOST_PER_AXIS` voxels along each axis. ras: (x, y, z) stored values in RAS+ order."""
    steps = [-(-side // MOST_PER_AXIS) for side in ras.shape]
    starts = [(side - 1) % step // 2 for side, step in zip(ras.shape, steps, strict=True)]
    x, y, z = (slice(start, None, step) for start, step in zip(starts, steps, strict=True))
    stored = ras[x, y, z]
    stored = stored.astype(stored.dtype.newbyteorder("="))
    some = stored
    while some.size > MOST_ORDERED:
        longest = int(np.argmax(some.shape))
        some = some[tuple(slice(None, None, 2) if axis == longest else slice(None) for axis in range(3))]
    # Stable sorting of 8 and 16 bits is a radix sort, many times faster than other sorts.
    ordered = scaling.real(np.sort(some, axis=None, kind="stable" if stored.itemsize <= 2 else "quicksort"))
    if ordered.size and not np.isfinite(ordered[[0, -1]]).all():  # NaN is sorted to the end
        ordered = ordered[np.isfinite(ordered)]
    return Sample(
        values=scaling.real(stored),
        ordered=ordered if scaling.slope > 0 else ordered[::-1],
        starts=(starts[0], starts[1], starts[2]),
        steps=(steps[0], steps[1], steps[2]),
    )


def quantile(ordered: NDArray[np.float64], share: float) -> float:
    """The value below which `share` (0..1) of the ascending values lie, interpolated linearly."""
    rank = share * (len(ordered) - 1)
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    low, high = float(ordered[below]), float(ordered[above])
    return low * (1 - (rank - below)) + high * (rank - below)


def count_non_finite(voxels: NDArray[Any], limits: Limits) -> int:
    """The number of NaN or infinite voxels; raises VolumeError NON_FINITE if too few others are left.

    voxels: stored values, one time point, first axis fastest in memory.
    """
    if voxels.dtype.kind != "f":
        return 0
    flat = voxels.reshape(-1, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        # NaN and infinity survive a sum, and summing is twice as fast as checking each voxel. If a sum overflows
        # without them, the only cost is the exact count.
        if np.isfinite(flat.sum()):
            return 0
    count = int(flat.size - np.count_nonzero(np.isfinite(flat)))
    if flat.size - count < limits.min_finite_share * flat.size:
        raise VolumeError(
            QuarantineCode.NON_FINITE,
            f"{count} of {flat.size} voxels ({count / flat.size:.1%}) are NaN or infinite; "
            f"at least {limits.min_finite_share:.0%} must be finite",
        )
    return count


def check_not_constant(voxels: NDArray[Any], sample: Sample) -> None:
    """Raise VolumeError CONSTANT if all finite voxels are equal; examines all only if the sample is constant."""
    if sample.ordered.size and sample.ordered[0] != sample.ordered[-1]:
        return
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    if not finite.size:
        raise VolumeError(QuarantineCode.NON_FINITE, "no voxel is a finite number")
    if finite.min() == finite.max():
        raise VolumeError(QuarantineCode.CONSTANT, f"every voxel has the same stored value, {finite.flat[0]}")


def check_not_mask(voxels: NDArray[Any], sample: Sample) -> None:
    """Raise VolumeError LABEL_MASK for a segmentation. voxels: stored values, first axis fastest in memory.

    All voxels are examined only if the sample consists of small whole numbers.
    """
    labels = np.unique(np.round(sample.ordered))
    if not labels.size or labels[0] < 0 or labels[-1] > _GREATEST_LABEL:
        return
    if np.abs(sample.ordered - np.round(sample.ordered)).max() > ROUNDING:
        return
    alike = _alike_share(voxels)
    if alike >= _LEAST_ALIKE:
        raise VolumeError(
            QuarantineCode.LABEL_MASK,
            f"voxels are {labels.size} whole numbers from {labels[0]:g} to {labels[-1]:g} and {alike:.0%} of "
            "neighbours are equal, as in a segmentation; --include-masks accepts it as a volume",
        )


def _alike_share(voxels: NDArray[Any]) -> float:
    """The share of neighbours with equal values, among those that are not both background; computed slab by slab."""
    some = voxels.reshape(-1, order="F")[:: max(1, voxels.size // _MOST_FOR_BACKGROUND)]
    values, counts = np.unique(some, return_counts=True)
    background = values[np.argmax(counts)]
    slabs = voxels.T
    alike, pairs = 0, 0
    for number, slab in enumerate(slabs):
        neighbours = [(slab[1:], slab[:-1]), (slab[:, 1:], slab[:, :-1])]
        if number:
            neighbours.append((slab, slabs[number - 1]))
        for first, second in neighbours:
            same = first == second
            alike += int(np.count_nonzero(same & (first != background)))
            pairs += int(np.count_nonzero(~same | (first != background)))
    return alike / pairs if pairs else 0.0


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
