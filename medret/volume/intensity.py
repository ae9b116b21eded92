"""Convert stored voxels to grey levels 0..255.

CT is shown through a window in Hounsfield units, so that the same tissue has the same grey in every volume. Other
modalities have no such scale; robust percentiles of the volume's foreground replace it. The limits are converted to
stored units, so only the slices that are used are converted, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.volume.sample import Sample, quantile
from medret.volume.stored import Scaling

_ORDINARY = 1e30  # far from the range of float32

# name -> (level, width) in HU, as set on CT consoles.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "soft_tissue": (40.0, 400.0),
    "abdomen": (60.0, 400.0),
    "angiography": (300.0, 600.0),
    "bone": (300.0, 1500.0),
    "brain": (40.0, 80.0),
    "full": (500.0, 3000.0),
    "liver": (60.0, 160.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "spine": (50.0, 250.0),
    "stroke": (35.0, 40.0),
}


@dataclass(frozen=True)
class Window:
    """Real values (HU for CT) that become 0 and 255. name: "hu:<preset>" or "percentile"."""

    name: str
    low: float
    high: float


def ct_window(preset: str) -> Window:
    """The HU limits of a preset; raises UsageError for an unknown one."""
    if preset not in CT_WINDOWS:
        raise UsageError(f"CT window {preset!r} is not one of {', '.join(CT_WINDOWS)}")
    level, width = CT_WINDOWS[preset]
    return Window(f"hu:{preset}", level - width / 2, level + width / 2)


def check_percentiles(percentiles: tuple[float, float]) -> None:
    """Raise UsageError unless the percentiles are two ascending numbers from 0 to 100."""
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UsageError(f"percentiles {percentiles} are not two ascending numbers from 0 to 100")


def percentile_window(sample: Sample, above: float, percentiles: tuple[float, float]) -> Window | None:
    """The window between two percentiles of the foreground; None if the sample's foreground is constant.

    above: the foreground's threshold.
    """
    inside = sample.ordered[np.searchsorted(sample.ordered, above, side="right") :]
    if not inside.size:
        return None
    low, high = (quantile(inside, percentile / 100) for percentile in percentiles)
    return Window("percentile", low, high) if low < high and math.isfinite(high - low) else None


def extremes_window(voxels: NDArray[Any], scaling: Scaling) -> Window:
    """The window between the least and the greatest finite voxel. voxels: stored values, not all equal.

    Raises VolumeError HEADER_INVALID if scaling takes them beyond the range of float64.
    """
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    with np.errstate(all="ignore"):
        ends = np.array([finite.min(), finite.max()], dtype=np.float64) * scaling.slope + scaling.inter
    low, high = float(ends.min()), float(ends.max())
    if not math.isfinite(high - low) or low == high:
        raise VolumeError(
            QuarantineCode.HEADER_INVALID,
            f"slope {scaling.slope:g} and intercept {scaling.inter:g} map voxels to values from {low:g} to {high:g}",
        )
    return Window("percentile", low, high)


def to_grey(values: NDArray[Any], scaling: Scaling, window: Window, *, all_finite: bool) -> NDArray[np.uint8]:
    """Stored values of any shape -> uint8 of the same shape and memory order; non-finite values become 0.

    all_finite: the values are known to be finite.
    """
    # float32 holds 16-bit integers and stored float32 exactly; wider types need float64.
    narrow = values.dtype.itemsize <= 2 or (values.dtype.kind == "f" and values.dtype.itemsize == 4)
    with np.errstate(all="ignore"):  # values that overflow lie far outside the window and are clipped
        zero = (np.float64(window.low) - scaling.inter) / scaling.slope
        gain = 255.0 * scaling.slope / (window.high - window.low)
        ordinary = abs(zero) < _ORDINARY and 1 / _ORDINARY < abs(gain) < _ORDINARY
        work = np.float32 if narrow and ordinary else np.float64
        grey = np.subtract(values, work(zero), dtype=work)
        grey *= work(gain)
        if ordinary and all_finite:
            np.clip(grey, 0, 255, out=grey)
        else:
            np.fmin(np.fmax(grey, 0, out=grey), 255, out=grey)  # these turn NaN into 0
            if not all_finite:
                grey[~np.isfinite(values)] = 0
        grey += work(0.5)
        result: NDArray[np.uint8] = grey.astype(np.uint8)
    return result
