"""Snapshots: publish, read, verify and clean up the content of a store."""

from typing import TYPE_CHECKING, Any

from medret.snapshot.lease import LEASE_S, Lease, leased
from medret.snapshot.manifest import (
    Counts,
    GateEntry,
    IndexEntry,
    Manifest,
    RecipeEntry,
    TableEntry,
    current_id,
    read_manifest,
    snapshot_ids,
)
from medret.snapshot.publish import publish
from medret.snapshot.tables import (
    Journal,
    clear_journal,
    ledger_parts,
    read_files,
    read_journal,
    read_ledger,
    read_tombstones,
)

if TYPE_CHECKING:
    from medret.snapshot.verify import Finding, verify_store


def __getattr__(name: str) -> Any:  # a search does not load the verification
    if name in ("Finding", "verify_store"):
        from medret.snapshot import verify

        return getattr(verify, name)
    raise AttributeError(f"module 'medret.snapshot' has no attribute '{name}'")
