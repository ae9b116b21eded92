"""A coarse grid of voxels for statistics, and the exact count of non-finite voxels.

Statistics of 10^5 voxels on a regular grid are as good as those of 10^8, at a thousandth of the cost. The grid is
centred and follows RAS+ order, so it does not depend on the order in which the voxels are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.header import NiftiHeader
from medret.volume.limits import Limits

MOST_PER_AXIS = 48
MOST_ORDERED = 32_768


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


def take_sample(ras: NDArray[Any], header: NiftiHeader) -> Sample:
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
    ordered = header.scaled(np.sort(some, axis=None, kind="stable" if stored.itemsize <= 2 else "quicksort"))
    if ordered.size and not np.isfinite(ordered[[0, -1]]).all():  # NaN is sorted to the end
        ordered = ordered[np.isfinite(ordered)]
    return Sample(
        values=header.scaled(stored),
        ordered=ordered if header.slope > 0 else ordered[::-1],
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
