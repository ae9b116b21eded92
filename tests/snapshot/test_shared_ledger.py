"""Snapshots share the base of their ledger: whatever the runs do, a reader sees the whole of it."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from medret.archive import Listing
from medret.errors import CorruptError, GateError, MedretError
from medret.pipeline.plan import make_plan
from medret.pipeline.prepare import read_older
from medret.pipeline.store_state import Target, read_base, store_state
from medret.schemas import FILES, LEDGER, OBJECTS, VOLUME_LABELS
from medret.search import open_snapshot
from medret.search.cache import LocalFiles
from medret.search.export import export_rows
from medret.search.ledger import Ledger, read_label_table
from medret.snapshot import (
    Counts,
    current_id,
    ledger_parts,
    publish,
    read_journal,
    read_ledger,
    read_manifest,
    snapshot_ids,
    verify_store,
)
from medret.snapshot.publish import rollback
from medret.snapshot.removal import forget, gc
from medret.storage import Location
from tests.search.forging import forge_manifest, forge_table
from tests.snapshot.conftest import differences, fields

PART, SHARE = 8, 4
Rows = Mapping[str, dict[str, Any]]


class NoLease:
    """Of nobody: all runs are in this process."""

    def check(self) -> None:
        pass


class Clock(datetime):
    """A second passes between two snapshots, so that their ids are in order."""

    seconds = count()

    @classmethod
    def now(cls, tz: Any = None) -> Self:
        return cls(2026, 1, 31, tzinfo=UTC) + timedelta(seconds=next(cls.seconds))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases of many files, and few changes until the next base. Nobody waits for the disk."""
    monkeypatch.setattr(sys.modules["medret.snapshot.publish"], "datetime", Clock)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for module in ("medret.schemas", "medret.snapshot.tables"):
        monkeypatch.setattr(f"{module}.PART_ROWS", PART)
    monkeypatch.setattr("medret.snapshot.tables.BASE_SHARE", SHARE)


def row(volume_id: str, **values: Any) -> dict[str, Any]:
    fixed = {"uri": f"/archive/{volume_id}", "size_bytes": 1, "status": "embedded", "slices": 1, "facts": "{}"}
    return {**dict.fromkeys(LEDGER.names), "volume_id": volume_id, **fixed, "metadata": [], "shards": [], **values}


