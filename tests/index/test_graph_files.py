"""HNSW files of both kinds of nodes: what medret writes opens, mapped; what somebody changed is refused or answers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from medret.errors import CorruptError
from medret.index import HNSW, JUDGES, Distinct, ExactIndex, IndexSettings, centred, open_approximate, uncentred
from medret.index.exact import build_exact
from medret.index.hnsw import HnswIndex, build_hnsw
from medret.index.index_files import rabitq_bytes
from medret.index.settings import FP16, RABITQ, RABITQ_BITS
from medret.search.basis import walked_from

CODES = (FP16, RABITQ)
ROWS, DIM = 1700, 24  # so many that the graph is walked
_faiss: Any = faiss  # its type stubs lack RaBitQ


@pytest.fixture(scope="module")
def vectors() -> Any:
    raw = np.random.default_rng(2).standard_normal((ROWS, DIM))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def files(vectors: Any) -> dict[str, bytes]:
    settings = {codes: IndexSettings(hnsw_m=12, hnsw_ef_construction=60, hnsw_codes=codes) for codes in CODES}
    return {codes: faiss.serialize_index(build_hnsw(vectors, each)).tobytes() for codes, each in settings.items()}


def opened(path: Path, vectors: Any) -> Any:
    exact, distinct = ExactIndex(build_exact(vectors)), Distinct(np.arange(len(vectors), dtype=np.int32))
    JUDGES[HNSW](path)
    return open_approximate(path, HNSW, exact, distinct, IndexSettings(hnsw_ef_search=32))


@pytest.mark.parametrize("codes", CODES)
def test_a_file_tells_what_its_nodes_hold(tmp_path: Path, vectors: Any, files: dict[str, bytes], codes: str) -> None:
    """Whatever the settings of its reader say: shards of both kinds may lie in the snapshots of one store."""
    path = tmp_path / codes
    path.write_bytes(files[codes])
    found = opened(path, vectors).search(vectors[:50].astype(np.float32), 3)
    assert (found.rows[:, 0] == np.arange(50)).mean() > 0.95
    cosines = vectors[:50].astype(np.float64) @ vectors.astype(np.float64).T
    assert np.abs(found.scores - np.take_along_axis(cosines, found.rows, axis=1)).max() < 1e-6


@pytest.mark.parametrize("codes", CODES)
def test_a_graph_is_walked_from_another_centre_than_its_own(codes: str) -> None:
    """As in a search of several stores: found in the graph of one centre, scored around another."""
    rng = np.random.default_rng(6)
    around = rng.standard_normal((100, 96)) + rng.standard_normal(96)
    raw = around[rng.integers(100, size=3000)] + 0.7 * rng.standard_normal((3000, 96))
    raw = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    own, shared = raw.mean(axis=0), (0.7 * raw[:300].mean(axis=0) + 0.2 / 96**0.5).astype(np.float32)
    exact = ExactIndex(build_exact(centred(raw, shared).astype(np.float16)))
    settings = IndexSettings(hnsw_m=16, hnsw_ef_construction=80, hnsw_codes=codes)
    graph = build_hnsw(centred(raw, own).astype(np.float16), settings)
    distinct = Distinct(np.arange(len(raw), dtype=np.int32))
    index = HnswIndex(graph, exact, distinct, 64, walked_from(own, shared))
    queries = exact.vectors(slice(0, 200)).astype(np.float32)
    least = exact.search(queries, 10).scores[:, -1:]
    found = index.search(queries, 10)
    assert (exact.scores(queries, found.rows) == found.scores).all()
    assert (found.scores >= least - 1e-6).mean() > 0.97


@pytest.mark.parametrize("codes", CODES)
def test_more_is_found_than_a_walk_lists_by_itself(
    tmp_path: Path, vectors: Any, files: dict[str, bytes], codes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS finds no more than efSearch where nodes hold codes; the rest would have to be scanned for."""
    path = tmp_path / codes
    path.write_bytes(files[codes])
    index, queries = opened(path, vectors), vectors[:20].astype(np.float32)
    least = np.sort(queries @ vectors.astype(np.float32).T, axis=1)[:, -300:-299]
    monkeypatch.setattr(ExactIndex, "search", None)
    for excluded in (None, np.arange(1000, 1003)):
        found = index.search(queries, 300, excluded)
        assert (found.rows >= 0).all()
        assert (found.scores >= least - 1e-6).mean() > 0.9  # codes of 24 dimensions are coarse


