"""Convert stored voxels to grey levels 0..255: in Hounsfield units if they are that, else between percentiles.

CT is shown through a window in Hounsfield units, so that the same tissue has the same grey in every volume. Other
modalities have no such scale; robust percentiles of the volume's foreground replace it. The limits are converted to
stored units, so only the slices that are used are converted, once.

Whether voxels are Hounsfield units is decided by the label and a histogram. The voxels are always checked, with
or without a label, so a query without a label is treated like its labelled copy in the archive. A label of another
modality overrules them: MRI or PET is never windowed in HU. With the label CT, less evidence is enough. A word that
`medret.vocabularies` does not know counts as no label.

Water is 0 HU, air -1000, fat about -100, muscle and organs 20 to 80, bone 200 to 2000; metal may be far above.
Many images that are not CT also have values around zero: field maps, phase, real parts, differences, standardised
intensities. Their histograms fall off on both sides of zero, or begin at a floor. CT has gas far below the rest, and
almost nothing between gas and fat.

The two possible mistakes differ. CT shown between percentiles is a good picture; MRI in an HU window is useless. An
image without the label CT therefore needs more evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.vocabularies import modality_label
from medret.vocabularies import modality_of as modality_named
from medret.volume.sample import Sample, quantile
from medret.volume.stored import Scaling

_BELOW_AIR = -1100.0
_AIR = (_BELOW_AIR, -850.0)
_GAS = (_BELOW_AIR, -500.0)  # air and lung
_VALLEY = (-500.0, -200.0)  # between gas and fat: only voxels that contain an edge
_FAT = (-150.0, -30.0)
_SOFT_TISSUE = (-150.0, 200.0)
_WATER = (-20.0, 20.0)
_METAL_ABOVE = 3100.0
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
class Modality:
    """A modality. name: "CT", "MRI", "PET" or as labelled. is_hu: whether to window the voxels in HU."""

    name: str
    source: Literal["label", "guessed"]
    is_hu: bool

    @property
    def is_ct_without_hu(self) -> bool:
        """Whether the label says CT but the voxels are not Hounsfield units: rescaled, or without their scale."""
        return self.name == "CT" and not self.is_hu


def modality_of(label: str | None, ordered: NDArray[np.float64]) -> Modality:
    """The modality, and whether the voxels are in HU.

    label: a word such as "CT" or "MR", in any case; None or blank if there is none.
    ordered: finite real values of a sample of voxels, ascending.
    Without a label, HU voxels are assumed to be CT and others MRI, the next most frequent modality.
    """
    named = modality_named(label)
    is_hu = named in ("CT", None) and is_hounsfield_like(ordered, labelled=named == "CT")
    if not label or not label.strip():
        return Modality("CT" if is_hu else "MRI", "guessed", is_hu)
    return Modality(named or modality_label(label), "label", is_hu)


def is_hounsfield_like(ordered: NDArray[np.float64], *, labelled: bool = False) -> bool:
    """Whether a sample of voxels, finite and in ascending order, is in Hounsfield units.

    labelled: the label says CT; then it is enough that gas or fat is present and nothing contradicts it.
    """
    inside = _without_padding(ordered)
    if inside.size < max(1, ordered.size // 20):
        return False
    if _share(inside, *_SOFT_TISSUE) < 0.05 or _share(inside, _METAL_ABOVE, np.inf) > 0.05:
        return False
    if _share(inside, -np.inf, _BELOW_AIR) > 0.05:
        return False
    return _shows_gas(inside, labelled=labelled) or _shows_inside_of_body(inside, labelled=labelled)


def _without_padding(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values without padding, which stands for what was not scanned.

    Scanners write one value below air (-1150, -2000, -3024) outside the circle that they reconstruct. If the values
    there vary, they are not padding.
    """
    below = ordered[: np.searchsorted(ordered, _BELOW_AIR)]
    is_one_value = below.size > 0 and below[below.size // 4] == below[below.size * 3 // 4]
    return ordered[below.size :] if is_one_value else ordered


def _shows_gas(inside: NDArray[np.float64], *, labelled: bool) -> bool:
    """Whether there is air around or in the body, and fat, and not just the lower half of values around zero."""
    air = _share(inside, *_AIR)
    if labelled:
        return air >= 0.005
    is_apart = _share(inside, *_GAS) > _share(inside, *_VALLEY)
    is_mirrored = _share(inside, -_AIR[1], np.inf) > 0.5 * air
    # Without fat, "air" is the padding of another kind of image.
    return air >= 0.01 and is_apart and not is_mirrored and _share(inside, *_FAT) >= 0.01 * (1 - _share(inside, *_GAS))


def _shows_inside_of_body(inside: NDArray[np.float64], *, labelled: bool) -> bool:
    """Whether the values fit a region inside the body, without gas: bone, and less fat than soft tissue."""
    fat, bone = _share(inside, *_FAT), _share(inside, 300.0, np.inf)
    if labelled:
        return fat >= 0.01 and _share(inside, 150.0, np.inf) >= 0.003
    floor = inside[inside.size // 1000] + 15.0  # shifted intensities begin abruptly, with the background
    return (
        fat >= 0.05
        and bone >= 0.01
        and _share(inside, 500.0, np.inf) >= 0.003
        and _share(inside, -np.inf, -300.0) <= 0.25 * bone
        and _share(inside, -200.0, _WATER[0]) <= 0.75 * _share(inside, _WATER[1], 200.0)
        and _share(inside, *_WATER) <= 0.25
        and _share(inside, -np.inf, floor) <= 0.05
    )


def _share(ordered: NDArray[np.float64], low: float, high: float) -> float:
    """The share of ascending values from `low` to `high`, both included."""
    first, last = np.searchsorted(ordered, low, side="left"), np.searchsorted(ordered, high, side="right")
    return float(last - first) / ordered.size


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
