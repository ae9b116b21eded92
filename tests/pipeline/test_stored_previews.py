"""Runs store previews of what they embed; they stay with a volume that is renamed, and whose shard is written again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medret import open_snapshot
from medret.cli import main
from medret.demo.phantoms import KINDS, write_phantom
from medret.embeddings import Aggregation, Slices, plane_codes, unit_slices
from medret.embeddings.parquet import read_parquet
from medret.errors import UsageError
from medret.pipeline.embedding_shards import Rewrite, Source, _rewrite, write_shard
from medret.pipeline.request import IndexRequest
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.snapshot import read_files, verify_store
from medret.snapshot.files import PREVIEWS, SLICES, stored_files
from medret.storage import Location
from medret.volume import read_volume
from medret.volume.previews import PREVIEWS_MAX, make_previews

MODEL = "timm:test_vit"
OPTIONS = (
    "--model", MODEL, "--weights", f"{MODEL}=random", "--slices", "uniform:11", "--shard-volumes", "4", "--quiet",
)  # fmt: skip
RECIPE = Recipe(SliceRecipe(), ModelRecipe("made", "0" * 64, 224, (0.5,) * 3, (0.5,) * 3, 4, "fp32"))


@pytest.mark.ray
def test_the_previews_of_a_run_are_those_of_the_slices_that_it_read(store: Path, phantom_archive: Path) -> None:
    snapshot = open_snapshot(store)
    ids = snapshot.labels()["volume_id"].to_pylist()
    assert len(ids) > 8, "of several shards"
    for volume_id, found in snapshot.previews(ids).items():
        modality = snapshot.volume(volume_id).labels["modality"]  # type: ignore[union-attr]
        content = (phantom_archive / volume_id).read_bytes()
        volume = read_volume(content, volume_id, SliceRecipe(slices="uniform:8"), [224], modality=modality)
        assert found == tuple(make_previews(volume.slices, volume.pixels[224], 5))
        assert sum(len(one.image) for one in found) < 20_000


@pytest.mark.ray
def test_previews_go_along_and_are_not_made_again(tmp_path: Path, ray_session: None) -> None:
    archive, store = tmp_path / "archive", tmp_path / "store"
    for number in range(8):
        write_phantom(archive / f"v{number}.nii.gz", list(KINDS)[number % 6], number, shape=(24, 22, 16))
    write_phantom(archive / "refused.nii.gz", "leg_mri", 1, shape=(2, 2, 2))
    assert main(["index", str(archive), str(store), *OPTIONS, "--previews", "3"]) == 4
    first = open_snapshot(store).previews([f"v{number}.nii.gz" for number in range(8)])
    assert {len(found) for found in first.values()} == {3}, "of eleven slices"
    assert open_snapshot(store).previews(["refused.nii.gz"]) == {"refused.nii.gz": ()}
    before = {file.name for file in (store / "embeddings").rglob("previews-*")}
    (archive / "v1.nii.gz").unlink()  # a quarter of its shard
    (archive / "v5.nii.gz").rename(archive / "renamed.nii.gz")
    write_phantom(archive / "new.nii.gz", "leg_mri", 9, shape=(24, 22, 16))
    assert main(["index", str(archive), str(store), *OPTIONS, "--previews", "0"]) == 4
    snapshot = open_snapshot(store)
    assert snapshot.previews(["new.nii.gz"]) == {"new.nii.gz": ()}
    assert snapshot.previews(["renamed.nii.gz"])["renamed.nii.gz"] == first["v5.nii.gz"]
    for volume_id in ("v0.nii.gz", "v2.nii.gz", "v7.nii.gz"):
        assert snapshot.previews([volume_id])[volume_id] == first[volume_id]
    assert verify_store(Location(store)) == []
    live = {Path(file).name for file in _previews_files(store)}
    assert live - before, "shards were written again"
    report = json.loads(max((store / "runs").iterdir()).read_text())
    assert report["stages"]["read"]["volumes"] == 4  # the new one, and three canaries: nothing was read for previews
    assert main(["index", str(archive), str(store), *OPTIONS, "--previews", "5"]) == 0, "nothing to do"
    assert open_snapshot(store).id == snapshot.id


def _previews_files(store: Path) -> list[str]:
    snapshot = open_snapshot(store)
    return [file.path for file in stored_files(read_files(Location(store), snapshot.id, snapshot.manifest), [PREVIEWS])]


def test_copies_and_compacted_shards_take_previews_along(tmp_path: Path) -> None:
    store, mean = Location(tmp_path), Aggregation("mean")
    pictures = [
        {"volume_id": one, "plane": "axial", "position": at, "image": f"{one}{at}".encode()}
        for one in "abc"
        for at in range(2)
    ]
    files = []
    for ids, previews in (("abc", pictures), ("d", [])):
        volumes = [_volume(volume_id) for volume_id in ids]
        shard, table = write_shard(store, {RECIPE: volumes}, [mean], previews)
        assert write_shard(store, {RECIPE: volumes}, [mean])[0] == shard, "previews are no part of its key"
        files.append({file.kind: file for file in stored_files(table)})
    (first, second) = files
    assert PREVIEWS not in second
    names = (("c", "z"), ("a", "a"), ("a", "copy"))
    sources = (Source(first[SLICES], names, first[PREVIEWS]), Source(second[SLICES], (("d", "d"),)))
    shard, table, refused = _rewrite(store, Rewrite(RECIPE, sources), [mean])
    assert not refused
    [made] = stored_files(table, [PREVIEWS])
    assert (made.rows, made.recipe, made.shard) == (6, RECIPE.digest, shard)
    rows = read_parquet(store.read(made.path)).to_pylist()
    assert [(row["volume_id"], row["image"].decode()) for row in rows] == [
        ("a", "a0"), ("a", "a1"), ("copy", "a0"), ("copy", "a1"), ("z", "c0"), ("z", "c1"),
    ]  # fmt: skip


def _volume(volume_id: str) -> Slices:
    vectors, norms = unit_slices(np.random.default_rng(ord(volume_id)).standard_normal((2, 4)).astype(np.float32))
    place = np.linspace(0, 1, 2, dtype=np.float32)
    return Slices(
        vectors, plane_codes(["axial"] * 2), np.arange(2, dtype=np.int32), place, place, norms, volume_id=volume_id
    )


@pytest.mark.parametrize("count", [-1, PREVIEWS_MAX + 1])
def test_a_number_of_previews_that_makes_no_sense_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"--previews is {count}, expected 0 to {PREVIEWS_MAX}"):
        IndexRequest.of("a", "b", {"previews": count})
