"""Where the slices of a DICOM series lie, and which of its frames are a volume: phantoms of what scanners write."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medret.errors import QuarantineCode, VolumeError
from medret.recipe import PLANES, SliceRecipe
from medret.volume import Limits, Part, SlicedVolume, read_volume
from medret.volume.open import open_volume
from medret.volume.slicing import Region
from medret.volume.stored import SeriesFacts, StoredVolume
from tests import dicom_phantoms as make


def voxels_of(shape: tuple[int, ...] = (20, 18, 9), seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def opened(data_sets: list[Dataset], limits: Limits | None = None) -> StoredVolume:
    return open_volume(make.parts_of(data_sets), limits or Limits())


def refusal(data_sets: list[Dataset], limits: Limits | None = None) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        opened(data_sets, limits).voxels(0)
    return caught.value


def facts_of(stored: StoredVolume) -> SeriesFacts:
    assert stored.series is not None
    return stored.series


def read(data_sets: list[Dataset], slices: str = "all") -> SlicedVolume:
    return read_volume(make.parts_of(data_sets), "id", SliceRecipe(planes=PLANES, slices=slices, crop="none"), [16])


def oblique() -> NDArray[np.float64]:
    affine = make.affine_of()
    turn = np.array([[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


@pytest.mark.parametrize("affine", [make.affine_of(), oblique()], ids=["axial", "oblique"])
def test_order_is_that_of_positions_whatever_names_and_numbers_say(affine: NDArray[np.float64]) -> None:
    voxels = voxels_of()
    data_sets = make.single_frames(voxels, affine)
    numbers = list(range(1, 10))
    random.Random(3).shuffle(numbers)
    for data, number in zip(data_sets, numbers, strict=True):
        data.InstanceNumber = number
    random.Random(4).shuffle(data_sets)
    stored = opened(data_sets)
    assert np.array_equal(stored.voxels(0), voxels)
    assert np.allclose(stored.placement.affine, affine, atol=1e-6)
    assert stored.sources == (tuple(f"1.2.826.0.7.{number}" for number in range(1, 10)),)


def test_slices_that_run_against_the_normal_are_turned() -> None:
    voxels, affine = voxels_of(), make.affine_of()
    backwards = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 8], [0, 0, 0, 1.0]])
    stored = opened(make.single_frames(voxels[:, :, ::-1], backwards))
    assert np.array_equal(stored.voxels(0), voxels)
    assert np.allclose(stored.placement.affine, affine, atol=1e-6)


def test_gantry_tilt_is_kept_as_a_shear_and_recorded() -> None:
    affine = make.affine_of()
    affine[1, 2] = affine[2, 2] * np.tan(np.radians(12))
    stored = opened(make.single_frames(voxels_of(), affine))
    assert np.allclose(stored.placement.affine, affine, atol=1e-6)
    assert facts_of(stored).tilt_degrees == pytest.approx(12, abs=0.01)


def test_uneven_gaps_are_told_and_slices_keep_their_true_places() -> None:
    data_sets = make.single_frames(voxels_of())
    places = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.3, 13.6, 17.9]
    for data, place in zip(data_sets, places, strict=True):
        data.ImagePositionPatient = [20, 30, place]
    volume = read(data_sets)
    assert volume.facts.series is not None
    assert volume.facts.series.gaps_mm == (1.0, 4.3)
    assert volume.facts.series.missing_slices == 0
    assert [ref.position_mm for ref in volume.slices if ref.plane == "axial"] == pytest.approx(places)
    assert volume.facts.spacing_mm[2] == pytest.approx(17.9 / 8)


def test_a_hole_in_positions_and_numbers_names_the_missing_instance() -> None:
    data_sets = make.single_frames(voxels_of())
    del data_sets[4]
    error = refusal(data_sets)
    assert error.code == QuarantineCode.INSTANCE_MISSING
    assert error.reason.endswith("5")


def test_a_missing_instance_is_named_whatever_the_order_of_the_numbers() -> None:
    data_sets = make.single_frames(voxels_of())
    for place, data in enumerate(data_sets):
        data.InstanceNumber = 3 * (place * 2 % len(data_sets)) + 10  # interleaved, and every third
    missing = data_sets.pop(3).InstanceNumber
    error = refusal(data_sets)
    assert (error.code, error.reason.rpartition(" ")[2]) == (QuarantineCode.INSTANCE_MISSING, str(missing))


def test_a_series_that_was_thinned_out_is_used() -> None:
    data_sets = make.single_frames(voxels_of())
    for data, number in zip(data_sets, [1, 2, 3, 4, 5, 6, 7, 8, 1_000_000], strict=True):
        data.InstanceNumber, data.ImagePositionPatient = number, [20, 30, 0.5 * number]
    assert facts_of(opened(data_sets)).missing_slices == 999_991


def test_a_slice_that_lies_elsewhere_is_not_missing() -> None:
    data_sets = make.single_frames(voxels_of())
    data_sets[4].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    facts = facts_of(opened(data_sets))
    assert (facts.missing_slices, facts.frames_of_other_stacks) == (1, 1)


def test_a_hole_in_positions_alone_is_noticed() -> None:
    data_sets = make.single_frames(voxels_of())
    del data_sets[3:5]
    for number, data in enumerate(data_sets):
        data.InstanceNumber = number
    volume = read(data_sets)
    assert volume.facts.series is not None
    assert volume.facts.series.missing_slices == 2
    places = [ref.position_mm for ref in volume.slices if ref.plane == "axial"]
    assert np.diff(places) == pytest.approx([2.5, 2.5, 7.5, 2.5, 2.5, 2.5])


def test_without_positions_the_affine_is_assumed() -> None:
    voxels = voxels_of()
    data_sets = make.single_frames(voxels)
    for data in data_sets:
        del data.ImagePositionPatient, data.ImageOrientationPatient
    stored = opened(data_sets[::-1])
    assert stored.placement.source == "assumed"
    assert "ImagePositionPatient" in (stored.placement.passed_over or "")
    assert np.array_equal(stored.voxels(0), voxels)  # by instance number
    assert np.allclose(np.abs(np.diag(stored.placement.affine)[:3]), (0.8, 0.9, 2.5))


@pytest.mark.parametrize("same", [True, False])
def test_slice_location_serves_where_positions_do_not(same: bool) -> None:
    voxels = voxels_of()
    data_sets = make.single_frames(voxels)
    for number, data in enumerate(data_sets):
        data.SliceLocation, data.InstanceNumber = 4.0 * number, 9 - number
        if same:
            data.ImagePositionPatient = [0, 0, 0]
        else:
            del data.ImagePositionPatient
    stored = opened(data_sets)
    assert np.array_equal(stored.voxels(0), voxels)
    assert np.linalg.norm(stored.placement.affine[:3, 2]) == pytest.approx(4)


def test_one_slice_and_one_that_moves_over_time() -> None:
    voxels = voxels_of((20, 18, 1))
    stored = opened(make.single_frames(voxels))
    assert stored.shape == (20, 18, 1)
    assert np.allclose(stored.placement.affine, make.affine_of(), atol=1e-6)
    cine = make.single_frames(voxels_of((20, 18, 5)))
    for data in cine:
        data.ImagePositionPatient = [0, 0, 0]
    assert opened(cine).shape == (20, 18, 1, 5)


def test_time_points_are_volumes_of_which_the_first_is_taken() -> None:
    series = voxels_of((20, 18, 6, 3))
    data_sets = [
        data
        for time in range(3)
        for data in make.single_frames(series[..., time], modality="MR", AcquisitionNumber=time + 1)
    ]
    for number, data in enumerate(data_sets):
        data.InstanceNumber, data.SOPInstanceUID = number + 1, f"1.2.826.0.7.{number + 1}"
    random.Random(5).shuffle(data_sets)
    stored = opened(data_sets)
    assert stored.shape == (20, 18, 6, 3)
    for time in range(3):
        assert np.array_equal(stored.voxels(time), series[..., time])
    assert facts_of(stored).taken == "magnitude: the first of 3 volumes"


def test_the_first_magnitude_of_the_shortest_echo_comes_first() -> None:
    series = voxels_of((20, 18, 6, 4))
    kinds = [(7.0, "PHASE MAP"), (2.3, "P"), (7.0, "M"), (2.3, "M")]
    data_sets: list[Dataset] = []
    for volume, (echo, kind) in enumerate(kinds):
        for data in make.single_frames(series[..., volume], modality="MR", EchoTime=echo):
            data.ImageType = ["ORIGINAL", "PRIMARY", kind, "ND"]
            data.InstanceNumber = len(data_sets) + 1
            data.SOPInstanceUID = f"1.2.826.0.7.{len(data_sets) + 1}"
            data_sets.append(data)
    stored = opened(data_sets)
    assert np.array_equal(stored.voxels(0), series[..., 3])
    assert facts_of(stored).taken == "magnitude, echo time 2.3 ms: the first of 4 volumes"
    assert stored.shape == (20, 18, 6)


def test_of_diffusion_the_volume_without_weighting_comes_first() -> None:
    series = voxels_of((20, 18, 6, 2))

    def weighted(item: Dataset, number: int, volume: int) -> None:
        make.with_item(item, "MRDiffusionSequence", DiffusionBValue=[1000.0, 0.0][volume])

    stored = opened([make.enhanced(series, frame=weighted)])
    assert np.array_equal(stored.voxels(0), series[..., 1])
    assert np.array_equal(stored.voxels(1), series[..., 0])


def test_a_volume_that_lacks_a_slice_is_not_the_first() -> None:
    series = voxels_of((20, 18, 6, 2))
    data_sets = [
        data
        for time in range(2)
        for data in make.single_frames(series[..., time], modality="MR", TemporalPositionIdentifier=time + 1)
    ]
    for number, data in enumerate(data_sets):
        data.InstanceNumber, data.SOPInstanceUID = number + 1, f"1.2.826.0.7.{number + 1}"
    del data_sets[2]
    stored = opened(data_sets)
    assert np.array_equal(stored.voxels(0), series[..., 1])
    assert facts_of(stored).repeated_frames == 5


def test_acquisitions_that_overlap_are_one_volume() -> None:
    voxels = voxels_of((20, 18, 12))
    data_sets = make.single_frames(voxels)
    again = make.single_frames(voxels)[5:7]
    for number, data in enumerate(data_sets):
        data.AcquisitionNumber = 1 + (number > 6)
    for data in again:
        data.AcquisitionNumber, data.SOPInstanceUID = 2, f"{data.SOPInstanceUID}.2"
    stored = opened([*again, *data_sets])
    assert np.array_equal(stored.voxels(0), voxels)
    assert facts_of(stored).repeated_frames == 2


def test_an_instance_that_is_there_twice_counts_once() -> None:
    data_sets = make.single_frames(voxels_of())
    stored = opened([data_sets[3], *data_sets, data_sets[0]])
    assert stored.shape == (20, 18, 9)
    assert (facts_of(stored).duplicates, facts_of(stored).instances) == (2, 9)


def test_instances_that_share_a_uid_are_told_apart_by_number_and_place() -> None:
    stored = opened(make.single_frames(voxels_of(), SOPInstanceUID="1.2.3"))
    assert np.array_equal(stored.voxels(0), voxels_of())
    assert facts_of(stored).duplicates == 0


@pytest.mark.parametrize("implicit", [True, False])
def test_objects_without_preamble_and_meta_information_are_read(implicit: bool) -> None:
    parts = []
    for data in make.single_frames(voxels_of()):
        stream = io.BytesIO()
        data.save_as(stream, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        parts.append(Part("a", stream.getvalue()))
    assert np.array_equal(open_volume(tuple(parts), Limits()).voxels(0), voxels_of())


def test_a_region_in_mm_takes_the_slices_that_lie_there() -> None:
    data_sets = make.single_frames(voxels_of())
    for data, place in zip(data_sets, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.3, 13.6, 17.9], strict=True):
        data.ImagePositionPatient = [20, 30, place]
    region = Region((None, None, (4.5, 14.0)), mm=True)
    recipe = SliceRecipe(slices="all", crop="none")
    volume = read_volume(make.parts_of(data_sets), "id", recipe, [16], region=region)
    assert [ref.position_mm for ref in volume.slices] == pytest.approx([5.0, 9.3, 13.6])


def test_localizers_and_other_objects_in_a_series_are_left_out() -> None:
    data_sets = make.single_frames(voxels_of())
    localizer = make.single_frames(voxels_of((40, 40, 1)))[0]
    localizer.ImageType, localizer.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.826.0.7.99"
    report = make.single_frames(voxels_of((40, 40, 1)))[0]
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.22", "1.2.826.0.7.98"
    stored = opened([localizer, report, *data_sets])
    assert stored.shape == (20, 18, 9)
    assert facts_of(stored).left_out == {"localizer": 1, "other": 1}
    assert refusal([localizer, report]).code == QuarantineCode.NO_IMAGE


def test_another_stack_in_the_series_is_left_out() -> None:
    coronal = make.affine_of() @ np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    others = make.single_frames(voxels_of((20, 18, 4)), coronal)
    for data in others:
        data.SOPInstanceUID = f"{data.SOPInstanceUID}.2"
    stored = opened([*others, *make.single_frames(voxels_of())])
    assert np.array_equal(stored.voxels(0), voxels_of())
    assert facts_of(stored).frames_of_other_stacks == 4


def test_two_series_are_refused() -> None:
    other = make.single_frames(voxels_of(), series="1.2.826.0.9")
    error = refusal([*make.single_frames(voxels_of()), *other])
    assert error.code == QuarantineCode.MIXED_SERIES
    assert "1.2.826.0.9" in error.reason


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_enhanced_frames_lie_where_their_groups_say(modality: str) -> None:
    series, affine = voxels_of((20, 18, 7, 2)), oblique()
    data = make.enhanced(series, affine, modality=modality)
    stored = opened([data])
    assert stored.shape == (20, 18, 7, 2)
    assert np.array_equal(stored.voxels(0), series[..., 0])
    assert np.array_equal(stored.voxels(1), series[..., 1])
    assert np.allclose(stored.placement.affine, affine, atol=1e-6)
    assert stored.sources[0] == tuple(f"1.2.826.0.8.1#{number}" for number in range(1, 8))


def test_sources_of_slices() -> None:
    def sources(volume: SlicedVolume, plane: str) -> set[str | None]:
        return {ref.source for ref in volume.slices if ref.plane == plane}

    singles = read(make.single_frames(voxels_of()), "uniform:2")
    assert sources(singles, "axial") == {"1.2.826.0.7.3", "1.2.826.0.7.7"}
    assert sources(singles, "coronal") == {None}  # across instances
    frames = read([make.enhanced(voxels_of())], "uniform:2")
    assert sources(frames, "axial") == {"1.2.826.0.8.1#3", "1.2.826.0.8.1#7"}
    assert sources(frames, "coronal") == {"1.2.826.0.8.1"}


def test_nuclear_medicine_is_stacked_from_its_first_position() -> None:
    voxels = voxels_of((20, 18, 6)).astype(np.uint16)
    data = make.enhanced(voxels)
    first = data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    plane = data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    del data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence
    data.SOPClassUID, data.Modality = "1.2.840.10008.5.1.4.1.1.20", "NM"
    data.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    make.with_item(data, "DetectorInformationSequence", ImagePositionPatient=first, ImageOrientationPatient=plane)
    data.PixelSpacing, data.SliceThickness, data.SpacingBetweenSlices = [0.9, 0.8], 2.5, 2.5
    data.SliceVector = list(range(1, 7))
    stored = opened([data])
    assert np.array_equal(stored.voxels(0), voxels)
    assert np.allclose(stored.placement.affine, make.affine_of(), atol=1e-6)
    data.SpacingBetweenSlices = -2.5  # the frames are stacked in front of the first one
    turned = opened([data])
    assert np.array_equal(turned.voxels(0), voxels[:, :, ::-1])
    assert turned.placement.affine[:3, 2] == pytest.approx([0, 0, 2.5])
    data.ImageType = ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]  # projections
    assert refusal([data]).code == QuarantineCode.NO_IMAGE


@pytest.mark.parametrize(("normal", "step"), [((0, 0, 1), 2.5), ((0, 0, -1), -2.5), (None, 2.5)])
def test_a_mosaic_is_cut_into_its_slices(normal: tuple[float, float, float] | None, step: float) -> None:
    voxels = voxels_of((20, 18, 7))
    stored = opened(make.mosaic(voxels, normal))
    assert stored.shape == (20, 18, 7)
    assert np.array_equal(stored.voxels(0), voxels if step > 0 else voxels[:, :, ::-1])
    expected = make.affine_of()
    if step < 0:
        expected[2, 3] -= 6 * 2.5
    assert np.allclose(stored.placement.affine, expected, atol=1e-6)
    assert set(stored.sources[0]) == {"1.2.826.0.7.1"}


def test_a_mosaic_that_does_not_say_how_it_is_divided_is_damaged() -> None:
    data_sets = make.mosaic(voxels_of((20, 18, 7)), None)
    data_sets[0].private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value = b"SV10\4\3\2\1\xff\xff\xff\x7f"
    assert refusal(data_sets).code == QuarantineCode.INSTANCE_DAMAGED


def test_projections_say_their_directions_in_words() -> None:
    data_sets = make.single_frames(voxels_of((20, 18, 1)))
    del data_sets[0].ImagePositionPatient, data_sets[0].ImageOrientationPatient
    data_sets[0].PatientOrientation = ["L", "F"]
    assert read(data_sets).facts.planes == ("coronal",)


def test_limits_hold_before_pixels_are_decoded() -> None:
    data_sets = make.single_frames(voxels_of())
    error = refusal(data_sets, Limits(max_voxels_bytes=9 * 20 * 18 * 2 - 1))
    assert error.code == QuarantineCode.TOO_LARGE
    opened(data_sets, Limits(max_voxels_bytes=9 * 20 * 18 * 2))
    assert refusal(make.single_frames(voxels_of((4, 5, 3)))).code == QuarantineCode.TOO_SMALL


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", [0, 0]),
        ("PixelSpacing", None),
        ("ImageOrientationPatient", [0] * 6),
        ("ImagePositionPatient", None),
    ],
)
def test_geometry_that_is_none_is_assumed_and_told(keyword: str, value: Any) -> None:
    data_sets = make.single_frames(voxels_of())
    for data in data_sets:
        setattr(data, keyword, value)
    placement = opened(data_sets).placement
    assert placement.spacing_assumed or placement.source == "assumed"
