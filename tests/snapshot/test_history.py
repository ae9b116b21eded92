"""Older snapshots: listing, going back, cleaning up, forgetting."""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from medret.cli import main
from medret.cli.store import age
from medret.embeddings.parquet import read_parquet
from medret.errors import BusyError, CorruptError, UsageError, VersionError
from medret.schemas import FILES, LEDGER
from medret.search import open_snapshot
from medret.snapshot import current_id, read_ledger, read_manifest, snapshot_ids, verify_store
from medret.snapshot.lease import leased, take
from medret.snapshot.publish import make_live, rollback
from medret.snapshot.removal import forget, gc
from medret.snapshot.tables import read_journal, write_entry
from medret.storage import Location

GONE = "v2.nii.gz"
EMBEDDINGS = "embeddings/0123456789abcdef"
# A user's files, some in medret's folders and under names that are nearly medret's.
STRANGERS = (
    f"{EMBEDDINGS}/.slices-0123.parquet.0123abcd.tmp",
    f"{EMBEDDINGS}/slices-0123456789abcdef.parquet.bak",
    "embeddings/disk.img",
    "indices/0123456789abcdef/ivf-0123456789abcdef.faiss",
    "journal/2025.md",
    "notes.txt",
    "quarantine/list.parquet",
    "runs/events.out.tfevents.1700000000.host",
    "runs/train-0123456789abcdef.json",
    "snapshots/2025/ledger-0123456789abcdef.parquet",
)


def test_a_store_with_tombstones_is_sound_and_never_shows_them(history: SimpleNamespace) -> None:
    assert verify_store(history.store) == []
    snapshot = open_snapshot(history.store.uri)
    for kind in ("hnsw", "lsh", "exact"):
        for mode in ("volume", "slice"):
            query = history.vectors[GONE].astype("float32")
            found = {hit.volume_id for hit in snapshot.search(query, k=27, index=kind, mode=mode)}
            assert found == {f"v{n}.nii.gz" for n in range(9)} - {GONE}
    with pytest.raises(UsageError):
        snapshot.search(GONE)
    assert open_snapshot(history.store.uri, history.first).search(GONE, k=1)[0].volume_id == GONE


