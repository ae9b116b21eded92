"""The rotation of LSH against what a rotation is, and index files that hold their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medret.errors import CorruptError
from medret.index import IndexSettings
from medret.index.approximate import Distinct, Rotation, turned
from medret.index.build import recall_of, recall_probe
from medret.index.exact import ExactIndex, build_exact
from medret.index.index_files import JUDGES, open_approximate
from medret.index.lsh import LshIndex, build_lsh

DIM, ROWS = 96, 3000


@given(st.integers(1, 9), st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_whole_rotations_keep_lengths_and_angles(power: int, more: int) -> None:
    dim = 2**power - more if power > 2 else 2**power
    vectors = np.random.default_rng(power).standard_normal((5, dim)).astype(np.float32)
    width = 1 << (dim - 1).bit_length()
    turned = Rotation(dim, 2 * width).apply(vectors)
    for half in (turned[:, :width], turned[:, width:]):
        np.testing.assert_allclose(half @ half.T, vectors @ vectors.T, rtol=1e-4, atol=1e-4)
    assert not np.allclose(turned[:, :width], turned[:, width:])  # each rotation has a seed of its own


@given(st.integers(1, 1600), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_turned_vector_keeps_its_length_and_its_angles(dim: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((5, dim)).astype(np.float32)
    kept = vectors.copy()
    made = turned(vectors)
    assert made.shape == vectors.shape
    assert (vectors == kept).all()
    scale = float(np.abs(vectors @ vectors.T).max())
    np.testing.assert_allclose(made @ made.T, vectors @ vectors.T, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("dim", [768, 1024, 1472])
def test_a_turned_direction_has_no_dimension_that_holds_most_of_it(dim: int) -> None:
    made = turned(np.eye(dim, dtype=np.float32)[:: dim // 16])
    assert np.abs(made).max() < 0.3
    assert np.abs(turned(np.ones((1, dim), np.float32)) / dim**0.5).max() < 0.3


def test_every_bit_of_a_direction_depends_on_all_of_its_dimensions() -> None:
    """A sparse vector is spread: no coordinate is 0 or holds most of it."""
    turned = Rotation(768, 1536).apply(np.eye(1, 768, 5, dtype=np.float32))
    assert np.abs(turned).max() < 0.2
    assert (np.abs(turned) < 1e-6).mean() < 0.05


@pytest.fixture(scope="module")
def vectors() -> Any:
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((30, DIM))
    raw = centres[rng.integers(0, 30, ROWS)] + 0.7 * rng.standard_normal((ROWS, DIM))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)


def _with_its_own_rotation(vectors: Any) -> Any:
    """An index as older versions wrote it: a Gaussian matrix made orthogonal, in the file."""
    index = faiss.IndexLSH(DIM, IndexSettings().bits_for(DIM), True, True)
    index.train(vectors.astype(np.float32))
    index.add(vectors.astype(np.float32))
    return index


def test_the_candidates_hold_as_many_true_neighbours_as_those_of_a_gaussian_rotation(vectors: Any) -> None:
    exact, distinct = ExactIndex(build_exact(vectors)), Distinct(np.arange(ROWS, dtype=np.int32))
    probe = recall_probe(exact)
    for candidates in (30, 50, 200):
        seeded, gaussian = (
            recall_of(LshIndex(index, exact, distinct, candidates), exact, probe)
            for index in (build_lsh(vectors, IndexSettings()), _with_its_own_rotation(vectors))
        )
        assert seeded > gaussian - 0.03, candidates


def test_files_of_both_kinds_are_sound_and_give_the_same_hits_as_before_they_were_written(
    vectors: Any, tmp_path: Path
) -> None:
    exact, distinct = ExactIndex(build_exact(vectors)), Distinct(np.arange(ROWS, dtype=np.int32))
    queries = vectors[:40].astype(np.float32)
    sizes = {}
    for name, index in (("seeded", build_lsh(vectors, IndexSettings())), ("own", _with_its_own_rotation(vectors))):
        path = tmp_path / name
        path.write_bytes(faiss.serialize_index(index).tobytes())
        JUDGES["lsh"](path)
        opened = open_approximate(path, "lsh", exact, distinct, IndexSettings())
        found = opened.search(queries, 10)
        before = LshIndex(index, exact, distinct, IndexSettings().lsh_candidates).search(queries, 10)
        np.testing.assert_array_equal(found.rows, before.rows)
        sizes[name] = path.stat().st_size
    codes, matrix = ROWS * IndexSettings().bits_for(DIM) // 8, DIM * IndexSettings().bits_for(DIM) * 4
    assert sizes["seeded"] - codes < 2048  # thresholds and lengths
    assert sizes["own"] - sizes["seeded"] > matrix * 0.95


def test_a_file_whose_rotation_is_not_as_it_says_is_refused(vectors: Any, tmp_path: Path) -> None:
    data = bytearray(faiss.serialize_index(build_lsh(vectors, IndexSettings())).tobytes())
    place = data.index(b"\x00\x01", 37)  # rotated: no, thresholds: yes
    data[place] = 1
    (tmp_path / "lsh").write_bytes(bytes(data))
    with pytest.raises(CorruptError, match="rotation"):
        JUDGES["lsh"](tmp_path / "lsh")


def test_rotations_are_those_that_the_page_states() -> None:
    """docs/formats.md: a store that was built with others would lose recall without a word."""
    vectors = np.random.default_rng(0).standard_normal((4, 1472)).astype(np.float32)
    expected = vectors.copy()
    for seed, part in ((0, slice(0, 1024)), (1, slice(448, 1472))):
        expected[:, part] = faiss.HadamardRotation(1024, seed).apply(np.ascontiguousarray(expected[:, part]))
    np.testing.assert_array_equal(turned(vectors), expected)
    some = np.ascontiguousarray(vectors[:, :96])
    whole = np.concatenate([faiss.HadamardRotation(96, seed).apply(some) for seed in (0, 1)], axis=1)
    np.testing.assert_array_equal(Rotation(96, 200).apply(some), whole[:, :200])
