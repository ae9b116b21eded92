"""Publishing and reading back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from medret.errors import BusyError, CorruptError, GateError, UsageError, VersionError
from medret.schemas import FILES, LEDGER
from medret.snapshot import Counts, RecipeEntry, current_id, publish, read_files, read_ledger, read_manifest
from medret.storage import Location


def test_published_snapshot_reads_back(published: tuple[Location, str], made: SimpleNamespace) -> None:
    store, snapshot_id = published
    assert current_id(store) == snapshot_id
    manifest = read_manifest(store, snapshot_id)
    assert manifest.recipes[0].load() == made.recipe
    assert read_ledger(store, snapshot_id, manifest)["volume_id"].to_pylist() == [f"v{n}.nii.gz" for n in range(4)]
    found = read_ledger(store, snapshot_id, manifest, ["organ"])
    assert found.to_pylist() == [{"organ": "Brain"}] * 4
    assert set(read_files(store, snapshot_id, manifest)["kind"].to_pylist()) == {"slices", "volumes", "previews"}


def test_nothing_is_live_before_the_first_publication(tmp_path: Path) -> None:
    assert current_id(Location(tmp_path)) is None


def test_counts_that_do_not_reconcile_publish_nothing(published: tuple[Location, str], made: SimpleNamespace) -> None:
    store, before = published
    _, ledger = made.rows(3, 3)
    wrong = made.fields(3, 3) | {"counts": Counts(listed=4, embedded=3, new=3, skipped=0)}
    with pytest.raises(GateError, match="do not reconcile"):
        publish(store, pa.Table.from_pylist(ledger, LEDGER), (), FILES.empty_table(), **wrong)
    assert current_id(store) == before


def test_a_volume_twice_in_the_ledger_publishes_nothing(tmp_path: Path, made: SimpleNamespace) -> None:
    _, ledger = made.rows(3, 3)
    twice = [ledger[0], ledger[0], ledger[1]]
    with pytest.raises(GateError, match="distinct volumes 2"):
        publish(Location(tmp_path), pa.Table.from_pylist(twice, LEDGER), (), FILES.empty_table(), **made.fields(3, 3))


def test_crash_before_the_last_step_leaves_the_old_snapshot(
    published: tuple[Location, str], monkeypatch: pytest.MonkeyPatch, made: SimpleNamespace
) -> None:
    store, before = published
    _, ledger = made.rows(5, 3)

    def goes_away(self: Location, relative: str, expected: bytes | None, new: bytes) -> bool:
        raise OSError("the machine went away")

    monkeypatch.setattr(Location, "compare_and_swap", goes_away)
    with pytest.raises(OSError, match="went away"):
        publish(
            store, pa.Table.from_pylist(ledger, LEDGER), (), FILES.empty_table(), parent=before, **made.fields(5, 3)
        )
    assert current_id(store) == before
    assert read_manifest(store, before).counts.embedded == 4


def test_of_two_publishers_one_wins(published: tuple[Location, str], made: SimpleNamespace) -> None:
    store, before = published
    _, ledger = made.rows(5, 3)
    table = pa.Table.from_pylist(ledger, LEDGER)
    winner, _ = publish(store, table, (), FILES.empty_table(), parent=before, **made.fields(5, 3))
    with pytest.raises(BusyError, match=f"names {winner}, but it named {before}"):
        publish(store, table, (), FILES.empty_table(), parent=before, **made.fields(5, 3))
    assert current_id(store) == winner


@pytest.mark.parametrize(
    "content", ["", "x", "20260101T000000Z-0123456789abcdef", "20260101T000000Z-0123456789abcdeg\n"]
)
def test_damaged_current_is_named(published: tuple[Location, str], content: str) -> None:
    store, _ = published
    store.write("CURRENT", content.encode())
    with pytest.raises(CorruptError, match="CURRENT is damaged"):
        current_id(store)


def test_unknown_snapshots_are_told_apart(published: tuple[Location, str]) -> None:
    store, _ = published
    with pytest.raises(UsageError, match="not a snapshot id"):
        read_manifest(store, "yesterday")
    with pytest.raises(CorruptError, match="missing"):
        read_manifest(store, "20260101T000000Z-0123456789abcdef")


def test_manifest_does_not_grow_with_volumes(tmp_path: Path, made: SimpleNamespace) -> None:
    sizes = []
    for volumes in (10, 1000):
        store = Location(tmp_path / str(volumes))
        _, ledger = made.rows(volumes, 1)
        snapshot_id, _ = publish(
            store, pa.Table.from_pylist(ledger, LEDGER), (), FILES.empty_table(), **made.fields(volumes, 1)
        )
        sizes.append(len(store.read(f"snapshots/{snapshot_id}/manifest.json")))
    assert sizes[1] - sizes[0] < 40  # a few more digits


def test_a_recipe_of_another_version_is_one_clear_line(made: SimpleNamespace) -> None:
    entry = RecipeEntry(recipe={"digest": "0123", "slices": {}, "model": {}}, weights_source="older")
    with pytest.raises(VersionError, match="recipe 0123 was written by a version of medret"):
        entry.load()
