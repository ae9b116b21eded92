from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medret.search.index_search import ScoredRow, merge_shards, merge_slices

found_lists = st.lists(
    st.builds(
        ScoredRow, st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 5)
    ),
    max_size=30,
)


@given(found_lists, st.integers(1, 12), st.randoms())
def test_the_order_of_arrival_does_not_matter(found: list[ScoredRow], k: int, random: object) -> None:
    shuffled = found.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merge_shards(found, k) == merge_shards(shuffled, k)


@given(found_lists, st.integers(1, 12))
def test_the_best_come_first_and_ties_by_volume(found: list[ScoredRow], k: int) -> None:
    merged = merge_shards(found, k)
    assert len(merged) == min(k, len(found))
    keys = [(-one.score, one.volume_id, one.shard, one.row) for one in merged]
    assert keys == sorted(keys)
    if merged:
        assert sum(one.score > merged[-1].score for one in found) < k


@given(st.lists(found_lists, max_size=4), st.integers(1, 12))
def test_slices_found_twice_keep_their_best_score(by_slice: list[list[ScoredRow]], k: int) -> None:
    merged = merge_slices(by_slice, k)
    places = [(one.shard, one.row) for one, _ in merged]
    assert len(places) == len(set(places))
    for one, number in merged:
        assert one in by_slice[number]
        same = [
            other.score for found in by_slice for other in found if (other.shard, other.row) == (one.shard, one.row)
        ]
        assert one.score == max(same)
