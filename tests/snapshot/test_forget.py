"""Forgetting: killed at every point, with damaged things lying about, and nothing is left (B10, B11, B12)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medret.cli import main
from medret.embeddings.parquet import PLAIN, read_parquet
from medret.errors import BusyError, CorruptError, NotFoundError
from medret.index import KINDS
from medret.search import open_snapshot
from medret.snapshot import current_id, read_manifest, snapshot_ids, verify_store
from medret.snapshot.lease import take
from medret.snapshot.mentions import FORGOTTEN, Mentions
from medret.snapshot.removal import FORGETTING, finish, forget, gc
from medret.storage import Location

EMBEDDED, GONE, REFUSED, UNFINISHED = "v1.nii.gz", "v2.nii.gz", 'b"ö/q 1.nii.gz', "j.nii.gz"
COPY, LONGER = "copy.nii.gz", "sub/v1.nii.gz"
STAY = {"v0.nii.gz", "v3.nii.gz", LONGER}
STRANGERS = ["journal/2025.md", "runs/events.out.tfevents"]


class NoLease:
    """Of nobody: the kills are in this process."""

    def check(self) -> None:
        pass


@pytest.fixture(scope="session")
def worn(tmp_path_factory: pytest.TempPathFactory, makers: SimpleNamespace) -> SimpleNamespace:
    """A store with history, in which volumes are named everywhere they can be."""
    store = Location(tmp_path_factory.mktemp("worn") / "store")
    names = ["v0.nii.gz", EMBEDDED, GONE, "v3.nii.gz", LONGER]
    embedded, ledger = makers.rows(5, 2, names)
    refused = {"volume_id": REFUSED, "uri": f"/archive/{REFUSED}", "size_bytes": 3, "status": "quarantined",
               "code": "empty", "reason": f"0 bytes, unlike {EMBEDDED}", "slices": 0, "shards": []}  # fmt: skip
    gates = [("canaries", f"lowest cosine 1.00000 ({EMBEDDED}) of 3"), ("words", f"{LONGER}, {REFUSED}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medret.schemas.PART_ROWS", 2)  # a base of three files, ...
        first = makers.publish(store, embedded, [*ledger, refused], gates=gates)
    # The second: one volume is gone, one has a copy under another name, whose shards hold the same vectors.
    copies, copied = makers.rows(1, 2, [COPY], seed=1)
    copied[0]["content_sha256"] = ledger[1]["content_sha256"]
    kept = [row for row in [*ledger, refused] if row["volume_id"] != GONE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medret.snapshot.tables.needs_base", lambda *_: False)  # ... shared by the second snapshot
        second = makers.publish(store, copies, [*kept, *copied], parent=first, dead=[GONE], gates=gates[::-1])
    # What killed runs left.
    unfinished, row = makers.rows(2, 2, [UNFINISHED, "v3.nii.gz"], seed=7)
    makers.journal(store, unfinished, row)
    every = [*embedded, *unfinished]
    vectors = {one.volume_id: [row.tobytes() for row in one.vectors] for one in every}
    for shown in makers.previews(every):
        vectors[shown["volume_id"]].append(shown["image"])
        assert any(shown["image"] in data for path, data in contents(store).items() if "/previews-" in path)
    embeddings = next(path.rpartition("/")[0] for path in store.files("embeddings"))
    cut = b"".join(vectors[EMBEDDED]) + EMBEDDED.encode()
    for path in (
        f"{embeddings}/.slices-{'0' * 16}.parquet.0123abcd.tmp",
        f"{embeddings}/slices-{'0' * 16}.parquet",
        f"journal/.{'0' * 16}-{'1' * 16}.parquet.0123abcd.tmp",
        f"journal/{'0' * 16}-{'1' * 16}.parquet",
        f"tables/ledger-{'1' * 16}.parquet",
    ):
        store.write(path, cut)
    for path in STRANGERS:
        store.write(path, b"a user's")
    words = {"error": f"/archive/{EMBEDDED}: odd", "and": [REFUSED, LONGER, UNFINISHED, GONE, COPY]}
    store.write_content_addressed("runs", "20260131T094500Z", ".json", json.dumps(words).encode())
    return SimpleNamespace(store=store, first=first, second=second, vectors=vectors)


@pytest.fixture
def copy_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Location], Location]:
    """Copies of a store, on which nobody waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    numbers = iter(range(10_000))

    def copy(store: Location) -> Location:
        target = tmp_path / f"{next(numbers)}"
        shutil.copytree(store.root, target)
        return Location(target)

    return copy


def contents(store: Location) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.files() if path != "LEASE"}


