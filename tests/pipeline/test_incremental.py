"""Runs over an archive that changes."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import medret
from medret.cli import main
from medret.demo.phantoms import KINDS, write_phantom
from medret.errors import MedretError
from medret.snapshot import current_id, leased, snapshot_ids, verify_store
from medret.snapshot.mentions import digest
from medret.snapshot.removal import Note, write_note
from medret.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
Opened = Callable[[str | Path], SimpleNamespace]
MODEL = "timm:test_vit"
OPTIONS = ("--model", MODEL, "--weights", f"{MODEL}=random", "--slices", "uniform:2", "--actors", "1")
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
    before, live = opened(store), current_id(Location(store))
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
    assert after.manifest.parent == live
    gates = {gate.name: gate.found for gate in after.manifest.gates}
    assert re.fullmatch(r"lowest cosine (1\.0|0\.999)\d+ of 3", gates["canaries"])
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
    write_note(Location(store), Note((digest("of a patient who withdrew.nii.gz"),)))  # B12: it is finished first
    code, found = index(capsys, archive)
    assert code == 0
    assert not found["published"]
    assert (found["counts"]["listed"], found["counts"]["embedded"], found["counts"]["unchanged"]) == (60, 0, 60)
    assert found["snapshot"] == live == current_id(Location(store))
    assert Location(store).files() == files


def stages(store: Path, found: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store / found["report"]).read_text())["stages"]
    return content


def index_paths(opened: Opened, store: Path) -> set[str]:
    return {path for path in opened(store).files["path"].to_pylist() if path.startswith("indices/")}


def test_an_interrupted_run_goes_on_where_it_was(
    originals: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = tmp_path / "store"
    options = (originals / "archive", store, *OPTIONS, "--shard-volumes", "16", "--json")

    def dies(*_: object, **__: object) -> None:
        raise MedretError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr("medret.pipeline.run.make_indices", dies)
        assert run(capsys, "index", *options)[0] == 1
    assert current_id(Location(store)) is None
    entries = sorted((store / "journal").glob("*.parquet"))
    assert len(entries) == 4
    entries[1].unlink()  # as if the run had been killed before that group was written
    code, planned = run(capsys, "plan", *options)
    assert code == 0
    assert sum(planned["plan"].values()) == 60
    missing = planned["plan"]["new"]
    assert 12 <= missing <= 16
    code, found = run(capsys, "index", *options)
    assert code == 0
    assert (found["counts"]["embedded"], found["resumed"]) == (60, 60 - missing)
    assert stages(store, found)[f"embed {MODEL}"]["volumes"] == missing  # nothing finished was made again
    assert not list((store / "journal").glob("*"))
    assert index_paths(opened, store) == index_paths(opened, first)  # same vectors, same neighbours
    assert verify_store(Location(store)) == []


def test_another_aggregation_or_index_embeds_nothing(
    archive: Path, first: Path, originals: Path, capsys: pytest.CaptureFixture[str], opened: Opened
) -> None:
    store = archive.parent / "store"
    same = (originals / "archive", store, *OPTIONS, "--json")
    code, found = run(capsys, "index", *same, "--aggregation", "mean", "--aggregation", "max", "--hnsw-m", "16")
    assert code == 0
    assert (found["counts"]["embedded"], found["counts"]["unchanged"], found["slices"]) == (0, 60, 0)
    assert "embed" not in "".join(stages(store, found))
    after = opened(store)
    before, now = (opened(one).vectors(MODEL, "volumes", "mean") for one in (first, store))
    np.testing.assert_array_equal(np.concatenate(list(before.values())), np.concatenate(list(now.values())))
    slices, pooled = after.vectors(MODEL), after.vectors(MODEL, "volumes", "max")
    for volume_id, vectors in slices.items():
        expected = vectors.astype(np.float32).max(axis=0)
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(pooled[volume_id][0].astype(np.float32), expected, atol=1e-3)
    assert verify_store(Location(store)) == []


def test_a_further_model_is_embedded_alone(archive: Path, originals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, other = archive.parent / "store", "timm:test_resnet"
    more = ("--model", other, "--weights", f"{other}=random")
    code, found = run(capsys, "index", originals / "archive", store, *OPTIONS, *more, "--json")
    assert code == 0
    assert {name: count["volumes"] for name, count in stages(store, found).items() if "embed" in name} == {
        f"embed {other}": 60
    }
    assert (found["counts"]["embedded"], found["counts"]["new"]) == (60, 0)
    assert verify_store(Location(store)) == []
    code, found = run(capsys, "index", originals / "archive", store, *OPTIONS, *more, "--json")
    assert (code, found["published"]) == (0, False)


def few(originals: Path, folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for number in range(count):
        shutil.copy2(originals / "archive" / f"v{number:02d}.nii.gz", folder)
    return folder


def test_gates_and_quarantine_from_run_to_run(
    originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, store = few(originals, tmp_path / "a"), tmp_path / "store"
    (archive / "bad.nii.gz").write_bytes(b"")
    (archive / "copy.nii.gz").write_bytes((archive / "v03.nii.gz").read_bytes())
    code, found = index(capsys, archive, "--max-quarantined", "0.05")
    assert code == 3
    assert "quarantined: found 1 of 14 volumes (7.1%), expected at most 5% (--max-quarantined)" in found["error"]
    assert current_id(Location(store)) is None
    code, found = index(capsys, archive)
    assert code == 4
    counts = found["counts"]
    assert (counts["embedded"], counts["renamed"], counts["quarantined"], found["resumed"]) == (13, 0, 1, 12)
    live = found["snapshot"]
    code, found = index(capsys, archive)
    assert (code, found["published"], found["counts"]["quarantined"]) == (0, False, 1)
    code, found = index(capsys, archive, "--retry-quarantined")
    assert (code, found["published"]) == (4, True)
    assert found["snapshot"] != live
    # The model drifts: what is stored is not what it gives any more.
    shutil.copy(originals / "spare" / "s0.nii.gz", archive / "bad.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medret.pipeline.judge.canary_cosines", lambda *_: {"v00.nii.gz": 0.99})
        code, refused = index(capsys, archive)
    assert code == 3
    assert "canaries: found lowest cosine 0.99000" in refused["error"]
    assert current_id(Location(store)) == found["snapshot"]
    code, found = index(capsys, archive)  # such vectors are not gone on with
    assert (code, found["counts"]["new"], found["resumed"], found["counts"]["quarantined"]) == (0, 1, 0, 0)


def test_of_two_runs_together_one_publishes(originals: Path, tmp_path: Path) -> None:
    archive, store = few(originals, tmp_path / "a"), tmp_path / "store"
    codes: list[int] = []
    command = ["index", str(archive), str(store), *OPTIONS, "--quiet"]
    threads = [threading.Thread(target=lambda: codes.append(main(command))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 5]
    assert len(snapshot_ids(Location(store))) == 1


def test_readers_see_whole_snapshots_while_runs_publish(originals: Path, tmp_path: Path) -> None:
    """All volumes get a new name, over and over: an answer with names of two generations would be of no snapshot."""
    archive, store = few(originals, tmp_path / "a", 6), tmp_path / "store"
    generation = 0

    def publish() -> None:
        nonlocal generation
        generation += 1
        for path in archive.iterdir():
            path.rename(archive / f"g{generation}-{path.name.rpartition('-')[2]}")
        assert main(["index", str(archive), str(store), *OPTIONS, "--quiet"]) == 0

    publish()
    query = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    answers: list[set[str]] = []
    problems: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        while not (over.is_set() and len(answers) >= 500):
            try:
                hits = medret.open_snapshot(store).search(query, k=6, index=("exact", "hnsw", "lsh")[len(answers) % 3])
                answers.append({hit.volume_id for hit in hits})
            except BaseException as error:  # noqa: BLE001  # the test fails with it, in the main thread
                problems.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(6):
        publish()
    over.set()
    reader.join()
    assert problems == []
    assert len(answers) >= 500
    assert all(len({name.partition("-")[0] for name in names}) == 1 and len(names) == 6 for names in answers)
    assert len({next(iter(names)).partition("-")[0] for names in answers}) > 3  # it did see them change


def test_commands_that_look_write_nothing_and_take_no_lease(archive: Path) -> None:
    store = archive.parent / "store"

    def seen() -> dict[Path, tuple[int, bytes]]:
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes()) for path in archive.parent.rglob("*") if path.is_file()
        }

    with leased(Location(store), "another run"):
        before = seen()
        commands = (
            ["scan", archive], ["plan", archive, store, *OPTIONS], ["verify", store], ["snapshots", store],
            ["search", store, "v00.nii.gz"],
        )  # fmt: skip
        for command in commands:
            assert main([str(word) for word in command]) == 0
        assert seen() == before
