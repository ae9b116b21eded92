"""A coarse grid of voxels for statistics, and the exact count of what is not finite.

Statistics of 10^5 voxels on a regular grid serve as well as those of 10^8, at a thousandth of the cost. The grid is
laid in RAS+ order and centred, so it does not depend on the order in which the voxels are stored.
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
    """Every `steps[a]`-th voxel along RAS+ axis a, from `starts[a]` on; real values (scaled by slope and inter).

    values: (x, y, z) float64, NaN or infinite where the voxels are. ordered: finite values of the grid, or of every
    other point of it when it is large, in ascending order, for percentiles.
    """

    values: NDArray[np.float64]
    ordered: NDArray[np.float64]
    starts: tuple[int, int, int]
    steps: tuple[int, int, int]

    @property
    def void_share(self) -> float:
        """Share of the grid that is not finite, 0..1."""
        return 1 - float(np.count_nonzero(np.isfinite(self.values))) / self.values.size


def take_sample(ras: NDArray[Any], header: NiftiHeader) -> Sample:
    """At most `MOST_PER_AXIS` voxels along each axis. ras: (x, y, z) stored values in RAS+ order."""
    steps = [-(-side // MOST_PER_AXIS) for side in ras.shape]
    starts = [(side - 1) % step // 2 for side, step in zip(ras.shape, steps, strict=True)]
    x, y, z = (slice(start, None, step) for start, step in zip(starts, steps, strict=True))
    stored = ras[x, y, z]
    stored = stored.astype(stored.dtype.newbyteorder("="))
    some = stored
    while some.size > MOST_ORDERED:
        longest = int(np.argmax(some.shape))
        some = some[tuple(slice(None, None, 2) if axis == longest else slice(None) for axis in range(3))]
    # Stable sorting of 8 and 16 bits is a radix sort, many times as fast as any other.
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
    """The value below which `share` (0..1) of the ascending values lie, linear between two of them."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    low, high = float(ordered[below]), float(ordered[above])
    return low * (1 - (place - below)) + high * (place - below)


def count_non_finite(voxels: NDArray[Any], limits: Limits) -> int:
    """How many voxels are NaN or infinite; raises NON_FINITE when too few others are left.

    voxels: stored values, one time point, first axis fastest in memory.
    """
    if voxels.dtype.kind != "f":
        return 0
    flat = voxels.reshape(-1, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        # NaN and infinity survive a sum, and summing is twice as fast as asking each voxel. A sum that overflows
        # without them only costs the exact count.
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
    """Raises CONSTANT when all finite voxels are equal; looks at all of them only where the sample is constant."""
    if sample.ordered.size and sample.ordered[0] != sample.ordered[-1]:
        return
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    if not finite.size:
        raise VolumeError(QuarantineCode.NON_FINITE, "no voxel is a finite number")
    if finite.min() == finite.max():
        raise VolumeError(QuarantineCode.CONSTANT, f"every voxel has the same stored value, {finite.flat[0]}")
