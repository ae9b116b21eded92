"""One odd object, one lost thing, one word too few must not cost what a store holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.cli import main
from medret.demo.phantoms import KINDS, write_phantom
from medret.embeddings import Aggregation, Slices, plane_codes, unit_slices
from medret.models import Encoder, model_spec, resolve_weights
from medret.pipeline import run as pipeline_run
from medret.pipeline.batch_schema import vectors_column
from medret.pipeline.embedding_shards import WriteStage, write_shard
from medret.pipeline.gates import NO_KEYS, Gate, VectorFacts
from medret.pipeline.layout import lay_out
from medret.pipeline.new_ledger import unchanged
from medret.pipeline.result import Log
from medret.pipeline.store_state import read_base, store_state
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER
from medret.snapshot import current_id, read_journal, verify_store
from medret.snapshot.tables import write_entry
from medret.storage import Location
from medret.volume import read_volume

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


def volume(volume_id: str, *slices: tuple[float, float]) -> Slices:
    n = len(slices)
    place = np.linspace(0, 1, n, dtype=np.float32)
    vectors, norms = unit_slices(np.array(slices, np.float32))
    planes, at = plane_codes(["axial"] * n), np.arange(n, dtype=np.int32)
    return Slices(vectors, planes, at, place, place, norms, volume_id=volume_id)


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
            "positions_mm": [0.0, 1.0], "sources": [None] * 2,
            vectors_column(RECIPE): np.array(raw, np.float32).tobytes(),
        }  # fmt: skip
        found.append((stage._reduce(row) is None, row["code"]))  # the guarded part itself
    assert found == [(True, "embedding_failed"), (False, None)]

    store = Location(tmp_path / "store")
    embedded = [volume("cancels", (1, 0), (-1, 0)), volume("sound", (1, 0), (0, 1))]
    shard, files = write_shard(store, {RECIPE: embedded}, [MAX])
    rows = [ledger_row(each.volume_id, shards=[(RECIPE.digest, shard)]) for each in embedded]
    base, journal = read_base(store), read_journal(store)
    ledger = replace(unchanged(store_state(base, journal), list), changed=pa.Table.from_pylist(rows, LEDGER))
    layout = lay_out(store, ledger, files, [RECIPE], [MAX, MEAN], 64, "judge")
    status = {
        row["volume_id"]: (row["status"], row["code"], row["shards"]) for row in layout.ledger.changed.to_pylist()
    }
    assert status["cancels"] == ("quarantined", "embedding_failed", [])
    assert status["sound"][0] == "embedded"
    assert layout.live.shards[RECIPE.digest, shard].volumes == {"sound": 2}
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


# --- volumes that are away, refused, replaced --------------------------------------------------------------------


def test_most_of_an_archive_that_is_away_is_not_published_and_returns_with_its_vectors(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]], opened: Opened
) -> None:
    """A5: gone volumes count; insisting publishes; what returns takes its vectors from any snapshot that is there."""
    store, away = Location(place / "store"), place / "away"
    live, before = current_id(store), opened(place / "store").vectors(MODEL)
    away.mkdir()
    for path in sorted((place / "archive").iterdir())[:18]:
        path.rename(away / path.name)
    code, planned = run("plan")
    assert code == 0
    assert planned["lost"] == {"live": 20, "gone": 18}
    [refusal] = planned["refusals"]
    code, found = run("index")
    assert (code, current_id(store)) == (3, live)
    for told in (refusal, found["error"]):
        assert "18 of the 20 live volumes (90.0%: 18 gone, 0 newly in quarantine)" in told
        assert "--max-gone 0.9 lets them go" in told
        assert str(place) in told  # the likely cause: the store was made of another archive
    report = json.loads((place / "store" / max(store.files("runs"))).read_text())
    assert report["lost"] == {"live": 20, "gone": 18, "quarantined": 0}
    assert "stages" not in report  # judged before anything was embedded
    code, found = run("index", "--max-gone", "0.9")
    assert found["lost"] == report["lost"]
    assert (code, found["counts"]["gone"], found["counts"]["listed"]) == (0, 18, 2)
    for path in sorted(away.iterdir())[:17]:
        path.rename(place / "archive" / path.name)
    last = next(away.iterdir())
    shutil.copyfile(last, place / "archive" / "renamed.nii.gz")  # another name, another time
    damaged = place / "store" / "snapshots" / "20200101T000000Z-0123456789abcdef" / "manifest.json"
    damaged.parent.mkdir()
    damaged.write_bytes(b"{")  # an older snapshot that cannot be read is left alone
    code, found = run("index")
    shutil.rmtree(damaged.parent)
    counts = {name: found["counts"][name] for name in ("listed", "embedded", "unchanged", "gone")}
    assert (code, counts) == (0, {"listed": 20, "embedded": 0, "unchanged": 20, "gone": 0})
    assert (found["slices"], found["returned"]) == (0, 17)
    after = opened(place / "store").vectors(MODEL)
    before["renamed.nii.gz"] = before.pop(last.name)
    assert before.keys() == after.keys()
    for volume_id, vectors in before.items():
        np.testing.assert_array_equal(vectors, after[volume_id])
    assert verify_store(store) == []


def test_few_may_go_and_the_newly_refused_count(place: Path, run: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    """A5: never for fewer than five volumes; a volume that is refused now is lost as well as one that is gone."""
    volumes = sorted((place / "archive").iterdir())
    for path in volumes[:3]:
        path.unlink()
    for path in volumes[3:5]:
        path.write_bytes(b"")
    code, found = run("index", "--max-gone", "0.1")
    assert code == 3
    assert "5 of the 20 live volumes (25.0%: 3 gone, 2 newly in quarantine)" in found["error"]
    shutil.copyfile(volumes[9], volumes[4])
    code, found = run("index", "--max-gone", "0")
    assert (code, found["counts"]["gone"], found["counts"]["quarantined"]) == (4, 3, 1)


def index_with(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[], None]) -> None:
    """Let something happen at the moment when a run, its contents compared, begins to embed."""
    real = getattr(pipeline_run, name)

    def barrier(*arguments: Any, **named: Any) -> Any:
        before()
        return real(*arguments, **named)

    monkeypatch.setattr(pipeline_run, name, barrier)


def test_a_file_replaced_between_hashing_and_reading_gives_its_copies_no_vectors(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1, A8: the leader of three equal files is replaced, that of two is gone, once all are hashed; B2 beside them."""
    archive, spare = place / "archive", place / "spare.nii.gz"
    for name, number in (("a", 50), ("b", 51)):
        write_phantom(archive / f"{name}1.nii.gz", "head_mri", number, shape=(20, 18, 12))
    for copy in ("a2", "a3", "b2"):
        shutil.copyfile(archive / f"{copy[0]}1.nii.gz", archive / f"{copy}.nii.gz")
    write_phantom(spare, "leg_mri", 52, shape=(20, 18, 12))

    def replace() -> None:
        shutil.copyfile(spare, archive / "a1.nii.gz")
        (archive / "b1.nii.gz").unlink()
        for canary in sorted(archive.glob("v*")):  # B2: whichever are chosen, they are other images now
            shutil.copyfile(spare, canary)

    with monkeypatch.context() as patch:
        index_with(patch, "_stream", replace)
        code, found = run("index")
    assert (code, [row["volume_id"] for row in found["quarantine"]]) == (4, ["b1.nii.gz"])
    after = opened(place / "store")
    content = {name: hashlib.sha256((archive / name).read_bytes()).hexdigest() for name in ("a1.nii.gz", "b2.nii.gz")}
    assert {name: after.ledger[name]["content_sha256"] for name in content} == content
    gates = {gate.name: gate.found for gate in after.manifest.gates}
    assert gates["canaries"] == "none to compare"
    vectors, recipe, spec = after.vectors(MODEL), after.manifest.recipes[0].load(), model_spec(MODEL, "random")
    encoder = Encoder(spec, resolve_weights(spec, "random"), precision=recipe.model.precision, batch_size=8)
    for name in ("a1.nii.gz", "a2.nii.gz", "a3.nii.gz", "b2.nii.gz"):
        sliced = read_volume((archive / name).read_bytes(), name, recipe.slices, [spec.image_size])
        expected, _ = unit_slices(encoder.embed(sliced.pixels[spec.image_size]))
        assert (vectors[name].astype(np.float32) * expected.astype(np.float32)).sum(axis=1).min() > 0.999
    assert not np.allclose(vectors["a1.nii.gz"].astype(float), vectors["a2.nii.gz"].astype(float), atol=2e-2)
    assert verify_store(Location(place / "store")) == []


