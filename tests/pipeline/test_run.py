"""Whole runs on small archives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medret
from medret.cli import main
from medret.snapshot import verify_store
from medret.storage import Location
from tests.failing_s3 import FAULTS, FailingProxy

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
Opened = Callable[[str | Path], SimpleNamespace]
MODEL = "efficientnet_lite0"
ODD_KEYS = (
    "scan[001].nii.gz",
    "a*b.nii.gz",
    "what?.nii.gz",
    "a b+c%20d.nii.gz",
    "[0] u\u0308.nii.gz",
    "[0] \xfc.nii.gz",
)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr().out
    return code, json.loads(output) if output else {}


def test_every_volume_is_embedded_and_labelled(store: Path, phantom_archive: Path, opened: Opened) -> None:
    found = opened(store)
    expected = {str(path.relative_to(phantom_archive)) for path in phantom_archive.rglob("*.nii.gz")}
    assert set(found.ledger) == expected
    assert {row["status"] for row in found.ledger.values()} == {"embedded"}
    brain = found.ledger["head_mri/head_mri_0.nii.gz"]
    assert (brain["modality"], brain["body_region"], brain["organ"]) == ("MRI", "Head", "Brain")
    assert json.loads(brain["facts"])["modality_source"] == "label"
    assert set(found.files["kind"].to_pylist()) == {
        "slices", "volumes", "previews", "hnsw", "lsh", "exact", "rows", "centre",
    }  # fmt: skip
    assert len(found.manifest.indices) == 3  # slices, mean, gaussian
    assert verify_store(found.store) == []


def test_vectors_are_what_the_encoder_gives_directly(store: Path, phantom_archive: Path, opened: Opened) -> None:
    from medret.embeddings import unit_slices
    from medret.models import Encoder, model_spec, resolve_weights
    from medret.volume import read_volume

    found = opened(store)
    recipe = found.manifest.recipes[0].load()
    spec = model_spec(MODEL)
    encoder = Encoder(spec, resolve_weights(spec), precision=recipe.model.precision, batch_size=8)
    volume_id = "chest_ct/chest_ct_1.nii.gz"
    volume = read_volume((phantom_archive / volume_id).read_bytes(), volume_id, recipe.slices, [224], modality="CT")
    direct, _ = unit_slices(encoder.embed(volume.pixels[224]))
    stored = found.vectors(MODEL)[volume_id].astype(np.float32)
    cosines = (stored * direct.astype(np.float32)).sum(axis=1)
    assert cosines.min() > 0.999


def test_a_write_that_fails_is_one_line(
    store: Path, phantom_archive: Path, tmp_path: Path, opened: Opened, capfd: pytest.CaptureFixture[str]
) -> None:
    """As when the disk is full: Ray Data logged an error of its own before medret's."""
    digest = opened(store).manifest.recipes[0].load().digest
    blocked = tmp_path / "store" / "embeddings" / digest
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"")
    only = ["--glob", "head_mri/head_mri_0.nii.gz", "--slices", "uniform:8"]
    assert main(["index", str(phantom_archive), str(tmp_path / "store"), "--quiet", *only]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("medret index: ")
    assert "cannot be written" in line


def test_an_index_holds_the_directions_from_its_centre(store: Path, opened: Opened) -> None:
    found = opened(store)
    snapshot = medret.open_snapshot(store)
    parquet = found.vectors(MODEL, "volumes", "mean")
    ids = sorted(parquet)
    raw = np.concatenate([parquet[volume_id] for volume_id in ids]).astype(np.float64)
    centre = raw.mean(axis=0) * len(ids) / (len(ids) + 4)
    expected = (raw - centre) / np.linalg.norm(raw - centre, axis=1, keepdims=True)
    hits = snapshot.search(raw[0], k=len(ids), index="exact")  # a vector as the recipe gives it
    scores = dict(zip(ids, expected @ expected[0], strict=True))
    assert hits[0].volume_id == ids[0]
    assert hits[-1].score < 0.5  # raw vectors of phantoms are all alike
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.volume_id], abs=2e-3)


