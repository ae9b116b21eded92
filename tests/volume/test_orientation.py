"""Geometry: affines, the way to RAS+, and 48 storage orders of one anatomy."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.recipe import PLANES, SliceRecipe
from medret.volume import read_volume
from medret.volume.content import Limits
from medret.volume.header import parse_header
from medret.volume.nifti import placement_of
from medret.volume.orientation import Geometry, closest_canonical, geometry_of

CODES = ["".join(code) for axes in itertools.permutations(["RL", "AP", "SI"]) for code in itertools.product(*axes)]
ANGLE = st.floats(-3.2, 3.2)
OBLIQUE = np.array([[0.9, 0.12, -0.1, -12], [-0.1, 1.15, 0.2, -30], [0.05, -0.18, 2.4, 7], [0, 0, 0, 1.0]])


def geometry(data: bytes) -> Geometry:
    header = parse_header(data[:544], Limits())
    return geometry_of(placement_of(header), header.shape)


@pytest.mark.parametrize("code", CODES)
def test_storage_order_changes_nothing(phantoms: Any, mr: NDArray[np.uint16], code: str) -> None:
    recipe = SliceRecipe(planes=PLANES, slices="uniform:5")
    expected = read_volume(phantoms.nifti(mr, OBLIQUE), "v", recipe, [64])
    stored, affine = phantoms.stored_as(mr, OBLIQUE, code)
    found = read_volume(phantoms.nifti(stored, affine), "v", recipe, [64])
    assert found.facts.orientation == code
    assert np.array_equal(found.pixels[64], expected.pixels[64])
    assert [(ref.plane, ref.slice_index, ref.relative_position) for ref in found.slices] == [
        (ref.plane, ref.slice_index, ref.relative_position) for ref in expected.slices
    ]
    assert np.allclose(
        [ref.position_mm for ref in found.slices], [ref.position_mm for ref in expected.slices], atol=1e-3
    )


@given(ANGLE, ANGLE, ANGLE, st.tuples(*[st.floats(0.3, 6)] * 3), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
@settings(max_examples=200, deadline=None)
def test_closest_canonical_agrees_with_nibabel(
    x: float, y: float, z: float, spacing: tuple[float, float, float], signs: tuple[float, float, float]
) -> None:
    rotation = euler2mat(z, y, x)
    cosines = np.sort(np.abs(rotation), axis=0)
    assume(np.all(cosines[2] - cosines[1] > 0.05))  # near 45 degrees either answer is right
    best = np.argmax(np.abs(rotation), axis=0)
    assume(len(set(best)) == 3)
    matrix = rotation * np.array(spacing) * np.array(signs)
    axes, flips = closest_canonical(matrix)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    theirs = io_orientation(affine)
    assert [int(theirs[axes[axis], 0]) for axis in range(3)] == [0, 1, 2]
    assert [theirs[axes[axis], 1] == -1 for axis in range(3)] == list(flips)


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "ASL"])
def test_voxels_and_affine_agree_with_nibabel(phantoms: Any, mr: NDArray[np.uint16], code: str) -> None:
    stored, affine = phantoms.stored_as(mr, OBLIQUE, code)
    data = phantoms.nifti(stored, affine, compress=False)
    theirs = nib.as_closest_canonical(nib.Nifti1Image.from_stream(io.BytesIO(data)))
    ours = geometry(data)
    assert np.allclose(ours.affine_ras, theirs.affine, atol=1e-4)
    assert np.array_equal(ours.to_ras(stored), np.asanyarray(theirs.dataobj))
    assert not ours.to_ras(stored).flags.owndata
    assert np.allclose(ours.spacing_mm, theirs.header.get_zooms())
    assert ours.placement.source == "sform"


@given(ANGLE, ANGLE, ANGLE, st.sampled_from([-1.0, 1.0]))
@example(0.0, 3.0, 3.125, -1.0)  # a half turn but for rounding
@settings(max_examples=60, deadline=None)
def test_qform_agrees_with_nibabel(phantoms: Any, x: float, y: float, z: float, handedness: float) -> None:
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(z, y, x) * np.array([0.7, 1.1, 3.0 * handedness])
    affine[:3, 3] = [-50, 20, 4]
    data = phantoms.nifti(np.zeros((9, 10, 11), np.uint8), affine, codes=(1, 0), compress=False)
    theirs = nib.as_closest_canonical(nib.Nifti1Image.from_stream(io.BytesIO(data)))
    ours = geometry(data)
    assert ours.placement.source == "qform"
    cosines = np.sort(np.abs(affine[:3, :3] / [0.7, 1.1, 3.0]), axis=0)
    assume(np.all(cosines[2] - cosines[1] > 0.05) and len(set(np.argmax(np.abs(affine[:3, :3]), axis=0))) == 3)
    assert np.allclose(ours.affine_ras, theirs.affine, atol=1e-3)


def test_sform_counts_before_qform(phantoms: Any) -> None:
    flipped = phantoms.nifti(np.zeros((9, 10, 11), np.uint8), np.diag([-2.0, 1, 1, 1]), codes=(1, 1), compress=False)
    only_q = bytearray(flipped)
    only_q[254:256] = struct.pack("<h", 0)
    assert geometry(flipped).placement.source == "sform"
    assert geometry(bytes(only_q)).placement.source == "qform"
    assert geometry(flipped).orientation == geometry(bytes(only_q)).orientation == "LAS"


UNITS_MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}


@given(
    st.sampled_from([(0, 0), (0, 1), (1, 0), (2, 4), (0, 2), (3, 0)]),
    st.sampled_from(sorted(UNITS_MM)),
    st.sampled_from([1, 2]),
    ANGLE,
    st.tuples(*[st.floats(0.25, 6)] * 3),
    st.tuples(*[st.floats(-200, 200)] * 3),
    st.sampled_from([-1.0, 1.0]),
)
@example((1, 0), 2, 2, 3.130859375, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 1.0)  # not quite a half turn, in float64
@settings(max_examples=80, deadline=None)
def test_any_header_is_placed_where_nibabel_places_it(
    phantoms: Any,
    codes: tuple[int, int],
    unit: int,
    version: int,
    angle: float,
    spacing: tuple[float, float, float],
    offset: tuple[float, float, float],
    handedness: float,
) -> None:
    """C11, C13: nibabel's affine in the unit that the header names; sform and qform differ, so the choice shows."""
    rotation = euler2mat(angle, 0.2, 0.1)
    cosines = np.sort(np.abs(rotation), axis=0)
    assume(np.all(cosines[2] - cosines[1] > 0.05))  # near 45 degrees either order is right
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing) * (1, 1, handedness)
    affine[:3, 3] = offset
    patch = {123: bytes([unit])} if version == 1 else {500: struct.pack("<i", unit)}
    place = {1: (280 + 12, "<f"), 2: (400 + 24, "<d")}[version]
    patch[place[0]] = struct.pack(place[1], offset[0] + 25)  # the sform alone lies further to the right
    data = phantoms.nifti(
        np.zeros((9, 10, 11), np.uint8), affine, codes=codes, version=version, patch=patch, compress=False
    )
    image = (nib.Nifti1Image if version == 1 else nib.Nifti2Image).from_stream(io.BytesIO(data))
    expected = np.diag([UNITS_MM[unit]] * 3 + [1.0]) @ nib.as_closest_canonical(image).affine
    ours = geometry(data)
    assert np.allclose(ours.affine_ras / UNITS_MM[unit], expected / UNITS_MM[unit], atol=1e-3)
    assert ours.placement.source == ("sform" if codes[1] else "qform" if codes[0] else "assumed")
    assert (ours.placement.spacing_assumed, ours.placement.passed_over) == (False, None)


