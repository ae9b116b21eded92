"""One odd object, one lost thing, one word too few must not cost what a store holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.cli import main
from medret.demo.phantoms import KINDS, write_phantom
from medret.embeddings import Aggregation, EmbeddedVolume, unit_slices
from medret.pipeline.make import lay_out
from medret.pipeline.rows import vectors_column
from medret.pipeline.shards import write_shard
from medret.pipeline.write import WriteStage
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER
from medret.snapshot import read_journal, verify_store
from medret.snapshot.journal import write_entry
from medret.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
Opened = Callable[[str | Path], SimpleNamespace]
MODEL = "timm:test_vit"
WITH_MODEL = ("--model", MODEL, "--weights", f"{MODEL}=random")
OPTIONS = ("--slices", "uniform:2", "--actors", "1")
RECIPE = Recipe(SliceRecipe(), ModelRecipe("made", "0" * 64, 224, (0.5,) * 3, (0.5,) * 3, 2, "fp32"))
MEAN, MAX = Aggregation("mean"), Aggregation("max")


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`archive` of 20 small phantoms and `store` over it, as --shard-volumes 8 makes it; for readers only."""
    folder = tmp_path_factory.mktemp("twenty")
    kinds = list(KINDS)
    for number in range(20):
        write_phantom(folder / "archive" / f"v{number:02d}.nii.gz", kinds[number % 6], number, shape=(20, 18, 12))
    assert main(["index", str(folder / "archive"), str(folder / "store"), *WITH_MODEL, *OPTIONS, "--quiet",
                 "--shard-volumes", "8"]) == 0  # fmt: skip
    return folder


@pytest.fixture
def place(twenty: Path, tmp_path: Path) -> Path:
    """A copy of the archive, times included, and of its store."""
    shutil.copytree(twenty, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """`run("index", "--glob", "a*")`: exit code and document, or {"error"}."""

    def call(command: str, *more: str | Path, model: tuple[str, ...] = WITH_MODEL) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        words = [command, place / "archive", place / "store", *model, *OPTIONS, "--json", *more]
        code = main([str(word) for word in words])
        output = capsys.readouterr()
        return code, json.loads(output.out) if output.out else {"error": output.err}

    return call


# --- volumes without a vector ------------------------------------------------------------------------------------


def volume(volume_id: str, *slices: tuple[float, float]) -> EmbeddedVolume:
    n = len(slices)
    place = np.linspace(0, 1, n, dtype=np.float32)
    return EmbeddedVolume(
        volume_id, ["axial"] * n, np.arange(n, dtype=np.int32), place, place, *unit_slices(np.array(slices, np.float32))
    )


def ledger_row(volume_id: str, **more: Any) -> dict[str, Any]:
    return {
        "volume_id": volume_id, "uri": f"/{volume_id}", "size_bytes": 1, "status": "embedded", "slices": 2,
        "content_sha256": volume_id, **more,
    }  # fmt: skip


def test_slices_that_cancel_cost_their_volume_and_no_other(tmp_path: Path) -> None:
    """A6: when it is embedded, and when a further aggregation is derived from what is stored."""
    stage = WriteStage(Location(tmp_path), (RECIPE,), (MEAN,), "judge", None)
    found = []
    for raw in ([[1, 0], [-1, 0]], [[1, 0], [0, 1]]):
        row = {
            "volume_id": "v", "code": None, "planes": ["axial"] * 2, "positions": [0, 1], "relative": [0.0, 1.0],
            "positions_mm": [0.0, 1.0], vectors_column(RECIPE): np.array(raw, np.float32).tobytes(),
        }  # fmt: skip
        found.append((stage._reduce(row) is None, row["code"]))  # the guarded part itself
    assert found == [(True, "embedding_failed"), (False, None)]

    store = Location(tmp_path / "store")
    embedded = [volume("cancels", (1, 0), (-1, 0)), volume("sound", (1, 0), (0, 1))]
    shard, files = write_shard(store, {RECIPE: embedded}, [MAX])
    rows = [ledger_row(each.volume_id, shards=[(RECIPE.digest, shard)]) for each in embedded]
    layout = lay_out(store, pa.Table.from_pylist(rows, LEDGER), files, [RECIPE], [MAX, MEAN], 64, "judge")
    status = {row["volume_id"]: (row["status"], row["code"], row["shards"]) for row in layout.ledger.to_pylist()}
    assert status["cancels"] == ("quarantined", "embedding_failed", [])
    assert status["sound"][0] == "embedded"
    assert layout.live[RECIPE.digest, shard].volumes == ["sound"]
    assert {row["aggregation"]: row["rows"] for row in layout.files.to_pylist()} == {None: 4, "max": 2, "mean": 1}


# --- what stands in a store --------------------------------------------------------------------------------------


def test_foreign_and_damaged_files_beside_the_reports_are_ignored_and_said(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    """A7."""
    runs = place / "store" / "runs"
    foreign = {
        "events.out.tfevents": b"\0\1", "zz.json": b"{}", "20990101T000000Z-0123456789abcdef.json": b'{"stages": [',
        "20990102T000000Z-0123456789abcdef.json": b"[" * 200_000, "20990103T000000Z-0123456789abcdef.json": b"\xff",
        "20990104T000000Z-0123456789abcdef.json": b'{"stages": {"embed x": {"slices": "many"}}}',
    }  # fmt: skip
    for name, content in foreign.items():
        (runs / name).write_bytes(content)
    write_phantom(place / "archive" / "new.nii.gz", "head_mri", 99, shape=(20, 18, 12))
    code, found = run("plan")
    assert code == 0
    assert sorted(found["ignored_reports"]) == sorted(f"runs/{name}" for name in foreign)
    assert found["seconds"] is not None  # the sound report is read all the same


def test_another_index_version_is_not_up_to_date(
    run: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7."""
    assert run("index")[1]["snapshot"]  # under the copy's address
    assert run("plan")[1]["up_to_date"]
    monkeypatch.setattr("medret.index.settings.INDEX_VERSION", 999)
    assert not run("plan")[1]["up_to_date"]
    code, found = run("index")
    assert (code, found["published"], found["slices"]) == (0, True, 0)
    assert run("plan")[1]["up_to_date"]


def test_an_idle_run_leaves_the_unfinished_work_of_another_recipe(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]], opened: Opened
) -> None:
    """B5: what the live snapshot holds is cleared, the rest stays, when a run is idle and when it publishes."""
    store = Location(place / "store")
    held = opened(place / "store").ledger
    foreign = {"shards": [("f" * 16, "0" * 16)]}
    entries = {
        "0" * 16: held["v00.nii.gz"],
        "1" * 16: {**held["v01.nii.gz"], **foreign, "size_bytes": 1},  # of an object that is another one now
        "2" * 16: {**held["v02.nii.gz"], **foreign},
    }
    for published in (True, False):  # the first run publishes: the copy's address is another one
        for name, row in entries.items():
            write_entry(store, name, pa.Table.from_pylist([row], LEDGER), FILES.empty_table())
        code, found = run("index")
        assert (code, found["published"]) == (0, published)
        assert [path.partition("-")[0] for path in read_journal(store).paths] == ["journal/" + "2" * 16]
    assert verify_store(store) == []
