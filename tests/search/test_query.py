from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.search.query import vector_query
from medret.search.query_files import is_file

MEAN = parse_aggregation("mean")


def test_volume_vector_is_normalised() -> None:
    query = vector_query(np.array([3, 0, 4, 0]), 4, MEAN)
    assert query.volume.dtype == np.float32
    assert query.volume.tolist() == pytest.approx([0.6, 0, 0.8, 0])
    assert query.slices.slice_indices is None
    assert query.volume_ids == frozenset()


def test_slice_vectors_are_normalised_and_aggregated() -> None:
    query = vector_query(np.array([[2.0, 0, 0, 0], [0, 5, 0, 0]], np.float16), 4, MEAN)
    assert query.slices.vectors.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert query.volume.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0], abs=1e-3)
    assert query.slices.slice_indices is not None
    assert query.slices.slice_indices.tolist() == [0, 1]


def test_gaussian_sees_slice_vectors_as_evenly_spaced() -> None:
    vectors = np.eye(3, 4)
    query = vector_query(vectors, 4, parse_aggregation("gaussian:0.5,0.05"))
    assert query.volume.tolist() == pytest.approx([0, 1, 0, 0], abs=1e-3)
    assert vector_query(vectors[:1], 4, parse_aggregation("gaussian:0.5,0.05")).volume[0] == 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(5), r"shape \(5,\), expected \(4,\)"),
        (np.ones((3, 5)), r"shape \(3, 5\).*\(n, 4\)"),
        (np.ones((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.ones((0, 4)), r"shape \(0, 4\)"),
        (np.array(1.0), r"shape \(\)"),
        (np.array([1, np.nan, 0, 0]), "row 0 is not finite"),
        (np.array([[1, 0, 0, 0], [np.inf, 0, 0, 0]]), "row 1 is not finite"),
        (np.array([[1, 0, 0, 0], [0, 0, 0, 0]]), "row 1 is zero"),
        (np.array(["a", "b", "c", "d"]), "expected numbers"),
        (np.array([1j, 0, 0, 0]), "expected numbers"),
        (np.array([[1.0, 0, 0, 0], [-1, 0, 0, 0]]), "length 0"),
    ],
)
def test_arrays_that_cannot_be_compared(array: NDArray[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        vector_query(array, 4, MEAN)
    assert "\n" not in str(raised.value)


def test_files_and_volume_ids_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case.nii.gz").write_bytes(b"")
    assert is_file("case.nii.gz")
    assert is_file(tmp_path / "case.nii.gz")
    assert is_file("s3://bucket/case.nii.gz")
    assert not is_file("patient7/ct.nii.gz")
    assert not is_file("x" * 300)
    assert not is_file("x" * 300 + "/1.2.840.7")
    assert not is_file("study:7/ct.nii.gz")
    assert is_file(str(tmp_path))
    assert is_file(f"{tmp_path}/1.2.840.7")
    assert not is_file(f"{tmp_path}/1.2.840.7/1.2.840.8")
    with pytest.raises(UsageError, match="no such file or folder"):
        is_file(tmp_path / "gone.nii.gz")
    with pytest.raises(UsageError, match="query is empty"):
        is_file("")