def table_of(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist([rows[volume_id] for volume_id in sorted(rows)], LEDGER)


def facts(rows: Rows) -> dict[str, Any]:
    embedded = sum(one["status"] == "embedded" for one in rows.values())
    counts = Counts(listed=len(rows), embedded=embedded, new=0, quarantined=len(rows) - embedded)
    return fields(embedded, 1) | {"counts": counts, "indices": [], "slices": embedded}


def run(store: Location, before: Rows, after: Rows) -> str:
    """Publish `after` on top of the live snapshot, which holds `before`."""
    changed, gone = differences(before.values(), after.values())
    return publish(store, changed, gone, FILES.empty_table(), parent=current_id(store), **facts(after))[0]


def tables(store: Location, snapshot_id: str, *kinds: str) -> list[str]:
    return [table.path for table in read_manifest(store, snapshot_id).tables if table.kind in kinds]


def store_of(root: Path, *ledgers: Rows) -> tuple[Location, list[str]]:
    before: Rows = {}
    store, ids = Location(root), []
    for ledger in ledgers:
        ids.append(run(store, before, ledger))
        before = ledger
    return store, ids


def volumes(numbers: Iterable[int], **values: Any) -> dict[str, dict[str, Any]]:
    return {f"v{number:03d}.nii": row(f"v{number:03d}.nii", **values) for number in numbers}


def next_rows(rng: random.Random, rows: Rows) -> dict[str, dict[str, Any]]:
    """What a run makes of a ledger: some volumes come (some come back), some change, some get labels, some go."""
    after = dict(rows)
    for _ in range(rng.choice([0, 1, 2, 30])):
        volume_id = f"v{rng.randrange(120):03d}.nii"
        change = rng.choice(["come", "go", "label", "fail", "content"])
        if change == "go":
            after.pop(volume_id, None)
        elif change == "come" or volume_id not in after:
            after[volume_id] = row(volume_id, content_sha256=str(rng.randrange(5)))
        elif change == "label":
            after[volume_id] = after[volume_id] | {"organ": rng.choice(["liver", None]), "metadata": [("site", "one")]}
        elif change == "fail":
            after[volume_id] = row(volume_id, status="quarantined", code="empty", reason="0 bytes", slices=0)
        else:
            after[volume_id] = after[volume_id] | {"content_sha256": str(rng.randrange(5))}
    return after | volumes([0])  # one is always embedded


@pytest.mark.parametrize("seed", range(6))
def test_whatever_runs_do_the_merged_ledger_is_the_whole_one(tmp_path: Path, seed: int) -> None:
    rows: Rows = {}
    rng, store, kinds = random.Random(seed), Location(tmp_path), set()
    for _ in range(8):
        after = next_rows(rng, rows) if rows else volumes(range(rng.randrange(1, 60)))
        snapshot_id = run(store, rows, after)
        rows, whole, manifest = after, table_of(after), read_manifest(store, snapshot_id)
        assert read_ledger(store, snapshot_id, manifest) == whole
        assert read_ledger(store, snapshot_id, manifest, ["organ"]) == whole.select(["organ"])
        base, changes = ([Path(store.path(path)) for path in tables(store, snapshot_id, kind)] for kind in
                         ("ledger", "changes"))  # fmt: skip
        kinds.add(bool(changes))
        found = Ledger([partial(Path, path) for path in base], [partial(Path, path) for path in changes])
        ids = [*rows, *(f"v{number:03d}.nii" for number in range(120)), "", "z"]
        assert found.rows(ids).keys() == rows.keys()
        assert all(found.rows(rows)[one].labels["organ"] == rows[one]["organ"] for one in rows)
        embedded = whole.filter(pc.equal(whole["status"], "embedded"))
        for sha256 in map(str, range(5)):
            same = embedded.filter(pc.equal(embedded["content_sha256"], sha256))
            assert found.ids_with_content(sha256) == same["volume_id"].to_pylist()
        labels = read_label_table(base, changes)
        assert labels.select(["volume_id", "organ"]).to_pydict() == embedded.select(["volume_id", "organ"]).to_pydict()
        assert verify_store(store) == []
    assert kinds == {True, False}, "some runs write changes, some a base"


def test_small_runs_write_what_has_changed_and_share_the_base(tmp_path: Path) -> None:
    """Until a fourth (here) has changed, the written rows are those since the base; then there is a new base."""
    archive = [volumes(range(100 + day)) for day in range(30)]
    store, ids = store_of(tmp_path, *archive)
    bases = [tuple(tables(store, one, "ledger")) for one in ids]
    changed = [sum(table.rows for table in read_manifest(store, one).tables_of("changes")) for one in ids]
    assert changed == [*range(26), 0, 1, 2, 3], "26 are more than a fourth of 100"
    assert len(set(bases)) == 2
    assert len(store.files("tables")) == 1 + len({*bases[0], *bases[-1]}) + 25 + 3, "one table of files, no others"


def test_equal_content_and_parent_give_equal_bytes(tmp_path: Path, makers: SimpleNamespace) -> None:
    ledgers = [volumes(range(40)), volumes(range(1, 42)), volumes(range(2, 90))]
    written = []
    for name, step in (("one", 1), ("other", -1)):
        store = Location(tmp_path / name)
        before: Rows = {}
        for ledger in ledgers:
            changed, gone = differences(before.values(), ledger.values())
            shuffled = changed.take(pa.array(range(changed.num_rows)[::step]))
            publish(store, shuffled, gone[::step], FILES.empty_table(), parent=current_id(store), **facts(ledger))
            before = ledger
        written.append({path: store.read(path) for path in store.files("tables")})
    assert written[0] == written[1]
    # A base depends on its content only, not on the changes that led to it.
    store, [whole] = store_of(tmp_path / "whole", ledgers[-1])
    assert set(tables(store, whole, "ledger")) <= written[0].keys()


def test_a_crash_between_two_writes_leaves_the_old_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, others = volumes(range(20)), (volumes(range(1, 21)), volumes(range(30)))
    writes = {name: getattr(Location, name) for name in ("write", "compare_and_swap")}
    for number, after in enumerate(others):
        crashes = 0
        while True:
            store, [live] = store_of(tmp_path / f"{number}-{crashes}", first)
            left = [crashes]

            def write(self: Location, *arguments: Any, name: str, left: list[int] = left) -> Any:
                if not left[0]:
                    raise OSError("the machine went away")
                left[0] -= 1
                return writes[name](self, *arguments)

            with monkeypatch.context() as patch:
                for name in writes:
                    patch.setattr(Location, name, lambda self, *rest, name=name: write(self, *rest, name=name))
                try:
                    run(store, first, after)
                    break
                except OSError:
                    pass
            assert current_id(store) == live
            assert verify_store(store) == []
            assert read_ledger(store, live, read_manifest(store, live)) == table_of(first)
            assert run(store, first, after) == current_id(store)
            assert verify_store(store) == []
            crashes += 1
        assert crashes >= 4, "files, ledger, manifest, CURRENT"


def test_counts_that_changes_cannot_give_publish_nothing(tmp_path: Path) -> None:
    first = volumes(range(40))
    store, [live] = store_of(tmp_path, first)
    changed, nothing = table_of(volumes([3, 41])), FILES.empty_table()
    for listed, gone in ((43, []), (39, []), (41, ["v003.nii"]), (40, ["v003.nii", "v003.nii"])):
        wrong = facts(first) | {"counts": Counts(listed=listed, embedded=listed, new=0)}
        with pytest.raises(GateError, match="do not reconcile"):
            publish(store, changed, gone, nothing, parent=live, **wrong)
    wrong = facts(first) | {"counts": Counts(listed=100, embedded=100, new=0)}
    with pytest.raises(GateError, match="ledger rows 80"):  # half of the changed volumes are no new ones
        publish(store, table_of(volumes(range(20, 80))), [], nothing, parent=live, **wrong)
    assert current_id(store) == live


def test_going_back_to_another_base_and_on_from_there(tmp_path: Path) -> None:
    ledgers = [volumes(range(40)), volumes(range(41)), volumes(range(90)), volumes(range(91))]
    store, ids = store_of(tmp_path, *ledgers)
    rollback(store, ids[1], NoLease())  # type: ignore[arg-type]
    after = volumes(range(1, 42), organ="liver")
    run(store, ledgers[1], after)
    live = current_id(store) or ""
    assert read_ledger(store, live, read_manifest(store, live)) == table_of(after)
    for one, ledger in zip(ids, ledgers, strict=True):
        assert read_ledger(store, one, read_manifest(store, one)) == table_of(ledger)
    assert verify_store(store) == []


def test_gc_deletes_a_base_with_the_last_snapshot_that_needs_it(tmp_path: Path) -> None:
    store, ids = store_of(tmp_path, *(volumes(range(count)) for count in (40, 41, 42, 90, 91)))
    old, new = (set(tables(store, one, "ledger")) for one in (ids[0], ids[3]))
    for keep, base in ((4, old), (3, old), (2, set())):
        gc(store, NoLease(), keep=keep, older_than=timedelta(0))  # type: ignore[arg-type]
        assert set(store.files("tables")) >= base | new
        assert len(snapshot_ids(store)) == keep
        for one in snapshot_ids(store):
            assert read_ledger(store, one, read_manifest(store, one)).num_rows
    assert not old - new & set(store.files("tables"))
    named = {path for one in snapshot_ids(store) for path in tables(store, one, "ledger", "changes", "files")}
    assert set(store.files("tables")) == named


@pytest.mark.parametrize("volume_id", ["v005.nii", "v010.nii", "v041.nii"], ids=["gone", "replaced", "added"])
def test_a_forgotten_volume_leaves_bases_and_changes_of_all_snapshots(tmp_path: Path, volume_id: str) -> None:
    ledgers = [volumes(range(40)), volumes([*range(5), *range(6, 42)]) | volumes([10], organ="liver")]
    ledgers.append(ledgers[1] | volumes([12], facts=f'{{"like": "{volume_id}"}}'))
    store, _ = store_of(tmp_path, *ledgers)
    before = set(store.files("tables"))
    forget(store, {volume_id}, NoLease())  # type: ignore[arg-type]
    texts = {path: str(read_all(store, path)) for path in store.files("tables")}
    assert not [path for path, text in texts.items() if volume_id in text]
    assert verify_store(store) == []
    for one, ledger in zip(snapshot_ids(store), ledgers, strict=True):
        rest = read_ledger(store, one, read_manifest(store, one))["volume_id"].to_pylist()
        assert rest == sorted(ledger.keys() - {volume_id})
    assert len(before & set(store.files("tables"))) >= 5, "parts that do not name the volume stay"


def test_parts_of_which_nothing_is_left_are_dropped(tmp_path: Path) -> None:
    ledgers = [volumes(range(40)), volumes(range(42)), volumes(range(43))]
    store, _ = store_of(tmp_path, *ledgers)
    for gone, parts in ((range(8, 16), 4), (range(8), 3), (range(16, 40), 1)):
        forget(store, set(volumes(gone)), NoLease())  # type: ignore[arg-type]
        live = current_id(store) or ""
        assert len(tables(store, live, "ledger")) == parts
        assert verify_store(store) == []
    assert read_ledger(store, live, read_manifest(store, live))["volume_id"].to_pylist() == [*volumes(range(40, 43))]
    forget(store, set(volumes([41])), NoLease())  # type: ignore[arg-type]
    assert open_snapshot(store.uri).labels()["volume_id"].to_pylist() == [*volumes([40, 42])]


def read_all(store: Location, path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(store.path(path)).to_pylist()
    return rows


@pytest.fixture
def changing(tmp_path: Path, makers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A store whose live snapshot has changes: v0..v7, then without v2, with v8, and with another label of v3."""
    monkeypatch.setattr("medret.snapshot.tables.needs_base", lambda rows, _: not rows)
    store = Location(tmp_path / "changing")
    embedded, ledger = makers.rows(9, 3)
    first = makers.publish(store, embedded[:8], ledger[:8])
    kept = [dict(one) for one in ledger if one["volume_id"] != "v2.nii.gz"]
    kept[2]["organ"] = "Liver"
    second = makers.publish(store, embedded[8:], kept, parent=first, dead=["v2.nii.gz"])
    assert len(tables(store, second, "changes")) == 1
    return SimpleNamespace(store=store, first=first, second=second)


def test_searches_see_the_changes(changing: SimpleNamespace, tmp_path: Path) -> None:
    snapshot = open_snapshot(changing.store.uri)
    everyone = {f"v{number}.nii.gz" for number in range(9)} - {"v2.nii.gz"}
    assert {hit.volume_id for hit in snapshot.search("v3.nii.gz", 20, exclude="none")} == everyone
    assert {hit.volume_id for hit in snapshot.search("v3.nii.gz", 20, exclude="organ")} == everyone - {"v3.nii.gz"}
    [hit] = snapshot.search("v0.nii.gz", 20, where="organ = 'Liver'")
    assert (hit.volume_id, hit.labels["organ"]) == ("v3.nii.gz", "Liver")
    assert snapshot.volume("v2.nii.gz") is None
    assert snapshot.labels()["volume_id"].to_pylist() == sorted(everyone)
    assert export_rows(snapshot, tmp_path / "volumes.parquet") == 8
    assert open_snapshot(changing.store.uri, changing.first).search("v2.nii.gz", 1, exclude="none")[0].labels["organ"]
    code = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8").split("```python\n")[1]
    found: dict[str, Any] = {}
    exec(code.split("```")[0].replace("STORE", changing.store.root), found)  # the documented reader merges too
    assert {one["volume_id"] for one in found["vectors"]} == everyone


def test_a_cache_keeps_the_base_between_snapshots(changing: SimpleNamespace, tmp_path: Path) -> None:
    class Remote(Location):
        def local_path(self, relative: str) -> None:
            return None

        def download(self, relative: str, to: Path) -> None:
            copied.append(relative)
            super().download(relative, to)

    copied: list[str] = []
    files = LocalFiles(Remote(changing.store.uri), tmp_path / "cache")
    for one in (changing.first, changing.second):
        for entry in read_manifest(changing.store, one).tables:
            if entry.kind in ("ledger", "changes"):
                files.path(entry.path, entry.sha256)
    base, changes = (tables(changing.store, changing.second, kind) for kind in ("ledger", "changes"))
    assert copied == [*base, *changes]


def forged_ledger(case: str, rows: list[dict[str, Any]]) -> None:
    if case == "unordered":
        rows.reverse()
    elif case == "twice":
        rows.append(rows[-1])
    elif case == "odd status":
        rows[0]["status"] = "lost"
    elif case == "fewer":
        del rows[0]
    else:
        rows[0]["volume_id"] = None


@pytest.mark.parametrize("kind", ["ledger", "changes"])
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("unordered", "not in order"), ("twice", "not unique"), ("odd status", "status holds 'lost'"),
        ("fewer", "the counts say 8"), ("null", "rows without a value|null"),
    ],
)  # fmt: skip
def test_forged_tables_are_refused_and_named(changing: SimpleNamespace, kind: str, case: str, said: str) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        forged_ledger(case, rows)
        schema = pa.schema([field.with_nullable(True) for field in LEDGER])
        return pa.Table.from_pylist(rows, schema=schema if case == "null" else LEDGER)

    store = changing.store
    forged = forge_table(store, kind, change)
    with pytest.raises(CorruptError, match=said):
        list(ledger_parts(store, forged, read_manifest(store, forged)))
    [finding] = [one for one in verify_store(store) if "the ledger cannot" in one.problem]
    assert finding.path == f"snapshots/{forged}/manifest.json"
    snapshot = open_snapshot(store.uri)
    for use in (snapshot.labels, lambda: [snapshot.volume(f"v{number}.nii.gz") for number in range(9)]):
        with suppress(MedretError):
            use()


def test_a_manifest_names_one_table_of_changes_under_its_own_checksum(changing: SimpleNamespace) -> None:
    def twice(content: dict[str, Any]) -> None:
        content["tables"] += [one for one in content["tables"] if one["kind"] == "changes"]

    def renamed(content: dict[str, Any]) -> None:
        content["tables"][0]["sha256"] = "0" * 64

    def elsewhere(content: dict[str, Any]) -> None:
        content["tables"][0]["path"] = content["tables"][0]["path"].replace("tables/", "../")

    for change, said in ((twice, "several tables of changes"), (renamed, "sha256"), (elsewhere, "damaged")):
        store = changing.store
        before = store.read("CURRENT")
        forged = forge_manifest(store, change)
        with pytest.raises(CorruptError, match=said):
            read_manifest(store, forged)
        store.write("CURRENT", before)


def test_a_volume_that_returns_finds_its_vectors_in_the_shared_base(
    changing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an older ledger with the same base, only what differs is read."""
    base, journal = read_base(changing.store), read_journal(changing.store)
    assert base.manifest is not None
    objects = [{"volume_id": f"v{number}.nii.gz", "size_bytes": 10} for number in range(9)]
    listing, labels = Listing("/archive", pa.Table.from_pylist(objects, OBJECTS), {}), VOLUME_LABELS.empty_table()
    target = Target((base.manifest.recipes[0].digest,), "judge")
    plan = make_plan(listing, labels, store_state(base, journal), target)
    monkeypatch.setattr("medret.pipeline.prepare.ledger_parts", None)
    older = read_older(changing.store, base, plan)
    assert (older.ledger["volume_id"].to_pylist(), older.unread) == (["v2.nii.gz"], ())
    plan = make_plan(listing, labels, store_state(base, journal, older.ledger), target)
    assert plan.causes() == {"unchanged": 8, "returned": 1}
