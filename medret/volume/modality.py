"""Is this CT? The label, and what the voxels themselves say.

One question decides how intensities are treated: are the voxels Hounsfield units? It is put to the voxels, whether
there is a label or not, so a query without a label is treated as its labelled twin in the archive. A label of another
modality denies: MRI or PET is never windowed in HU. The label CT asks less of the voxels. A word that
`medret.modalities` does not know says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medret.modalities import modality_label
from medret.modalities import modality_of as modality_named
from medret.volume.hounsfield import is_hounsfield_like


@dataclass(frozen=True)
class Modality:
    """name: "CT", "MRI", "PET" or as labelled. is_hu: whether the voxels are to be windowed in HU."""

    name: str
    source: Literal["label", "guessed"]
    is_hu: bool

    @property
    def is_ct_without_hu(self) -> bool:
        """Whether the label says CT and the voxels are not Hounsfield units: rescaled, or their scale was lost."""
        return self.name == "CT" and not self.is_hu


def modality_of(label: str | None, ordered: NDArray[np.float64]) -> Modality:
    """The modality and the treatment it calls for.

    label: a word such as "CT" or "MR", in any case; None or blank when there is none.
    ordered: finite real values of a sample of voxels, ascending.
    Without a label, HU voxels are guessed to be CT and all others MRI, which in medicine is the next most frequent.
    """
    named = modality_named(label)
    is_hu = named in ("CT", None) and is_hounsfield_like(ordered, labelled=named == "CT")
    if not label or not label.strip():
        return Modality("CT" if is_hu else "MRI", "guessed", is_hu)
    return Modality(named or modality_label(label), "label", is_hu)
