"""Series and the NIfTI files that dcm2niix makes of them find each other, and a page shows what they were made from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medret.archive import list_archive
from medret.cli import main
from medret.embeddings import Slices, plane_codes, unit_slices
from medret.evaluate import Selection
from medret.evaluate.query_sets import file_queries
from medret.models import Encoder, model_spec, resolve_weights
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import LEDGER
from medret.search import Snapshot, open_snapshot
from medret.volume import Limits, content_sha256, fetch_volume, read_volume
from tests.dicom_phantoms import encoded, single_frames

MODEL = "efficientnet_lite0"
TWINS = 0.995


@pytest.fixture(scope="module")
def niftis(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the twin of each series, `<series>.nii`. Of several files, the first one is the first volume."""
    program = pytest.importorskip("dcm2niix").bin
    folder: Path = tmp_path_factory.mktemp("niftis")
    for series in _series(shared_data):
        made = folder / "made" / series.name
        made.mkdir(parents=True)
        subprocess.run([program, "-b", "n", "-f", "%s", "-o", made, series], check=True, capture_output=True)
        shutil.move(min(made.glob("*.nii")), folder / f"{series.name}.nii")
    shutil.rmtree(folder / "made")
    return folder


def _series(shared_data: Path) -> Iterator[Path]:
    return (path for path in sorted((shared_data / "dicom").iterdir()) if path.is_dir())


@pytest.fixture(scope="module")
def snapshot_of(
    tmp_path_factory: pytest.TempPathFactory, store_maker: Callable[..., Any]
) -> Callable[[Path], Snapshot]:
    """Embed the volumes in an archive as a run does, and open the snapshot."""
    spec = model_spec(MODEL)
    weights = resolve_weights(spec)
    slices = SliceRecipe(slices="uniform:2")
    recipe = Recipe(slices, ModelRecipe(MODEL, weights.sha256, 224, spec.mean, spec.std, spec.dim, "fp32"))
    encoder = Encoder(spec, weights, batch_size=8)

    def made(archive: Path) -> Snapshot:
        volumes, ledger = [], []
        for volume_id in (item.volume_id for item in list_archive(str(archive)).items()):
            content = fetch_volume(f"{archive}/{volume_id}", Limits())
            volume = read_volume(content, volume_id, slices, [224])
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
                    np.array([ref.source for ref in refs], object),
                    volume_id=volume_id,
                )
            )
            row: dict[str, Any] = dict.fromkeys(LEDGER.names)
            row.update(
                volume_id=volume_id, uri=f"{archive}/{volume_id}", size_bytes=1, status="embedded", slices=len(refs)
            )
            row.update(content_sha256=content_sha256(content), shards=[(recipe.digest, "shard-0")])
            ledger.append(row)
        root = tmp_path_factory.mktemp("twins")
        store = store_maker(
            root, tuple(volumes), recipe=recipe, ledger=ledger, aggregations=("mean",), archive=str(archive)
        )
        return open_snapshot(store.uri)

    return made


def test_a_phantom_as_a_series_finds_itself_as_nifti(
    phantom_archive: Path, snapshot_of: Callable[[Path], Snapshot], tmp_path: Path
) -> None:
    archive, series = tmp_path / "archive", tmp_path / "queries/series"
    archive.mkdir()
    series.mkdir(parents=True)
    for kind in ("head_mri", "leg_mri", "heart_mri"):
        image: Any = nibabel.load(phantom_archive / kind / f"{kind}_0.nii.gz")
        nibabel.save(image, archive / f"{kind}.nii")
    image = nibabel.load(archive / "leg_mri.nii")
    instances = single_frames(np.asarray(image.dataobj).astype(np.int16), image.affine, modality="MR", PatientID="P-7")
    for instance in instances:
        (series / instance.SOPInstanceUID).write_bytes(encoded(instance))
    snapshot = snapshot_of(archive)
    (hit,) = snapshot.search(series, 1)
    assert hit.volume_id == "leg_mri.nii"
    assert hit.score > TWINS
    assert hit.slices is not None
    assert set(hit.slices.query_sources) <= {instance.SOPInstanceUID for instance in instances}
    assert len(hit.slices.query_sources) == 2
    asked = file_queries(snapshot, str(series.parent), None, Selection(), {}).queries.to_pylist()
    assert [(row["volume_id"], row["subject"], row["modality"]) for row in asked] == [("series", "P-7", "MRI")]


def test_each_series_and_its_nifti_find_each_other(
    shared_data: Path, niftis: Path, snapshot_of: Callable[[Path], Snapshot], tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "dicom").symlink_to(shared_data / "dicom")
    (archive / "nifti").symlink_to(niftis)
    snapshot = snapshot_of(archive)
    twins = {f"dicom/{path.name}": f"nifti/{path.name}.nii" for path in _series(shared_data)}
    assert len(twins) == 7
    assert snapshot.volumes == 14
    twins |= {nifti: series for series, nifti in twins.items()}
    for query, (hit,) in zip(twins, snapshot.search_many(list(twins), 1, exclude="self"), strict=True):
        assert hit.volume_id == twins[query]
        assert hit.score > TWINS
        assert hit.slices is not None
        crosses = "sagittal" in query  # an axial slice crosses the instances of a sagittal series
        assert bool(hit.slices.hit_sources) == (hit.volume_id.startswith("dicom") and not crosses)
        assert bool(hit.slices.query_sources) == (query.startswith("dicom") and not crosses)


def test_a_list_and_a_zip_of_a_series_find_it_and_the_page_names_its_instances(
    shared_data: Path, snapshot_of: Callable[[Path], Snapshot], tmp_path: Path
) -> None:
    series = shutil.copytree(shared_data / "dicom/mr_siemens_enhanced", tmp_path / "archive/mr")
    snapshot = snapshot_of(series.parent)
    (hit,) = snapshot.search(sorted(series.iterdir(), reverse=True), 1)
    assert hit.volume_id == "mr"
    assert hit.score > 0.999
    assert hit.best_pair is not None
    assert hit.best_pair.hit_source == hit.best_pair.query_source
    page, packed = tmp_path / "page.html", shutil.make_archive(str(tmp_path / "packed"), "zip", series)
    assert main(["search", snapshot.uri, packed, "-k", "1", "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count(f"<code>{hit.best_pair.hit_source}</code>") == 3  # the match of the query, and both sides
    assert "absent" not in text.split("</style>")[1]
