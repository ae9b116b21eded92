"""The real volumes together with the broken files, where they lie beside the checkout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from medret.snapshot import verify_store
from medret.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
# Described as having a singular sform, but its bytes hold a regular one: those of bad/nifti2.nii.gz, which is usable.
NOT_AS_DESCRIBED = {"bad/singular_affine.nii.gz"}


@pytest.fixture(scope="module")
def indexed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A store over volumes/ and bad/, and what the run printed."""
    folder = tmp_path_factory.mktemp("real")
    archive = folder / "archive"
    archive.mkdir()
    for name in ("volumes", "bad"):
        (archive / name).symlink_to(shared_data / name)
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *values, **_: printed.extend(map(str, values)))
        labels = str(shared_data / "labels.csv")
        options = ["--labels", labels, "--model", "efficientnet_lite0", "--slices", "uniform:4", "--json"]
        assert main(["index", str(archive), str(folder / "store"), *options]) == 4
    return folder / "store", json.loads(printed[-1])


def test_every_file_ends_where_it_belongs(shared_data: Path, indexed: tuple[Path, Any]) -> None:
    store, found = indexed
    volumes = {f"volumes/{path.name}" for path in (shared_data / "volumes").glob("*.nii.gz")}
    with (shared_data / "bad" / "bad.csv").open() as file:
        bad = {f"bad/{row['path']}": row["usable"] for row in csv.DictReader(file)}
    refused = {path for path, usable in bad.items() if usable == "no"} - NOT_AS_DESCRIBED
    assert {row["volume_id"] for row in found["quarantine"]} == refused
    assert all(row["reason"] for row in found["quarantine"])
    counts = found["counts"]
    assert counts["embedded"] == len(volumes | set(bad)) - len(refused)
    assert counts["listed"] == counts["embedded"] + counts["quarantined"] + counts["skipped"]
    assert verify_store(Location(store)) == []


@pytest.mark.parametrize("index", ["hnsw", "lsh", "exact"])
def test_a_volume_file_finds_itself(
    shared_data: Path, indexed: tuple[Path, Any], index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    query = shared_data / "volumes" / "pyrad_brain1.nii.gz"
    assert main(["search", str(indexed[0]), str(query), "-k", "5", "--index", index, "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert len(hits) == 5
    assert hits[0]["volume_id"] == "volumes/pyrad_brain1.nii.gz"
    assert hits[0]["score"] > 0.99
    assert hits[0]["labels"]["organ"] == "Brain"
