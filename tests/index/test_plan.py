from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medret.errors import UsageError
from medret.index import plan_shards

sizes = st.lists(st.integers(0, 50), max_size=40)


def _named(rows: list[int]) -> list[tuple[str, int]]:
    return [(f"file{number}", count) for number, count in enumerate(rows)]


def test_a_group_closes_when_the_next_file_would_exceed() -> None:
    files = [("a", 4), ("b", 6), ("c", 1), ("d", 30), ("e", 2), ("empty", 0), ("f", 8)]
    assert plan_shards(files, 10) == (("a", "b"), ("c",), ("d",), ("e", "f"))


@given(sizes, st.integers(1, 60))
def test_every_file_with_rows_once_and_in_order(rows: list[int], shard_rows: int) -> None:
    files = _named(rows)
    groups = plan_shards(files, shard_rows)
    assert [key for group in groups for key in group] == [key for key, count in files if count]
    counts = dict(files)
    assert all(len(group) == 1 or sum(counts[key] for key in group) <= shard_rows for group in groups)


@given(sizes, sizes, st.integers(1, 60))
def test_appending_changes_the_last_group_at_most(rows: list[int], more: list[int], shard_rows: int) -> None:
    before = plan_shards(_named(rows), shard_rows)
    after = plan_shards(_named(rows + more), shard_rows)
    assert after[: max(0, len(before) - 1)] == before[:-1]


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="shard_rows is 0"):
        plan_shards([], 0)
    with pytest.raises(UsageError, match="'a' has -1 rows"):
        plan_shards([("a", -1)], 5)
    with pytest.raises(UsageError, match="'a' appears twice"):
        plan_shards([("a", 1), ("a", 1)], 5)
