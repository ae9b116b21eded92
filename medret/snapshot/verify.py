"""Verification: every checksum, count and invariant of a store's live snapshot, and the name of every other file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.embeddings.shards import read_parquet, read_vectors
from medret.errors import MedretError, UsageError
from medret.snapshot.manifest import (
    CURRENT,
    SNAPSHOT_ID,
    Manifest,
    current_id,
    read_files,
    read_ledger,
    read_manifest,
    snapshot_folder,
)
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
    except UsageError:
        raise
    except MedretError as error:
        if not findings:
            findings.append(Finding(CURRENT, str(error)))
    return sorted(set(findings), key=lambda finding: (finding.path, finding.problem))


def _check_names(store: Location) -> Iterator[Finding]:
    """Each file's name must carry its content's sha256; CURRENT and manifests have rules of their own."""
    for path in store.files():
        folder, _, name = path.rpartition("/")
        if name.startswith(".") and name.endswith(".tmp"):
            continue  # left by a killed writer; no reader opens it
        if path == CURRENT:
            try:
                live = current_id(store)
            except MedretError as error:
                yield Finding(path, str(error))
                continue
            if not store.exists(f"{snapshot_folder(live or '')}/manifest.json"):
                yield Finding(path, f"names snapshot {live}, which is not in the store")
            continue
        if name == "manifest.json" and SNAPSHOT_ID.fullmatch(folder.rpartition("/")[2]):
            expected = folder[-NAME_DIGITS:]
        elif match := NAMED.search(name):
            expected = match[1]
        else:
            yield Finding(path, "is not a file of medret: its name carries no checksum")
            continue
        found = hashlib.sha256(store.read(path)).hexdigest()[:NAME_DIGITS]
        if found != expected:
            yield Finding(path, f"is damaged: sha256 begins with {found}, expected {expected}")


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
    manifest_path = f"{snapshot_folder(snapshot_id)}/manifest.json"
    if not manifest.counts.reconciled:
        yield Finding(manifest_path, f"counts do not reconcile: {manifest.counts}")
    ledger = read_ledger(store, snapshot_id, manifest, ["volume_id", "status", "slices"])
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded"))
    if ledger.num_rows != manifest.counts.listed - manifest.counts.skipped:
        yield Finding(manifest_path, f"the ledger has {ledger.num_rows} rows, the counts say otherwise")
    files = read_files(store, snapshot_id, manifest)
    for kind, ids in (("slices", _repeated(embedded)), ("volumes", sorted(embedded["volume_id"].to_pylist()))):
        of_kind = files.filter(pc.equal(files["kind"], kind))
        groups: dict[tuple[str, str | None], list[str]] = {}
        for row in of_kind.to_pylist():
            table = read_parquet(store.read(row["path"]), ["volume_id", "vector"])
            groups.setdefault((row["recipe"], row["aggregation"]), []).extend(table["volume_id"].to_pylist())
            if table.num_rows != row["rows"]:
                yield Finding(row["path"], f"has {table.num_rows} rows, the snapshot says {row['rows']}")
            yield from _check_vectors(row["path"], table)
        for (recipe, aggregation), found in groups.items():
            if sorted(found) != ids:
                what = f"{kind} of recipe {recipe}" + (f", {aggregation}" if aggregation else "")
                yield Finding(manifest_path, f"{what}: {len(found)} rows do not match the ledger's {len(ids)}")
    for index in manifest.indices:
        expected = len(embedded) if index.aggregation else sum(embedded["slices"].to_pylist())
        if index.rows != expected:
            yield Finding(manifest_path, f"an index has {index.rows} rows, the ledger {expected} ({index})")


def _repeated(embedded: pa.Table) -> list[str]:
    """Each volume's id as often as it has slices, sorted."""
    ids = np.array(embedded["volume_id"].to_pylist(), dtype=object)
    return sorted(np.repeat(ids, embedded["slices"].to_numpy()).tolist())


def _check_vectors(path: str, table: pa.Table) -> Iterator[Finding]:
    if table.num_rows == 0:
        return
    lengths = np.linalg.norm(read_vectors(table).astype(np.float32), axis=1)
    bad = int((~(np.abs(lengths - 1) < UNIT_TOLERANCE)).sum())
    if bad:
        yield Finding(path, f"holds {bad} vectors that are not finite or not of unit length")
