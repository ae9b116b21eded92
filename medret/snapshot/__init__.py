"""Snapshots: what a store publishes, and how it is read, published and verified."""

from medret.snapshot.manifest import (
    Counts,
    IndexEntry,
    Manifest,
    RecipeEntry,
    TableEntry,
    current_id,
    read_files,
    read_ledger,
    read_manifest,
)
from medret.snapshot.publish import publish
from medret.snapshot.verify import Finding, verify_store

__all__ = [
    "Counts",
    "Finding",
    "IndexEntry",
    "Manifest",
    "RecipeEntry",
    "TableEntry",
    "current_id",
    "publish",
    "read_files",
    "read_ledger",
    "read_manifest",
    "verify_store",
]
