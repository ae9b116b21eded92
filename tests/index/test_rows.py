from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medret.errors import CorruptError, MedretError
from medret.index.rows import RowTable, SortedIds, row_order, serialise_rows
from medret.schemas import ROWS


def _table(ids: list[str]) -> pa.Table:
    planes = ["axial", "coronal"] * len(ids)
    return pa.table([ids, planes[: len(ids)], list(range(len(ids)))], schema=ROWS)


def _bytes(table: pa.Table) -> bytes:
    return serialise_rows(table, np.arange(table.num_rows, dtype=np.int32))


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(_bytes(_table(["a", "a", "b", "ä/é", "ä/é"])))
    table = RowTable.open(tmp_path / "rows")
    assert len(table) == 5
    assert table.same_as.tolist() == [0, 1, 2, 3, 4]
    assert table.rows_of("a") == slice(0, 2)
    assert table.rows_of("ä/é") == slice(3, 5)
    assert table.rows_of("c") == slice(0, 0)
    assert table.volume_ids(np.array([4, 0])) == ["ä/é", "a"]
    assert table.planes(table.rows_of("a")) == ["axial", "coronal"]
    assert table.slice_indices([2]) == [2]


def test_equal_rows_give_equal_bytes() -> None:
    table = _table(["a", "b", "c", "d"])
    chunked = pa.concat_tables([_table(["x", *"ab"]).slice(1, 1), table.slice(1, 3)])
    rows = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert _bytes(rows) == _bytes(table)
    assert chunked.num_rows == 4
    assert _bytes(chunked.slice(1)) == _bytes(table.slice(1))


@given(st.lists(st.text(max_size=3), max_size=12), st.text(max_size=3))
def test_search_finds_what_is_there(ids: list[str], wanted: str) -> None:
    ordered = sorted(ids, key=str.encode)
    found = SortedIds(pa.array(["~", *ordered], pa.string()).slice(1)).find(wanted)
    assert ordered[found] == [one for one in ordered if one == wanted]


def test_rows_are_ordered_by_volume_plane_and_position() -> None:
    """C2: index rows follow the order that the product builds, in the tests' own stores too."""
    assert row_order(_table([])).tolist() == []
    values = [("b", "axial", 1), ("a", "sagittal", 0), ("a", "axial", 5), ("b", "axial", 0), ("a", "axial", 4)]
    table = pa.table([list(column) for column in zip(*values, strict=True)], schema=ROWS)
    assert [values[row] for row in row_order(table)] == sorted(values)


def test_other_columns_are_refused() -> None:
    with pytest.raises(MedretError, match="volume_id"):
        _bytes(pa.table({"id": ["a"]}))


@pytest.mark.parametrize("content", [b"", b"not arrow", b"ARROW1\0\0" + bytes(40)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows-0.arrow"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"rows-0\.arrow"):
        RowTable.open(path)
