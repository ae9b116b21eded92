"""Checks before publication."""

from __future__ import annotations

import numpy as np
import pytest

from medret.errors import GateError
from medret.pipeline import gates
from medret.pipeline.gates import GateLimits, VectorFacts
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


def test_one_vector_for_everything_is_refused() -> None:
    content = {str(n): f"sha{n}" for n in range(20)}
    same = [VectorFacts(dict.fromkeys(content, b"x"), 0)]
    distinct = [VectorFacts({name: name.encode() for name in content}, 0)]
    assert not gates.duplicate_gate(same, content, LIMITS).passed
    assert gates.duplicate_gate(distinct, content, LIMITS).passed
    # Copies of one content have one vector, rightly; and a few volumes prove nothing.
    assert gates.duplicate_gate(same, dict.fromkeys(content, "sha"), LIMITS).passed
    few = {name: content[name] for name in "123"}
    assert gates.duplicate_gate([VectorFacts(dict.fromkeys(few, b"x"), 0)], few, LIMITS).passed


def test_bad_vectors_are_refused() -> None:
    assert gates.vector_gate([VectorFacts({}, 0)]).passed
    assert not gates.vector_gate([VectorFacts({}, 0), VectorFacts({}, 1)]).passed


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
