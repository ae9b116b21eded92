from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from medret.errors import CorruptError, MedretError
from medret.index import (
    EXACT,
    HNSW,
    LSH,
    Distinct,
    ExactIndex,
    IndexSettings,
    IndexShard,
    RowTable,
    Searchable,
    build_shard,
    open_approximate,
    open_exact,
)
from medret.index.exact import threads_for
from medret.index.settings import AUTO, FP16, RABITQ
from medret.storage import Location

SETTINGS = IndexSettings()
both_codes = pytest.mark.parametrize("codes", [FP16, RABITQ])
Make = Callable[..., Any]


def _open(root: Path, shard: IndexShard, settings: IndexSettings = SETTINGS) -> dict[str, Searchable]:
    paths = {kind: root / file.path for kind, file in shard.files}
    exact = open_exact(paths[EXACT], rows=shard.rows, dim=shard.dim)
    distinct = Distinct(RowTable.open(paths["rows"]).same_as)
    return {
        EXACT: exact,
        **{kind: open_approximate(paths[kind], kind, exact, distinct, settings) for kind in (LSH, HNSW)},
    }


def _cosines(queries: NDArray[np.float16], vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return products


def test_files_are_named_by_content_and_results_recorded(
    tmp_path: Path, synthetic_vectors: Make, volume_rows: Make
) -> None:
    shard = build_shard(Location(tmp_path), "indices/d0", synthetic_vectors(600, 48), volume_rows(600), SETTINGS)
    assert (shard.rows, shard.dim, len(shard.shard)) == (600, 48, 16)
    assert {kind for kind, _ in shard.files} == {"rows", "exact", "lsh", "hnsw"}
    assert set(shard.seconds) == {"rows", "exact", "lsh", "hnsw"}
    assert shard.recall[EXACT] == 1.0
    assert shard.recall[HNSW] >= 0.99
    assert shard.recall[LSH] >= 0.99
    for kind, file in shard.files:
        data = (tmp_path / file.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file.sha256
        assert len(data) == file.size_bytes
        assert file.path.startswith(f"indices/d0/{kind}-{file.sha256[:16]}.")
    assert pickle.loads(pickle.dumps(shard)) == shard


@both_codes
def test_every_kind_gives_the_brute_force_answer(
    tmp_path: Path, synthetic_vectors: Make, volume_rows: Make, codes: str
) -> None:
    vectors, queries = np.split(synthetic_vectors(2050, 64), [2000])
    opened = _open(
        tmp_path, build_shard(Location(tmp_path), "x", vectors, volume_rows(2000), IndexSettings(hnsw_codes=codes))
    )
    cosines = _cosines(queries, vectors)
    best = np.argsort(-cosines, axis=1)[:, :10]
    for kind, index in opened.items():
        found = index.search(queries.astype(np.float32), 10)
        assert found.rows.shape == (50, 10)
        # whatever rows were found, their scores are the exact ones, in order
        assert np.abs(found.scores - np.take_along_axis(cosines, found.rows, axis=1)).max() < 1e-6
        assert (np.diff(found.scores, axis=1) <= 0).all()
        if kind == EXACT:
            assert (found.rows == best).all()
        assert (found.rows[:, :, None] == best[:, None, :]).any(axis=1).mean() > 0.98


@both_codes
def test_excluded_rows_are_never_found(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make, codes: str) -> None:
    vectors = synthetic_vectors(500, 32)
    opened = _open(
        tmp_path, build_shard(Location(tmp_path), "x", vectors, volume_rows(500), IndexSettings(hnsw_codes=codes))
    )
    query = vectors[:1].astype(np.float32)
    for index in opened.values():
        everything = index.search(query, 20)
        excluded = everything.rows[0, :8].copy()
        kept = index.search(query, 12, excluded)
        assert kept.rows[0].tolist() == everything.rows[0, 8:].tolist()
        assert index.search(query, 5, np.arange(500)).rows.tolist() == [[-1] * 5]
        assert np.isneginf(index.search(query, 5, np.arange(500)).scores).all()


@pytest.mark.parametrize(("n", "codes"), [*itertools.product([1, 2, 11], [FP16, RABITQ])])
def test_few_rows(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make, n: int, codes: str) -> None:
    vectors = synthetic_vectors(n, 16)
    shard = build_shard(Location(tmp_path), "x", vectors, volume_rows(n), IndexSettings(hnsw_codes=codes))
    assert shard.recall == {EXACT: 1.0, LSH: 1.0, HNSW: 1.0}
    for index in _open(tmp_path, shard).values():
        found = index.search(vectors.astype(np.float32), 10)
        assert found.rows.shape == (n, min(n, 10))
        assert found.rows[:, 0].tolist() == list(range(n))
        assert index.search(vectors.astype(np.float32), 0).rows.shape == (n, 0)
        assert index.search(np.empty((0, 16), np.float32), 3).rows.shape[0] == 0


def test_all_equal_vectors(tmp_path: Path, volume_rows: Make) -> None:
    vectors = np.full((300, 16), 0.25, np.float16)
    shard = build_shard(Location(tmp_path), "x", vectors, volume_rows(300), SETTINGS)
    assert shard.recall == {EXACT: 1.0, LSH: 1.0, HNSW: 1.0}
    for index in _open(tmp_path, shard).values():
        assert (index.search(vectors[:2].astype(np.float32), 10).scores == 1.0).all()


@both_codes
def test_copies_do_not_cut_an_index_in_pieces(
    tmp_path: Path, synthetic_vectors: Make, volume_rows: Make, codes: str
) -> None:
    vectors = synthetic_vectors(1500, 32)
    rng = np.random.default_rng(2)
    vectors[rng.choice(1500, 600, replace=False)] = vectors[7]  # as empty slices do
    thorough = IndexSettings(lsh_candidates=1000, hnsw_codes=codes)  # 32 dimensions give few bits
    shard = build_shard(Location(tmp_path), "x", vectors, volume_rows(1500), thorough)
    opened = _open(tmp_path, shard, thorough)
    for query in (vectors[7], vectors[8], vectors[1200]):
        wide = query[None].astype(np.float32)
        cosines = _cosines(query[None], vectors)[0]
        by_score = np.lexsort((np.arange(1500), -cosines.astype(np.float32)))
        for index in opened.values():
            assert index.search(wide, 10).rows[0].tolist() == by_score[:10].tolist()
            excluded = by_score[:700].astype(np.int64)  # copies and others
            assert index.search(wide, 10, excluded).rows[0].tolist() == by_score[700:710].tolist()
            part = np.flatnonzero((vectors == vectors[7]).all(axis=1))[::2].astype(np.int64)
            kept = by_score[~np.isin(by_score, part)]
            assert index.search(wide, 10, part).rows[0].tolist() == kept[:10].tolist()


def test_low_recall_is_reported_as_low(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    starved = IndexSettings(lsh_bits=8, lsh_candidates=1)
    shard = build_shard(Location(tmp_path), "x", synthetic_vectors(4000, 64), volume_rows(4000), starved)
    assert shard.recall[LSH] < 0.5


@pytest.mark.parametrize(("dim", "clusters", "holds"), [(8, 3, FP16), (96, 100, RABITQ)])
def test_nodes_hold_codes_where_these_find_the_neighbours(
    tmp_path: Path, synthetic_vectors: Make, volume_rows: Make, dim: int, clusters: int, holds: str
) -> None:
    """16 bits do not tell the vectors of a cluster from each other."""
    vectors, rows, made = synthetic_vectors(3000, dim, clusters=clusters), volume_rows(3000), {}
    for codes in (AUTO, FP16, RABITQ):
        settings = IndexSettings(hnsw_m=16, hnsw_ef_construction=60, hnsw_codes=codes)
        made[codes] = build_shard(Location(tmp_path), "x", vectors, rows, settings)
    assert dict(made[AUTO].files)[HNSW] == dict(made[holds].files)[HNSW]
    assert made[AUTO].recall[HNSW] == made[holds].recall[HNSW] >= 0.99
    assert (made[RABITQ].recall[HNSW] >= 0.99) == (holds == RABITQ)


def test_rows_are_put_in_volume_order(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    vectors, rows = synthetic_vectors(200, 16), volume_rows(200)
    order = np.random.default_rng(1).permutation(200)
    ordered = build_shard(Location(tmp_path / "a"), "x", vectors, rows, SETTINGS)
    shuffled = build_shard(Location(tmp_path / "b"), "x", vectors[order], rows.take(order), SETTINGS)
    assert (ordered.shard, ordered.files) == (shuffled.shard, shuffled.files)
    table = RowTable.open(tmp_path / "b" / dict(shuffled.files)["rows"].path)
    assert table.rows_of("synthetic/00042") == slice(42, 43)


_BUILD = """
import sys, numpy as np, pyarrow as pa
from medret.index import IndexSettings, build_shard
from medret.schemas import ROWS
from medret.storage import Location
vectors = np.load(sys.argv[1])
n = len(vectors)
ids = [f"synthetic/{row:05d}" for row in range(n)]
rows = pa.table([ids, pa.nulls(n, pa.string()), pa.nulls(n, pa.int32())], schema=ROWS)
for codes in ("fp16", "rabitq2"):
    shard = build_shard(Location(sys.argv[2]), "x", vectors, rows, IndexSettings(hnsw_codes=codes))
    print(sorted((kind, file.sha256) for kind, file in shard.files))
"""


def test_equal_input_gives_equal_files_in_every_process(tmp_path: Path, synthetic_vectors: Make) -> None:
    np.save(tmp_path / "synthetic.npy", synthetic_vectors(1500, 96))
    outputs = []
    for threads in ("1", "4"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-c", _BUILD, str(tmp_path / "synthetic.npy"), str(tmp_path / threads)]
        outputs.append(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert outputs[0] == outputs[1]
    assert "hnsw" in outputs[0]


def test_the_number_of_threads_is_restored(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        build_shard(Location(tmp_path), "x", synthetic_vectors(20, 16), volume_rows(20), SETTINGS)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_one_vector_takes_one_thread_of_faiss_and_no_other_threads_are_told() -> None:
    before, inside = faiss.omp_get_max_threads(), []
    beside: list[int] = []
    faiss.omp_set_num_threads(3)
    try:
        for vectors in (1, 2):
            with threads_for(vectors):
                inside.append(faiss.omp_get_max_threads())
                other = Thread(target=lambda: beside.append(faiss.omp_get_max_threads()))
                other.start()
                other.join()
            assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
    assert inside == [1, 3]
    assert beside[0] == beside[1]


def test_inputs_are_checked(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    store, good = Location(tmp_path), synthetic_vectors(5, 8)

    def refused(vectors: NDArray[np.generic], rows: pa.Table, message: str) -> None:
        with pytest.raises(MedretError, match=message):
            build_shard(store, "x", vectors, rows, SETTINGS)  # type: ignore[arg-type]

    broken = good.copy()
    broken[3, 2] = np.nan
    refused(broken, volume_rows(5), r"vector 3 \(synthetic/00003\) has norm nan")
    refused(good * np.float16(2), volume_rows(5), "vector 0 .* has norm 2, expected 1")
    refused(np.zeros((5, 8), np.float16), volume_rows(5), "has norm 0")
    refused(good, volume_rows(4), "4 rows for 5 vectors")
    refused(good.astype(np.float32), volume_rows(5), "float16")
    refused(good[:0], volume_rows(0), r"\(0, 8\)")
    assert not list(tmp_path.rglob("*.faiss"))


def test_files_of_another_kind_or_size_are_refused(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    shard = build_shard(Location(tmp_path), "x", synthetic_vectors(40, 8), volume_rows(40), SETTINGS)
    paths = {kind: tmp_path / file.path for kind, file in shard.files}
    with pytest.raises(CorruptError, match="of 40 x 8, expected exact of 41 x 8"):
        open_exact(paths[EXACT], rows=41, dim=8)
    with pytest.raises(CorruptError, match="IndexLSH"):
        open_exact(paths[LSH], rows=40, dim=8)
    exact = open_exact(paths[EXACT], rows=40, dim=8)
    with pytest.raises(CorruptError, match="cannot be read as a FAISS index"):
        open_approximate(paths["rows"], HNSW, exact, Distinct(np.arange(40, dtype=np.int32)), SETTINGS)


def test_stored_vectors_come_back_bit_for_bit(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    vectors = synthetic_vectors(100, 24)
    shard = build_shard(Location(tmp_path), "x", vectors, volume_rows(100), SETTINGS)
    exact = _open(tmp_path, shard)[EXACT]
    assert isinstance(exact, ExactIndex)
    assert (exact.vectors(slice(3, 9)) == vectors[3:9]).all()
    assert (exact.vectors(np.array([70, 2])) == vectors[[70, 2]]).all()


_OPEN = """
import sys
from pathlib import Path
import faiss, numpy as np
from medret.index import Distinct, IndexSettings, open_approximate, open_exact

def resident_mib():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024

rows, dim = int(sys.argv[1]), int(sys.argv[2])
before = resident_mib()
exact = open_exact(Path(sys.argv[3]), rows=rows, dim=dim)
settings = IndexSettings()
distinct = Distinct(np.arange(rows, dtype=np.int32))
kinds = ((4, "hnsw"), (5, "lsh"), (6, "hnsw"))
indices = [open_approximate(Path(sys.argv[at]), kind, exact, distinct, settings) for at, kind in kinds]
for index in (exact, *indices):
    index.search(exact.vectors(slice(0, 1)).astype(np.float32), 10)
print(resident_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_opening_maps_files_instead_of_reading_them(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    rows, dim = 20_000, 256
    quick = IndexSettings(hnsw_m=4, hnsw_ef_construction=8, lsh_bits=64, hnsw_codes=RABITQ)
    other = replace(quick, hnsw_codes=FP16, kinds=(HNSW, EXACT))
    vectors, table = synthetic_vectors(rows, dim), volume_rows(rows)
    shard, plain = (build_shard(Location(tmp_path), "x", vectors, table, settings) for settings in (quick, other))
    files = dict(shard.files), dict(plain.files)
    opened = [files[0][EXACT], files[0][HNSW], files[0][LSH], files[1][HNSW]]
    on_disk = sum(file.size_bytes for file in opened) / 2**20
    command = [sys.executable, "-c", _OPEN, str(rows), str(dim), *(str(tmp_path / file.path) for file in opened)]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert on_disk > 20
    assert grown < on_disk / 4


@pytest.mark.gpu
@pytest.mark.skipif(getattr(faiss, "get_num_gpus", lambda: 0)() == 0, reason="needs a GPU that FAISS can use")
def test_gpu_gives_the_same_neighbours(tmp_path: Path, synthetic_vectors: Make, volume_rows: Make) -> None:
    vectors = synthetic_vectors(3000, 64)
    shard = build_shard(Location(tmp_path), "x", vectors, volume_rows(3000), SETTINGS, use_gpu=True)
    path = tmp_path / dict(shard.files)[EXACT].path
    queries = vectors[:100].astype(np.float32)
    on_gpu = open_exact(path, rows=3000, dim=64, use_gpu=True).search(queries, 10, np.arange(5))
    on_cpu = open_exact(path, rows=3000, dim=64).search(queries, 10, np.arange(5))
    assert (on_gpu.rows == on_cpu.rows).all()
    assert (on_gpu.scores == on_cpu.scores).all()
