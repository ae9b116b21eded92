"""The ledger as a base and changes: pure functions over tables."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from medret.schemas import GONE, LEDGER, PART_ROWS
from medret.snapshot.tables import collected, merged, needs_base


def ledger(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(rows, LEDGER)


def row(volume_id: str, **values: Any) -> dict[str, Any]:
    fixed = {"uri": f"/a/{volume_id}", "size_bytes": 1, "status": "embedded", "slices": 2}
    return {**dict.fromkeys(LEDGER.names), "volume_id": volume_id, **fixed, **values}


def test_changes_are_merged_in_order_wherever_they_fall() -> None:
    parts = [ledger(row("b"), row("d")), ledger(), ledger(row("f"), row("h"))]
    since = collected(ledger(), ledger(row("g"), row("z"), row("a"), row("d", organ="liver")), ["f"])
    assert since["volume_id"].to_pylist() == ["a", "d", "f", "g", "z"]
    assert since["status"].to_pylist()[2] == GONE
    whole = pa.concat_tables(merged(parts, since))
    assert whole["volume_id"].to_pylist() == ["a", "b", "d", "g", "h", "z"]
    assert whole["organ"].to_pylist() == [None, None, "liver", None, None, None]
    returned = collected(since, ledger(row("f", organ="lung")), ["d", "z"])
    assert pa.concat_tables(merged(parts, returned))["volume_id"].to_pylist() == ["a", "b", "f", "g", "h"]
    emptied = collected(ledger(), ledger(row("e")), ["b", "d"])
    assert pa.concat_tables(merged(parts, emptied))["volume_id"].to_pylist() == ["e", "f", "h"]
    assert pa.concat_tables(merged(parts, collected(ledger(), ledger(), list("bdfh")))) == ledger()
    with pytest.raises(ValueError, match="not in order"):
        list(merged(parts[::-1], since))


def test_a_base_is_written_again_when_more_than_a_sixteenth_has_changed() -> None:
    assert needs_base(0, 0)
    assert needs_base(PART_ROWS, 0), "one file is written again"
    assert not needs_base(PART_ROWS + 1, 6250)
    assert needs_base(PART_ROWS + 1, 6251)
    assert not needs_base(10**7, 625_000)
    assert needs_base(10**7, 625_001)
