"""The new ledger: rows that stay are not read, rows that change are put together by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from medret.archive import Listing
from medret.errors import QuarantineCode, VolumeError
from medret.pipeline import judge
from medret.pipeline import new_ledger as ledgers
from medret.pipeline.content_hashes import resolve
from medret.pipeline.gates import losses
from medret.pipeline.new_ledger import NewLedger
from medret.pipeline.plan import make_plan
from medret.pipeline.store_state import BaseSnapshot, Target, known_rows, store_state
from medret.schemas import FILES, LEDGER, OBJECTS, TOMBSTONES, VOLUME_LABELS
from medret.snapshot import Journal

A, B = "a" * 16, "b" * 16


def row(volume_id: str, **more: Any) -> dict[str, Any]:
    return {
        "volume_id": volume_id, "uri": f"/archive/{volume_id}", "size_bytes": 10, "mtime": "t0", "status": "embedded",
        "content_sha256": f"sha-{volume_id}", "slices": 2, "shards": [(A, "one")], "judged_by": "judge", "metadata": [],
        "facts": "{}", **more,
    }  # fmt: skip


def refused(volume_id: str, **more: Any) -> dict[str, Any]:
    return row(volume_id, **{"status": "quarantined", "code": "truncated", "reason": "short", "shards": [], **more})


class Run:
    """A run over `listed` (volume_id -> mtime) after a snapshot with these rows."""

    def __init__(
        self, rows: Sequence[dict[str, Any]], listed: dict[str, str], organs: dict[str, str] | None = None,
        recipes: tuple[str, ...] = (A,),
    ) -> None:  # fmt: skip
        self.before = pa.Table.from_pylist(sorted(rows, key=lambda each: str(each["volume_id"])), LEDGER)
        base = BaseSnapshot("id", None, known_rows(self.before), FILES.empty_table(), TOMBSTONES.empty_table())
        objects = [{"volume_id": name, "size_bytes": 10, "mtime": mtime} for name, mtime in sorted(listed.items())]
        labels = [{"volume_id": one, "organ": organ, "metadata": []} for one, organ in sorted((organs or {}).items())]
        self.labels = pa.Table.from_pylist(labels, VOLUME_LABELS)
        self.listing = Listing("/archive", pa.Table.from_pylist(objects, OBJECTS), {})
        state = store_state(base, Journal(LEDGER.empty_table(), FILES.empty_table(), ()))
        self.plan = resolve(make_plan(self.listing, self.labels, state, Target(recipes, "judge", copies=False)), {})
        self.read: list[int] = []

    def rows(self, numbers: NDArray[np.int64], names: Sequence[str] = LEDGER.names) -> pa.Table:
        self.read += numbers.tolist()
        return self.before.select(names).take(pa.array(numbers))

    def ledger(self, *made: dict[str, Any], whole: bool = False) -> NewLedger:
        table = pa.Table.from_pylist(list(made), LEDGER)
        return ledgers.assemble(self.plan, table, {}, self.labels, self.rows, whole=whole)


def test_rows_that_stay_are_not_read() -> None:
    run = Run([row("a"), refused("b"), row("c")], {"a": "t0", "b": "t0"})
    ledger = run.ledger()
    assert (run.read, ledger.changed.num_rows, ledger.gone.to_pylist()) == ([], 0, ["c"])
    assert ledger.select("volume_id", "status").to_pylist() == [
        {"volume_id": "a", "status": "embedded"}, {"volume_id": "b", "status": "quarantined"},
    ]  # fmt: skip
    counts = judge.counts(run.listing, run.plan, ledger)
    assert (counts.unchanged, counts.quarantined, counts.gone, counts.embedded) == (1, 1, 1, 0)
    assert (losses(run.plan).live, losses(run.plan).gone) == (2, 1)
    assert judge.quarantine(ledger.unusable())["reason"].to_pylist() == ["short"]
    assert run.read == [1]


def test_other_labels_write_a_row_again() -> None:
    run = Run([row("a", organ="liver"), row("b", organ="liver"), row("c")], dict.fromkeys("abc", "t0"), {"a": "liver"})
    changed = run.ledger().changed.to_pylist()
    assert [(each["volume_id"], each["organ"], each["facts"]) for each in changed] == [("b", None, "{}")]


def test_new_unreadable_and_extended_volumes() -> None:
    before = [row("away"), row("gone"), row("mixed"), row("more"), row("same", shards=[(A, "one"), (B, "two")])]
    listed = {"away": "t1", "mixed": "t0", "more": "t0", "new": "t0", "same": "t0"}
    run = Run([*before, row("stays", shards=[(A, "one"), (B, "two")])], listed | {"stays": "t1"}, recipes=(A, B))
    lost = {"status": "quarantined", "code": "unreadable", "reason": "no answer", "slices": 0, "shards": []}
    made = [
        row("away", **lost), row("more", shards=[(B, "three")]), row("new", shards=[(A, "four"), (B, "four")]),
        row("mixed", shards=[(B, "three")], content_sha256="other"), row("stays", mtime="t1", **lost),
    ]  # fmt: skip
    ledger = run.ledger(*made)
    found = {each["volume_id"]: each for each in ledger.changed.to_pylist()}
    assert (found["away"]["status"], found["away"]["code"]) == ("quarantined", "unreadable")  # it lacked a vector
    assert (found["stays"]["status"], found["stays"]["code"], found["stays"]["mtime"]) == (
        "embedded",
        "unreadable",
        "t0",
    )
    assert found["more"]["shards"] == [(A, "one"), (B, "three")]
    assert (found["mixed"]["status"], found["mixed"]["code"]) == ("quarantined", "changed_while_reading")
    assert found.keys() == {"away", "mixed", "more", "new", "stays"}
    counts = judge.counts(run.listing, run.plan, ledger)
    assert (counts.embedded, counts.new, counts.unchanged, counts.stale, counts.quarantined) == (2, 1, 2, 1, 2)
    assert judge.slices_made(pa.Table.from_pylist(made, LEDGER)) == 8


def test_a_volume_that_keeps_no_vectors_may_have_been_replaced() -> None:
    run = Run([row("a"), row("b")], {"a": "t0", "b": "t0"}, recipes=(B,))
    made = [row("a", shards=[(B, "two")], content_sha256="other"), row("b", shards=[(B, "two")])]
    found = {each["volume_id"]: each for each in run.ledger(*made).changed.to_pylist()}
    assert {name: (each["status"], each["shards"]) for name, each in found.items()} == {
        "a": ("embedded", [(B, "two")]), "b": ("embedded", [(B, "two")]),
    }  # fmt: skip
    assert found["a"]["content_sha256"] == "other"


@pytest.mark.parametrize("status", ["embedded", "quarantined"])
def test_a_copy_that_goes_is_not_lost_while_another_can_be_found(status: str) -> None:
    other = (row if status == "embedded" else refused)("b", content_sha256="sha-a")
    run = Run([row("a"), other, row("c")], {"b": "t0"})
    lost = 1 if status == "embedded" else 2
    assert losses(run.plan).gone == lost
    assert judge.counts(run.listing, run.plan, run.ledger()).gone == lost


@pytest.mark.parametrize("whole", [False, True])
def test_a_row_that_stays_can_still_move_or_be_refused(whole: bool) -> None:
    run = Run([row("a"), row("b"), row("c")], dict.fromkeys("abc", "t0"))
    ledger = run.ledger(whole=whole).moved({(A, "b"): "two"})
    ledger = ledger.refused({"c": VolumeError(QuarantineCode.EMBEDDING_FAILED, "cancels")}, "later")
    assert ledger.changed["volume_id"].to_pylist() == (["a", "b", "c"] if whole else ["b", "c"])
    assert dict(zip(*ledger.select("volume_id", "shards").to_pydict().values(), strict=True)) == {
        "a": [(A, "one")], "b": [(A, "two")], "c": [],
    }  # fmt: skip
    assert ledger.touched == {(A, "one"), (A, "two")}


def test_the_size_of_parts_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """New, changed, kept, relabelled and unreadable rows side by side, then some refused and some moved."""
    found = []
    for most in (1, 2, 3, 1 << 14):
        monkeypatch.setattr(ledgers, "PART_ROWS", most)
        before = [row("a"), row("c"), row("e"), refused("g"), row("h")]
        listed = dict.fromkeys("abcdefgh", "t0") | {"c": "t1", "h": "t1"}
        run = Run(before, listed, {"a": "Liver", "d": "Lung"})
        gone = row("h", mtime="t1", status="quarantined", code="unreadable", reason="no answer", shards=[], slices=0)
        made = [row(name, mtime=listed[name], shards=[(A, "two")]) for name in "bcdf"]
        ledger = run.ledger(*made, gone)
        ledger = ledger.refused(dict.fromkeys("ef", VolumeError(QuarantineCode.EMBEDDING_FAILED, "why")))
        ledger = ledger.moved({(A, "b"): "three", (A, "a"): "four"})
        found.append((ledger.changed.to_pylist(), ledger.kept.tolist(), sorted(ledger.touched), run.read))
    assert [each == found[0] for each in found] == [True] * len(found)
    rows = {each["volume_id"]: each for each in found[0][0]}
    assert [*rows] == list("abcdefh")
    assert {name: rows[name]["status"] for name in "defh"} == {
        "d": "embedded", "e": "quarantined", "f": "quarantined", "h": "embedded",
    }  # fmt: skip
    assert (rows["a"]["organ"], rows["a"]["shards"], rows["b"]["shards"]) == ("Liver", [(A, "four")], [(A, "three")])
    assert (rows["h"]["code"], rows["h"]["mtime"], rows["h"]["shards"]) == ("unreadable", "t0", [(A, "one")])


def test_new_rows_share_the_memory_of_the_stream() -> None:
    run = Run([], dict.fromkeys("abc", "t0"), {"b": "Liver"})
    made = pa.Table.from_pylist([row(name) for name in "abc"], LEDGER)
    ledger = ledgers.assemble(run.plan, made, {}, run.labels, run.rows, whole=False)
    for name in ("uri", "facts", "content_sha256"):
        theirs, ours = (
            [chunk.buffers()[2].address for chunk in table[name].chunks if len(chunk)]
            for table in (made, ledger.changed)
        )
        assert ours == theirs
    assert ledger.changed["organ"].to_pylist() == [None, "Liver", None]
