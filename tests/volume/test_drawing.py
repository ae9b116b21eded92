"""Images that are not plain: windows, real values, orientation and filter, against numpy, Pillow and plain images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from medret.recipe import Contract, Images, SliceRecipe, stack_dtype, stack_shape
from medret.volume import read_volume
from medret.volume.intensity import CT_WINDOWS
from tests.volume.conftest import Phantoms

SIDE = 48
PLAIN = SliceRecipe(slices="all", crop="none")


@pytest.fixture
def hu() -> NDArray[np.int16]:
    """A cube in HU, of equal spacing: slices fill their square, so no image is resized at SIDE px."""
    values = np.random.default_rng(0).normal(40, 300, (SIDE, SIDE, SIDE)).round()
    values[:8] = -1000
    return values.clip(-1024, 3000).astype(np.int16)


def images_of(data: bytes, *drawn: Images, modality: str | None = "CT", recipe: SliceRecipe = PLAIN) -> Any:
    volume = read_volume(data, "v", recipe, drawn, modality=modality)
    assert {each: (stack.shape[1:], stack.dtype) for each, stack in volume.pixels.items()} == {
        each: (stack_shape(each), stack_dtype(each)) for each in drawn
    }
    return volume.pixels


def on_screen(values: NDArray[Any]) -> NDArray[Any]:
    """(x, y, z) in RAS+ -> axial slices with the patient's right on the left and the front on top."""
    return np.moveaxis(values, 2, 0).transpose(0, 2, 1)[:, ::-1, ::-1]


def test_windows_are_those_of_plain_images(hu: NDArray[np.int16], phantoms: Phantoms) -> None:
    """Each channel is what a run with that window alone draws."""
    names = ("lung", "soft_tissue", "brain")
    windows = [(level - width / 2, level + width / 2) for level, width in map(CT_WINDOWS.__getitem__, names)]
    drawing = Contract(windows_hu=tuple(windows)).images(32)
    data = phantoms.nifti(hu)
    (stack,) = images_of(data, drawing).values()
    for channel, name in enumerate(names):
        recipe = SliceRecipe(slices="all", crop="none", ct_window=name)
        np.testing.assert_array_equal(stack[:, channel], images_of(data, 32, recipe=recipe)[32])


def test_without_hounsfield_units_every_channel_is_the_plain_image(phantoms: Phantoms) -> None:
    mr = np.random.default_rng(0).gamma(2, 90, (20, 30, 12)).astype(np.float32)
    drawing = Contract(windows_hu=((0, 1), (0, 2), (0, 3))).images(32)
    drawn = images_of(phantoms.nifti(mr), 32, drawing, modality="MRI")
    for channel in range(3):
        np.testing.assert_array_equal(drawn[drawing][:, channel], drawn[32])


def test_real_values_are_hounsfield_units(hu: NDArray[np.int16], phantoms: Phantoms) -> None:
    drawing, clipped = (Contract(values="real", clip_hu=clip).images(SIDE) for clip in (None, (-1000, 1000)))
    drawn = images_of(phantoms.nifti(hu), drawing, clipped)
    np.testing.assert_array_equal(drawn[drawing], on_screen(hu))
    np.testing.assert_array_equal(drawn[clipped], on_screen(hu).clip(-1000, 1000))


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "PIR", "ARS", "IPL"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_real_values_do_not_depend_on_how_a_volume_was_stored(
    plane: str, axcodes: str, hu: NDArray[np.int16], phantoms: Phantoms
) -> None:
    drawings = [Contract(values="real", resample="bicubic").images(40), Contract(windows_hu=((0, 80),) * 3).images(40)]
    recipe = SliceRecipe(planes=(plane,), slices="all", crop="none")  # type: ignore[arg-type]
    turned, affine = phantoms.stored_as(hu[:, :40, :30], np.eye(4), axcodes)
    expected = images_of(phantoms.nifti(hu[:, :40, :30], np.eye(4)), *drawings, recipe=recipe)
    found = images_of(phantoms.nifti(turned, affine), *drawings, recipe=recipe)
    for drawing in drawings:
        np.testing.assert_allclose(found[drawing], expected[drawing], atol=1e-2)


def test_real_values_are_resized_as_pytorch_resizes_them(hu: NDArray[np.int16], phantoms: Phantoms) -> None:
    for resample in ("bilinear", "bicubic"):
        drawing = Contract(values="real", resample=resample).images(20)
        slices = torch.from_numpy(on_screen(hu).astype(np.float32))[:, None]
        expected = torch.nn.functional.interpolate(slices, (20, 20), mode=resample, antialias=True)[:, 0].numpy()
        np.testing.assert_allclose(images_of(phantoms.nifti(hu), drawing)[drawing], expected, atol=0.01)


def test_around_real_values_is_air_or_the_least_value(phantoms: Phantoms) -> None:
    values = np.random.default_rng(0).normal(40, 30, (16, 32, 8)).astype(np.float32)
    values[:2] = -1000
    values[3, 4, 5] = np.nan
    drawing = Contract(values="real").images(32)
    ct = images_of(phantoms.nifti(values), drawing)[drawing]
    assert (ct[:, :, :8] == -1000).all()
    assert ct[5, 31 - 4, 8 + 15 - 3] == -1000, "a voxel that is not finite"
    mr = images_of(phantoms.nifti(values), drawing, modality="MRI")[drawing]
    np.testing.assert_array_equal(mr[:, 0, 0], np.nanmin(values, axis=(0, 1)))
    assert np.isfinite(mr).all()


@pytest.mark.parametrize("fields", [{}, {"values": "real"}, {"windows_hu": ((0, 80),) * 3}])
def test_neurological_is_mirrored_in_axial_and_coronal_slices(
    fields: dict[str, Any], hu: NDArray[np.int16], phantoms: Phantoms
) -> None:
    for plane in ("axial", "coronal", "sagittal"):
        recipe = SliceRecipe(planes=(plane,), slices="all", crop="none")
        one, other = (Contract(**fields, orientation=name).images(SIDE) for name in ("radiological", "neurological"))
        drawn = images_of(phantoms.nifti(hu), one, other, recipe=recipe)
        expected = drawn[one] if plane == "sagittal" else drawn[one][..., ::-1]
        np.testing.assert_array_equal(drawn[other], expected)


def test_grey_is_resized_by_the_filter_that_is_asked_for(hu: NDArray[np.int16], phantoms: Phantoms) -> None:
    drawing = Contract(resample="bicubic").images(20)
    drawn = images_of(phantoms.nifti(hu), SIDE, drawing)
    for square, image in zip(drawn[drawing], drawn[SIDE], strict=True):
        np.testing.assert_array_equal(square, Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC))