def texts(store: Location) -> Iterator[tuple[str, str]]:
    """Every file as text, tables decoded: compression hides words."""
    for path, data in contents(store).items():
        yield path, data.decode("utf-8", errors="replace")
        if path.endswith(".json"):
            yield path, repr(json.loads(data))
        if path.endswith(".parquet"):
            table = read_parquet(data)
            yield path, "\n".join(str(table[name].to_pylist()) for name in table.schema.names if name not in PLAIN)


def assert_nothing_is_left(store: Location, gone: set[str], vectors: Sequence[bytes]) -> None:
    for path, text in texts(store):
        for volume_id in gone:
            assert volume_id not in text.replace(LONGER, ""), path
    assert not [path for path, data in contents(store).items() if any(vector in data for vector in vectors)]
    assert [finding.path for finding in verify_store(store)] == STRANGERS
    assert len(snapshot_ids(store)) == 2


def states(store: Location, copy_of: Callable[[Location], Location], operation: Callable[[], Any]) -> list[Location]:
    """The store as a kill before each write of a operation leaves it, a half-written file included."""
    found: list[Location] = []
    whole = {name: getattr(Location, name) for name in ("write", "delete", "compare_and_swap")}
    busy: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        def then(self: Location, relative: str, *arguments: Any) -> Any:
            if not busy and self.root == store.root:
                state = copy_of(store)
                if name == "write":
                    folder, _, file = relative.rpartition("/")
                    target = Path(state.path(f"{folder}/.{file}.0123abcd.tmp" if folder else f".{file}.0123abcd.tmp"))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(arguments[0][: len(arguments[0]) // 2])
                found.append(state)
            busy.append(name)
            try:
                return whole[name](self, relative, *arguments)
            finally:
                busy.pop()

        return then

    with pytest.MonkeyPatch.context() as patch:
        for name in whole:
            patch.setattr(Location, name, noted(name))
        operation()
    return found


@pytest.mark.parametrize("gone", [{EMBEDDED, GONE, REFUSED, UNFINISHED}, {REFUSED}], ids=["all kinds", "refused"])
def test_killed_before_any_of_its_writes_it_is_finished_by_whoever_comes_next(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location], gone: set[str]
) -> None:
    """B10, B11, B12: the store ends as it does undisturbed, to the byte, and that has nothing of the volumes."""
    store, lease, dead = copy_of(worn.store), NoLease(), gone | ({COPY} if EMBEDDED in gone else set())
    killed = states(store, copy_of, lambda: forget(store, gone, lease, copies=True))  # type: ignore[arg-type]
    assert_nothing_is_left(store, dead, [vector for one in gone for vector in worn.vectors.get(one, ())])
    undisturbed = contents(store)
    assert len(killed) > (60 if EMBEDDED in gone else 20)
    for number, state in enumerate(killed):
        pending = state.exists(FORGETTING)
        if pending:
            assert not [one for one in dead if one.encode() in state.read(FORGETTING)]
        if not pending or number % 3 == 0:
            forget(state, gone, lease, copies=True)  # type: ignore[arg-type]
        elif number % 3 == 1:
            gc(state, lease, keep=9, older_than=timedelta(days=9))  # type: ignore[arg-type]
        else:
            assert finish(state, lease) is not None  # type: ignore[arg-type]  # as the next `index` does
        left = {path: data for path, data in contents(state).items() if not path.startswith(".")}
        assert left.keys() == undisturbed.keys(), number
        assert left == undisturbed, number
        shutil.rmtree(state.root)


@pytest.mark.s3
def test_in_an_object_store_it_leaves_the_same(
    tmp_path: Path, makers: SimpleNamespace, s3: Callable[[str], str]
) -> None:
    """B10."""
    local, remote = Location(tmp_path / "store"), Location(f"{s3('forget')}/store")
    makers.publish(local, *makers.rows(2, 1, [EMBEDDED, "v0.nii.gz"]), gates=[("canaries", EMBEDDED)])
    for path, data in contents(local).items():
        remote.write(path, data)
    for store in (local, remote):
        forget(store, {EMBEDDED}, take(store, "forget", 60))
    assert contents(remote) == contents(local)


def test_what_cannot_be_read_is_erased_whole_and_named(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location], capsys: pytest.CaptureFixture[str]
) -> None:
    """B11: cut files, damaged entries, and old snapshots that cannot be read; the user's files stay."""
    store = copy_of(worn.store)
    [own] = {path for path in named_by(store, worn.first) - named_by(store, worn.second) if "/files-" in path}
    store.write(own, store.read(own)[:-40])
    assert main(["forget", store.uri, REFUSED, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert f"snapshots/{worn.first}" in done["unreadable"]
    assert f"journal/{'0' * 16}-{'1' * 16}.parquet" in done["unreadable"]
    assert {f"journal/.{'0' * 16}-{'1' * 16}.parquet.0123abcd.tmp", *done["unreadable"][1:-1]} <= set(done["files"])
    assert snapshot_ids(store) == [current_id(store)]
    assert [finding.path for finding in verify_store(store)] == STRANGERS


def test_a_damaged_live_snapshot_is_never_half_erased(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location]
) -> None:
    """B11: nobody can tell what it holds, and it is the one that is needed."""
    for kind in ("ledger-", "changes-", "slices-", "rows-"):
        store = copy_of(worn.store)
        path = next(path for path in store.files() if kind in path and path in named_by(store, worn.second))
        store.write(path, store.read(path)[:-40])
        before = contents(store)
        with pytest.raises(CorruptError, match=r"live snapshot.*restore the file"):
            forget(store, {REFUSED}, NoLease())  # type: ignore[arg-type]
        after = contents(store)
        assert not store.exists(FORGETTING)
        assert before.items() <= after.items()


def test_previews_that_cannot_be_read_are_erased_whole(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location]
) -> None:
    """A snapshot can do without them, so they stop no forgetting."""
    store = copy_of(worn.store)
    path = next(path for path in sorted(named_by(store, worn.second)) if "/previews-" in path)
    store.write(path, store.read(path)[:-40])
    done = forget(store, {REFUSED}, NoLease())  # type: ignore[arg-type]
    assert path in done.unreadable
    assert not store.exists(path)
    assert [finding.path for finding in verify_store(store)] == STRANGERS


