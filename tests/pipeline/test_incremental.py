"""Runs over an archive that changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import medret
from medret.cli import main
from medret.demo.phantoms import KINDS, write_phantom
from medret.snapshot import current_id, verify_store
from medret.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
Opened = Callable[[str | Path], SimpleNamespace]
MODEL = "timm:test_vit"
OPTIONS = ("--model", MODEL, "--weights", f"{MODEL}=random", "--slices", "uniform:2")
SHAPE = (24, 22, 16)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small phantoms, and 5 more of the same kinds in `spare`."""
    folder = tmp_path_factory.mktemp("originals")
    kinds = list(KINDS)
    for number in range(60):
        write_phantom(folder / "archive" / f"v{number:02d}.nii.gz", kinds[number % 6], number, shape=SHAPE)
    for number in range(5):
        write_phantom(folder / "spare" / f"s{number}.nii.gz", kinds[number], 100 + number, shape=SHAPE)
    return folder


@pytest.fixture(scope="module")
def first(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store over the 60."""
    store = tmp_path_factory.mktemp("first") / "store"
    assert main(["index", str(originals / "archive"), str(store), *OPTIONS, "--quiet"]) == 0
    return store


@pytest.fixture
def archive(originals: Path, first: Path, tmp_path: Path) -> Path:
    """A copy of the 60, times included, with a copy of their store beside it."""
    shutil.copytree(first, tmp_path / "store")
    shutil.copytree(originals / "archive", tmp_path / "archive")
    return tmp_path / "archive"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, json.loads(output.out) if output.out else {"error": output.err}


def index(capsys: pytest.CaptureFixture[str], archive: Path, *more: str | Path) -> tuple[int, dict[str, Any]]:
    return run(capsys, "index", archive, archive.parent / "store", *OPTIONS, "--json", *more)


def change(archive: Path, originals: Path) -> None:
    """Add 3, change 2, touch 1, rename 1, delete 2."""
    spare = originals / "spare"
    for number in range(3):
        shutil.copy(spare / f"s{number}.nii.gz", archive / f"added{number}.nii.gz")
    for number in range(2):
        shutil.copyfile(spare / f"s{3 + number}.nii.gz", archive / f"v1{number}.nii.gz")
    (archive / "v20.nii.gz").touch()
    (archive / "v30.nii.gz").rename(archive / "renamed.nii.gz")
    (archive / "v40.nii.gz").unlink()
    (archive / "v41.nii.gz").unlink()


def test_only_what_is_new_or_changed_is_embedded(
    archive: Path, originals: Path, capsys: pytest.CaptureFixture[str], opened: Opened
) -> None:
    store = archive.parent / "store"
    before = opened(store)
    change(archive, originals)
    code, planned = run(capsys, "plan", archive, store, *OPTIONS, "--json")
    assert code == 0
    assert (planned["plan"]["gone"], planned["plan"]["touched"]) == (3, 1)
    code, found = index(capsys, archive)
    assert code == 0
    counts = found["counts"]
    wanted = {"embedded": 5, "new": 3, "changed": 2, "gone": 2, "renamed": 1, "unchanged": 56, "listed": 61}
    assert {name: counts[name] for name in wanted} == wanted
    assert found["touched"] == 1
    report = json.loads((store / found["report"]).read_text())
    assert report["stages"]["write"]["volumes"] == 5
    assert verify_store(Location(store)) == []
    after = opened(store)
    assert after.manifest.parent is not None
    # Vectors that were at hand are the stored ones, to the bit; the renamed volume kept its own.
    old, new = before.vectors(MODEL), after.vectors(MODEL)
    np.testing.assert_array_equal(new["renamed.nii.gz"], old["v30.nii.gz"])
    np.testing.assert_array_equal(new["v20.nii.gz"], old["v20.nii.gz"])
    kept = set(before.files["path"].to_pylist()) & set(after.files["path"].to_pylist())
    assert any("/slices-" in path for path in kept)
    # Deleted volumes, and the old name, are never found.
    snapshot = medret.open_snapshot(store)
    for kind in ("hnsw", "lsh", "exact"):
        hits = {hit.volume_id for hit in snapshot.search("v00.nii.gz", k=61, index=kind)}
        assert len(hits) == 61
        assert not hits & {"v30.nii.gz", "v40.nii.gz", "v41.nii.gz"}
    # The same archive, indexed at one stroke, gives the same index.
    fresh = archive.parent / "fresh"
    assert main(["index", str(archive), str(fresh), *OPTIONS, "--quiet"]) == 0
    indices = [{p for p in opened(s).files["path"].to_pylist() if p.startswith("indices/")} for s in (store, fresh)]
    assert indices[0] == indices[1]


def test_nothing_to_do_loads_no_model_and_publishes_nothing(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = archive.parent / "store"
    code, _ = index(capsys, archive)  # the archive's address is another one than the first store's
    assert code == 0
    live, files = current_id(Location(store)), Location(store).files()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("Ray was needed for nothing")

    monkeypatch.setattr("medret.pipeline.run.connected", never)
    code, found = index(capsys, archive)
    assert code == 0
    assert not found["published"]
    assert (found["counts"]["listed"], found["counts"]["embedded"], found["counts"]["unchanged"]) == (60, 0, 60)
    assert found["snapshot"] == live == current_id(Location(store))
    assert Location(store).files() == files
