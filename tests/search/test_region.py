"""Parts of a query: ranges of stored slices, of files, boxes and masks; phantoms embedded with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medret.embeddings.parquet import RECIPE_KEY
from medret.errors import UsageError
from medret.recipe import SliceRecipe
from medret.search import Snapshot, open_snapshot
from medret.search.query import SliceRange, parse_box, parse_range
from medret.volume import read_volume
from medret.volume.slicing import Region, mask_region

RECIPE = SliceRecipe(planes=("axial", "coronal"), slices="all")


@pytest.fixture(scope="module")
def snapshot(made_store: Any) -> Snapshot:
    return open_snapshot(made_store.uri)


# --- text ------------------------------------------------------------------------------------------------------


def test_ranges_as_text() -> None:
    assert parse_range("40:58", "axial") == SliceRange("axial", 40, 58, mm=False)
    assert parse_range("-12.5mm:30 mm", "coronal") == SliceRange("coronal", -12.5, 30, mm=True)
    assert parse_range("3:3", "axial").first == 3
    for text in ("", "40", "40:", "58:40", "a:b", "1mm:2", "1.5:3", "-3:4", "1:2:3", f"0:{'9' * 310}"):
        with pytest.raises(UsageError, match="expected FIRST:LAST"):
            parse_range(text, "axial")
    with pytest.raises(UsageError, match="plane 'oblique' is not available"):
        parse_range("1:2", "oblique")


def test_boxes_as_text() -> None:
    assert parse_box("1:2, 3:4,5:5") == Region(((1, 2), (3, 4), (5, 5)))
    for text in ("", "1:2,3:4", "1:2,3:4,5:6,7:8", "2:1,3:4,5:6", "a:b,3:4,5:6", f"1:2,3:4,5:{'9' * 310}"):
        with pytest.raises(UsageError, match="expected X0:X1,Y0:Y1,Z0:Z1"):
            parse_box(text)


# --- stored volumes --------------------------------------------------------------------------------------------


def test_a_range_of_stored_slices(made_store: Any, snapshot: Snapshot) -> None:
    query = snapshot.resolve(made_store.ids[3], slices="25:55")
    assert query.slices.slice_indices is not None
    assert query.slices.slice_indices.tolist() == [30, 50]  # axial ones lie at 10, 30, 50
    assert query.requested == (25, 55)
    mean = made_store.volumes[3].vectors[[2, 4]].astype(np.float64).sum(axis=0)
    assert query.volume == pytest.approx(mean / np.linalg.norm(mean), abs=1e-3)
    other = snapshot.resolve(made_store.ids[3], slices="20:40", plane="sagittal")
    assert other.slices.slice_indices is not None
    assert other.slices.slice_indices.tolist() == [20, 40]
    in_mm = snapshot.resolve(made_store.ids[3], slices="0.1mm:0.5mm")  # those of the store run from 0 to 1
    assert in_mm.slices.slice_indices is not None
    assert in_mm.slices.slice_indices.tolist() == [30]


def test_places_are_those_of_the_slice_itself(made_store: Any, snapshot: Snapshot) -> None:
    """C2: the shard of embeddings mixes the planes, the index has one after the other; neither order must matter."""
    for volume in made_store.volumes[:5]:
        places = (volume.slice_indices.tolist(), volume.relative_position, volume.position_mm)
        own = list(zip(volume.plane_names, *places, strict=True))
        weight = {(plane, place): np.exp(-0.5 * ((at - 0.3) / 0.2) ** 2) for plane, place, at, _ in own}
        found = snapshot.resolve(volume.volume_id, query_weights="gaussian:0.3,0.2")
        assert found.slices.slice_indices is not None
        keys = list(zip(found.slices.plane_names, found.slices.slice_indices.tolist(), strict=True))
        assert sorted(keys) == sorted(weight)
        expected = np.array([weight[key] for key in keys])
        assert found.slice_weights() == pytest.approx(expected / expected.sum(), abs=1e-6)
        for plane in ("axial", "sagittal"):
            in_mm = snapshot.resolve(volume.volume_id, slices="0.3mm:0.9mm", plane=plane).slices
            assert in_mm.slice_indices is not None
            assert in_mm.slice_indices.tolist() == [at for name, at, _, mm in own if name == plane and 0.3 <= mm <= 0.9]


@pytest.mark.parametrize("kind", ["hnsw", "lsh", "exact"])
def test_a_part_finds_its_volume_and_its_place(made_store: Any, snapshot: Snapshot, kind: str) -> None:
    for volume_id in made_store.ids[:10]:
        first = snapshot.search(volume_id, 1, slices="25:55", index=kind)[0]
        assert first.volume_id == volume_id
        assert first.slices is not None
        assert first.slices.query == (25, 55)
        assert first.slices.hit == pytest.approx((25, 55), abs=3)
        assert all(pair.query == pair.hit for pair in first.slices.pairs)


def test_parts_that_cannot_be(made_store: Any, snapshot: Snapshot, tmp_path: Path) -> None:
    for options, message in (
        (
            {"slices": "11:13"},
            "no stored slice of it lies in axial 11:13; they lie at 10, 30, 50. Give the NIfTI file",
        ),
        ({"slices": "1:2", "plane": "coronal"}, "the snapshot holds no coronal slices, only axial, sagittal"),
        ({"plane": "axial"}, "plane 'axial' is the plane of a range of slices: give slices too"),
        ({"slices": "1:2", "box": "1:2,1:2,1:2"}, "slices and box both say which part"),
        ({"box": "1:2,1:2,1:2"}, "no such file"),  # the synthetic archive has no voxels
    ):
        with pytest.raises(UsageError, match=message):
            snapshot.search(made_store.ids[0], **options)  # type: ignore[arg-type]  # by name
    with pytest.raises(UsageError, match="slices names a part of a volume, but the query is an array"):
        snapshot.search(np.ones((3, 32)), slices="1:2")


# --- voxels ----------------------------------------------------------------------------------------------------


def _phantom(archive: Path) -> Path:
    return archive / "leg_mri" / "leg_mri_0.nii.gz"


def test_a_region_is_a_part_of_the_same_picture(phantom_archive: Path) -> None:
    data = _phantom(phantom_archive).read_bytes()
    whole = read_volume(data, "q", RECIPE, [64])
    axial = [ref for ref in whole.slices if ref.plane == "axial"]
    first, last = axial[4], axial[9]
    part = read_volume(data, "q", RECIPE, [64], region=Region((None, None, (first.slice_index, last.slice_index))))
    assert [ref for ref in part.slices if ref.plane == "axial"] == axial[4:10]
    assert (part.pixels[64][:6] == whole.pixels[64][4:10]).all()  # in-plane crop and window are the whole's
    in_mm = read_volume(
        data, "q", RECIPE, [64], region=Region((None, None, (first.position_mm, last.position_mm)), mm=True)
    )
    assert in_mm.slices == part.slices
    box = read_volume(data, "q", RECIPE, [64], region=Region(((5, 20), (6, 21), (first.slice_index, last.slice_index))))
    assert box.facts.crop_box == ((5, 6, first.slice_index), (21, 22, last.slice_index + 1))


def test_a_region_outside_says_where_the_volume_is(phantom_archive: Path) -> None:
    data = _phantom(phantom_archive).read_bytes()
    for region, message in (
        (Region((None, None, (5000, 6000))), r"5000:6000 holds no slice: the volume's axial slices lie at 0 to \d+$"),
        (Region(((9e5, 1e6), None, None), mm=True), r"holds no slice: the volume's sagittal slices lie at .* mm$"),
    ):
        with pytest.raises(UsageError, match=message):
            read_volume(data, "q", RECIPE, [64], region=region)


def test_the_box_around_a_mask(phantom_archive: Path) -> None:
    data = _phantom(phantom_archive).read_bytes()
    image: Any = nib.load(_phantom(phantom_archive))
    voxels = np.zeros(image.shape[:3], np.uint8)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(voxels, image.affine))
    marked = np.zeros(canonical.shape, np.uint8)
    marked[3:8, 10:12, 4:7] = 1
    mask = nib.Nifti1Image(marked, canonical.affine).to_bytes()  # stored another way round: the same grid in RAS+
    assert mask_region(mask, data) == Region(((3, 7), (10, 11), (4, 6)))
    with pytest.raises(UsageError, match="mask is empty"):
        mask_region(nib.Nifti1Image(voxels, image.affine).to_bytes(), data)
    with pytest.raises(UsageError, match="a mask must be drawn on the query's own grid"):
        mask_region(nib.Nifti1Image(marked[1:], canonical.affine).to_bytes(), data)
    with pytest.raises(UsageError, match="a mask must be drawn on the query's own grid"):
        mask_region(nib.Nifti1Image(marked, np.diag([9.0, 9, 9, 1])).to_bytes(), data)
    with pytest.raises(UsageError, match="mask cannot be used: not_nifti"):
        mask_region(b"no mask at all" * 50, data)


# --- other files -----------------------------------------------------------------------------------------------


def test_an_array_in_a_file(made_store: Any, snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "query.npy"
    np.save(path, made_store.volumes[5].vectors)
    assert snapshot.search(path, 1)[0].volume_id == made_store.ids[5]
    assert snapshot.uri_of_query(str(path)) is None
    np.save(path, np.ones(7))
    with pytest.raises(UsageError, match=r"expected \(32,\)"):
        snapshot.search(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"query\.npy: cannot be read as a \.npy array of vectors: Object arrays"):
        snapshot.search(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"cannot be read as a \.npy array"):
        snapshot.search(path)


def test_tables_of_vectors_are_no_queries(made_store: Any, snapshot: Snapshot, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for digest, message in (
        ("0123456789abcdef", f"vectors of recipe 0123456789abcdef, this model's are of {made_store.recipe.digest}"),
        (made_store.recipe.digest, "is a Parquet file, not a volume"),
    ):
        path = tmp_path / f"{digest}.parquet"
        pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({RECIPE_KEY: digest.encode()}), path)
        with pytest.raises(UsageError, match=message):
            snapshot.search(path)
    (tmp_path / "broken").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="is a Parquet file, not a volume"):
        snapshot.search(tmp_path / "broken")
