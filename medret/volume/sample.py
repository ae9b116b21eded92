"""A coarse grid of voxels for statistics, and the checks of voxels that refuse a volume: no image, or a segmentation.

Statistics of 10^5 voxels on a regular grid are as good as those of 10^8, at a thousandth of the cost. The grid is
centred and follows RAS+ order, so it does not depend on the order in which the voxels are stored. Where the grid is not
enough for a decision, all voxels are examined.

A label map consists of regions of equal whole numbers. An image with as few grey levels has noise: its neighbouring
voxels differ. Among 68 real masks the smallest share of equal neighbours is 62 %, among 169 real volumes the largest is
22 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.limits import Limits
from medret.volume.stored import Scaling

MOST_PER_AXIS = 48
MOST_ORDERED = 32_768
_GREATEST_LABEL = 127
_LEAST_ALIKE = 0.45
_MOST_FOR_BACKGROUND = 1 << 16


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
    labels = np.unique(sample.ordered)
    if not labels.size or labels[0] < 0 or labels[-1] > _GREATEST_LABEL or np.any(labels != np.round(labels)):
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