def named_by(store: Location, snapshot_id: str) -> set[str]:
    manifest = read_manifest(store, snapshot_id)
    paths = {table.path for table in manifest.tables}
    files = next(path for path in paths if "/files-" in path)
    return paths | set(read_parquet(store.read(files))["path"].to_pylist())


def test_a_volume_whose_shard_shares_files_with_the_forgotten_ones_stays(
    tmp_path: Path, makers: SimpleNamespace
) -> None:
    """B10: the same image stored twice, in other bytes: two index shards hold equal vectors, so equal files."""
    store = Location(tmp_path / "store")
    (one, of_one), (other, of_other) = (makers.rows(1, 3, [name]) for name in ("a.nii", "a.nii.gz"))
    of_other[0]["content_sha256"] = "other bytes"
    first = makers.publish(store, one, of_one)
    makers.publish(store, other, of_one + of_other, parent=first)
    assert len([path for path in store.files("indices") if "/exact-" in path]) == 2  # of four shards
    forget(store, {"a.nii"}, NoLease())  # type: ignore[arg-type]
    assert verify_store(store) == []
    snapshot = open_snapshot(store.uri)
    assert {hit.volume_id for kind in KINDS for hit in snapshot.search("a.nii.gz", index=kind)} == {"a.nii.gz"}


def test_a_glob_that_names_a_volume_is_forgotten_too(tmp_path: Path, makers: SimpleNamespace) -> None:
    store = Location(tmp_path / "store")
    first = makers.publish(store, *makers.rows(2, 2, ["p1/ct.nii.gz", "p2/ct.nii.gz"]), pattern="p1/ct.nii.gz")
    assert read_manifest(store, first).pattern == "p1/ct.nii.gz"
    forget(store, {"p1/ct.nii.gz"}, NoLease())  # type: ignore[arg-type]
    assert not [path for path, text in texts(store) if "p1/ct.nii.gz" in text]
    assert verify_store(store) == []


def test_a_users_file_that_names_a_volume_is_said_and_left(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location], capsys: pytest.CaptureFixture[str]
) -> None:
    """B10: the command searches the store, and does not claim more than it found."""
    store = copy_of(worn.store)
    store.write("notes.txt", f"{REFUSED} called".encode())
    store.write("runs/list.csv", f"{LONGER}\n".encode())
    assert main(["forget", store.uri, REFUSED, EMBEDDED, COPY]) == 1
    assert "1 files still name them, or cannot be read: notes.txt" in capsys.readouterr().err
    assert not [path for path, text in texts(store) if REFUSED in text and path != "notes.txt"]
    assert not store.exists(FORGETTING)
    store.delete("notes.txt")
    assert main(["forget", store.uri, REFUSED]) == 2  # nothing is left to forget


def test_an_id_that_stands_in_words_alone_is_forgotten_too(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location]
) -> None:
    """B10: a report outlives the snapshots; manifests' gates are text."""
    store = copy_of(worn.store)
    store.write_content_addressed(
        "runs", "20260101T000000Z", ".json", json.dumps({"error": "/a/ä only here.nii: odd"}).encode()
    )
    forget(store, {"ä only here.nii"}, NoLease())  # type: ignore[arg-type]
    assert not [path for path, text in texts(store) if "only here" in text]
    with pytest.raises(NotFoundError):
        forget(store, {"ä only here.nii"}, NoLease())  # type: ignore[arg-type]
    forget(store, {EMBEDDED, COPY}, NoLease())  # type: ignore[arg-type]
    gates = [gate.found for one in snapshot_ids(store) for gate in read_manifest(store, one).gates]
    assert f"lowest cosine 1.00000 ({FORGOTTEN}) of 3" in gates
    assert f"{LONGER}, {REFUSED}" in gates


