from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from medret.index.exact import SCALE, ExactIndex, build_exact, scaled_float32


def test_every_finite_float16_is_converted_exactly() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    assert len(finite) == 2 * 31 * 1024
    found = SCALE * scaled_float32(finite.view(np.uint8)).astype(np.float64)
    assert np.array_equal(found, finite.astype(np.float64))
    assert np.array_equal(np.signbit(found), np.signbit(finite))


def test_scores_are_those_of_float64() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((50, 33)).astype(np.float32)
    stored = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    queries = vectors[:7] / np.linalg.norm(vectors[:7], axis=1, keepdims=True)
    rows = rng.integers(0, 50, (7, 12))
    rows[2, 5] = -1
    expected = np.einsum("qmd,qd->qm", stored[rows].astype(np.float64), queries.astype(np.float64))
    expected[2, 5] = -np.inf
    found = ExactIndex(build_exact(stored)).scores(queries, rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_one_gpu_index_is_searched_by_one_thread_at_a_time() -> None:
    vectors = np.eye(40, 8, dtype=np.float16)
    index = ExactIndex(build_exact(vectors))
    inside: list[int] = []
    most: list[int] = []

    class Gpu:
        def search(self, queries: Any, k: int) -> Any:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
            return np.tile(np.arange(k), (len(queries), 1))

    gpu: Any = Gpu()
    index._use_gpu, index._gpu = True, gpu
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: index.search(np.ones((40, 8), np.float32), 3), range(8)))
    assert len(most) == 8
    assert max(most) == 1
