"""Verification: every checksum, count and invariant of a store's live snapshot, and the name of every other file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.embeddings.parquet import read_parquet
from medret.embeddings.shards import read_vectors
from medret.errors import MedretError, UsageError, VersionError
from medret.index import read_rows
from medret.snapshot.manifest import (
    CURRENT,
    MANIFEST,
    IndexEntry,
    Manifest,
    current_id,
    read_files,
    read_ledger,
    read_manifest,
    read_tombstones,
    snapshot_folder,
)
from medret.snapshot.names import SINGLE, is_litter, is_temporary, kind_of
from medret.storage import NAME_DIGITS, Location

NAMED = re.compile(rf"-([0-9a-f]{{{NAME_DIGITS}}})\.[a-z]+$")
UNIT_TOLERANCE = 5e-3  # float16 rounding of a unit vector's components stays well below


@dataclass(frozen=True)
class Finding:
    """Something wrong. path: of the file below the store."""

    path: str
    problem: str


def verify_store(store: Location) -> list[Finding]:
    """All findings, sorted by path; empty when the store is sound. Raises UsageError if nothing was ever published."""
    findings = list(_check_names(store))
    try:
        snapshot_id = current_id(store)
        if snapshot_id is None:
            if store.files():
                return [Finding(CURRENT, "is missing: no snapshot is live")]
            raise UsageError(f"{store.uri}: no store is there; `medret index ARCHIVE {store.uri}` makes one")
        manifest = read_manifest(store, snapshot_id)
        findings += _check_tables(store, snapshot_id, manifest)
        if not findings:  # contents are judged once every byte is known to be the written one
            findings += _check_contents(store, snapshot_id, manifest)
    except (UsageError, VersionError):
        raise
    except MedretError as error:
        if not findings:
            findings.append(Finding(CURRENT, str(error)))
    return sorted(set(findings), key=lambda finding: (finding.path, finding.problem))


def _check_names(store: Location) -> Iterator[Finding]:
    """Each file's name must carry its content's sha256; CURRENT and manifests have rules of their own."""
    for path in store.files():
        kind = kind_of(path)
        if is_temporary(path) or is_litter(path):
            continue  # left by a killed writer, or by a desktop; no reader opens it
        if kind is None:
            yield Finding(path, "is not a file of medret: no reader opens it, and nothing deletes it")
        elif kind == "current":
            yield from _check_current(store, path)
        elif kind not in SINGLE:
            expected = path.split("/")[1][-NAME_DIGITS:] if kind == "manifest" else NAMED.search(path)[1]  # type: ignore[index]  # of medret's form
            found = hashlib.sha256(store.read(path)).hexdigest()[:NAME_DIGITS]
            if found != expected:
                yield Finding(path, f"is damaged: sha256 begins with {found}, expected {expected}")


def _check_current(store: Location, path: str) -> Iterator[Finding]:
    try:
        live = current_id(store)
    except MedretError as error:
        yield Finding(path, str(error))
        return
    if not store.exists(f"{snapshot_folder(live or '')}/{MANIFEST}"):
        yield Finding(path, f"names snapshot {live}, which is not in the store")


def _check_tables(store: Location, snapshot_id: str, manifest: Manifest) -> Iterator[Finding]:
    """Every file that the live snapshot names is there, with the size and name that the tables give."""
    present = set(store.files())
    for table in manifest.tables:
        path = f"{snapshot_folder(snapshot_id)}/{table.path}"
        if path not in present:
            yield Finding(path, "is missing")
            return
    for row in read_files(store, snapshot_id, manifest).to_pylist():
        if row["path"] not in present:
            yield Finding(row["path"], "is missing")
        elif not row["sha256"].startswith(NAMED.search(row["path"])[1]):  # type: ignore[index]  # names of the table match
            yield Finding(row["path"], f"is not the file that the snapshot names (sha256 {row['sha256']})")


def _check_contents(store: Location, snapshot_id: str, manifest: Manifest) -> Iterator[Finding]:
    """Counts of ledger, shards and indices agree; vectors are finite and of unit length."""
    manifest_path = f"{snapshot_folder(snapshot_id)}/{MANIFEST}"
    if not manifest.counts.reconciled:
        yield Finding(manifest_path, f"counts do not reconcile: {manifest.counts}")
    ledger = read_ledger(store, snapshot_id, manifest, ["volume_id", "status", "slices", "shards"])
    if ledger.num_rows != manifest.counts.listed - manifest.counts.skipped:
        yield Finding(manifest_path, f"the ledger has {ledger.num_rows} rows, the counts say otherwise")
    files = read_files(store, snapshot_id, manifest)
    yield from _check_embeddings(store, _live(ledger), files)
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded"))
    dead = read_tombstones(store, snapshot_id, manifest)
    for index in manifest.indices:
        expected = len(embedded) if index.aggregation else sum(embedded["slices"].to_pylist())
        if index.rows != expected:
            yield Finding(manifest_path, f"an index has {index.rows} rows, the ledger {expected} ({index})")
        found = searchable_rows(store, files, dead, index)
        if found is not None and found != expected:
            yield Finding(
                manifest_path, f"{found} rows of an index can be found, of {expected} in the ledger ({index})"
            )


def _live(ledger: pa.Table) -> dict[tuple[str, str], dict[str, int]]:
    """(recipe, embedding shard) -> the volumes whose vectors lie there, and how many slices each has."""
    live: dict[tuple[str, str], dict[str, int]] = {}
    for row in ledger.to_pylist():
        for key in row["shards"] or ():
            live.setdefault(key, {})[row["volume_id"]] = row["slices"]
    return live


def _check_embeddings(
    store: Location, live: dict[tuple[str, str], dict[str, int]], files: pa.Table
) -> Iterator[Finding]:
    """Every embedding file holds the vectors that the ledger looks for in it; rows of other volumes are dead."""
    held: dict[tuple[str, str], set[str]] = {}
    for row in files.filter(pc.is_in(files["kind"], pa.array(["slices", "volumes"]))).to_pylist():
        table = read_parquet(store.read(row["path"]), ["volume_id", "vector"], name=row["path"])
        if table.num_rows != row["rows"]:
            yield Finding(row["path"], f"has {table.num_rows} rows, the snapshot says {row['rows']}")
        counted = Counter(table["volume_id"].to_pylist())
        expected = live.get((row["recipe"], row["shard"]), {})
        wrong = [v for v, slices in expected.items() if counted[v] != (slices if row["kind"] == "slices" else 1)]
        if wrong:
            yield Finding(row["path"], f"rows of {len(wrong)} volumes do not match the ledger, such as {wrong[0]}")
        held.setdefault((row["recipe"], row["shard"]), set()).add(row["kind"])
        yield from _check_vectors(row["path"], table)
    for (recipe, shard), volumes in live.items():
        if held.get((recipe, shard)) != {"slices", "volumes"}:
            yield Finding(f"embeddings/{recipe}", f"shard {shard} with {len(volumes)} volumes lacks files")


def searchable_rows(store: Location, files: pa.Table, dead: pa.Table, index: IndexEntry) -> int | None:
    """Rows of an index that are not under a tombstone; None where the snapshot has no index files."""
    hidden: dict[str, set[str]] = {}
    for row in dead.to_pylist():
        hidden.setdefault(row["shard"], set()).add(row["volume_id"])
    of_index = files.filter(
        pc.and_(pc.equal(files["recipe"], index.recipe), pc.equal(files["kind"], "rows"))
    ).to_pylist()
    own = [row for row in of_index if row["aggregation"] == index.aggregation]
    found = 0
    for row in own:
        found += row["rows"]
        if row["shard"] in hidden:
            ids = read_rows(store.read(row["path"]), row["path"])["volume_id"]
            found -= sum(volume_id in hidden[row["shard"]] for volume_id in ids.to_pylist())
    return found if own else None


def _check_vectors(path: str, table: pa.Table) -> Iterator[Finding]:
    if table.num_rows == 0:
        return
    lengths = np.linalg.norm(read_vectors(table).astype(np.float32), axis=1)
    bad = int((~(np.abs(lengths - 1) < UNIT_TOLERANCE)).sum())
    if bad:
        yield Finding(path, f"holds {bad} vectors that are not finite or not of unit length")