def test_snapshots_are_listed_and_one_can_go_back(history: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshots", history.store.uri, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["snapshots"]
    by_id = {one["snapshot"]: one for one in listed}
    assert {name: one["live"] for name, one in by_id.items()} == {history.first: False, history.second: True}
    assert by_id[history.second]["parent"] == history.first
    assert main(["rollback", history.store.uri, history.first]) == 0
    assert current_id(history.store) == history.first
    assert verify_store(history.store) == []
    assert main(["rollback", history.store.uri, "20200101T000000Z-0123456789abcdef"]) == 2
    assert main(["snapshots", history.store.uri]) == 0
    assert main(["rollback", history.store.uri, history.first]) == 2  # live already


def grow_old(store: Location) -> None:
    """All files of a store as if written two days ago."""
    then = time.time() - 2 * 86400
    for path in store.files():
        os.utime(store.path(path), (then, then))


def test_gc_keeps_what_is_needed(history: SimpleNamespace) -> None:
    """B6, B11: only names of medret's own form go; temporaries go although a journal is there."""
    store: Location = history.store
    grow_old(store)
    leftover = store.write_content_addressed(
        "embeddings/0123456789abcdef", "slices", ".parquet", b"of a killed run"
    ).path
    written = store.write_content_addressed("embeddings/0123456789abcdef", "slices", ".parquet", b"of a run to go on")
    resumable = written.path
    entry = pa.Table.from_pylist([{**vars(written), "kind": "slices", "rows": 1, "recipe": "0123456789abcdef"}], FILES)
    write_entry(store, "5" * 16, LEDGER.empty_table(), entry)
    half = f"{EMBEDDINGS}/.slices-{'0' * 16}.parquet.0123abcd.tmp"
    cut = f"journal/.{'5' * 16}-{'0' * 16}.parquet.0123abcd.tmp"
    for path in (half, cut, *STRANGERS):
        store.write(path, b"half, or a stranger's")
    lease = take(store, "gc", 60)
    before = store.files()
    # Young files stay, whatever they are.
    assert gc(store, lease, keep=9, older_than=timedelta(hours=1)).paths == ()
    grow_old(store)
    planned = gc(store, lease, keep=9, older_than=timedelta(hours=1), dry_run=True)
    assert store.files() == before
    assert set(planned.paths) == {leftover, half, cut}
    assert planned.strangers == STRANGERS
    assert gc(store, lease, keep=9, older_than=timedelta(hours=1)) == planned
    assert {resumable, *STRANGERS} <= set(store.files())
    assert len(read_journal(store).paths) == 1


def test_gc_may_keep_more_snapshots_than_there_are(history: SimpleNamespace) -> None:
    store: Location = history.store
    make_live(store, snapshot_ids(store)[-1], history.second)
    with leased(store, "gc") as lease:
        assert gc(store, lease, keep=3, older_than=timedelta(0), dry_run=True).dropped == ()


def test_gc_drops_old_snapshots_and_only_their_own_files(
    history: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    store: Location = history.store
    grow_old(store)
    assert main(["gc", store.uri, "--keep", "0", "--older-than", "0s", "--json"]) == 0
    swept = json.loads(capsys.readouterr().out)
    assert swept["dropped"] == [history.first]
    assert snapshot_ids(store) == [history.second]
    assert verify_store(store) == []
    assert len(open_snapshot(store.uri).search("v1.nii.gz", k=9)) == 8


def test_gc_deletes_old_snapshots_whole_although_forget_wrote_their_manifests_again(history: SimpleNamespace) -> None:
    store: Location = history.store
    grow_old(store)
    later = time.time() + 3600
    os.utime(store.path(f"snapshots/{history.first}/manifest.json"), (later, later))
    with leased(store, "gc") as lease:
        assert gc(store, lease, keep=0, older_than=timedelta(0)).dropped == (history.first,)
    assert snapshot_ids(store) == [history.second]
    assert verify_store(store) == []


def everything(store: Location) -> list[tuple[str, bytes]]:
    """Every file, and every Parquet file's columns decoded: compression hides text."""
    found = [(path, store.read(path)) for path in store.files()]
    for path, data in list(found):
        if path.endswith(".parquet"):
            table = read_parquet(data)
            text = repr([table[name].to_pylist() for name in table.schema.names if name != "vector"])
            found.append((path, text.encode() + repr(table.schema.metadata).encode()))
    return found


@pytest.mark.parametrize("volume_id", ["v2.nii.gz", "v3.nii.gz", "v8.nii.gz"])
def test_nothing_is_left_of_a_forgotten_volume(history: SimpleNamespace, volume_id: str) -> None:
    store: Location = history.store
    # Before: its vectors and its name are in many files.
    rows = [row.tobytes() for row in history.vectors[volume_id]]
    assert sum(any(row in data for row in rows) for _, data in everything(store)) >= 2
    lease = take(store, "forget", 60)
    done = forget(store, {volume_id}, lease)
    lease.give_back()
    for path, data in everything(store):
        assert volume_id.encode() not in data, path
        assert not any(row in data for row in rows), path
    assert verify_store(store) == []
    assert done.live == current_id(store)
    ids = snapshot_ids(store)
    assert len(ids) == 2
    parents = {read_manifest(store, one).parent for one in ids}
    assert parents == {None, next(one for one in ids if one != current_id(store))}
    for one in ids:
        left = set(read_ledger(store, one, read_manifest(store, one))["volume_id"].to_pylist())
        found = {hit.volume_id for hit in open_snapshot(store.uri, one).search("v1.nii.gz", k=20, index="exact")}
        assert found == left
        assert volume_id not in left
    others = {f"v{n}.nii.gz" for n in range(9)} - {volume_id, GONE}
    assert {hit.volume_id for hit in open_snapshot(store.uri).search("v1.nii.gz", k=20)} == others


def test_forgetting_names_the_places_and_refuses_strangers(
    history: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forget", history.store.uri, "nobody.nii.gz"]) == 2
    assert "knows no volume 'nobody.nii.gz'" in capsys.readouterr().err
    assert main(["forget", history.store.uri, "v3.nii.gz", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert set(done["snapshots"]) == {history.first, history.second}
    kinds = {Path(path).name.split("-")[0] for path in done["files"]}
    assert {"slices", "volumes", "hnsw", "lsh", "exact", "rows", "ledger", "manifest.json", "20260131T094500Z"} <= kinds


def test_nothing_goes_while_the_live_manifest_is_away(history: SimpleNamespace) -> None:
    store: Location = history.store
    store.delete(f"snapshots/{history.second}/manifest.json")
    grow_old(store)
    before = set(store.files())
    with leased(store, "gc") as lease:
        with pytest.raises(CorruptError, match="is missing"):
            gc(store, lease, keep=1, older_than=timedelta(0))
        with pytest.raises(CorruptError, match="live snapshot"):
            forget(store, {"v3.nii.gz"}, lease)
    assert before <= set(store.files())
    assert not store.exists("FORGETTING")


def test_a_snapshot_of_another_version_refuses_to_forget_and_blocks_nothing(history: SimpleNamespace) -> None:
    store, data = history.store, b'{"format": 2}'
    path = f"snapshots/20200101T000000Z-{hashlib.sha256(data).hexdigest()[:16]}/manifest.json"
    store.write(path, data)
    with leased(store, "forget") as lease:
        with pytest.raises(VersionError):
            forget(store, {"v3.nii.gz"}, lease)
        assert not store.exists("FORGETTING")
        store.delete(path)
        assert forget(store, {"v3.nii.gz"}, lease).volumes == ("v3.nii.gz",)


def test_gc_and_rollback_that_lost_the_store_change_nothing(history: SimpleNamespace) -> None:
    store = history.store
    grow_old(store)
    lease = take(store, "gc", 60)
    store.write("LEASE", b"{}")
    before = store.files()
    with pytest.raises(BusyError):
        gc(store, lease, keep=0, older_than=timedelta(0))
    with pytest.raises(BusyError):
        rollback(store, history.first, lease)
    assert (store.files(), current_id(store)) == (before, history.second)


def test_gc_keeps_young_snapshots_and_reads_ages(history: SimpleNamespace) -> None:
    with leased(history.store, "gc") as lease:
        assert gc(history.store, lease, keep=0, older_than=timedelta(hours=1)).dropped == ()
    assert [age(text) for text in ("90s", "30m", "12h", "14d", "2w")] == [
        timedelta(seconds=90), timedelta(minutes=30), timedelta(hours=12), timedelta(days=14), timedelta(weeks=2),
    ]  # fmt: skip
