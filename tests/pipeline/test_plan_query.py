"""The query of the plan against the same rules in plain Python, on random small stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medret.archive import Listing
from medret.errors import MedretError
from medret.pipeline import plan as plans
from medret.pipeline import store_state as states
from medret.pipeline.plan import TRANSIENT_CODES, make_plan
from medret.pipeline.store_state import BaseSnapshot, Target, known_rows, store_state
from medret.schemas import FILES, LEDGER, OBJECTS, TOMBSTONES, VOLUME_LABELS
from medret.snapshot import Journal

A, B = "a" * 16, "b" * 16
NAMES = "pqrstuvw"


def oracle(
    item: Mapping[str, Any], rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], target: Target
) -> Any:
    """(action, cause, content, rows, shards, missing) of one object. rows: of its volume. others: all rows."""
    identity = ("size_bytes", "etag", "mtime", "modality")
    live = next((row for row in rows if row["origin"] == "live"), None)
    fitting = [row for row in rows if all(row[name] == item[name] for name in identity)]
    ruled = (row for row in fitting if row["status"] != "embedded" and row["judged_by"] == target.ruleset_digest)
    refused = next(ruled, None)
    stays_refused = refused is not None and not target.retry and refused["code"] not in TRANSIENT_CODES
    if stays_refused:
        fitting = [row for row in fitting if row["origin"] != "older"]
    match = next((row for row in fitting if row["status"] == "embedded"), None)
    missing, shards = target.recipes, {}
    if match is not None:
        stored = {
            digest: (shard, row["origin"])
            for row in reversed(fitting)
            if row["status"] == "embedded" and row["content_sha256"] == match["content_sha256"]
            for digest, shard in row["shards"]
            if digest in target.recipes
        }
        shards = {digest: shard for digest, (shard, _) in stored.items()}
        missing = tuple(digest for digest in target.recipes if digest not in stored)
        if not missing:
            origins = {origin for _, origin in stored.values()}
            kept = "resumed" if "journal" in origins else "returned" if "older" in origins else "unchanged"
            if kept == "unchanged" and match["code"] is not None:
                kept = "touched"
            return "keep", kept, match["content_sha256"], match["row"], shards, ()
    if stays_refused:
        assert refused is not None
        return "refuse", "refused", None, refused["row"], {}, ()
    if match is not None:
        return "embed", "recipe", match["content_sha256"], match["row"], shards, missing
    cause = "new" if live is None else "changed" if live["status"] == "embedded" else "retried"
    alike = live is not None and all(live[name] == item[name] for name in ("size_bytes", "modality"))
    if live is not None and alike and has_all(live, target):
        return "check", "touched", live["content_sha256"], live["row"], wanted(live, target), target.recipes
    perhaps = [row for row in others if has_all(row, target) and row["size_bytes"] == item["size_bytes"]]
    twins = [row for row in perhaps if None in (row["etag"], item["etag"]) or row["etag"] == item["etag"]]
    return "check" if twins and target.copies else "embed", cause, None, None, {}, target.recipes


def has_all(row: Mapping[str, Any], target: Target) -> bool:
    return row["status"] == "embedded" and {digest for digest, _ in row["shards"]} >= set(target.recipes)


def wanted(row: Mapping[str, Any], target: Target) -> dict[str, str]:
    return {digest: shard for digest, shard in row["shards"] if digest in target.recipes}


IDENTITY = {
    "size_bytes": st.integers(1, 2), "etag": st.sampled_from([None, "e", "f"]), "mtime": st.sampled_from([None, "t"]),
    "modality": st.sampled_from([None, None, "CT"]),
}  # fmt: skip
EMBEDDED = st.fixed_dictionaries({
    "status": st.just("embedded"), "code": st.sampled_from([None, None, "unreadable"]),
    "content_sha256": st.sampled_from(["0", "1"]), "judged_by": st.just("judge"),
    "shards": st.sampled_from([[(A, "one")], [(B, "two")], [(B, "two"), (A, "three")]]), **IDENTITY,
})  # fmt: skip
REFUSED = st.fixed_dictionaries({
    "status": st.just("quarantined"), "code": st.sampled_from(["truncated", "unreadable"]), "shards": st.just([]),
    "content_sha256": st.none(), "judged_by": st.sampled_from(["judge", "other"]), **IDENTITY,
})  # fmt: skip
ROW = st.one_of(EMBEDDED, EMBEDDED, REFUSED)
MANY = st.lists(st.tuples(st.sampled_from(NAMES), ROW), max_size=5)
TARGETS = st.builds(
    Target, st.sampled_from([(A,), (B,), (A, B)]), st.just("judge"), retry=st.booleans(), copies=st.booleans()
)


@pytest.mark.parametrize("range_rows", [2, 1 << 18])
def test_the_query_says_what_the_rules_say(range_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "RANGE_ROWS", range_rows)

    @settings(max_examples=20, deadline=None)
    @given(
        st.dictionaries(st.sampled_from(NAMES), st.fixed_dictionaries(IDENTITY), max_size=8),
        st.dictionaries(st.sampled_from(NAMES), ROW, max_size=8), MANY, MANY, TARGETS,
    )  # fmt: skip
    def check(
        listed: dict[str, dict[str, Any]], live: dict[str, dict[str, Any]], journal: list[tuple[str, dict[str, Any]]],
        older: list[tuple[str, dict[str, Any]]], target: Target,
    ) -> None:  # fmt: skip
        rows = [
            {"volume_id": name, "uri": name, "slices": 1, "origin": origin, "row": 0, **values}
            for origin, pairs in (("live", sorted(live.items())), ("journal", journal), ("older", older))
            for name, values in pairs
        ]
        for number, row in enumerate(rows):
            row["row"] = number
        tables = [
            pa.Table.from_pylist([row for row in rows if row["origin"] == origin], LEDGER)
            for origin in ("live", "journal", "older")
        ]
        base = BaseSnapshot("id", None, known_rows(tables[0]), FILES.empty_table(), TOMBSTONES.empty_table())
        state = store_state(base, Journal(tables[1], FILES.empty_table(), ()), tables[2])
        names = sorted(listed)
        objects = pa.Table.from_pylist([{"volume_id": name, **listed[name]} for name in names], OBJECTS)
        labels = pa.Table.from_pylist(
            [{"volume_id": name, "modality": listed[name]["modality"], "metadata": []} for name in names], VOLUME_LABELS
        )
        plan = make_plan(Listing("/archive", objects, {}), labels, state, target)
        found = [
            (step.action, step.cause, step.content_sha256, step.row, dict(step.shards), step.missing)
            for step in plan.of("keep", "refuse", "copy", "check", "embed")
        ]
        mine = [[row for row in rows if row["volume_id"] == name] for name in names]
        assert found == [oracle(listed[name], own, rows, target) for name, own in zip(names, mine, strict=True)]
        assert [rows[number]["volume_id"] for number in plan.gone] == sorted(set(live) - set(names))

    check()


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(states.CONFIG, "memory_limit", "1MB")
    monkeypatch.setattr(states, "_database", states._database.__wrapped__)
    text = "SELECT number, count(*) AS n FROM numbers GROUP BY number ORDER BY n, number DESC"
    with pytest.raises(MedretError, match=r"needs more memory than there is here: Out of Memory Error: .*; start it"):
        states.query(text, {"numbers": pa.table({"number": range(300_000)})})
