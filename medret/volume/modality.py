"""Decide whether a volume is CT, from its label and its voxels.

Intensities are treated by one criterion: whether the voxels are Hounsfield units. The voxels are always checked, with
or without a label, so a query without a label is treated like its labelled copy in the archive. A label of another
modality overrules them: MRI or PET is never windowed in HU. With the label CT, less evidence is enough. A word that
`medret.modalities` does not know counts as no label.
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