@pytest.mark.parametrize("index", ["hnsw", "lsh", "exact"])
def test_each_volume_finds_itself(
    store: Path, phantom_archive: Path, capsys: pytest.CaptureFixture[str], index: str
) -> None:
    volume_id = "leg_mri/leg_mri_0.nii.gz"
    code, found = run(capsys, "search", store, phantom_archive / volume_id, "-k", "3", "--index", index, "--json")
    assert code == 0
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert found["hits"][0]["volume_id"] == volume_id
    assert found["hits"][0]["score"] > 0.99
    assert found["hits"][0]["labels"]["organ"] == "Leg"
    assert found["hits"][1]["volume_id"] == "leg_mri/leg_mri_1.nii.gz"


@pytest.mark.parametrize("mode", ["volume", "late"])
def test_a_copy_in_other_clothes_finds_its_original(
    store: Path, phantom_archive: Path, tmp_path: Path, copies_of: Callable[[Path], dict[str, Any]], mode: str
) -> None:
    snapshot = medret.open_snapshot(store)
    for volume_id in ("head_mri/head_mri_1.nii.gz", "chest_ct/chest_ct_0.nii.gz"):
        for name, image in copies_of(phantom_archive / volume_id).items():
            image.to_filename(tmp_path / f"{name}.nii")
            hits = snapshot.search(
                tmp_path / f"{name}.nii", 2, mode=mode, modality="CT" if "ct" in volume_id else "MRI"
            )
            assert hits[0].volume_id == volume_id, name


def test_run_report_tells_stages_and_ray_data_statistics(store: Path) -> None:
    [report] = (store / "runs").glob("*.json")
    content = json.loads(report.read_text())
    assert content["outcome"] == "published"
    assert sum(content["waits_s"].values()) > 0
    assert content["stages"]["read"]["volumes"] == content["counts"]["listed"] == 12
    assert content["stages"][f"embed {MODEL}"]["slices"] == content["stages"]["read"]["slices"] == 12 * 8
    assert "MapBatches(EmbedStage)" in content["ray_data"]
    phases = {"list", "weights", "plan", "ray", "check", "stream", "arrange", "index", "gates", "publish"}
    assert set(content["phases_s"]) == set(content["driver"]) == phases


