"""From bytes to slices: what the screen shows, where slices lie, what is recorded."""

from __future__ import annotations

import json
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.recipe import PLANES, SliceRecipe
from medret.volume import Limits, SlicedVolume, read_volume

WHOLE = SliceRecipe(planes=PLANES, slices="all", crop="none")


def read(data: bytes, recipe: SliceRecipe = WHOLE, side: int = 64, **options: Any) -> SlicedVolume:
    return read_volume(data, "case", recipe, [side], **options)


def images(volume: SlicedVolume, plane: str) -> NDArray[np.uint8]:
    (pixels,) = volume.pixels.values()
    return pixels[[ref.plane == plane for ref in volume.slices]]


def centre(image: NDArray[np.uint8]) -> tuple[float, float]:
    """(row, column) of the bright spot, as a share of the side."""
    rows, columns = np.nonzero(image > 128)
    return float(rows.mean() / image.shape[0]), float(columns.mean() / image.shape[1])


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR", "IPL"])
def test_the_screen_shows_what_a_radiologist_expects(phantoms: Any, code: str) -> None:
    """A ball that lies to the right, in front and high up."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 40)] * 3, indexing="ij")
    ball = ((x - 0.5) ** 2 + (y - 0.5) ** 2 + (z - 0.5) ** 2 < 0.06).astype(np.uint8) * 200
    stored, affine = phantoms.stored_as(ball, np.eye(4), code)
    volume = read(phantoms.nifti(stored, affine))
    assert len(volume.slices) == 120
    for plane in PLANES:
        stack = images(volume, plane)
        assert int(np.argmax(stack.sum(axis=(1, 2)))) in range(26, 34)  # right, anterior, superior are high indices
        row, column = centre(stack[29])
        assert row < 0.35  # anterior (axial) or superior is at the top
        assert column < 0.35  # right, or anterior (sagittal), is on the left


@pytest.mark.parametrize("spacing", [1.25, 2.5, 5, 7.5])
def test_every_mm_takes_as_many_slices_of_a_body_whatever_their_distance(
    phantoms: Any, mr: NDArray[np.uint16], spacing: float
) -> None:
    z = round(120 / spacing) + 1
    voxels = np.ascontiguousarray(mr[:, :, np.linspace(0, mr.shape[2] - 1, z).round().astype(int)])
    volume = read(phantoms.nifti(voxels, spacing=(1, 1, spacing)), SliceRecipe(slices="every:10mm", crop="none"))
    gaps = np.diff([ref.position_mm for ref in volume.slices])
    assert len(volume.slices) == 13
    assert gaps == pytest.approx([10] * 12, abs=spacing if 10 % spacing else 1e-3)


def test_slices_are_in_the_order_of_planes_and_positions(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    recipe = SliceRecipe(planes=("coronal", "axial"), slices="uniform:3", crop="none")
    volume = read(phantoms.nifti(mr, spacing=(1, 1.5, 3)), recipe)
    assert [(ref.plane, ref.slice_index) for ref in volume.slices] == [
        ("coronal", 7), ("coronal", 21), ("coronal", 36), ("axial", 4), ("axial", 13), ("axial", 23),
    ]  # fmt: skip
    assert volume.slices[0].relative_position == pytest.approx(7 / 43)
    assert volume.slices[-1].position_mm == pytest.approx(69)


def test_position_mm_is_the_scanner_coordinate_of_the_slice_centre(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    affine = np.array([[0.9, 0.12, -0.1, -12], [-0.1, 1.15, 0.2, -30], [0.05, -0.18, 2.4, 7], [0, 0, 0, 1.0]])
    volume = read(phantoms.nifti(mr, affine))
    for ref in volume.slices:
        axis = {"sagittal": 0, "coronal": 1, "axial": 2}[ref.plane]
        index = np.array([*(np.array(mr.shape) - 1) / 2, 1.0])
        index[axis] = ref.slice_index
        assert ref.position_mm == pytest.approx((affine @ index)[axis], abs=1e-3)


def test_cropping_spends_slices_on_the_body(phantoms: Any) -> None:
    values = np.zeros((60, 60, 100), np.int16)
    values[20:45, 15:40, 60:90] = np.random.default_rng(0).integers(300, 400, (25, 25, 30))
    volume = read(phantoms.nifti(values), SliceRecipe(slices="uniform:8"))
    first, last = volume.facts.crop_box
    assert 54 <= first[2] <= 60 <= 90 <= last[2] <= 97
    assert all(54 <= ref.slice_index < 97 for ref in volume.slices)
    assert volume.slices[0].relative_position == pytest.approx(volume.slices[0].slice_index / 99)
    uncropped = read(phantoms.nifti(values), SliceRecipe(slices="uniform:8", crop="none"))
    assert uncropped.facts.crop_box == ((0, 0, 0), (60, 60, 100))
    assert np.count_nonzero(volume.pixels[64]) > 2 * np.count_nonzero(uncropped.pixels[64])


def test_several_sides_come_from_the_same_slices(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    recipe = SliceRecipe(slices="uniform:4")
    both = read_volume(phantoms.nifti(mr), "case", recipe, [32, 48])
    assert {side: pixels.shape for side, pixels in both.pixels.items()} == {32: (4, 32, 32), 48: (4, 48, 48)}
    assert np.array_equal(both.pixels[48], read(phantoms.nifti(mr), recipe, 48).pixels[48])
    assert read_volume(phantoms.nifti(mr), "case", recipe, []).pixels == {}


def test_random_slices_depend_on_the_id_and_nothing_else(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    data, recipe = phantoms.nifti(mr), SliceRecipe(planes=PLANES, slices="random:6", seed=3)
    one, again = read_volume(data, "a", recipe, [8]), read_volume(data, "a", recipe, [8])
    other = read_volume(data, "b", recipe, [8])
    assert one.slices == again.slices
    assert one.slices != other.slices
    by_plane = [[ref.slice_index for ref in one.slices if ref.plane == plane] for plane in PLANES]
    assert by_plane[0] != by_plane[1]


@pytest.mark.parametrize("dtype", ["u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("options", [{}, {"big_endian": True}, {"version": 2}, {"compress": False}])
def test_storage_changes_nothing(phantoms: Any, mr: NDArray[np.uint16], dtype: str, options: dict[str, Any]) -> None:
    recipe = SliceRecipe(slices="uniform:5")
    expected = read(phantoms.nifti(mr), recipe).pixels[64].astype(int)
    found = read(phantoms.nifti(mr.astype(dtype), **options), recipe).pixels[64]
    assert np.abs(found - expected).max() <= 1  # float32 and float64 may round differently


def test_scaling_changes_nothing_but_a_negative_slope_inverts(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    recipe = SliceRecipe(slices="uniform:5", crop="none")
    expected = read(phantoms.nifti(mr), recipe)
    scaled = read(phantoms.nifti(mr, slope=0.125, inter=-20), recipe)
    assert np.abs(scaled.pixels[64] - expected.pixels[64].astype(int)).max() <= 1
    low, high = expected.facts.intensity_range
    assert list(scaled.facts.intensity_range) == pytest.approx([low / 8 - 20, high / 8 - 20])
    inverted = read(phantoms.nifti(mr, slope=-1), recipe)
    assert inverted.pixels[64][2, 2, 8] > inverted.pixels[64][2, 32, 32]


def test_ct_is_windowed_in_hounsfield_units(phantoms: Any, ct: NDArray[np.int16]) -> None:
    recipe = SliceRecipe(slices="uniform:5")
    volume = read(phantoms.nifti(ct), recipe, modality="CT")
    assert volume.facts.intensity == "hu:soft_tissue"
    assert volume.facts.intensity_range == (-160.0, 240.0)
    shifted = phantoms.nifti((ct + 1024).astype(np.uint16), slope=1, inter=-1024)
    assert np.array_equal(read(shifted, recipe).pixels[64], volume.pixels[64])
    assert read(shifted, recipe).facts.modality_source == "guessed"
    bone = read(phantoms.nifti(ct), SliceRecipe(slices="uniform:5", ct_window="bone"))
    assert bone.facts.intensity == "hu:bone"
    assert not np.array_equal(bone.pixels[64], volume.pixels[64])


def test_ct_that_is_not_in_hounsfield_units_says_so(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    facts = read(phantoms.nifti(mr), modality="CT").facts
    assert (facts.modality, facts.modality_source, facts.intensity) == ("CT", "label", "percentile")
    assert facts.ct_without_hu


def test_labels_deny_but_voxels_decide(phantoms: Any, ct: NDArray[np.int16]) -> None:
    assert read(phantoms.nifti(ct), modality="PT").facts.intensity == "percentile"
    assert read(phantoms.nifti(ct), modality="PT").facts.modality == "PET"


def test_non_finite_voxels_are_black_and_counted(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    values = mr.astype(np.float32)
    values[10:14, 10:14, 10:14] = np.nan
    values[20:22, 20:22, 10:14] = np.inf
    values[24:26, 20:22, 10:14] = -np.inf
    volume = read(phantoms.nifti(values), SliceRecipe(slices="all", crop="none"), side=36)
    assert volume.facts.non_finite_voxels == 64 + 32
    calm = read(phantoms.nifti(mr), SliceRecipe(slices="all", crop="none"), side=36)
    assert volume.facts.intensity_range[1] == pytest.approx(calm.facts.intensity_range[1], rel=0.02)


@pytest.mark.parametrize("compress", [False, True])
def test_a_mapped_file_is_as_good_as_its_bytes(
    phantoms: Any, mr: NDArray[np.uint16], tmp_path: Path, compress: bool
) -> None:
    data = phantoms.nifti(mr, compress=compress)
    path = tmp_path / "volume"
    path.write_bytes(data)
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        found = read_volume(mapped, "v", SliceRecipe(), [32])
    expected = read_volume(data, "v", SliceRecipe(), [32])
    assert found.facts == expected.facts
    assert np.array_equal(found.pixels[32], expected.pixels[32])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("empty", [[], [0.0], [np.nan], [7.0, np.nan, np.inf]])
def test_the_first_time_point_with_an_image_is_the_one_that_is_read(
    phantoms: Any, mr: NDArray[np.uint16], empty: list[float], compress: bool
) -> None:
    """C14: zero, constant and NaN frames are passed over, and the number of the frame is recorded."""
    image = mr.astype(np.float32)
    frames = [np.full_like(image, value) for value in empty] + [image, image[::-1], np.full_like(image, np.nan)]
    volume = read(phantoms.nifti(np.stack(frames, axis=3), compress=compress))
    facts = volume.facts
    assert (facts.time_points, facts.time_point, facts.shape[3]) == (len(frames), len(empty), len(frames))
    assert facts.non_finite_voxels == 0
    assert np.array_equal(volume.pixels[64], read(phantoms.nifti(image)).pixels[64])


def test_a_series_without_any_image_says_what_its_first_time_point_is(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    """C14."""
    frames = [np.zeros(mr.shape, np.float32), np.full(mr.shape, np.nan, np.float32)]
    for order, code in ((frames, "constant"), (frames[::-1], "non_finite")):
        with pytest.raises(VolumeError) as caught:
            read(phantoms.nifti(np.stack(order, axis=3)))
        assert caught.value.code == code


def test_nan_outside_the_body_is_background(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    """C9: NaN in place of the zeros around the body gives the slices and the box of the body itself."""
    padded = np.pad(mr.astype(np.float32), 12)
    recipe = SliceRecipe(planes=PLANES, slices="uniform:5")
    zeros = read(phantoms.nifti(padded), recipe)
    for outside in (np.nan, np.inf, -np.inf):
        volume = read(phantoms.nifti(np.where(padded > 0, padded, outside).astype(np.float32)), recipe)
        assert volume.facts.non_finite_voxels == np.count_nonzero(padded == 0) > 0.6 * padded.size
        assert np.abs(np.array(volume.facts.crop_box) - zeros.facts.crop_box).max() <= 2
        low, high = volume.facts.intensity_range
        assert mr[mr > 0].min() <= low < high <= mr.max()
        body = images(zeros, "axial")[2] > 60
        assert np.corrcoef(images(volume, "axial")[2][body], images(zeros, "axial")[2][body])[0, 1] > 0.9


def test_nan_in_every_planned_slice_is_refused(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    """C9: content that the slice plan misses is no image."""
    values = np.full((40, 40, 40), np.nan, np.float32)
    values[:, :, :8] = np.random.default_rng(0).integers(1, 100, (40, 40, 8))
    with pytest.raises(VolumeError, match="planned slices") as caught:
        read(phantoms.nifti(values), SliceRecipe(slices="uniform:2", crop="none"))
    assert caught.value.code == QuarantineCode.NON_FINITE
    assert read(phantoms.nifti(values), SliceRecipe(slices="uniform:2")).slices


def test_a_volume_in_microns_lies_where_it_does_in_millimetres(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    """C11: an offset of more than 1 m in microns is ordinary in millimetres, and pixels do not depend on the unit."""
    affine = np.array([[500, 0, 0, -1.3e6], [0, 500, 0, -1e6], [0, 0, 800, -9e5], [0, 0, 0, 1]])
    microns = read(phantoms.nifti(mr, affine, patch={123: b"\3"}))
    expected = read(phantoms.nifti(mr, np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine))
    assert list(microns.facts.spacing_mm) == pytest.approx([0.5, 0.5, 0.8])
    assert [ref.position_mm for ref in microns.slices] == pytest.approx([ref.position_mm for ref in expected.slices])
    assert np.array_equal(microns.pixels[64], expected.pixels[64])


def test_a_single_slice_is_a_volume(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    volume = read(phantoms.nifti(mr[:, :, 14:15]), SliceRecipe(planes=PLANES))
    assert [(ref.plane, ref.slice_index, ref.relative_position) for ref in volume.slices] == [("axial", 0, 0.5)]
    side_on = read(phantoms.nifti(mr[18:19]), SliceRecipe())
    assert [ref.plane for ref in side_on.slices] == ["sagittal"]
    assert side_on.facts.planes == ("sagittal",)


def test_facts_tell_how_the_volume_was_stored(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    stored, affine = phantoms.stored_as(mr, np.diag([1, 1.5, 2, 1.0]), "PIR")
    facts = read(phantoms.nifti(stored, affine, version=2)).facts
    assert facts.shape == (44, 28, 36)
    assert list(facts.spacing_mm) == pytest.approx([1, 1.5, 2])
    assert (facts.orientation, facts.datatype, facts.format) == ("PIR", "uint16", "NIfTI-2")
    assert (facts.affine_source, facts.spacing_assumed) == ("sform", False)
    assert (facts.modality, facts.modality_source) == ("MRI", "guessed")
    assumed = read(phantoms.nifti(mr, codes=(0, 0))).facts
    assert (assumed.affine_source, assumed.orientation) == ("assumed", "LAS")
    text = json.dumps(facts.to_json(), allow_nan=False)
    assert json.loads(text)["crop_box"] == [[0, 0, 0], [36, 44, 28]]


def test_same_input_same_pixels(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    data = phantoms.nifti(mr)
    assert np.array_equal(read(data).pixels[64], read(data).pixels[64])


@pytest.mark.parametrize(
    ("voxels", "code"),
    [
        (np.zeros((20, 20)), "dimensions_unsupported"),
        (np.zeros((20, 20, 20, 1, 2)), "dimensions_unsupported"),
        (np.ones((20, 20, 20)), "constant"),
        (np.arange(27.0).reshape(3, 3, 3), "too_small"),
        (np.full((20, 20, 20), np.nan), "non_finite"),
        (np.zeros((20, 20, 20), np.complex64), "datatype_unsupported"),
    ],
    ids=["2D", "5D", "constant", "tiny", "NaN", "complex"],
)
def test_what_cannot_be_used_has_a_code(phantoms: Any, voxels: NDArray[Any], code: str) -> None:
    with pytest.raises(VolumeError) as caught:
        read(phantoms.nifti(voxels))
    assert caught.value.code == code


def test_more_slices_than_a_volume_may_have(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    with pytest.raises(VolumeError, match="limit is 20") as caught:
        read(phantoms.nifti(mr), limits=Limits(max_slices=20))
    assert caught.value.code == QuarantineCode.TOO_LARGE


@pytest.mark.parametrize(
    "recipe",
    [
        SliceRecipe(slices="some"),
        SliceRecipe(ct_window="heart"),
        SliceRecipe(percentiles=(99, 1)),
        SliceRecipe(percentiles=(-1, 50)),
    ],
)
def test_a_recipe_that_cannot_be_is_a_usage_error(recipe: SliceRecipe) -> None:
    with pytest.raises(UsageError):
        read(b"", recipe)


def test_a_side_that_cannot_be_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="positive"):
        read(b"", side=0)
