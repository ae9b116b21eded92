"""Aggregations by their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medret.embeddings import Aggregation, parse_aggregation
from medret.errors import UsageError, VolumeError
from medret.volume.slicing import parse_slice_plan

NAMES = ["mean", "max", "gaussian:0.5,0.2", "uniform:5", "random:5", "random:5,3"]


def unit(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def positions(n: int) -> NDArray[np.float32]:
    return ((np.arange(n) + 0.5) / n).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_canonical_and_give_unit_vectors(name: str) -> None:
    aggregation = parse_aggregation(name)
    assert aggregation.name == name
    for n in (1, 2, 7, 40):
        assert np.linalg.norm(aggregation.aggregate(unit(n, 16), positions(n), "v")) == pytest.approx(1, abs=1e-6)


@given(n=st.integers(1, 300), centre=st.floats(-1, 2), sigma=st.floats(1e-4, 10))
def test_gaussian_weights_sum_to_one(n: int, centre: float, sigma: float) -> None:
    weights = Aggregation("gaussian", centre=centre, sigma=sigma).weights(positions(n), "v")
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()


@given(n=st.integers(1, 300), count=st.integers(1, 300), kind=st.sampled_from(["uniform", "random"]))
def test_subsamples_weigh_the_kept_slices_alike(n: int, count: int, kind: str) -> None:
    weights = parse_aggregation(f"{kind}:{count}").weights(positions(n), "v")
    assert weights.sum() == pytest.approx(1)
    assert np.count_nonzero(weights) == min(n, count)
    assert len(set(weights[weights > 0])) == 1


@pytest.mark.parametrize("name", ["mean", "max", "gaussian:0.5,0.2", "uniform:5"])
def test_a_volume_stored_back_to_front_has_the_same_vector(name: str) -> None:
    vectors, relative = unit(25, 8), positions(25)
    aggregation = parse_aggregation(name)
    there = aggregation.aggregate(vectors, relative, "v")
    back = aggregation.aggregate(vectors[::-1], 1 - relative[::-1], "v")
    np.testing.assert_allclose(there, back, atol=1e-6)


def test_mean_is_the_mean() -> None:
    vectors = unit(9, 5)
    expected = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    np.testing.assert_allclose(parse_aggregation("mean").aggregate(vectors, positions(9), "v"), expected, atol=1e-6)


def test_random_subsample_depends_on_volume_and_seed_alone() -> None:
    vectors, relative = unit(50, 6), positions(50)
    first = parse_aggregation("random:5").aggregate(vectors, relative, "a")
    np.testing.assert_array_equal(first, parse_aggregation("random:5").aggregate(vectors, relative, "a"))
    assert not np.allclose(first, parse_aggregation("random:5").aggregate(vectors, relative, "b"))
    assert not np.allclose(first, parse_aggregation("random:5,1").aggregate(vectors, relative, "a"))


def test_gaussian_favours_its_centre() -> None:
    weights = Aggregation("gaussian", centre=0.25, sigma=0.1).weights(positions(100), "v")
    assert abs(int(weights.argmax()) - 25) <= 1


@pytest.mark.parametrize(
    "wrong",
    ["", "median", "mean:3", "gaussian", "gaussian:0.5", "gaussian:0.5,0", "gaussian:0.5,nan", "random:0", "uniform:x"],
)
def test_wrong_names_are_told_the_forms(wrong: str) -> None:
    with pytest.raises(UsageError, match="gaussian:CENTRE,SIGMA"):
        parse_aggregation(wrong)


def test_opposite_vectors_have_no_mean() -> None:
    with pytest.raises(VolumeError, match="length"):
        parse_aggregation("mean").aggregate(np.array([[1, 0], [-1, 0]], np.float32), positions(2), "v")


@given(n=st.integers(1, 300), count=st.integers(1, 300))
def test_uniform_is_the_rule_of_the_slice_plan(n: int, count: int) -> None:
    """C19: of 16 slices `uniform:8` kept 1, 3, ..., 15, which is not its own mirror image."""
    weights = parse_aggregation(f"uniform:{count}").weights(np.linspace(0, 1, n, dtype=np.float32), "any")
    kept = np.flatnonzero(weights)
    assert kept.tolist() == parse_slice_plan(f"uniform:{count}").indices(np.arange(n)).tolist()
    if n % 2 == 1 or count % 2 == 0:  # else one of two slices in the middle is taken
        assert kept.tolist() == (n - 1 - kept[::-1]).tolist()
