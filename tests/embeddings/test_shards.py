"""Parquet shards of vectors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from medret.embeddings import (
    Slices,
    parse_aggregation,
    plane_codes,
    read_vectors,
    slice_table,
    unit_slices,
    volume_table,
)
from medret.embeddings.parquet import AGGREGATION_KEY, RECIPE_KEY, parquet_bytes, read_parquet
from medret.errors import QuarantineCode, VolumeError

DIM = 12


def embedded(volume_id: str, n: int, seed: int) -> Slices:
    raw = 7 * np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    vectors, norms = unit_slices(raw)
    at = np.arange(n)
    relative = (at / max(n - 1, 1)).astype(np.float32)
    planes, mm = plane_codes(["axial"] * n), (3.0 * at).astype(np.float32)
    return Slices(vectors, planes, at.astype(np.int32), relative, mm, norms, volume_id=volume_id)


def test_raw_outputs_come_back_from_vector_and_norm() -> None:
    raw = 50 * np.random.default_rng(1).standard_normal((6, DIM)).astype(np.float32)
    vectors, norms = unit_slices(raw)
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors.astype(np.float32) * norms[:, None], raw, rtol=2e-3, atol=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_outputs_without_direction_are_a_quarantine_code(value: float) -> None:
    raw = np.ones((3, DIM), np.float32)
    raw[1] = value
    with pytest.raises(VolumeError, match="1 of 3") as caught:
        unit_slices(raw)
    assert caught.value.code is QuarantineCode.EMBEDDING_FAILED


def test_shard_survives_parquet_with_its_types() -> None:
    volumes = [embedded("a", 5, 0), embedded("b", 1, 1)]
    data = parquet_bytes(slice_table(volumes, DIM, "digest"))
    table = read_parquet(data)
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    assert table.schema.field("vector").type.value_type == pa.float16()
    assert table.schema.metadata[RECIPE_KEY] == b"digest"
    assert table["volume_id"].to_pylist() == ["a"] * 5 + ["b"]
    np.testing.assert_array_equal(read_vectors(table)[:5], volumes[0].vectors)
    assert data == parquet_bytes(slice_table(volumes, DIM, "digest"))


def test_volume_vectors_can_be_derived_from_stored_slices() -> None:
    aggregation = parse_aggregation("gaussian:0.4,0.3")
    volumes = [embedded("a", 5, 0), embedded("b", 9, 1)]
    stored = read_parquet(parquet_bytes(slice_table(volumes, DIM, "digest")))
    table = volume_table(volumes, aggregation, DIM, "digest")
    assert table.schema.metadata[AGGREGATION_KEY] == b"gaussian:0.4,0.3"
    assert table["slices"].to_pylist() == [5, 9]
    of_b = stored.slice(5)
    again = aggregation.aggregate(read_vectors(of_b).astype(np.float32), of_b["relative"].to_numpy(), "b")
    np.testing.assert_array_equal(read_vectors(table)[1], again.astype(np.float16))


def test_no_volumes_make_an_empty_table() -> None:
    table = slice_table([], DIM, "digest")
    assert table.num_rows == 0
    assert read_vectors(table).shape == (0, DIM)


def test_a_process_that_ends_right_after_reading_ends_well() -> None:
    """With pyarrow.parquet.read_table about every second such process was aborted."""
    script = (
        "import numpy as np, pyarrow as pa\n"
        "from medret.embeddings.parquet import read_parquet\n"
        "from medret.embeddings.parquet import parquet_bytes\n"
        "data = parquet_bytes(pa.table({f'c{i}': np.zeros(40_000) for i in range(40)}))\n"
        "read_parquet(data)"
    )
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
