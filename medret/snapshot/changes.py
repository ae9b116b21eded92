"""A ledger as a base and the changes since then: collect changes, and merge them into the base. Pure functions.

A run over a large archive changes few rows. So snapshots share a base, and each has one table of everything that
changed since the base was written. Both tables have schemas.LEDGER and are sorted by volume_id. A row of the changes
replaces the base's row; one with the status GONE hides it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from medret.schemas import GONE, LEDGER, PART_ROWS, in_order

BASE_SHARE = 16  # a new base is written when more than one row in so many has changed


def needs_base(base_rows: int, changed_rows: int) -> bool:
    """Whether a new base is written: the old one fits one file, or more than a sixteenth of its rows have changed."""
    return base_rows <= PART_ROWS or BASE_SHARE * changed_rows > base_rows


def collected(changes: pa.Table, changed: pa.Table, gone: Sequence[str]) -> pa.Table:
    """Add a run's changes to those since the base.

    changed: rows that are new or replace others (schemas.LEDGER). gone: ids of volumes that the run removes.
    """
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    ids = pa.array(gone, pa.string())
    nothing = {"uri": "", "size_bytes": 0, "status": GONE, "slices": 0}
    hidden = pa.Table.from_pylist([{"volume_id": volume_id, **nothing} for volume_id in gone], LEDGER)
    if changes.num_rows:
        replaced = pa.chunked_array([*changed["volume_id"].chunks, ids], pa.string())
        changes = changes.filter(pc.invert(pc.is_in(changes["volume_id"], value_set=replaced)))
    return in_order(pa.concat_tables([changes, changed.cast(LEDGER), hidden]), "volume_id")


def merged(base: Iterable[pa.Table], changes: pa.Table) -> Iterator[pa.Table]:
    """Yield the ledger in parts, in volume_id order.

    base: its parts. changes: the rows since then. Both need volume_id and status; other columns are optional. Raises
    ValueError if the parts overlap.
    """
    import pyarrow.compute as pc

    ids, at, last = changes["volume_id"], 0, ""
    for part in base:
        end = at
        if part.num_rows:
            if part["volume_id"][0].as_py() <= last:
                raise ValueError(f"the volume ids are not in order, or not unique, after {last[:200]!r}")
            last = part["volume_id"][-1].as_py()
            end = bisect_right(ids, last, at, key=lambda volume_id: volume_id.as_py())
        yield part if end == at else _replaced(part, changes.slice(at, end - at))
        at = end
    if at < len(ids):
        rest = changes.slice(at)
        here = pc.not_equal(rest["status"], GONE)
        yield rest if pc.all(here).as_py() else rest.filter(here)  # all rows of a new store come from here: no copy


def _replaced(part: pa.Table, changes: pa.Table) -> pa.Table:
    """Merge changes into one part. Few rows change, so runs of rows are joined, which is faster than taking rows."""
    import pyarrow.compute as pc

    both = pa.concat_tables([part, changes])
    stays = pc.invert(pc.is_in(part["volume_id"], value_set=changes["volume_id"]))
    kept = np.concatenate([mask.to_numpy() for mask in (stays, pc.not_equal(changes["status"], GONE))])
    order = pc.sort_indices(both["volume_id"]).to_numpy().astype(np.int64)
    order = order[kept[order]]
    bounds = [*np.flatnonzero(np.diff(order, prepend=-2) != 1), len(order)]
    runs = [both.slice(order[begin], end - begin) for begin, end in pairwise(bounds)]
    return pa.concat_tables([part.schema.empty_table(), *runs]).combine_chunks()