def test_no_affine_is_assumed_to_be_las(phantoms: Any) -> None:
    """C13."""
    data = phantoms.nifti(np.zeros((9, 10, 11), np.uint8), spacing=(0.5, 2, 3), codes=(0, 0), compress=False)
    found = geometry(data)
    assert (found.placement.source, found.orientation, found.placement.spacing_assumed) == ("assumed", "LAS", False)
    assert np.allclose(found.spacing_mm, (0.5, 2, 3))
    assert np.allclose(found.affine_ras[:3, 3], (-2, -9, -15))


@pytest.mark.parametrize(
    ("srow", "why"),
    [
        ([0.0] * 12, "0 x 0 x 0 mm"),
        ([1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0], "singular"),
        ([float("nan")] * 12, "not finite"),
        ([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "unit matrix"),
    ],
)
def test_an_sform_that_is_none_gives_way_to_a_good_qform(phantoms: Any, srow: list[float], why: str) -> None:
    """C12."""
    affine = np.diag([2.0, 3, 4, 1])
    affine[:3, 3] = (-7, 8, 9)
    patch = {280: struct.pack("<12f", *srow)}
    voxels = np.zeros((9, 10, 11), np.uint8)
    found = geometry(phantoms.nifti(voxels, affine, codes=(1, 1), compress=False, patch=patch))
    assert found.placement.source == "qform"
    assert np.allclose(found.affine_ras, affine)
    assert why in (found.placement.passed_over or "")


def test_a_unit_matrix_is_an_sform_where_nothing_contradicts_it(phantoms: Any) -> None:
    """C12: millimetre voxels, or no qform to take in its place."""
    voxels = np.zeros((9, 10, 11), np.uint8)
    unit = {280: struct.pack("<12f", 1, 0, 0, 5, 0, 1, 0, 0, 0, 0, 1, 0)}
    found = geometry(phantoms.nifti(voxels, np.diag([1.0, 1, -1, 1]), codes=(1, 1), compress=False, patch=unit))
    assert (found.placement.source, found.orientation, found.placement.passed_over) == ("sform", "RAS", None)
    found = geometry(phantoms.nifti(voxels, np.diag([2.0, 2, 2, 1]), codes=(0, 1), compress=False, patch=unit))
    assert (found.placement.source, found.placement.passed_over, list(found.spacing_mm)) == ("sform", None, [1, 1, 1])


def test_a_bad_qform_beside_a_good_sform_does_not_matter(phantoms: Any) -> None:
    patch = {256: struct.pack("<f", float("nan"))}
    found = geometry(phantoms.nifti(np.zeros((9, 10, 11), np.uint8), codes=(1, 1), compress=False, patch=patch))
    assert (found.placement.source, found.placement.passed_over) == ("sform", None)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0)])
