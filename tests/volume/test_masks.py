"""C10: segmentations under the names of volumes are refused by what they hold, and images never are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.demo.phantoms import KINDS, phantom
from medret.errors import QuarantineCode, VolumeError
from medret.recipe import SliceRecipe
from medret.volume import Limits, read_volume

STRICT = Limits(refuse_masks=True)
SHAPE = (40, 48, 32)


def is_refused(data: bytes) -> bool:
    try:
        read_volume(data, "v", SliceRecipe(slices="uniform:1"), [16], limits=STRICT)
    except VolumeError as error:
        return error.code is QuarantineCode.LABEL_MASK and "--include-masks" in error.reason
    return False


def balls(labels: int, radius: float = 7.0) -> NDArray[np.uint8]:
    """As many labels as wanted, each a ball somewhere."""
    rng = np.random.default_rng(labels)
    mask = np.zeros(SHAPE, np.uint8)
    grid = np.indices(SHAPE)
    for label in range(1, labels + 1):
        centre = rng.uniform(radius, np.array(SHAPE) - radius)
        mask[((grid - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < radius**2] = label
    return mask


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", ">f8"])
@pytest.mark.parametrize("labels", [1, 3, 24, 117])
def test_label_maps_are_refused(phantoms: Any, labels: int, dtype: str) -> None:
    mask = balls(labels)
    assert is_refused(phantoms.nifti(mask.astype(dtype)))
    assert is_refused(phantoms.nifti((mask + 1).astype(dtype)))  # with a label for what is around
    assert is_refused(phantoms.nifti((4 * mask.astype("i2")).astype(dtype), slope=0.25))


def test_a_single_small_lesion_is_refused(phantoms: Any) -> None:
    assert is_refused(phantoms.nifti(balls(1, radius=2.5)))


@pytest.mark.parametrize("compress", [False, True])
def test_masks_are_volumes_where_someone_says_so(phantoms: Any, compress: bool) -> None:
    data = phantoms.nifti(balls(3), compress=compress)
    assert read_volume(data, "v", SliceRecipe(), [16]).slices
    assert is_refused(data)


@pytest.mark.parametrize("kind", KINDS)
def test_no_phantom_of_the_demo_is_refused(phantoms: Any, kind: str) -> None:
    voxels, spacing, _ = phantom(kind, 1, (48, 40, 24))
    assert not is_refused(phantoms.nifti(voxels, spacing=spacing))
    thumbnail = np.clip(np.interp(voxels, (voxels.min(), voxels.max()), (0, 120)), 0, 120).round().astype(np.uint8)
    assert not is_refused(phantoms.nifti(thumbnail, spacing=spacing))


def test_images_of_few_grey_levels_are_no_masks(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    rng = np.random.default_rng(0)
    assert not is_refused(phantoms.nifti(rng.poisson(2, SHAPE).astype(np.int16)))  # counts, as in PET
    noisy = np.clip(mr / 60 + rng.normal(0, 1.5, mr.shape), 0, 15).round().astype(np.uint8)
    assert not is_refused(phantoms.nifti(noisy))
    framed = np.full(tuple(side + 20 for side in mr.shape), 7, np.uint8)  # a border of one value is not a piece
    framed[10:-10, 10:-10, 10:-10] = rng.integers(0, 100, mr.shape)
    assert not is_refused(phantoms.nifti(framed))


def test_real_masks_are_refused(shared_data: Path) -> None:
    masks = sorted((shared_data / "masks").rglob("*.nii.gz"))
    assert not [path.name for path in masks if not is_refused(path.read_bytes())]


@pytest.mark.parametrize("steps", [3, 10, 1000])
def test_label_maps_whose_scale_is_no_binary_fraction_are_refused(phantoms: Any, steps: int) -> None:
    assert is_refused(phantoms.nifti(steps * balls(3).astype(np.int16), slope=1 / steps))