def test_a_forged_note_deletes_nothing_that_is_not_medrets(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location], capsys: pytest.CaptureFixture[str]
) -> None:
    """E1, B6."""
    store = copy_of(worn.store)
    outside = Path(store.root).with_suffix(".outside")
    outside.write_text("mine")
    store.write(
        FORGETTING, json.dumps({"volumes": [], "doomed": [f"../{outside.name}", *STRANGERS, "CURRENT"]}).encode()
    )
    before = contents(store)
    finish(store, NoLease())  # type: ignore[arg-type]
    assert outside.exists()
    assert contents(store) == {path: data for path, data in before.items() if path != FORGETTING}
    store.write(FORGETTING, b"{")
    capsys.readouterr()
    assert main(["verify", store.uri]) == 1  # of the user's files
    assert "a `medret forget` was stopped" in capsys.readouterr().out
    with pytest.raises(CorruptError, match="again for them"):
        finish(store, NoLease())  # type: ignore[arg-type]


def test_a_run_that_lost_the_store_removes_nothing(
    worn: SimpleNamespace, copy_of: Callable[[Location], Location]
) -> None:
    store = copy_of(worn.store)
    lease = take(store, "forget", 60)
    store.write("LEASE", b"{}")
    before = contents(store)
    with pytest.raises(BusyError):
        forget(store, {REFUSED}, lease)
    assert contents(store) == before


def test_names_are_found_however_they_are_written() -> None:
    """B10: UTF-8, JSON's and URIs' escapes; not as a part of another volume's longer name, also where files are cut."""
    mentions = Mentions({REFUSED, EMBEDDED}, {LONGER, "v1.nii.gz.old/x.nii", "v0.nii.gz"})
    for text in (
        REFUSED,
        json.dumps({"a": REFUSED}),
        json.dumps(REFUSED, ensure_ascii=False),
        "b%22%C3%B6/q%201.nii.gz",
    ):
        assert mentions.in_text(f"({text})")
        assert mentions.in_bytes(f"\x00{text}\x00".encode())
        assert FORGOTTEN in mentions.scrub(text)
        assert not mentions.in_text(mentions.scrub(text))
    assert mentions.scrub(f"{EMBEDDED} {LONGER} v1.nii.gz.old/x.nii") == f"{FORGOTTEN} {LONGER} v1.nii.gz.old/x.nii"
    assert not mentions.in_bytes(f"{LONGER} v1.nii.gz.old/x.nii".encode())


def test_the_name_of_a_series_is_found_where_it_can_mean_nothing_else() -> None:
    """It is a folder's: `CT` is also a modality, and `p1/ct` the beginning of `p1/ct2`."""
    mentions = Mentions({"CT", "12", "p1/ct"}, {"p1/ct/1.2.3", "p1/ct2", "p7/CT", "CT/1.2.4", "x.nii"}, ["/data/dicom"])
    for text in (
        "/data/dicom/CT/001.dcm: PermissionError",
        '{"uri": "/data/dicom/CT"}',
        "/data/dicom/12",
        "p1/ct",
        "0.99998 (p1/ct) of 3",
        "/data/dicom/p1/ct/001.dcm",
    ):
        assert mentions.in_text(text), text
        assert mentions.in_bytes(text.encode())
        assert not mentions.in_text(mentions.scrub(text))
    for text in (
        '{"modality": "CT", "shape": [12, 12, 12]}', "12 of 40 (PET/CT)", "p1/ct2", "p1/ct/1.2.3", "p1/ct-thin",
        "up1/ct", "/data/dicom/p7/CT", "/data/dicom/CT/1.2.4", "/data/dicom/CT2", "/data/dicom/p1/ct/1.2.3",
        "/data/dicom/x.nii",
    ):  # fmt: skip
        assert not mentions.in_text(text), text
        assert mentions.scrub(text) == text
    assert not Mentions({"CT"}, ()).in_text("CT")


def test_large_files_are_searched_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B10: a name is found wherever a part ends, and never inside a longer one."""
    store = Location(tmp_path)
    mentions = Mentions({EMBEDDED}, {LONGER, "v1.nii.gz.old/x.nii"})
    store.write("named", b"." * 50 + EMBEDDED.encode() + b"." * 9)
    store.write("free", (f"{LONGER}......." * 9 + "v1.nii.gz.old/x.nii" * 9).encode())
    for size in range(1, 80):
        monkeypatch.setattr("medret.snapshot.mentions.CHUNK_BYTES", size)
        assert mentions.in_file(store, "named")
        assert not mentions.in_file(store, "free")