@pytest.mark.parametrize("spacing", [(0.5, 2, 0), (0.5, 2, float("nan")), (0.5, 2, float("inf")), (0.5, 2, 1e20)])
def test_a_spacing_that_cannot_be_is_1_mm(phantoms: Any, codes: tuple[int, int], spacing: tuple[float, ...]) -> None:
    """C12: along that axis alone, as in nibabel and the NIfTI C library, and it is counted as assumed."""
    patch = {80: struct.pack("<3f", *spacing)}
    found = geometry(phantoms.nifti(np.zeros((9, 10, 11), np.uint8), codes=codes, compress=False, patch=patch))
    assert np.allclose(found.spacing_mm, (0.5, 2, 1))
    assert found.placement.spacing_assumed


@pytest.mark.parametrize(
    "spacing", [(0, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1), (1, 1, 1e20), (1e-20, 1, 1)]
)
def test_without_affine_and_spacing_voxels_are_cubes_of_1_mm(phantoms: Any, spacing: tuple[float, ...]) -> None:
    patch = {80: struct.pack("<3f", *spacing)}
    found = geometry(phantoms.nifti(np.zeros((9, 10, 11), np.uint8), codes=(0, 0), compress=False, patch=patch))
    assert list(found.spacing_mm) == [1, 1, 1]
    assert found.placement.spacing_assumed


def test_negative_spacing_counts_as_its_size(phantoms: Any) -> None:
    patch = {80: struct.pack("<3f", -2, -1, -3)}
    for codes in ((0, 0), (1, 0)):
        found = geometry(phantoms.nifti(np.zeros((9, 10, 11), np.uint8), codes=codes, compress=False, patch=patch))
        assert np.allclose(found.spacing_mm, (2, 1, 3))
        assert found.orientation == ("RAS" if codes[0] else "LAS")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "srow",
    [
        [0.0] * 12,
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0],
        [1, 2, 0, 0, 2, 4, 0, 0, 0, 0, 1, 0],
        [NAN, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, INF, 0, 1, 0, 0, 0, 0, 1, 0],
        [1e30, 0, 0, 0, 0, 1e30, 0, 0, 0, 0, 1e30, 0],
        [1e-30, 0, 0, 0, 0, 1e-30, 0, 0, 0, 0, 1e-30, 0],
        [1, 0, 0, 1e9, 0, 1, 0, 0, 0, 0, 1, 0],
    ],
)
def test_affines_that_are_none(phantoms: Any, srow: list[float]) -> None:
    patch = {280: struct.pack("<12f", *srow)}
    with pytest.raises(VolumeError) as caught:
        geometry(phantoms.nifti(np.zeros((9, 10, 11), np.uint8), compress=False, patch=patch))
    assert caught.value.code == QuarantineCode.AFFINE_INVALID
    assert "sform" in caught.value.reason


@pytest.mark.parametrize("patch", [{256: struct.pack("<f", NAN)}, {268: struct.pack("<f", INF)}])
def test_qforms_that_are_none(phantoms: Any, patch: dict[int, bytes]) -> None:
    with pytest.raises(VolumeError) as caught:
        geometry(phantoms.nifti(np.zeros((9, 10, 11), np.uint8), codes=(1, 0), compress=False, patch=patch))
    assert caught.value.code == QuarantineCode.AFFINE_INVALID


def test_thick_slices_are_no_singular_affine(phantoms: Any) -> None:
    data = phantoms.nifti(np.zeros((9, 10, 11), np.uint8), spacing=(0.05, 0.05, 40), compress=False)
    assert np.allclose(geometry(data).spacing_mm, (0.05, 0.05, 40))
