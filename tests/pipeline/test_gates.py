"""Checks before publication."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pytest

from medret.errors import GateError
from medret.pipeline import gates
from medret.pipeline.gates import NO_KEYS, VectorFacts
from medret.pipeline.request import GateLimits
from medret.snapshot import Counts, IndexEntry

LIMITS = GateLimits()


def entry(recall: float) -> IndexEntry:
    return IndexEntry(recipe="r", aggregation="mean", rows=1, dim=1, shards=1, recall={"exact": 1.0, "lsh": recall})


def test_recall_below_its_floor_is_refused_with_its_number() -> None:
    assert gates.recall_gate([entry(0.95)], LIMITS).passed
    assert gates.recall_gate([], LIMITS).passed
    failed = gates.recall_gate([entry(0.95), entry(0.61)], LIMITS)
    with pytest.raises(GateError, match=r"refused to publish: recall@10: found 0\.6100 \(lsh over mean\), expected at"):
        gates.enforce([failed])


@pytest.mark.parametrize(("quarantined", "passed"), [(0, True), (5, True), (6, False)])
def test_too_many_refused_volumes(quarantined: int, passed: bool) -> None:
    counts = Counts(listed=12, embedded=10 - quarantined, new=10 - quarantined, quarantined=quarantined, skipped=2)
    assert gates.quarantine_gate(counts, 0, LIMITS).passed is passed


def test_segmentations_are_no_refused_images() -> None:
    """C10: an archive with three unnamed masks beside each image is as good as one without them."""
    counts = Counts(listed=40, embedded=9, new=9, quarantined=31)
    assert gates.quarantine_gate(counts, 30, LIMITS).found == "1 of 10 volumes (10.0%)"
    assert not gates.quarantine_gate(counts, 0, LIMITS).passed


def facts(keys: Mapping[str, bytes], bad: int = 0) -> list[VectorFacts]:
    """The facts of vectors with these digests, by volume_id, in two files."""
    numbers = [int.from_bytes(key, "big") for key in keys.values()]
    rows = pa.table([pa.array([*keys], pa.string()), pa.array(numbers, pa.uint64())], schema=NO_KEYS.schema)
    return [VectorFacts(rows.slice(0, 7), bad), VectorFacts(rows.slice(7), 0)]


def contents(of: Mapping[str, str]) -> Callable[[], pa.Table]:
    """Reads volumes and their contents."""
    return lambda: pa.table({"volume_id": [*of], "content_sha256": [*of.values()]})


def test_one_vector_for_everything_is_refused() -> None:
    of = {str(n): f"sha{n}" for n in range(20)}
    same, distinct = facts(dict.fromkeys(of, b"x")), facts({name: name.encode() for name in of})
    assert not gates.duplicate_gate(same, contents(of), LIMITS).passed
    assert gates.duplicate_gate(distinct, contents(of), LIMITS).passed
    # Copies of one content have one vector, rightly; and a few volumes prove nothing.
    assert gates.duplicate_gate(same, contents(dict.fromkeys(of, "sha")), LIMITS).passed
    few = {name: of[name] for name in "123"}
    assert gates.duplicate_gate(facts(dict.fromkeys(few, b"x")), contents(few), LIMITS).passed
    assert gates.duplicate_gate([], contents(of), LIMITS).passed


def test_volumes_that_are_gone_since_an_unfinished_run_made_them_do_not_count() -> None:
    of = {str(n): f"sha{n}" for n in range(20)}
    gone = {"gone": b"x", "gone too": b"x"}
    both = gates.duplicate_gate(facts({name: name.encode() for name in of} | gone), contents(of), LIMITS)
    assert (both.passed, both.found) == (True, "none")
    assert gates.duplicate_gate(facts(gone), contents(of), LIMITS).passed


def test_the_largest_group_of_equal_vectors_is_counted_by_content() -> None:
    rng = np.random.default_rng(3)
    of = {f"v{n}": f"sha{n}" for n in rng.integers(0, 60, 200).tolist()}
    keys = {name: bytes([rng.integers(0, 9)]) for name in of}
    groups = {key: {of[name] for name in of if keys[name] == key} for key in keys.values()}
    largest, total = max(map(len, groups.values())), len({*of.values()})
    found = gates.duplicate_gate(facts(keys), contents(of), LIMITS).found
    assert found == f"{largest} of {total} new contents share one vector"


def test_bad_vectors_are_refused() -> None:
    assert gates.vector_gate(facts({})).passed
    assert not gates.vector_gate(facts({}, bad=1)).passed


def test_drifting_canaries_are_refused_and_named() -> None:
    assert gates.canary_gate({}, LIMITS).passed
    assert gates.canary_gate({"a": 0.9995}, LIMITS).passed
    failed = gates.canary_gate({"a": 0.9995, "b": 0.9}, LIMITS)
    assert not failed.passed
    assert "0.90000 of 2" in failed.found
    assert "b" not in (failed.entry().found + failed.entry().limit).split()
    with pytest.raises(GateError, match=r"0\.90000 of 2 \(b\), expected"):  # B10: said, but in no manifest
        gates.enforce([failed])


def test_lowest_cosine_is_of_the_worst_slice() -> None:
    one = np.eye(3, dtype=np.float16)
    other = one.copy()
    assert gates.lowest_cosine(one, other) == pytest.approx(1.0)
    other[2] = (0.0, 1.0, 0.0)
    assert gates.lowest_cosine(one, other) == pytest.approx(0.0)
    assert gates.lowest_cosine(one, one[:2]) == -1.0
    other[2] = np.nan
    assert gates.lowest_cosine(one, other) == -1.0
