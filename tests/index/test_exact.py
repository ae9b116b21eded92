from __future__ import annotations

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
