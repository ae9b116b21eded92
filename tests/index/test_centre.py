"""The centre of an index."""

from __future__ import annotations

import numpy as np
import pytest

from medret.index import centred, fit_centre, refit_needed, uncentred


def unit(rng: np.random.Generator, rows: int, dim: int = 16, shared: float = 6.0) -> np.ndarray:
    raw = rng.standard_normal((rows, dim)) + shared * np.eye(dim)[0]
    unit_rows: np.ndarray = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return unit_rows


def test_the_mean_drawn_towards_zero() -> None:
    vectors = unit(np.random.default_rng(0), 60)
    parts = [vectors[:10].sum(axis=0), vectors[10:].sum(axis=0)]
    centre = fit_centre(parts, rows=60, volumes=12)
    np.testing.assert_allclose(centre, vectors.mean(axis=0) * 12 / 16, atol=1e-6)
    assert centre.dtype == np.float32


def test_directions_from_the_centre() -> None:
    vectors = unit(np.random.default_rng(1), 40)
    centre = fit_centre([vectors.sum(axis=0)], 40, 40)
    seen = centred(vectors.astype(np.float16), centre)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, rtol=1e-6)
    assert (vectors @ vectors.T).mean() > 0.5 > abs((seen @ seen.T).mean())
    np.testing.assert_array_equal(centred(vectors, None), vectors.astype(np.float32))


def test_there_and_back() -> None:
    vectors = unit(np.random.default_rng(3), 200, dim=700).astype(np.float32)
    centre = fit_centre([vectors.sum(axis=0, dtype=np.float64)], 200, 200)
    stored = centred(vectors, centre).astype(np.float16).astype(np.float32)
    raw = uncentred(stored, centre)
    assert (raw * vectors).sum(axis=1).min() > 0.999999
    np.testing.assert_array_equal(centred(raw, centre).astype(np.float16).astype(np.float32), stored)
    assert uncentred(stored, None) is stored


@pytest.mark.parametrize("copies", [1, 2, 1000])
def test_an_archive_of_copies_still_has_directions(copies: int) -> None:
    vectors = np.repeat(unit(np.random.default_rng(2), 1), copies, axis=0)
    seen = centred(vectors, fit_centre([vectors.sum(axis=0)], copies, copies))
    np.testing.assert_allclose(seen, vectors, atol=2e-3)


def test_a_centre_is_kept_until_the_archive_has_doubled_or_halved() -> None:
    assert [volumes for volumes in range(1, 300) if not refit_needed(volumes, 100)] == list(range(51, 200))
