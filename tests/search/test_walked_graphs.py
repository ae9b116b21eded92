"""Searches that walk a graph, whatever its nodes hold: filters, exclusions and tombstones, against a scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medret.index import HNSW, ExactIndex, IndexSettings
from medret.index.hnsw import HnswIndex
from medret.index.settings import FP16, RABITQ
from medret.search import Snapshot, open_snapshot

VOLUMES = 500  # of six slices each: so many that their graph is walked
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"exclude": "self"},
    {"exclude": "subject"},
    {"where": "organ <> 'Lung'"},
    {"where": "organ = 'Lung'", "exclude": "subject"},
)


@pytest.fixture(scope="module", params=[FP16, RABITQ])
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, store_maker: Any) -> Snapshot:
    from tests.search.conftest import synthetic_volumes

    settings = IndexSettings(hnsw_m=16, hnsw_ef_construction=80, hnsw_codes=request.param, kinds=("hnsw", "exact"))
    folder = tmp_path_factory.mktemp(request.param)
    return open_snapshot(store_maker(folder, synthetic_volumes(VOLUMES), settings=settings, aggregations=("mean",)).uri)


@pytest.mark.parametrize("gone", [0, 5, 60])
def test_walks_find_what_a_scan_finds(snapshot: Snapshot, gone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = snapshot.labels()["volume_id"].to_pylist()
    (shard,) = snapshot.corpus.index(snapshot.manifest.recipes[0], None).shards
    dead = frozenset(ids[1 : 1 + gone])  # as a tombstone makes them
    monkeypatch.setattr(shard, "listed", replace(shard.listed, dead=dead))
    for name in ("_dead_rows", "_dead_places"):
        monkeypatch.delitem(shard.__dict__, name, raising=False)
    index = shard._index(HNSW)
    assert isinstance(index, HnswIndex)
    queries = shard.exact.vectors(np.arange(0, 120, 6)).astype(np.float32)
    walked = index.search(queries, 10, shard.excluded_rows(None))
    scanned = shard.exact.search(queries, 10, shard.excluded_rows(None))
    assert (walked.scores >= scanned.scores[:, -1:] - 1e-6).mean() > 0.95
    assert dead.isdisjoint(name for rows in walked.rows for name in shard.table.volume_ids(rows))
    scans: list[int] = []
    scan = ExactIndex.search

    def counted(self: ExactIndex, queries: Any, *rest: Any) -> Any:
        scans.append(len(queries))
        return scan(self, queries, *rest)

    monkeypatch.setattr(ExactIndex, "search", counted)
    for options in OPTIONS:
        for query in (ids[0], ids[100], ids[333]):
            scans.clear()
            found = snapshot.search(query, 10, mode="max", index="hnsw", **options)
            if not options:
                assert sum(scans) < 6 or gone > 20, "the graph was walked"
            best = snapshot.search(query, 10, mode="max", index="exact", **options)
            names = {hit.volume_id for hit in found}
            assert len(names & {hit.volume_id for hit in best}) >= 8, (options, query)
            assert dead.isdisjoint(names)
            assert query not in names or "exclude" not in options
            assert [hit.score for hit in found][:3] == pytest.approx([hit.score for hit in best][:3], abs=0.02)