def test_several_models_share_one_decode(
    phantom_archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [MODEL, "timm:test_vit"]
    options = [part for model in models for part in ("--model", model)]
    options += ["--weights", f"{models[1]}=random"]
    code, found = run(capsys, "index", phantom_archive, tmp_path / "s", *options, "--slices", "uniform:2", "--json")
    assert code == 0
    assert [model["name"] for model in found["models"]] == models
    assert [model["random_weights"] for model in found["models"]] == [False, True]
    assert "random weights" in found["models"][1]["weights"]
    stages = json.loads((tmp_path / "s" / found["report"]).read_text())["stages"]
    assert stages["read"]["volumes"] == 12
    assert {stages[f"embed {model}"]["volumes"] for model in models} == {12}
    assert found["slices"] == 2 * 12 * 2
    assert verify_store(Location(tmp_path / "s")) == []


def test_bad_files_are_quarantined_and_change_nothing_for_the_others(
    phantom_archive: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: Opened
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(phantom_archive, mixed)
    sound = (phantom_archive / "leg_mri/leg_mri_0.nii.gz").read_bytes()
    (mixed / "aa_empty.nii.gz").write_bytes(b"")
    (mixed / "leg_mri" / "cut.nii.gz").write_bytes(sound[: len(sound) // 2])
    outline = np.zeros((24, 24, 24), np.uint8)
    outline[6:18, 4:20, 8:16] = 1
    nib.save(nib.Nifti1Image(outline, np.eye(4)), mixed / "leg_mri" / "outline.nii.gz")  # C10: a mask by content
    (mixed / "text.nii").write_bytes(b"not an image at all, but some text" * 20)
    (mixed / "._hidden.nii.gz").write_bytes(sound)
    (mixed / "labelsTr").mkdir()
    (mixed / "labelsTr" / "mask.nii.gz").write_bytes(sound)
    labels = phantom_archive.parent / "labels.csv"
    options = ("--labels", labels, "--slices", "uniform:8", "--actors", "1", "--json")
    code, found = run(capsys, "index", mixed, tmp_path / "s", *options)
    assert code == 4
    counts = found["counts"]
    assert (counts["listed"], counts["embedded"], counts["quarantined"], counts["skipped"]) == (18, 12, 4, 2)
    codes = {row["volume_id"]: row["code"] for row in found["quarantine"]}
    assert codes == {
        "aa_empty.nii.gz": "empty", "leg_mri/cut.nii.gz": "truncated", "leg_mri/outline.nii.gz": "label_mask",
        "text.nii": "not_nifti",
    }  # fmt: skip
    assert all(row["reason"] for row in found["quarantine"])
    alone, together = opened(store).vectors(MODEL), opened(tmp_path / "s").vectors(MODEL)
    assert alone.keys() == together.keys()
    for volume_id, vectors in alone.items():  # other companions in a batch, the same vectors
        np.testing.assert_array_equal(vectors, together[volume_id])
    assert verify_store(Location(tmp_path / "s")) == []


def test_an_archive_of_nothing_usable_publishes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "x.nii.gz").write_bytes(b"")
    assert main(["index", str(tmp_path / "archive"), str(tmp_path / "s"), "--quiet"]) == 3
    assert "1 empty" in capsys.readouterr().err
    assert not (tmp_path / "s" / "CURRENT").exists()
    [report] = (tmp_path / "s" / "runs").glob("*.json")
    assert json.loads(report.read_text())["outcome"] == "refused"


def test_s3_gives_the_same_vectors_and_neighbours_though_one_request_in_ten_fails(
    phantom_archive: Path, store: Path, s3: Callable[[str], str], failing_s3: FailingProxy,
    capsys: pytest.CaptureFixture[str], opened: Opened,
) -> None:  # fmt: skip
    """And every key finds itself, whatever is in it (A1)."""
    failing_s3.rate = 0.0
    archive, remote = s3("archive"), s3("store") + "/medret"
    text = (phantom_archive.parent / "labels.csv").read_text()
    named = {str(path.relative_to(phantom_archive)): path for path in phantom_archive.rglob("*.nii.gz")}
    keys = dict(zip(named, named, strict=True)) | dict(zip(sorted(named), ODD_KEYS, strict=False))
    for volume_id, path in named.items():
        Location(archive).fs.pipe_file(f"{archive}/nifti/{keys[volume_id]}", path.read_bytes())
        text = text.replace(volume_id, keys[volume_id])
    Location(archive).write("labels.csv", text.encode())
    failing_s3.rate = 0.1
    code, _ = run(
        capsys, "index", f"{archive}/nifti", remote, "--labels", f"{archive}/labels.csv", "--slices", "uniform:8",
        "--aggregation", "mean", "--aggregation", "gaussian:0.5,0.25", "--shard-volumes", "2", "--actors", "1",
        "--json",
    )  # fmt: skip
    assert code == 0
    assert set(failing_s3.failed) == set(FAULTS)  # each kind was met
    [report] = Location(remote).files("runs")
    assert json.loads(Location(remote).read(report))["storage_retries"] > 0
    alone, through = opened(store).vectors(MODEL), opened(remote).vectors(MODEL)
    assert through.keys() == set(keys.values())
    for found_id, vectors in alone.items():
        np.testing.assert_array_equal(vectors, through[keys[found_id]])
    failing_s3.rate = 0.0
    snapshot = medret.open_snapshot(remote)
    for key in ODD_KEYS:
        assert snapshot.search(f"{archive}/nifti/{key}", k=1)[0].volume_id == key
    assert all(row["etag"] for row in opened(remote).ledger.values())
    asked = "heart_mri/heart_mri_0.nii.gz"
    for index in ("hnsw", "lsh", "exact"):
        _, there = run(capsys, "search", remote, f"{archive}/nifti/{asked}", "-k", "5", "--index", index, "--json")
        _, here = run(capsys, "search", store, phantom_archive / asked, "-k", "5", "--index", index, "--json")
        assert [h["volume_id"] for h in there["hits"]] == [keys[h["volume_id"]] for h in here["hits"]]
        assert [h["score"] for h in there["hits"]] == pytest.approx([h["score"] for h in here["hits"]], abs=2e-3)
    assert main(["verify", remote]) == 0
    victim = next(path for path in Location(remote).files() if "/hnsw-" in path)
    damaged = bytearray(Location(remote).read(victim))
    damaged[len(damaged) // 2] ^= 1
    Location(remote).write(victim, bytes(damaged))
    capsys.readouterr()
    assert main(["verify", remote]) == 1
    assert victim in capsys.readouterr().out
