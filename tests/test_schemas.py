"""Tables whose text is larger than one Arrow array can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medret import schemas
from medret.archive import Listing
from medret.pipeline import new_ledger as ledgers
from medret.pipeline.plan import make_plan
from medret.pipeline.store_state import BaseSnapshot, Target, known_rows, store_state
from medret.schemas import FILES, LEDGER, OBJECTS, TOMBSTONES, VOLUME_LABELS, in_order, taken
from medret.snapshot import Journal
from medret.snapshot.tables import read_table, write_ledger
from medret.storage import Location

N, PART = 11, 3


def row(number: int) -> dict[str, Any]:
    return {
        "volume_id": f"v{number:02d}", "uri": f"/v{number:02d}", "size_bytes": number, "mtime": "t", "slices": 1,
        "status": "embedded", "content_sha256": f"sha{number}", "facts": "{}", "metadata": [("k", str(number))],
        "shards": [("r", "s")], "judged_by": "j",
    }  # fmt: skip


def longest_part(table: pa.Table) -> int:
    """Rows of the largest array of text."""
    text = [name for name in table.schema.names if name != "slices"]
    return max(len(chunk) for name in text for chunk in table[name].chunks)


def test_a_ledger_is_put_together_and_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C20: no array of text grows with the archive, from the ledger that is read to the tables that are written."""
    monkeypatch.setattr(schemas, "PART_ROWS", PART)
    monkeypatch.setattr(ledgers, "PART_ROWS", PART)
    ids = [f"v{number:02d}" for number in range(N)]
    before = pa.Table.from_pylist([row(number) for number in range(N)], LEDGER)
    previous = BaseSnapshot("id", None, known_rows(before), FILES.empty_table(), TOMBSTONES.empty_table())
    known = store_state(previous, Journal(LEDGER.empty_table(), FILES.empty_table(), ()))
    objects = [{"volume_id": name, "size_bytes": number, "mtime": "t"} for number, name in enumerate(ids)]
    listing = Listing("", pa.Table.from_pylist(objects, OBJECTS), {})
    labels = pa.Table.from_pylist([{"volume_id": "v00", "organ": "liver", "metadata": []}], VOLUME_LABELS)
    plan = make_plan(listing, labels, known, Target(("r",), "j"))
    new = ledgers.assemble(
        plan, LEDGER.empty_table(), {}, labels, lambda rows: before.take(pa.array(rows)), whole=True
    )  # fmt: skip
    labelled = new.changed
    assert labelled["volume_id"].to_pylist() == ids
    assert labelled["facts"].to_pylist() == ["{}"] * N
    assert max(map(longest_part, (labelled, new.moved({("r", "v01"): "t"}).changed))) <= PART
    tables = write_ledger(Location(tmp_path), None, labelled, ())
    assert [table.rows for table in tables] == [3, 3, 3, 2]
    written = pa.concat_tables(read_table(Location(tmp_path), table) for table in tables)
    assert written.to_pylist() == labelled.to_pylist()


def test_rows_are_taken_as_arrow_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """C20."""
    monkeypatch.setattr(schemas, "PART_ROWS", PART)
    table = pa.concat_tables(pa.Table.from_pylist([row(number)], LEDGER) for number in (4, 1, 3, 0, 2))
    rows = pa.array([3, 3, 0, 4], pa.int64())
    found = taken(table, rows)
    assert (found.schema, found.to_pylist()) == (LEDGER, table.take(rows).to_pylist())
    assert in_order(table, "volume_id").to_pylist() == table.sort_by("volume_id").to_pylist()
    assert taken(table.slice(0, 0), rows.slice(0, 0)).schema == LEDGER
