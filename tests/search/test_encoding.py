"""Queries that are files: synthetic phantoms, embedded with random weights as a run embeds them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret.embeddings import Slices, plane_codes, unit_slices
from medret.errors import UsageError, WeightsError
from medret.models import Encoder, model_spec, resolve_weights
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import LEDGER
from medret.search import Snapshot, encoders, open_snapshot, resolve
from medret.volume import read_volume

MODEL = "efficientnet_lite0"
KINDS = ("head_mri", "chest_ct", "leg_mri")


@pytest.fixture(scope="module")
def phantoms(
    phantom_archive: Path, tmp_path_factory: pytest.TempPathFactory, store_maker: Callable[..., Any]
) -> tuple[Snapshot, Path]:
    """A snapshot of six phantoms, two of them labelled, and their archive."""
    spec = model_spec(MODEL)
    weights = resolve_weights(spec, "random:7")
    slices = SliceRecipe(slices="random:3", planes=("axial", "coronal"))
    recipe = Recipe(slices, ModelRecipe(MODEL, weights.sha256, 224, spec.mean, spec.std, spec.dim, "fp32"))
    encoder = Encoder(spec, weights, batch_size=6)
    volumes, ledger = [], []
    for path in sorted(path for kind in KINDS for path in (phantom_archive / kind).glob("*.nii.gz")):
        volume_id, data = str(path.relative_to(phantom_archive)), path.read_bytes()
        modality = "CT" if "_ct" in volume_id else None
        volume = read_volume(data, volume_id, slices, [224], modality=modality)
        vectors, norms = unit_slices(encoder.embed(volume.pixels[224]))
        refs = volume.slices
        volumes.append(
            Slices(
                vectors,
                plane_codes([ref.plane for ref in refs]),
                np.array([ref.slice_index for ref in refs], np.int32),
                np.array([ref.relative_position for ref in refs], np.float32),
                np.array([ref.position_mm for ref in refs], np.float32),
                norms,
                volume_id=volume_id,
            )
        )
        row: dict[str, Any] = dict.fromkeys(LEDGER.names)
        row.update(volume_id=volume_id, uri=str(path), size_bytes=len(data), status="embedded", slices=len(refs))
        row.update(modality=modality, content_sha256=hashlib.sha256(data).hexdigest())
        row.update(shards=[(recipe.digest, "shard-0")])
        ledger.append(row)
    made = store_maker(
        tmp_path_factory.mktemp("phantom-store"),
        tuple(volumes),
        recipe=recipe,
        weights_uri="random:7",
        ledger=ledger,
        aggregations=("mean", "random:2"),
        archive=str(phantom_archive),
    )
    return open_snapshot(made.uri), phantom_archive


def test_a_file_of_the_archive_finds_itself(phantoms: tuple[Snapshot, Path], tmp_path: Path) -> None:
    snapshot, archive = phantoms
    copy = tmp_path / "another name.nii.gz"
    shutil.copy(archive / "chest_ct/chest_ct_1.nii.gz", copy)
    queries: list[str | Path] = [archive / "chest_ct/chest_ct_1.nii.gz", str(copy)]
    # both draws, of slices and of slice vectors, depend on the id: the copy is known by its content
    for hits in snapshot.search_many(queries, 3, aggregation="random:2"):
        assert hits[0].volume_id == "chest_ct/chest_ct_1.nii.gz"
        assert hits[0].score > 0.9999
        assert hits[0].slices is not None
        assert hits[0].slices.query == hits[0].slices.hit


def test_the_own_volume_of_a_file_is_known_by_its_content(phantoms: tuple[Snapshot, Path], tmp_path: Path) -> None:
    snapshot, archive = phantoms
    shutil.copy(archive / "leg_mri/leg_mri_0.nii.gz", tmp_path / "copy.nii.gz")
    hits = snapshot.search(tmp_path / "copy.nii.gz", 10, exclude="self")
    assert len(hits) == 5
    assert "leg_mri/leg_mri_0.nii.gz" not in {hit.volume_id for hit in hits}


def test_the_encoder_is_loaded_once(phantoms: tuple[Snapshot, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, archive = phantoms
    loaded: list[Any] = []
    load_encoder = encoders.load_encoder

    def counted(*arguments: Any) -> Encoder:
        loaded.append(arguments)
        return load_encoder(*arguments)

    monkeypatch.setattr(encoders, "load_encoder", counted)
    snapshot = open_snapshot(phantoms[0].uri)
    for kind in KINDS[:2]:
        snapshot.search(archive / kind / f"{kind}_0.nii.gz", 1)
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty: "),
        (b"this is no NIfTI file" * 20, "not_nifti: "),
    ],
)
def test_a_bad_file_is_named_with_its_code(
    phantoms: tuple[Snapshot, Path], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "query.nii.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"query {path} cannot be used: {message}") as raised:
        phantoms[0].search(path)
    assert "\n" not in str(raised.value)


def test_a_remote_file_that_is_not_there(phantoms: tuple[Snapshot, Path]) -> None:
    with pytest.raises(UsageError, match=r"query memory://nowhere/case\.nii\.gz: no such file"):
        phantoms[0].search("memory://nowhere/case.nii.gz")
    with pytest.raises(UsageError, match="nosuchscheme://a/b: medret knows no filesystem for nosuchscheme://"):
        phantoms[0].search("nosuchscheme://a/b")


def test_other_weights_are_refused(phantoms: tuple[Snapshot, Path]) -> None:
    snapshot, archive = phantoms
    with pytest.raises(WeightsError, match=r"random weights \(seed 8\).* have sha256 .*, the snapshot was made with"):
        snapshot.search(archive / "leg_mri/leg_mri_0.nii.gz", weights="random:8")


def test_a_gpu_that_is_not_there_is_an_error(phantoms: tuple[Snapshot, Path]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(UsageError, match="cuda"):
        phantoms[0].search(phantoms[1] / "leg_mri/leg_mri_0.nii.gz", device="cuda")


@pytest.mark.parametrize(
    ("given", "expected"), [(None, {"chest_ct": "CT", "leg_mri": None}), ("PET", {"chest_ct": "PET", "leg_mri": "PET"})]
)
def test_modality_is_the_given_one_or_that_of_the_same_content(
    phantoms: tuple[Snapshot, Path], monkeypatch: pytest.MonkeyPatch, given: str | None, expected: dict[str, str | None]
) -> None:
    snapshot, archive = phantoms
    seen: list[str | None] = []

    def spy(data: bytes, name: str, volume_id: str, recipe: Recipe, modality: str | None, **_: Any) -> Any:
        seen.append(modality)
        raise UsageError("seen")

    monkeypatch.setattr(resolve, "slice_query", spy)
    for kind in expected:
        with pytest.raises(UsageError, match="seen"):
            snapshot.search(archive / kind / f"{kind}_0.nii.gz", 1, modality=given)
    assert seen == list(expected.values())


def test_a_notebook_shows_the_slices_of_query_and_hits(phantoms: tuple[Snapshot, Path]) -> None:
    snapshot, archive = phantoms
    shown = snapshot.search(archive / "head_mri/head_mri_0.nii.gz", 2)._repr_html_()
    assert shown is not None
    assert "query, axial" in shown
    assert "hit, axial" in shown
    assert shown.count("<img") > 4


def test_slices_of_a_file_are_chosen_by_distance(phantoms: tuple[Snapshot, Path]) -> None:
    snapshot, archive = phantoms
    path = archive / "leg_mri" / "leg_mri_0.nii.gz"
    every, few = snapshot.resolve(path).slices, snapshot.resolve(path, query_slices="every:60mm").slices
    assert 0 < len(few) < len(every)
    assert few.position_mm is not None
    for plane in {*every.plane_names}:
        gaps = np.diff([at for at, name in zip(few.position_mm, few.plane_names, strict=True) if name == plane])
        assert (gaps > 0).all()


def test_a_volume_and_its_file_draw_the_same_slices(phantoms: tuple[Snapshot, Path]) -> None:
    snapshot, archive = phantoms
    for name in (f"{kind}/{kind}_{number}.nii.gz" for kind in KINDS for number in (0, 1)):
        drawn = []
        for query in (name, archive / name):
            slices = snapshot.resolve(query, query_slices="random:1").slices
            assert slices.slice_indices is not None
            drawn.append(set(zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)))
        assert drawn[0] == drawn[1], name