def test_codes_are_walked_by_their_estimates(files: dict[str, bytes]) -> None:
    """FAISS's staged search, without which every step reads whole codes, survives writing and reading."""
    index = _faiss.deserialize_index(np.frombuffer(files[RABITQ], np.uint8))
    assert index.hnsw.search_method == _faiss.HNSW.SM_RABITQ
    assert not index.hnsw.is_similarity


@pytest.mark.parametrize("dim", [1, 8, 17, 24, 768, 1472, 1792])
def test_codes_are_as_long_as_faiss_makes_them(dim: int) -> None:
    assert rabitq_bytes(dim) == _faiss.IndexRaBitQ(dim, faiss.METRIC_L2, RABITQ_BITS).code_size


def test_codes_are_less_than_a_third_of_float16(vectors: Any) -> None:
    wide = np.tile(vectors, (1, 32))[:50]
    wide = (wide / np.linalg.norm(wide.astype(np.float32), axis=1, keepdims=True)).astype(np.float16)
    size = {c: faiss.serialize_index(build_hnsw(wide, IndexSettings(hnsw_codes=c))).nbytes for c in CODES}
    assert size[RABITQ] < size[FP16] / 3


FORGED = {  # of a file of codes: where from its end, what stands there, and what is said of it
    "query bits": (-2, b"\x09", "it ends with"),
    "staged": (-1, b"\x00", "it ends with"),
    "centre": (-6, struct.pack("<f", np.nan), "finite"),
    "length of the centre": (-2 - 4 * DIM - 8, struct.pack("<Q", DIM - 1), "centre"),
    "bits": (-2 - 4 * DIM - 8 - ROWS * rabitq_bytes(DIM) - 16, struct.pack("<Q", 1), "laid out as"),
    "length of the codes": (
        -2 - 4 * DIM - 8 - ROWS * rabitq_bytes(DIM) - 8,
        struct.pack("<Q", 2**40),
        "within a field",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_of_codes_is_refused(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    place, forged, said = FORGED[name]
    data = bytearray(files[RABITQ])
    at = len(data) + place
    data[at : at + len(forged)] = forged
    path = tmp_path / "forged"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=rf"forged is not an index that medret writes: .*{said}"):
        JUDGES[HNSW](path)


@pytest.mark.parametrize("codes", CODES)
def test_a_changed_file_is_refused_or_answers(
    tmp_path: Path, vectors: Any, files: dict[str, bytes], codes: str
) -> None:
    rng = np.random.default_rng(4)
    sound, path, refused = files[codes], tmp_path / "changed", 0
    for number in range(60):
        data = bytearray(sound)
        for place in rng.integers(0, len(data) if number % 2 else 400, 3).tolist():
            data[place if number % 3 else -1 - place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            opened(path, vectors).search(vectors[:5].astype(np.float32), 10)
        except CorruptError:
            refused += 1
    assert 0 < refused < 60


@pytest.mark.parametrize("seed", range(4))
def test_a_tilted_query_ranks_as_the_query_does_around_the_other_centre(seed: int) -> None:
    """Oracle: all scores; and what moving the query itself finds."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((40, 32))
    stores = []
    for base in 1.5 * rng.standard_normal((2, 32)):
        raw = base + kinds[rng.integers(40, size=800)] + 0.7 * rng.standard_normal((800, 32))
        stores.append((raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32))
    own = stores[0].mean(axis=0)
    shared = (own + stores[1].mean(axis=0)) / 2
    held, wanted = centred(stores[0], own), centred(stores[0], shared)
    queries = centred(np.concatenate([store[:40] for store in stores]), shared)
    scores = queries @ wanted.T
    kth = np.sort(scores, axis=1)[:, -10]

    def recall(asked: Any) -> float:
        found = np.argsort(-(asked @ held.T), axis=1)[:, :20]
        return float((np.sort(np.take_along_axis(scores, found, 1), axis=1)[:, -10:] >= kth[:, None]).mean())

    tilted = walked_from(own, shared)(queries, kth)
    assert tilted.dtype == np.float32
    assert np.linalg.norm(tilted, axis=1) == pytest.approx(1, abs=1e-5)
    assert recall(tilted) > max(0.96, recall(centred(uncentred(queries, shared), own)))
