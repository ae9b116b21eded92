"""The ledger of a run: from the listing to the stream's source, and from the stream's rows to counts and quarantine."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive import LabelJoin, Labels, Listing
from medret.pipeline.model_jobs import Previous
from medret.pipeline.rows import SOURCE, file_row
from medret.schemas import FILES, LEDGER, QUARANTINE
from medret.snapshot import Counts
from medret.snapshot.publish import write_quarantine
from medret.storage import Location


def source(listing: Listing, labels: LabelJoin) -> pa.Table:
    """The objects as the stream's input, in the order of their ids."""
    known, objects = labels.labels, listing.objects
    columns = [
        [o.volume_id for o in objects],
        [o.uri for o in objects],
        [o.size_bytes for o in objects],
        [o.etag for o in objects],
        [o.mtime for o in objects],
        [known[o.volume_id].modality if o.volume_id in known else None for o in objects],
    ]
    return pa.table(columns, schema=SOURCE)


def with_labels(ledger: pa.Table, labels: Mapping[str, Labels]) -> pa.Table:
    """The ledger with its label columns filled."""
    rows = [labels.get(volume_id, Labels()) for volume_id in ledger["volume_id"].to_pylist()]
    columns = {
        **{name: [getattr(row, name) for row in rows] for name in ("subject", "modality", "body_region", "organ")},
        "metadata": [list(row.metadata.items()) for row in rows],
    }
    for name, values in columns.items():
        ledger = ledger.set_column(
            LEDGER.get_field_index(name), LEDGER.field(name), pa.array(values, LEDGER.field(name).type)
        )
    return ledger


def counts(listing: Listing, ledger: pa.Table, previous: Previous) -> Counts:
    """What became of every listed object."""
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded"))
    content = zip(embedded["volume_id"].to_pylist(), embedded["content_sha256"].to_pylist(), strict=True)
    known = [(previous.content.get(volume_id), sha256) for volume_id, sha256 in content]
    return Counts(
        listed=listing.listed,
        embedded=embedded.num_rows,
        new=sum(before is None for before, _ in known),
        changed=sum(before is not None and before != now for before, now in known),
        gone=len(set(previous.content) - {o.volume_id for o in listing.objects}),
        quarantined=ledger.num_rows - embedded.num_rows,
        skipped=sum(listing.skipped.values()),
    )


def quarantine(ledger: pa.Table) -> pa.Table:
    """The refused volumes (schemas.QUARANTINE)."""
    refused = ledger.filter(pc.equal(ledger["status"], "quarantined"))
    return refused.select(QUARANTINE.names).cast(QUARANTINE).sort_by("volume_id")


def quarantine_file(store: Location, run: str, refused: pa.Table) -> pa.Table:
    """Write the quarantine table; its row of schemas.FILES."""
    written = write_quarantine(store, run, refused)
    return pa.Table.from_pylist([file_row(written, "quarantine", refused.num_rows, None, None, None)], schema=FILES)


def codes(ledger: pa.Table) -> str:
    """How often each quarantine code stands in the ledger, in words."""
    counted = ledger["code"].value_counts().to_pylist()
    return ", ".join(f"{item['counts']} {item['values']}" for item in counted if item["values"])
