"""Is this CT? The label, and what the voxels themselves say.

One question decides how intensities are treated: are the voxels Hounsfield units? It is put to the voxels, whether
there is a label or not, so a query without a label is treated as its labelled twin in the archive. The label can
only deny: what is labelled MRI or PET is never windowed in HU. A word that `medret.modalities` does not know denies
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medret.modalities import modality_label
from medret.modalities import modality_of as modality_named

# Scanners pad what lies outside the reconstructed circle with values below air: -1024, -2000, -2048, -3024.
_PADDING_BELOW_HU = -1200.0
_AIR_HU = (-1100.0, -850.0)
_SOFT_TISSUE_HU = (-150.0, 200.0)
_FAT_BELOW_HU = -60.0
_DENSEST_HU = 3100.0


@dataclass(frozen=True)
class Modality:
    """name: "CT", "MRI", "PET" or as labelled. hounsfield: whether the voxels are to be windowed in HU."""

    name: str
    source: Literal["label", "guessed"]
    hounsfield: bool

    @property
    def is_ct_without_hu(self) -> bool:
        """Whether the label says CT and the voxels are not Hounsfield units: rescaled, or their scale was lost."""
        return self.name == "CT" and not self.hounsfield


def modality_of(label: str | None, ordered: NDArray[np.float64]) -> Modality:
    """The modality and the treatment it calls for.

    label: a word such as "CT" or "MR", in any case; None or blank when there is none.
    ordered: finite real values of a sample of voxels, ascending.
    Without a label, HU voxels are guessed to be CT and all others MRI, which in medicine is the next most frequent.
    """
    hounsfield = looks_hounsfield(ordered)
    if not label or not label.strip():
        return Modality("CT" if hounsfield else "MRI", "guessed", hounsfield)
    named = modality_named(label)
    return Modality(named or modality_label(label), "label", hounsfield and named in ("CT", None))


def looks_hounsfield(ordered: NDArray[np.float64]) -> bool:
    """Whether a sample of voxels, in ascending order, is in Hounsfield units.

    Water is 0 HU, air -1000, fat about -100, muscle and organs 20 to 80. So, padding left out:
    at least a twentieth is soft tissue or fat, hardly anything is below air or above dense metal, and there is either
    air, or (in a region cut out of the body) fat without a masked background of zeros.
    """
    inside = ordered[np.searchsorted(ordered, _PADDING_BELOW_HU, side="right") :]
    if inside.size < max(1, ordered.size // 20):
        return False
    if _share(inside, *_SOFT_TISSUE_HU) < 0.05 or _share(inside, _PADDING_BELOW_HU, _AIR_HU[0]) > 0.05:
        return False
    if _share(inside, _DENSEST_HU, np.inf) > 0.01:
        return False
    if _share(inside, *_AIR_HU) >= 0.01:
        return True
    fat_and_air = _share(inside, _PADDING_BELOW_HU, _FAT_BELOW_HU)
    return fat_and_air >= 0.02 and _share(inside, 0.0, 0.0) < 0.25


def _share(ordered: NDArray[np.float64], low: float, high: float) -> float:
    """Of ascending values, the share from `low` to `high`, both included."""
    first, last = np.searchsorted(ordered, low, side="left"), np.searchsorted(ordered, high, side="right")
    return float(last - first) / ordered.size
