from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from medret.cli import main
from medret.errors import CorruptError, NotFoundError, UsageError
from medret.index import IndexSettings, RowTable
from medret.search import Hit, Snapshot, open_snapshot
from medret.search.matching import match_slices

KINDS = ("hnsw", "lsh", "exact")


@pytest.fixture
def snapshot(made_store: Any) -> Snapshot:
    return open_snapshot(made_store.uri)


def _cosines(query: NDArray[Any], vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = vectors.astype(np.float64) @ query.astype(np.float64)
    return products


# --- opening ---------------------------------------------------------------------------------------------------


def test_opening_reads_no_index_and_no_ledger(made_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("an index file was opened")

    monkeypatch.setattr(faiss, "read_index", fail)
    monkeypatch.setattr(RowTable, "open", fail)
    monkeypatch.setattr("medret.search.contents.Ledger", fail)
    snapshot = open_snapshot(made_store.uri)
    assert snapshot.id == made_store.snapshot_id
    assert snapshot.models == ("synthetic-model",)
    assert snapshot.aggregations == ("mean", "max")
    assert snapshot.recipe() == made_store.recipe
    assert snapshot.manifest.counts.embedded == 30


def test_an_older_snapshot_by_its_id(made_store: Any) -> None:
    assert open_snapshot(made_store.uri, made_store.snapshot_id).id == made_store.snapshot_id


def test_what_cannot_be_opened(made_store: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no store is there"):
        open_snapshot(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no snapshot was published there yet"):
        open_snapshot(tmp_path)
    with pytest.raises(UsageError, match="has no snapshot '20200101T000000Z-0123456789abcdef'; its live one is"):
        open_snapshot(made_store.uri, "20200101T000000Z-0123456789abcdef")
    with pytest.raises(UsageError, match="nosuchscheme"):
        open_snapshot("nosuchscheme://bucket/store")


# --- volumes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_volume_finds_itself_first(made_store: Any, snapshot: Snapshot, kind: str) -> None:
    for hits in snapshot.search_many(made_store.ids, 3, index=kind):
        assert [hit.rank for hit in hits] == [1, 2, 3]
    firsts = [hits[0] for hits in snapshot.search_many(made_store.ids, 3, index=kind)]
    assert [hit.volume_id for hit in firsts] == made_store.ids
    assert all(hit.score > 0.999 for hit in firsts)


@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_sharded_exact_search_is_one_brute_force_search(made_store: Any, snapshot: Snapshot, aggregation: str) -> None:
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((20, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    vectors = made_store.vectors[aggregation]
    flat = faiss.IndexFlatIP(32)
    flat.add(vectors.astype(np.float32))
    scores, rows = flat.search(queries, 10)
    asked = [snapshot.resolve(query, aggregation=aggregation) for query in queries]
    found = snapshot.rank(asked, 10, aggregation=aggregation, index="exact")
    assert [[one.volume_id for one in hits] for hits in found] == [[made_store.ids[row] for row in at] for at in rows]
    assert np.abs(np.array([[one.score for one in hits] for hits in found]) - scores).max() < 1e-6
    hits = snapshot.search(queries[0], 10, aggregation=aggregation, index="exact")
    assert [hit.volume_id for hit in hits] == [one.volume_id for one in found[0]]


def test_scores_are_exact_cosines_for_every_kind(made_store: Any, snapshot: Snapshot) -> None:
    query = made_store.vectors["mean"][5]
    expected = dict(zip(made_store.ids, _cosines(query, made_store.vectors["mean"]), strict=True))
    by_kind = [snapshot.search(made_store.ids[5], 30, index=kind) for kind in KINDS]
    for hits in by_kind:
        assert len(hits) == 30
        assert all(abs(hit.score - min(expected[hit.volume_id], 1.0)) < 1e-6 for hit in hits)
    assert by_kind[0] == by_kind[1] == by_kind[2]


def test_more_hits_than_volumes(made_store: Any, snapshot: Snapshot) -> None:
    assert len(snapshot.search(made_store.ids[0], 1000)) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_the_query_itself_is_left_out(made_store: Any, snapshot: Snapshot, kind: str) -> None:
    everything = snapshot.search_many(made_store.ids[:4], 9, index=kind)
    others = snapshot.search_many(made_store.ids[:4], 8, index=kind, exclude="self")
    for volume_id, all_hits, other_hits in zip(made_store.ids, everything, others, strict=False):
        assert [hit.volume_id for hit in other_hits] == [h.volume_id for h in all_hits if h.volume_id != volume_id]
        assert other_hits[0].rank == 1


def test_equal_scores_are_ordered_by_volume(tmp_path: Path, store_maker: Callable[..., Any], made_store: Any) -> None:
    first = made_store.volumes[0]
    copies = tuple(replace(first, volume_id=f"synthetic/copy_{number:02d}") for number in range(25))
    snapshot = open_snapshot(store_maker(tmp_path / "store", copies, per_shard=7).uri)
    for kind in KINDS:
        hits = snapshot.search("synthetic/copy_09", 5, index=kind)
        assert [hit.volume_id for hit in hits] == [f"synthetic/copy_{number:02d}" for number in range(5)]


def test_one_volume_of_one_slice(tmp_path: Path, store_maker: Callable[..., Any], made_store: Any) -> None:
    one = made_store.volumes[0].take(slice(1))
    snapshot = open_snapshot(store_maker(tmp_path / "store", (one,)).uri)
    for kind in KINDS:
        assert [hit.volume_id for hit in snapshot.search(one.volume_id, 10, index=kind)] == [one.volume_id]
        assert snapshot.search(one.volume_id, 10, index=kind, exclude="self") == []
        assert len(snapshot.search(one.volume_id, 10, index=kind, mode="slice")) == 1


def test_no_queries(snapshot: Snapshot) -> None:
    assert snapshot.search_many([]) == []
    assert snapshot.search_many([], mode="slice") == []


# --- what a hit carries ----------------------------------------------------------------------------------------


def test_a_hit_carries_labels_and_the_matching_slices(made_store: Any, snapshot: Snapshot) -> None:
    query, other = snapshot.search(made_store.ids[4], 2)
    assert query.uri == f"/synthetic-archive/{query.volume_id}"
    assert query.labels == {
        "subject": "subject-2", "modality": "CT", "body_region": None, "organ": "Brain", "source": "made up"
    }  # fmt: skip
    own, stored = snapshot.slices_of(query.volume_id), snapshot.slices_of(other.volume_id)
    assert own is not None
    assert stored is not None
    assert other.slices == match_slices(own, stored)
    best = max(
        float(own.vectors[a] @ stored.vectors[b])
        for a in range(6)
        for b in range(6)
        if own.planes[a] == stored.planes[b]
    )
    assert other.slices is not None
    assert max(pair.score for pair in other.slices.pairs) == pytest.approx(best, abs=1e-6)
    assert query.slices is not None
    assert query.slices.query == query.slices.hit


def test_json_has_the_keys_of_the_design(made_store: Any, snapshot: Snapshot) -> None:
    (hit,) = snapshot.search(made_store.ids[4], 1)
    content = hit.to_json()
    assert list(content) == ["rank", "volume_id", "store", "uri", "score", "labels", "slices"]
    assert content["slices"]["query"] == list(hit.slices.query or ()) if hit.slices else None
    assert set(content["slices"]) == {"query", "hit", "plane", "score", "matches"}
    assert all(pair["hit"] in range(10, 70, 10) for pair in content["slices"]["matches"])


def test_a_volume_vector_gets_the_slice_nearest_to_it(made_store: Any, snapshot: Snapshot) -> None:
    volume = made_store.volumes[7]
    (hit,) = snapshot.search(volume.vectors[2].astype(np.float32), 1)
    stored = snapshot.slices_of(hit.volume_id)
    assert stored is not None
    assert hit.slices is not None
    assert hit.slices.query is None
    cosines = _cosines(volume.vectors[2], stored.vectors.astype(np.float16))
    assert hit.slices.score == pytest.approx(cosines.max(), abs=3e-4)


def test_slice_vectors_are_aggregated_as_stored_ones_were(made_store: Any, snapshot: Snapshot) -> None:
    volume = made_store.volumes[11]
    for aggregation in ("mean", "max"):
        (hit,) = snapshot.search(volume.vectors, 1, aggregation=aggregation)
        assert (hit.volume_id, hit.score > 0.9999) == (volume.volume_id, True)
    assert hit.slices is not None
    assert hit.slices.query is not None
    assert all(pair.hit == ((pair.query or 0) + 1) * 10 for pair in hit.slices.pairs)  # named by their rows


def test_aggregations_are_named_in_any_spelling(
    tmp_path: Path, store_maker: Callable[..., Any], made_store: Any
) -> None:
    made = store_maker(tmp_path / "store", made_store.volumes[:3], aggregations=("gaussian:0.5,0.2",))
    snapshot = open_snapshot(made.uri)
    assert len(snapshot.search(made.ids[0], 1, aggregation="gaussian:0.50,0.20")) == 1


# --- slices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_slice_in_slices_out(made_store: Any, snapshot: Snapshot, kind: str) -> None:
    volume = made_store.volumes[9]
    hits = snapshot.search(volume.vectors[3].astype(np.float32), 5, mode="slice", index=kind)
    everything = np.concatenate([one.vectors for one in made_store.volumes])
    assert [hit.score for hit in hits] == pytest.approx(
        np.sort(_cosines(volume.vectors[3], everything))[::-1][:5], abs=1e-3
    )
    first = hits[0].slices
    assert hits[0].volume_id == volume.volume_id
    assert first is not None
    assert (first.plane, first.hit, first.query) == ("sagittal", (40, 40), None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_in_slices_out(made_store: Any, snapshot: Snapshot, kind: str) -> None:
    volume = made_store.volumes[9]
    hits = snapshot.search(volume.volume_id, 6, mode="slice", index=kind)
    assert {(hit.volume_id, hit.slices and hit.slices.hit) for hit in hits} == {
        (volume.volume_id, (position, position)) for position in range(10, 70, 10)
    }
    others = snapshot.search(volume.volume_id, 6, mode="slice", index=kind, exclude="self")
    assert len(others) == 6
    assert volume.volume_id not in {hit.volume_id for hit in others}
    assert [hit.score for hit in others] == sorted((hit.score for hit in others), reverse=True)


def test_many_slices_of_one_volume_can_be_left_out(
    tmp_path: Path, store_maker: Callable[..., Any], made_store: Any
) -> None:
    first, *rest = made_store.volumes[:4]
    times = 20  # 120 slices: more than are searched in excess
    long = replace(first.take(np.tile(np.arange(6), times)), slice_indices=np.arange(6 * times, dtype=np.int32))
    snapshot = open_snapshot(store_maker(tmp_path / "store", (long, *rest)).uri)
    for kind in KINDS:
        hits = snapshot.search(long.volume_id, 5, mode="slice", index=kind, exclude="self")
        assert len(hits) == 5
        assert long.volume_id not in {hit.volume_id for hit in hits}


# --- what cannot be asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": -3}, "k is -3"),
        ({"k": 2.5}, "k is 2.5"),
        ({"k": True}, "k is True"),
        ({"model": "dinov9"}, "model 'dinov9' is not in snapshot .*, which has synthetic-model"),
        ({"aggregation": "uniform:5"}, "aggregation 'uniform:5' is not in snapshot .*, which has mean, max"),
        ({"aggregation": "median"}, "aggregation 'median' is not understood"),
        ({"index": "ivf"}, "index 'ivf' is not in snapshot .*, which has hnsw, lsh, exact"),
        ({"mode": "votes"}, "mode 'votes' is not available; there are volume, vote, max, sum, late, slice"),
        ({"exclude": "dataset"}, "exclude 'dataset' is not available; there are none, self, subject, .*organ, source"),
        ({"per_slice": 0}, "per_slice is 0, expected a whole number of slices"),
        ({"candidates": 1.5}, "candidates is 1.5, expected a whole number of volumes"),
        ({"shape": 3}, "search has no option 'shape'"),
        ({"query": "no/such_volume.nii.gz"}, "'no/such_volume.nii.gz' is neither a file nor a volume of snapshot"),
        ({"query": np.ones(7)}, r"expected \(32,\)"),
        ({"query": 3}, "query is a int"),
    ],
)
def test_bad_requests_get_one_clear_line(
    made_store: Any, snapshot: Snapshot, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        snapshot.search(**{"query": made_store.ids[0], **options})
    assert "\n" not in str(raised.value)


def test_an_index_kind_that_was_not_built(tmp_path: Path, store_maker: Callable[..., Any], made_store: Any) -> None:
    settings = IndexSettings(kinds=("exact",))
    snapshot = open_snapshot(store_maker(tmp_path / "store", made_store.volumes[:3], settings=settings).uri)
    with pytest.raises(UsageError, match=r"index 'hnsw' is not in snapshot .*, which has exact$"):
        snapshot.search(made_store.ids[0])
    assert len(snapshot.search(made_store.ids[0], index="exact")) == 3


def test_a_volume_in_quarantine_says_why(tmp_path: Path, store_maker: Callable[..., Any], made_store: Any) -> None:
    ids = [volume.volume_id for volume in made_store.volumes[:3]]
    ledger = [{"volume_id": one, "uri": one, "size_bytes": 1, "status": "embedded", "slices": 6} for one in ids]
    ledger.append(
        {"volume_id": "synthetic/zzz.nii", "uri": "x", "size_bytes": 0, "status": "quarantined", "code": "empty",
         "reason": "the object has 0 bytes", "slices": 0}
    )  # fmt: skip
    made = store_maker(tmp_path / "store", made_store.volumes[:3], ledger=ledger)
    with pytest.raises(UsageError, match=r"'synthetic/zzz\.nii' has no vectors .*empty: the object has 0 bytes"):
        open_snapshot(made.uri).search("synthetic/zzz.nii")


# --- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hnsw", "lsh", "exact", "rows", "ledger"])
def test_one_changed_byte_is_noticed_and_the_file_named(made_store: Any, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "store"
    shutil.copytree(made_store.uri, root)
    for path in root.rglob(f"{kind}-*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    snapshot = open_snapshot(root)
    with pytest.raises(CorruptError, match=rf"{kind}-[0-9a-f]{{16}}\.\w+ is damaged"):
        snapshot.search(made_store.ids[0], index=kind if kind in KINDS else "exact")


def test_a_missing_index_file_is_named(made_store: Any, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(made_store.uri, root)
    for path in root.rglob("lsh-*"):
        path.unlink()
    snapshot = open_snapshot(root)
    assert snapshot.search(made_store.ids[0], index="hnsw")
    with pytest.raises(CorruptError, match=r"lsh-[0-9a-f]{16}\.faiss is missing"):
        snapshot.search(made_store.ids[0], index="lsh")


# --- elsewhere -------------------------------------------------------------------------------------------------


def _anywhere(hits: list[Hit]) -> list[Hit]:
    return [replace(hit, store="") for hit in hits]


def test_a_remote_store_gives_the_same_hits(made_store: Any, snapshot: Snapshot) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(made_store.uri, "/synthetic-remote", recursive=True)
    remote = open_snapshot("memory://synthetic-remote")
    for kind in KINDS:
        assert _anywhere(remote.search(made_store.ids[2], 5, index=kind)) == _anywhere(
            snapshot.search(made_store.ids[2], 5, index=kind)
        )
    memory.rm("/synthetic-remote", recursive=True)


@pytest.mark.s3
def test_a_store_on_s3_gives_the_same_hits(
    made_store: Any, snapshot: Snapshot, s3: Callable[[str], str], tmp_path: Path
) -> None:
    import fsspec

    bucket = s3("synthetic")
    with pytest.raises(UsageError, match="no "):
        open_snapshot(bucket)
    fsspec.filesystem("s3").put(made_store.uri, f"{bucket}/store", recursive=True)
    remote = open_snapshot(f"{bucket}/store")
    assert _anywhere(remote.search(made_store.ids[2], 5)) == _anywhere(snapshot.search(made_store.ids[2], 5))
    assert list((tmp_path / "cache" / "files").iterdir())


def test_uri_of_a_query(made_store: Any, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "case.nii").write_bytes(b"")
    assert snapshot.uri_of_query(made_store.ids[0]) == f"/synthetic-archive/{made_store.ids[0]}"
    assert snapshot.uri_of_query(tmp_path / "case.nii") == str(tmp_path / "case.nii")
    assert snapshot.uri_of_query("s3://bucket/case.nii") == "s3://bucket/case.nii"
    assert snapshot.uri_of_query(np.ones(3)) is None
    assert snapshot.uri_of_query("unknown") is None


def test_an_empty_snapshot_says_that_it_is_empty(
    tmp_path: Path, store_maker: Callable[..., Any], volume_maker: Callable[..., Any]
) -> None:
    """C17: when every volume was forgotten, a search said that the index is missing."""
    made = store_maker(tmp_path, volume_maker(2))
    assert main(["forget", made.uri, *made.ids]) == 0
    opened = open_snapshot(made.uri)
    for mode in ("volume", "vote", "late", "slice"):
        for query in ("gone.nii.gz", np.ones(32)):
            with pytest.raises(NotFoundError, match="is empty: its volumes were forgotten"):
                opened.search(query, mode=mode)
    assert opened.labels().num_rows == 0
