"""Whatever the bytes: a volume or a VolumeError, in bounded memory."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.recipe import PLANES, Contract, SliceRecipe
from medret.volume import Limits, read_volume

RECIPE = SliceRecipe(planes=PLANES, slices="uniform:3")
LIMITS = Limits(max_voxels_bytes=1 << 26)
FLOATS = st.sampled_from([0.0, -1.0, 1e-40, 1e38, -1e38, float("nan"), float("inf"), 352.0, 0.5, 1e6])
INTS = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 256, 512, 768, 1024, 1280, -1, 9, 20, 32767, -32768])
# (offset, struct format) of the fields that matter; the rest of a header is noise.
FIELDS1 = [(40 + 2 * i, "h") for i in range(8)] + [(70, "h"), (72, "h"), (252, "h"), (254, "h")]
FIELDS1 += [(offset, "f") for offset in (76, 80, 84, 88, 108, 112, 116, *range(256, 328, 4))]


REAL = Contract(values="real", resample="bicubic").images(16)
WINDOWS = Contract(windows_hu=((-1000, 1000), (-135, 215), (0, 80))).images(16)


@pytest.fixture(scope="module")
def plain(phantoms: Any) -> bytes:
    data: bytes = phantoms.nifti(phantoms.hounsfield(phantoms.body((14, 12, 10))), compress=False)
    return data


def outcome(data: bytes) -> str:
    refusal: VolumeError | None = None
    try:
        volume = read_volume(data, "case", RECIPE, [16, REAL, WINDOWS], limits=LIMITS)
    except VolumeError as error:
        refusal = error
    if refusal is not None:
        assert isinstance(refusal.code, QuarantineCode)
        assert refusal.reason
        return str(refusal.code)
    assert volume.pixels[16].shape == (len(volume.slices), 16, 16)
    assert volume.pixels[REAL].shape == volume.pixels[16].shape
    assert np.isfinite(volume.pixels[REAL]).all()
    assert volume.pixels[WINDOWS].shape == (len(volume.slices), 3, 16, 16)
    assert volume.slices
    assert all(np.isfinite([ref.relative_position, ref.position_mm]).all() for ref in volume.slices)
    assert np.isfinite(volume.facts.intensity_range).all()
    return "used"


@given(st.lists(st.tuples(st.sampled_from(FIELDS1), INTS, FLOATS), min_size=1, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_lying_headers(plain: bytes, changes: list[tuple[tuple[int, str], int, float]], compress: bool) -> None:
    data = bytearray(plain)
    for (offset, kind), whole, real in changes:
        data[offset : offset + struct.calcsize(kind)] = struct.pack("<" + kind, whole if kind == "h" else real)
    outcome(gzip.compress(bytes(data), 1) if compress else bytes(data))


@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_random_bytes_in_the_header(plain: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(plain)
    for offset, value in changes:
        data[offset] = value
    outcome(bytes(data))


@given(st.integers(0, 3711), st.binary(max_size=40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_bytes_replaced_removed_or_put_in(plain: bytes, place: int, junk: bytes, insert: bool) -> None:
    data = plain[:place] + junk + plain[place if insert else place + len(junk) // 2 :]
    outcome(data)
    packed = gzip.compress(plain, 1)
    place = place % len(packed)
    outcome(packed[:place] + junk + packed[place if insert else place + len(junk) // 2 :])


@given(
    st.binary(max_size=800),
    st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0"]),
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_at_all(junk: bytes, start: bytes) -> None:
    assert outcome(start + junk) != "used"


@given(
    st.sampled_from(["f4", "f8"]),
    st.lists(
        st.tuples(
            st.integers(0, 1679),
            st.one_of(st.floats(width=32), st.sampled_from([3e38, -3e38, 1e-45, float("nan"), float("inf")])),
        ),
        max_size=30,
    ),
    FLOATS,
    FLOATS,
)
@settings(max_examples=150, deadline=None)
def test_any_voxel_values(
    phantoms: Any, dtype: str, changes: list[tuple[int, float]], slope: float, inter: float
) -> None:
    voxels: NDArray[Any] = phantoms.body((14, 12, 10)).astype(dtype)
    for place, value in changes:
        voxels.flat[place] = value
    outcome(phantoms.nifti(voxels, compress=False, patch={112: struct.pack("<2f", slope, inter)}))


def test_the_untouched_phantom_is_used(plain: bytes) -> None:
    assert outcome(plain) == "used"
    assert outcome(gzip.compress(plain)) == "used"


def test_an_odd_shape_does_not_take_memory(phantoms: Any) -> None:
    """A rod of 30,000 x 8 x 8 voxels under the plan `all` would be 90,000 images."""
    rod = np.random.default_rng(0).integers(0, 200, (30_000, 8, 8)).astype(np.uint8)
    with pytest.raises(VolumeError) as caught:
        read_volume(phantoms.nifti(rod), "rod", SliceRecipe(planes=PLANES, slices="all"), [224])
    assert caught.value.code == QuarantineCode.TOO_LARGE
