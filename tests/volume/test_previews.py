"""Previews: which slices, small pictures of them, and what is not taken for one."""

from __future__ import annotations

import io
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medret.recipe import SliceRecipe
from medret.volume import SliceRef
from medret.volume.previews import (
    BYTES_MAX,
    PREVIEW_SIZE,
    Preview,
    check_preview,
    make_previews,
    middle_slices,
    view_volume,
)

PLANES = ("axial", "coronal", "sagittal")


def refs(*counts: int) -> list[SliceRef]:
    return [SliceRef(PLANES[at], i, i / 10, float(i)) for at, count in enumerate(counts) for i in range(count)]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((11,), [3, 4, 5, 6, 7]),
        ((1,), [0]),
        ((2,), [0, 1]),
        ((11, 5, 3), [4, 5, 6, 13, 17]),
    ],
)
def test_middle_slices(counts: tuple[int, ...], expected: list[int]) -> None:
    chosen = middle_slices(refs(*counts))
    assert len(chosen) == len(set(chosen))
    assert np.abs(np.array(chosen) - expected).max() <= 1
    assert chosen == sorted(chosen)


def test_any_number_of_slices_is_chosen_around_the_middle() -> None:
    for counts, count in product([(1,), (7,), (40,), (40, 1), (30, 30), (9, 20, 31)], range(30)):
        slices = refs(*counts)
        chosen = middle_slices(slices, count)
        assert len(chosen) == len(set(chosen)) <= count
        assert {slices[at].plane for at in chosen} == {*PLANES[: min(count, len(counts))]}
        if len(counts) == 1 and counts[0] >= 40:
            assert len(chosen) == count
            mirrored = [counts[0] - 1 - at for at in reversed(chosen)]
            assert np.abs(np.array(mirrored) - chosen).max(initial=0) <= 1


def test_five_are_chosen_as_pages_always_chose_them() -> None:
    for slices in range(1, 500):
        shares = (0.3, 0.4, 0.5, 0.6, 0.7)
        assert middle_slices(refs(slices)) == list(dict.fromkeys(round(share * (slices - 1)) for share in shares))
        of_first = list(dict.fromkeys(round(share * (slices - 1)) for share in (0.35, 0.5, 0.65)))
        for others in ((7,), (7, 9)):
            middles = [slices + 3, slices + 7 + 4][: len(others)]
            assert middle_slices(refs(slices, *others)) == of_first + middles


@pytest.mark.parametrize("side", [32, 160, 224, 518])
def test_a_preview_is_a_small_picture_of_its_slice(side: int) -> None:
    y, x = np.mgrid[:side, :side] / side
    pixels = np.stack([np.uint8(127 * (1 + np.sin(3 * (at + 1) * x) * np.cos(5 * y))) for at in range(3)])
    made = make_previews(refs(3), pixels, 5)
    assert [one.slice_index for one in made] == middle_slices(refs(3))
    for one in made:
        check_preview(one)
        shown = Image.open(io.BytesIO(one.image))
        assert shown.size == (min(side, PREVIEW_SIZE),) * 2
        whole = Image.fromarray(pixels[one.slice_index]).resize(shown.size)
        assert np.abs(np.asarray(shown, float) - np.asarray(whole, float)).mean() < 2


def encoded(kind: str, mode: str = "L", size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


SOUND = encoded("JPEG")


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"<script>alert(1)</script>",
        encoded("PNG"),
        encoded("WEBP", "RGB"),
        encoded("GIF"),
        encoded("JPEG", "RGB"),
        encoded("JPEG", size=(PREVIEW_SIZE + 1, 8)),
        encoded("JPEG", size=(4_000, 4_000)),
        SOUND[:-20],
        SOUND[: len(SOUND) // 2] + bytes(len(SOUND)),
        SOUND + bytes(BYTES_MAX),
    ],
)
def test_what_is_not_such_a_picture_is_refused(image: bytes) -> None:
    check_preview(Preview("axial", 1, SOUND))
    with pytest.raises(ValueError, match="preview of slice 'axial' 1"):
        check_preview(Preview("axial", 1, image))


def test_a_picture_of_no_slice_is_refused() -> None:
    for plane, position in (("<b>", 1), ("oblique", 1), ("axial", -1)):
        with pytest.raises(ValueError, match="is of no slice"):
            check_preview(Preview(plane, position, SOUND))


def test_a_view_holds_one_time_point_alone(phantoms: Any, ct: NDArray[np.int16]) -> None:
    series = phantoms.nifti(np.stack([ct, ct // 2, ct // 3], axis=3), compress=False)
    view, alone = (view_volume(data, SliceRecipe()) for data in (series, phantoms.nifti(ct)))
    assert view.examined.voxels.base is None
    assert view.examined.stored.voxels(0) is view.examined.voxels
    assert np.array_equal(view.draw("axial", 9, image_size=32), alone.draw("axial", 9, image_size=32))
