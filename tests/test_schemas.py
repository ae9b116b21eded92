"""Tables whose text is larger than one Arrow array can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medret import schemas
from medret.archive import ArchiveObject
from medret.pipeline import new_ledger as ledgers
from medret.pipeline.plan import Target, make_plan
from medret.pipeline.store_state import BaseSnapshot, known_volumes
from medret.schemas import FILES, LEDGER, TOMBSTONES, VOLUME_LABELS, in_order, taken
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
    before = pa.Table.from_pylist([row(number) for number in reversed(range(N))], LEDGER)
    previous = BaseSnapshot("id", None, before, FILES.empty_table(), TOMBSTONES.empty_table())
    known = known_volumes(previous, Journal(LEDGER.empty_table(), FILES.empty_table(), ()))
    wanted = Target(("r",), "j")
    objects = [ArchiveObject(f"v{number:02d}", f"/v{number:02d}", number, None, "t") for number in range(N)]
    plan = make_plan(objects, {}, known, wanted)
    ledger = ledgers.assemble(plan, known, wanted, LEDGER.empty_table(), {})
    labels = pa.Table.from_pylist([{"volume_id": "v00", "organ": "liver", "metadata": []}], VOLUME_LABELS)
    labelled = ledgers.with_labels(ledger, labels)
    assert labelled["volume_id"].to_pylist() == [one.volume_id for one in objects]
    assert labelled["facts"].to_pylist() == ["{}"] * N
    assert max(map(longest_part, (ledger, labelled, ledgers.with_shards(labelled, {("r", "v01"): "t"})))) <= PART
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