def test_a_published_volume_that_cannot_be_read_keeps_its_vectors(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A14: marked stale until the file can be read again."""
    path, away = place / "archive" / "v03.nii.gz", place / "v03"
    before = opened(place / "store").vectors(MODEL)
    path.touch()

    def vanish() -> None:
        path.rename(away)

    with monkeypatch.context() as patch:
        index_with(patch, "compare_contents", vanish)
        code, found = run("index")
    assert (code, found["counts"]["stale"], found["counts"]["unchanged"], found["quarantine"]) == (0, 1, 20, [])
    assert [(row["volume_id"], row["code"]) for row in found["stale"]] == [("v03.nii.gz", "unreadable")]
    after = opened(place / "store")
    np.testing.assert_array_equal(after.vectors(MODEL)["v03.nii.gz"], before["v03.nii.gz"])
    assert verify_store(Location(place / "store")) == []
    away.rename(path)
    code, found = run("index")
    assert (code, found["touched"], found["counts"]["stale"], found["stale"]) == (0, 1, 0, [])
    assert opened(place / "store").ledger["v03.nii.gz"]["code"] is None


# --- models and options ------------------------------------------------------------------------------------------


def test_models_of_the_store_are_not_dropped_without_a_word(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    """B8: no --model means the store's; another one alone is refused; vectors in the store are taken again."""
    other = "timm:test_resnet"
    only = ("--model", other, "--weights", f"{other}=random")
    code, planned = run("plan", model=())
    assert (code, planned["plan"]["unchanged"], planned["refusals"]) == (0, 20, [])
    assert f"{MODEL} could not be searched any more" in run("plan", model=only)[1]["refusals"][0]
    code, found = run("index", model=only)
    assert (code, "--replace-models" in found["error"]) == (3, True)
    code, found = run("index", "--replace-models", model=only)
    assert (code, [model["name"] for model in found["models"]]) == (0, [other])
    code, found = run("index", model=(*WITH_MODEL, *only))
    assert (code, found["slices"], found["returned"]) == (0, 0, 20)  # the first model's vectors lay in the store
    code, found = run("index", model=())
    assert (code, found["published"], [model["name"] for model in found["models"]]) == (0, False, [MODEL, other])
    code, planned = run("plan", "--slices", "uniform:3", model=())
    assert f"{MODEL}: slices is uniform:3, was uniform:2" in planned["embeds_anew"]


def test_a_run_that_is_told_to_stop_while_it_publishes_has_published(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Log.write

    def stopped_writing(log: Log, store: Location) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return write(log, store)

    for gone in ("v03.nii.gz", "v04.nii.gz"):
        (place / "archive" / gone).unlink()
        with monkeypatch.context() as patch:
            if gone == "v03.nii.gz":
                index_with(patch, "publish", lambda: os.kill(os.getpid(), signal.SIGTERM))
            else:
                patch.setattr(Log, "write", stopped_writing)
            code, found = run("index")
        assert (code, found["published"]) == (0, True)
        assert json.loads((place / "store" / found["report"]).read_text())["outcome"] == "published"


def test_quiet_says_nothing(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["index", place / "archive", place / "store", *WITH_MODEL, *OPTIONS, "--quiet"]
    assert (main([str(word) for word in words]), *capfd.readouterr()) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "target", "bad"),
    [
        ("findable", "medret.pipeline.judge.findable_rows", lambda *_: [(1, 2)]),
        ("vectors", "medret.pipeline.judge.vector_facts", lambda *_: [VectorFacts(NO_KEYS, 1)]),
        (
            "duplicates",
            "medret.pipeline.judge.gates.duplicate_gate",
            lambda *_: Gate("duplicates", False, "all", "half"),
        ),
    ],
)
def test_a_check_that_fails_publishes_nothing(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch,
    name: str, target: str, bad: Any,
) -> None:  # fmt: skip
    live = current_id(Location(place / "store"))
    write_phantom(place / "archive" / "new.nii.gz", "head_mri", 99, shape=(20, 18, 12))
    monkeypatch.setattr(target, bad)
    code, found = run("index")
    assert (code, current_id(Location(place / "store"))) == (3, live)
    assert f"{name}: found" in found["error"]


def test_a_run_that_lost_the_store_publishes_nothing(
    place: Path, run: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Location(place / "store")
    live = current_id(store)
    write_phantom(place / "archive" / "new.nii.gz", "head_mri", 99, shape=(20, 18, 12))
    index_with(monkeypatch, "make_indices", lambda: store.write("LEASE", b"{}"))
    code, _ = run("index")
    assert (code, current_id(store)) == (5, live)
