"""What became of the listed objects: counts, and the volumes that could not be used. Pure functions over tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import Listing
from medret.pipeline.new_ledger import NewLedger, row_numbers
from medret.pipeline.steps import ACTIONS, CAUSES, Plan
from medret.pipeline.store_state import picked, rows_of
from medret.schemas import QUARANTINE
from medret.snapshot import Counts
from medret.snapshot.liveness import entries


def counts(listing: Listing, plan: Plan, ledger: NewLedger) -> Counts:
    """Count what became of the listed objects.

    Equal files with new content all count as embedded, although the model saw only one of them. Stale volumes count as
    unchanged.
    """
    table, state = plan.table, plan.state
    at = pc.index_in(table["volume_id"], value_set=ledger.changed["volume_id"])
    written = np.flatnonzero(pc.is_valid(at).to_numpy())
    rows = ledger.changed.select(["status", "code", "content_sha256"])
    part = rows_of(table.select(["modality", "row", "live"]), written)
    action, cause = plan.codes("action")[written], plan.codes("cause")[written]
    embedded = pc.equal(rows["status"], "embedded").to_numpy()
    stale = embedded & pc.is_valid(rows["code"]).to_numpy()
    copied = action == ACTIONS.index("copy")
    live = state.rows.slice(0, state.journal_from)
    renamed = embedded & ~stale & copied
    if renamed.any():
        found = rows["content_sha256"].filter(pa.array(renamed))
        same = pc.and_(pc.equal(live["status"], "embedded"), pc.is_in(live["content_sha256"], value_set=found))
        renamed[renamed] = pc.is_in(found, value_set=live["content_sha256"].filter(same)).to_numpy()
    older = copied & (row_numbers(part["row"]) >= state.older_from)
    unchanged = np.isin(cause, [CAUSES.index(name) for name in ("unchanged", "touched", "returned")]) | older
    made = embedded & ~stale & ~renamed & ~unchanged
    number = row_numbers(part["live"])
    had = number >= 0
    before = picked(live.select(["status", "content_sha256", "modality"]), number[had])
    was = np.zeros(len(written), np.bool_)
    was[had] = pc.equal(before["status"], "embedded").to_numpy()
    differs = np.zeros(len(written), np.bool_)
    now = pa.table({"content_sha256": rows["content_sha256"], "modality": part["modality"]}).filter(pa.array(had))
    differs[had] = _differ(now["content_sha256"], before["content_sha256"]) | _differ(
        now["modality"], before["modality"]
    )
    gone = rows_of(live.select(["content_sha256"]), plan.gone)["content_sha256"]
    moved = pc.is_in(gone, value_set=rows["content_sha256"].filter(pa.array(renamed))).to_numpy()
    kept = live["status"].filter(pa.array(ledger.kept))
    as_before = int(pc.sum(pc.equal(kept, "embedded")).as_py() or 0) + int((embedded & ~made).sum())
    return Counts(
        listed=listing.listed,
        embedded=int(made.sum()),
        new=int((made & ~was).sum()),
        changed=int((made & was & differs).sum()),
        unchanged=as_before,
        renamed=int(renamed.sum()),
        stale=int(stale.sum()),
        gone=len(plan.gone) - int(moved.sum()),
        quarantined=table.num_rows - as_before - int(made.sum()),
        skipped=sum(listing.skipped.values()),
    )


def _differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether each value differs from the other at its place; null equals null."""
    both_null = pc.and_(pc.is_null(one), pc.is_null(other))
    same: NDArray[np.bool_] = pc.coalesce(pc.equal(one, other), both_null).to_numpy()
    return ~same


def quarantine(unusable: pa.Table) -> pa.Table:
    """The quarantined volumes (schemas.QUARANTINE). unusable: see NewLedger."""
    return unusable.filter(pc.equal(unusable["status"], "quarantined")).select(QUARANTINE.names).cast(QUARANTINE)


def stale(unusable: pa.Table) -> pa.Table:
    """The volumes that could not be read and keep their stored vectors (schemas.QUARANTINE)."""
    return unusable.filter(pc.equal(unusable["status"], "embedded")).select(QUARANTINE.names).cast(QUARANTINE)


def codes(quarantine: pa.Table) -> dict[str, int]:
    """The number of quarantined volumes per code."""
    return {item["values"]: item["counts"] for item in quarantine["code"].value_counts().to_pylist()}


def slices_made(made: pa.Table) -> int:
    """Count the slices that the stream embedded, summed over models. made: its ledger rows."""
    return int(made["slices"].to_numpy()[entries(made["shards"]).rows].sum())


def contents(made: pa.Table, volumes: pa.ChunkedArray) -> dict[str, tuple[str | None, str | None]]:
    """volume_id -> (code, content_sha256) of some volumes in the output of the stream."""
    rows = made.select(["volume_id", "code", "content_sha256"])
    columns = rows.filter(pc.is_in(rows["volume_id"], value_set=volumes.unique())).to_pydict().values()
    return {volume_id: (code, content) for volume_id, code, content in zip(*columns, strict=True)}
