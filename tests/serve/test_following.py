"""A server follows CURRENT: no request fails, each is answered from one snapshot, and what is old is let go."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from medret.cli import main
from medret.errors import DroppedError, StorageError, UsageError
from medret.index import IndexSettings
from medret.search import Encoders, VolumeName, encoders
from medret.search.corpus import Corpus
from medret.search.options import MODES
from medret.serve import LiveStores, Service, create_app
from medret.serve import live as live_module
from medret.serve.live import Opened
from medret.snapshot import current_id
from tests.search import conftest as stores
from tests.serve.conftest import GOLDEN, serving

FIRST = 8  # volumes of the first snapshot; each further one has one more
CLIENTS, SNAPSHOTS = 3, 5
WAIT_S = 60


@dataclass
class Store:
    """A store to which snapshots are published. counts: snapshot id -> its volumes."""

    root: Path
    counts: dict[str, int] = field(default_factory=dict)

    def publish(self) -> str:
        """Publish a snapshot that has one volume more than the last."""
        made = stores.make_store(self.root, stores.synthetic_volumes(FIRST + len(self.counts), slices=4), per_shard=5)
        self.counts[made.snapshot_id] = len(made.volumes)
        return made.snapshot_id

    def collect(self) -> None:
        """Remove all snapshots but the live one."""
        assert main(["gc", str(self.root), "--keep", "0", "--older-than", "0h"]) == 0

    def mapped(self) -> int:
        """How many files of the store this process has mapped."""
        return Path("/proc/self/maps").read_text().count(f"{self.root}/")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path / "cache"))
    made = Store(tmp_path / "followed")
    made.publish()
    return made


@pytest.fixture
def live(store: Store) -> Iterator[LiveStores]:
    opened = LiveStores([str(store.root)])
    yield opened
    opened.close()


QUERY = stores.synthetic_volumes(FIRST)[0].volume_id


def everything(opened: Opened) -> tuple[tuple[str, ...], int]:
    """What a search finds that may find all."""
    return opened.ids, len(opened.snapshots.search(VolumeName(QUERY), 100, index="exact"))


def test_clients_notice_nothing_of_new_snapshots_and_gc(store: Store, live: LiveStores) -> None:
    """Each client asks in ways of its own, so that files are opened at all times, some after they were removed."""
    stop, seen = threading.Event(), threading.Semaphore(0)
    ways = list(itertools.product(MODES, ("exact", "hnsw", "lsh"), (None, "organ <> ''")))

    def ask(number: int) -> set[str]:
        answered = set()
        with httpx.Client(base_url=server.url, timeout=WAIT_S) as client:
            for mode, index, where in itertools.cycle(ways[number * 5 :] + ways[: number * 5]):
                body = {"volume": QUERY, "k": 1000, "mode": mode, "index": index, "where": where}
                answer = client.post("/v1/search", json=body)
                assert answer.status_code == 200, answer.text
                found = answer.json()
                [snapshot_id] = found["snapshots"]
                volumes = {hit["volume_id"] for hit in found["hits"]}
                if (mode, index) == ("volume", "exact"):
                    assert len(volumes) == store.counts[snapshot_id]
                assert len(volumes) <= store.counts[snapshot_id]
                answered.add(snapshot_id)
                seen.release()
                if stop.is_set():
                    return answered
        raise AssertionError

    with serving(create_app(Service(live))) as server, ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            for number in range(SNAPSHOTS):
                store.publish()
                if number % 2:  # else the server learns from a missing file
                    live.refresh()
                store.collect()
                for _ in range(3 * CLIENTS):
                    assert seen.acquire(timeout=WAIT_S)
                live.refresh()
        finally:
            stop.set()
        answered = set().union(*(future.result(WAIT_S) for future in asking))
    assert len(answered) >= SNAPSHOTS - 1
    assert live.current.ids == (list(store.counts)[-1],)


def test_a_request_ends_on_the_snapshot_that_it_began_with(store: Store, live: LiveStores) -> None:
    with TestClient(create_app(Service(live)), base_url="http://localhost") as client:
        ends_as_it_began(store, live, client)
    assert live.refresh() is False


def ends_as_it_began(store: Store, live: LiveStores, client: TestClient) -> None:
    """Hold a request, publish, and ask again."""
    begun, go_on = threading.Event(), threading.Event()
    first, body = live.current, {"volume": QUERY, "k": 1000, "index": "exact"}
    search = first.snapshots.search

    def held(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(WAIT_S)
        return search(*arguments, **options)

    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(first.snapshots, "search", held)
        old = pool.submit(client.post, "/v1/search", json=body)
        assert begun.wait(WAIT_S)
        second = store.publish()
        assert live.refresh()
        new = client.post("/v1/search", json=body).json()
        assert (new["snapshots"], len(new["hits"])) == ([second], FIRST + 1)
        go_on.set()
        answered = old.result(WAIT_S).json()
    assert (answered["snapshots"], len(answered["hits"])) == (list(first.ids), FIRST)


def test_an_old_snapshot_is_let_go_with_its_last_request(store: Store, live: LiveStores) -> None:
    """At once, and not when the garbage collector happens to run: its files are mapped, and take disk until then."""
    for where in (None, "organ <> ''"):
        view = live.current.view(where)
        for mode in MODES:
            view.search(VolumeName(QUERY), 9, mode=mode, where="organ <> 'x'", exclude="organ")
        del view
    first = [live.current]
    refs = [weakref.ref(each) for each in (first[0].snapshots.corpus, *first[0].snapshots.corpus.stores)]
    mapped = store.mapped()
    gc.collect()
    gc.disable()
    try:
        store.publish()
        live.refresh()
        assert all(ref() for ref in refs)
        first.clear()
        assert not any(ref() for ref in refs)
    finally:
        gc.enable()
    assert 0 < store.mapped() < mapped
    store.collect()
    assert f"{store.root}/" in (maps := Path("/proc/self/maps").read_text())
    assert "(deleted)" not in "".join(line for line in maps.splitlines() if f"{store.root}/" in line)


def test_models_stay_loaded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Fake:
        def __init__(self, *_: Any) -> None:
            loaded.append(self)

        def embed(self, slices: Any) -> Any:
            return np.ones((len(slices), stores.DIM), np.float32)

    monkeypatch.setattr(encoders, "load_encoder", Fake)
    shared = Encoders()
    live = LiveStores([str(store.root)], encoders=shared)
    query = str(next((GOLDEN / "archive").glob("*/*.nii.gz")))
    for number in range(3):
        found = live.ask(lambda opened: opened.view("organ <> ''").search(query, 100, index="exact"))
        assert len(found) == FIRST + number
        store.publish()
        assert live.refresh()
    assert len(loaded) == 1


def test_many_that_meet_a_removed_snapshot_open_the_new_one_once(
    store: Store, live: LiveStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, opened = 12, []
    first, together = live.current, threading.Barrier(12, timeout=WAIT_S)
    open_stores = live._open

    def counted() -> Opened:
        opened.append(open_stores())
        return opened[-1]

    def question(asked: Opened) -> tuple[str, ...]:
        if asked is first:
            together.wait()
            raise DroppedError("removed")
        return asked.ids

    monkeypatch.setattr(live, "_open", counted)
    second = store.publish()
    with ThreadPoolExecutor(threads) as pool:
        assert set(pool.map(live.ask, [question] * threads)) == {(second,)}
    assert len(opened) == 1


def test_a_rollback_is_followed(store: Store, live: LiveStores) -> None:
    [first] = live.current.ids
    store.publish()
    assert live.refresh()
    assert live.ask(everything)[1] == FIRST + 1
    assert main(["rollback", str(store.root), first]) == 0
    assert live.refresh()
    assert live.ask(everything) == ((first,), FIRST)


@pytest.mark.parametrize("error", [StorageError, RuntimeError])
def test_a_store_out_of_reach_keeps_what_is_open(
    error: type[Exception],
    store: Store,
    live: LiveStores,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened, looks, open_stores = threading.Event(), itertools.count(), live._open

    def flaky(place: Any) -> str | None:
        if next(looks) < 2:
            raise error(f"no way to {place.uri}")
        return current_id(place)

    def told() -> Opened:
        found = open_stores()
        opened.set()
        return found

    before = live.ask(everything)
    store.publish()
    monkeypatch.setattr(live_module, "current_id", flaky)
    monkeypatch.setattr(live, "_open", told)
    with pytest.raises(error):
        live.refresh()
    assert live.ask(everything) == before
    live.watch(0.001)
    assert opened.wait(WAIT_S)
    assert "no way to" in caplog.text
    with live._opening:  # the new one has taken its place
        assert live.ask(everything)[1] == FIRST + 1


def _unreachable(place: Any) -> str:
    raise StorageError(f"no way to {place.uri}")


def test_a_removed_snapshot_without_a_newer_one_is_no_fault_of_the_request(
    store: Store, live: LiveStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dropped(_: Opened) -> None:
        raise DroppedError("removed")

    with pytest.raises(DroppedError):  # CURRENT still names it
        live.ask(dropped)
    monkeypatch.setattr(live_module, "current_id", _unreachable)
    with pytest.raises(DroppedError):
        live.ask(dropped)


def test_without_a_snapshot_there_is_nothing_to_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no snapshot was published there yet; `medret index ARCHIVE"):
        LiveStores([str(tmp_path)])
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "medret index ARCHIVE" in capsys.readouterr().err


def test_a_damaged_new_snapshot_leaves_the_old_one_open(store: Store, live: LiveStores) -> None:
    before = live.ask(everything)
    second = store.publish()
    manifest = next((store.root / "snapshots" / second).glob("*.json"))
    whole = json.loads(manifest.read_text())
    manifest.write_text("{")
    with pytest.raises(Exception, match=second):
        live.refresh()
    assert live.ask(everything) == before
    manifest.write_text(json.dumps(whole))


def test_a_store_without_a_graph_is_warmed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = stores.make_store(tmp_path / "s", stores.synthetic_volumes(4), settings=IndexSettings(kinds=("exact",)))
    LiveStores([made.uri]).close()
    assert "the first search failed" not in caplog.text


def test_a_lookup_whose_snapshot_is_gone_is_answered_from_the_next(
    store: Store, live: LiveStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, find = live.current.snapshots.corpus, Corpus.find

    def found(self: Corpus, text: str) -> Any:
        if self is old:
            raise FileNotFoundError(2, "gone")
        return find(self, text)

    store.publish()
    store.collect()
    monkeypatch.setattr(Corpus, "find", found)
    with TestClient(create_app(Service(live)), base_url="http://127.0.0.1") as client:
        assert client.get(f"/v1/volumes/{QUERY}").status_code == 200
