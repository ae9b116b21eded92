"""Make a small archive: synthetic volumes as .nii.gz, and a table of their labels.

Nothing here comes from a patient. Each kind looks roughly like what its labels say. Each subject has its own size,
pose, outline, field of view, spacing, stored orientation, shading and noise.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medret.demo import anatomy
from medret.demo.shapes import Canvas, Field, smooth_noise


@dataclass(frozen=True)
class Kind:
    """One kind of examination. field_mm: the field of view along x, y, z. shape: voxels along them."""

    name: str
    modality: str
    body_region: str
    organ: str
    paint: Callable[[Canvas], None]
    field_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    warp_mm: float


KINDS = {
    kind.name: kind
    for kind in (
        Kind("head_mri", "MRI", "Head", "Brain", anatomy.head, (190, 230, 190), (100, 120, 96), 2.0),
        Kind("chest_ct", "CT", "Chest", "Lung", anatomy.chest, (384, 320, 260), (128, 108, 80), 4.0),
        Kind("abdomen_ct", "CT", "Abdomen", "Liver", anatomy.abdomen, (372, 310, 200), (128, 108, 72), 4.5),
        Kind("pelvis_mri", "MRI", "Pelvis", "Prostate", anatomy.pelvis, (370, 260, 150), (128, 92, 64), 3.5),
        Kind("leg_mri", "MRI", "Extremity", "Leg", anatomy.leg, (350, 180, 280), (128, 68, 72), 3.0),
        Kind("heart_mri", "MRI", "Chest", "Heart", anatomy.heart, (310, 260, 96), (112, 96, 64), 4.0),
    )
}

LABEL_COLUMNS = ("path", "subject", "modality", "body_region", "organ")

# In masks of phantoms, the value of a structure is its place here, counted from 1. Those that TotalSegmentator's
# coarse structures include have their names.
STRUCTURES = (
    "aorta",
    "brain",
    "femur",
    "gallbladder",
    "heart",
    "kidney",
    "liver",
    "lung",
    "prostate",
    "sacrum",
    "spleen",
    "stomach",
    "trachea",
    "urinary_bladder",
    "vertebrae",
)
MASK_NAMES = "structures.csv"


def write_corpus(
    folder: Path,
    *,
    volumes_per_kind: int = 5,
    seed: int = 0,
    shape: tuple[int, int, int] | None = None,
    masks: Path | None = None,
) -> Path:
    """Write `volumes_per_kind` volumes of each kind below `folder`; returns the path of their labels.

    The table lies beside the archive, as `<folder>-labels.csv`: the archive holds only volumes. shape: of all volumes,
    as for `write_phantom`. masks: a folder for a mask of each volume, under the path of the volume, and for the names
    of the values in them, `structures.csv`.
    """
    labels = folder.with_name(f"{folder.name}-labels.csv")
    folder.mkdir(parents=True, exist_ok=True)
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
        names = [f"{value},{name}" for value, name in enumerate(STRUCTURES, start=1)]
        (masks / MASK_NAMES).write_text("\n".join(["value,name", *names, ""]))
    with labels.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(LABEL_COLUMNS)
        for kind in KINDS.values():
            for number in range(volumes_per_kind):
                path = f"{kind.name}/{kind.name}_{number + 1:02d}.nii.gz"
                mask = None if masks is None else masks / path
                write_phantom(folder / path, kind.name, seed * 1_000_003 + number, shape, mask=mask)
                subject = f"{kind.name}-{seed}-{number + 1:02d}"
                table.writerow((path, subject, kind.modality, kind.body_region, kind.organ))
    return labels


def write_phantom(
    path: Path, kind: str, seed: int, shape: tuple[int, int, int] | None = None, *, mask: Path | None = None
) -> Path:
    """Write one volume of that kind as NIfTI-1 with int16 voxels; equal arguments give equal bytes.

    shape: voxels along x, y, z instead of the kind's own; the field of view stays, so fewer voxels are larger.
    mask: where to write the structures that were painted, on the same grid, with the values of STRUCTURES.
    """
    canvas, voxels, rng = _acquired(kind, seed, shape)
    affine = np.diag([*canvas.spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(voxels.shape) - 1) / 2 * canvas.spacing_mm + rng.uniform(-20, 20, 3)
    stored = (("L", "R")[rng.integers(2)], ("P", "A")[rng.integers(2)], "S")  # scanners store different orientations
    _save(path, voxels, affine, stored)
    if mask is not None:
        values = np.zeros(voxels.shape, np.uint8)
        for name, inside in canvas.structures.items():
            values[inside] = STRUCTURES.index(name) + 1
        _save(mask, values, affine, stored)
    return path


def _save(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64], stored: tuple[str, ...]) -> None:
    """Write voxels (x, y, z) in RAS+ order as a file of another orientation."""
    image = nib.Nifti1Image(voxels, affine).as_reoriented(nib.orientations.axcodes2ornt(stored))
    image.header.set_sform(image.affine, code="scanner")
    image.header.set_qform(image.affine, code="scanner")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def phantom(
    kind: str, seed: int, shape: tuple[int, int, int] | None = None
) -> tuple[NDArray[np.int16], tuple[float, float, float], np.random.Generator]:
    """Voxels (x, y, z) in RAS+ order, spacing_mm, and the subject's random generator for further draws."""
    canvas, acquired, rng = _acquired(kind, seed, shape)
    return acquired, canvas.spacing_mm, rng


def _acquired(
    kind: str, seed: int, shape: tuple[int, int, int] | None
) -> tuple[Canvas, NDArray[np.int16], np.random.Generator]:
    """The painted canvas, what a scanner makes of it, and the subject's random generator."""
    what = KINDS[kind]
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    shape = shape or _varied(rng, what.shape)
    zoom = rng.uniform(0.94, 1.08)
    x, y, z = (zoom * extent / n for extent, n in zip(what.field_mm, shape, strict=True))
    spacing_mm = (round(x, 3), round(y, 3), round(z, 3))
    is_ct = what.modality == "CT"
    canvas = Canvas(shape, spacing_mm, anatomy.AIR_HU if is_ct else 0.0, what.warp_mm, rng)
    what.paint(canvas)
    acquired = _ct_noise(rng, canvas.values) if is_ct else _mri_noise(rng, canvas.values)
    return canvas, acquired, rng


def _varied(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """A shape with up to 8 voxels more or fewer along each axis, between 64 and 128."""
    x, y, z = (int(np.clip(n + rng.integers(-8, 9), 64, 128)) for n in shape)
    return x, y, z


def _ct_noise(rng: np.random.Generator, values_hu: Field) -> NDArray[np.int16]:
    noise_hu = rng.uniform(8, 22) * rng.standard_normal(values_hu.shape).astype(np.float32)
    return np.asarray(np.clip(values_hu + noise_hu, -1024, 3071).round(), np.int16)


def _mri_noise(rng: np.random.Generator, values: Field) -> NDArray[np.int16]:
    """Coil shading, Rician noise and an arbitrary gain, as a scanner would add them."""
    shading = np.exp(rng.uniform(0.05, 0.15) * smooth_noise(rng, values.shape, tuple(n / 1.5 for n in values.shape)))
    sigma = rng.uniform(0.012, 0.03)
    real, imaginary = (sigma * rng.standard_normal(values.shape).astype(np.float32) for _ in range(2))
    magnitude = np.hypot(values * shading + real, imaginary)
    return np.asarray((rng.uniform(400, 1400) * magnitude).round(), np.int16)
