"""Labels that the reader finds in a volume's own tags: merged with the others in every run, and hidden when told so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.archive import Listing
from medret.archive.label_origins import from_columns, merged
from medret.pipeline.new_ledger import assemble
from medret.pipeline.plan import Plan, make_plan
from medret.pipeline.store_state import BaseSnapshot, Target, known_rows, store_state
from medret.schemas import FILES, LEDGER, OBJECTS, TOMBSTONES
from medret.snapshot import Journal

Labels = Mapping[str, Mapping[str, Mapping[str, str]]]  # origin -> volume_id -> labels

RECIPE = "aaaaaaaaaaaaaaaa"
NAMES = ("ct", "mr", "other")
TAGS = {
    "ct": {"StudyDate": "20200131", "modality": "CT", "subject": "P1"},
    "mr": {"StudyDate": "20200201", "modality": "MRI", "subject": "P2"},
}


class Store:
    """A ledger that runs over the same three volumes write again and again."""

    def __init__(self) -> None:
        self.ledger = LEDGER.empty_table()

    def plan(self, labels: pa.Table, hidden: Collection[str]) -> Plan:
        base = BaseSnapshot("id", None, known_rows(self.ledger), FILES.empty_table(), TOMBSTONES.empty_table())
        objects = [{"volume_id": name, "size_bytes": 10, "mtime": "t"} for name in NAMES]
        listing = Listing("/archive", pa.Table.from_pylist(objects, OBJECTS), {})
        state = store_state(base, Journal(LEDGER.empty_table(), FILES.empty_table(), ()))
        return make_plan(listing, labels, state, Target((RECIPE,), "judge", copies=False, hidden=frozenset(hidden)))

    def run(self, labels: Labels, hidden: Collection[str] = (), *, whole: bool = False) -> tuple[list[str], Plan]:
        """The volumes whose rows the run writes, and its plan."""
        joined = table(labels)
        plan = self.plan(joined, hidden)
        given = {row["volume_id"]: row["modality"] for row in joined.to_pylist()}
        made = [
            {
                "volume_id": step.item.volume_id, "uri": "", "size_bytes": 10, "mtime": "t", "status": "embedded",
                "content_sha256": step.item.volume_id, "slices": 1, "shards": [(RECIPE, "one")], "judged_by": "judge",
                "modality": given.get(step.item.volume_id), "found": list(TAGS.get(step.item.volume_id, {}).items()),
            }
            for step in plan.of("embed")
        ]  # fmt: skip
        new = assemble(plan, pa.Table.from_pylist(made, LEDGER), {}, joined, self.rows, whole=whole)
        kept = self.ledger.filter(pa.array(new.kept)) if self.ledger.num_rows else self.ledger
        self.ledger = pa.concat_tables([kept, new.changed]).sort_by("volume_id").combine_chunks()
        return new.changed["volume_id"].to_pylist(), plan

    def rows(self, numbers: NDArray[np.int64], names: Sequence[str] = LEDGER.names) -> pa.Table:
        return self.ledger.select(names).take(pa.array(numbers))

    def labels(self, volume_id: str) -> dict[str, tuple[str, str]]:
        """Label -> text and origin."""
        row: dict[str, Any] = next(row for row in self.ledger.to_pylist() if row["volume_id"] == volume_id)
        texts = {name: row[name] for name in ("subject", "modality", "body_region", "organ")} | dict(row["metadata"])
        return {name: (texts[name], origin) for name, origin in row["origins"]}


def table(labels: Labels) -> pa.Table:
    tables = []
    for origin, volumes in labels.items():
        names = sorted({name for each in volumes.values() for name in each})
        columns = {name: pa.array([each.get(name) for _, each in sorted(volumes.items())]) for name in names}
        tables.append(from_columns(pa.array(sorted(volumes)), columns, origin))
    return merged(pa.chunked_array([list(NAMES)]), tables)


GIVEN: Labels = {
    "table": {"ct": {"subject": "anna", "organ": "Lung"}, "other": {"modality": "CT", "organ": "Liver"}},
    "bids": {"ct": {"subject": "01", "session": "2"}, "mr": {"subject": "02", "session": "2"}},
}


def test_a_table_counts_before_tags_and_tags_before_paths() -> None:
    store = Store()
    store.run(GIVEN)
    assert store.labels("ct") == {
        "subject": ("anna", "table"), "modality": ("CT", "dicom"), "organ": ("Lung", "table"),
        "StudyDate": ("20200131", "dicom"), "session": ("2", "bids"),
    }  # fmt: skip
    assert store.labels("mr") == {
        "subject": ("P2", "dicom"), "modality": ("MRI", "dicom"), "StudyDate": ("20200201", "dicom"),
        "session": ("2", "bids"),
    }  # fmt: skip
    assert store.labels("other") == {"modality": ("CT", "table"), "organ": ("Liver", "table")}


def test_the_next_run_has_nothing_to_do() -> None:
    """What was found is no change: neither the modality, nor labels of paths that tags replaced."""
    store = Store()
    store.run(GIVEN)
    for labels in (GIVEN, {**GIVEN, "bids": {**GIVEN["bids"], "mr": {"subject": "two", "session": "2"}}}):
        written, plan = store.run(labels)
        assert (written, plan.idle) == ([], True)


def test_other_labels_write_rows_again_with_what_was_found() -> None:
    store = Store()
    store.run(GIVEN)
    written, plan = store.run({"bids": {**GIVEN["bids"], "mr": {"subject": "02", "session": "3"}}})
    assert plan.causes() == {"changed": 1, "unchanged": 2}  # `other` has lost its modality label
    assert written == ["ct", "mr", "other"]
    assert store.labels("ct")["subject"] == ("P1", "dicom")
    assert store.labels("mr")["session"] == ("3", "bids")
    written, plan = store.run({"table": {"mr": {"modality": "CT"}}})
    assert plan.causes()["changed"] == 1
    assert store.labels("mr")["modality"] == ("CT", "table")


def test_hidden_labels_are_not_stored_and_do_not_come_back() -> None:
    store = Store()
    store.run(GIVEN)
    written, plan = store.run(GIVEN, {"subject", "StudyDate"}, whole=True)
    assert (written, plan.idle) == (list(NAMES), True)
    assert store.labels("mr") == {"subject": ("02", "bids"), "modality": ("MRI", "dicom"), "session": ("2", "bids")}
    assert store.labels("ct")["subject"] == ("anna", "table")
    assert [row["found"] for row in store.ledger.to_pylist()] == [[("modality", "CT")], [("modality", "MRI")], []]
    for hidden in ({"subject", "StudyDate"}, set[str]()):
        written, plan = store.run(GIVEN, hidden)
        assert (written, plan.idle) == ([], True)
