"""Verify a store: every checksum, count and invariant of its live snapshot, and the name of every other file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.embeddings.parquet import read_parquet, read_vectors
from medret.errors import CorruptError, MedretError, UsageError, VersionError
from medret.schemas import PREVIEWS
from medret.snapshot.files import (
    EMBEDDING_KINDS,
    SLICES,
    LiveShards,
    ShardKey,
    StoredFile,
    live_shards,
    previews_files,
    searchable_rows,
    slices_files,
    stored_files,
)
from medret.snapshot.manifest import CURRENT, MANIFEST, Manifest, current_id, read_manifest, snapshot_folder
from medret.snapshot.names import SINGLE, is_litter, is_temporary, kind_of
from medret.snapshot.tables import ledger_parts, read_files, read_tombstones
from medret.storage import NAME_DIGITS, Location, read_checked
from medret.volume.previews import Preview, check_preview

NAMED = re.compile(rf"-([0-9a-f]{{{NAME_DIGITS}}})\.[a-z]+$")
UNIT_TOLERANCE = 5e-3  # float16 rounding of a unit vector's components stays well below


@dataclass(frozen=True)
class Finding:
    """A problem in one file. path: below the store."""

    path: str
    problem: str


def verify_store(store: Location) -> list[Finding]:
    """Return all findings, sorted by path; empty for a sound store. Raises UsageError if nothing was published."""
    findings = list(_check_names(store))
    try:
        snapshot_id = current_id(store)
        if snapshot_id is None:
            if store.files():
                return [Finding(CURRENT, "is missing: no snapshot is live")]
            raise UsageError(f"{store.uri}: no store is there; `medret index ARCHIVE {store.uri}` makes one")
        manifest = read_manifest(store, snapshot_id)
        findings += _check_tables(store, snapshot_id, manifest)
        if not findings:  # checked only when every file is known to be intact
            findings += _check_contents(store, snapshot_id, manifest)
    except (UsageError, VersionError):
        raise
    except MedretError as error:
        if not findings:
            findings.append(Finding(CURRENT, str(error)))
    return sorted(set(findings), key=lambda finding: (finding.path, finding.problem))


def _check_names(store: Location) -> Iterator[Finding]:
    """Check that each file's name holds the sha256 of its content, CURRENT and manifests by their own rules."""
    for path in store.files():
        kind = kind_of(path)
        if is_temporary(path) or is_litter(path):
            continue  # left by a killed writer or a desktop; nothing reads it
        if kind is None:
            yield Finding(path, "is not a medret file: nothing reads it and nothing deletes it")
        elif kind == "current":
            yield from _check_current(store, path)
        elif kind not in SINGLE:
            expected = path.split("/")[1][-NAME_DIGITS:] if kind == "manifest" else NAMED.search(path)[1]  # type: ignore[index]  # its name matches
            try:
                digest = hashlib.sha256(store.read(path)).hexdigest()[:NAME_DIGITS]
            except FileNotFoundError:
                continue  # a run or `gc` beside this one has deleted it
            if digest != expected:
                yield Finding(path, f"is damaged: sha256 begins with {digest}, expected {expected}")


def _check_current(store: Location, path: str) -> Iterator[Finding]:
    try:
        live = current_id(store)
    except MedretError as error:
        yield Finding(path, str(error))
        return
    if not store.exists(f"{snapshot_folder(live or '')}/{MANIFEST}"):
        yield Finding(path, f"names snapshot {live}, which is not in the store")


def _check_tables(store: Location, snapshot_id: str, manifest: Manifest) -> Iterator[Finding]:
    """Check that every file that the live snapshot names exists, under a name that fits its sha256 in the table."""
    present = set(store.files())
    if missing := [table.path for table in manifest.tables if table.path not in present]:
        yield from (Finding(path, "is missing") for path in missing)
        return
    for file in stored_files(read_files(store, snapshot_id, manifest)):
        if file.path not in present:
            yield Finding(file.path, "is missing")
        elif not file.sha256.startswith(NAMED.search(file.path)[1]):  # type: ignore[index]  # names of the table match
            yield Finding(file.path, f"is not the file that the snapshot names (sha256 {file.sha256})")


def _check_contents(store: Location, snapshot_id: str, manifest: Manifest) -> Iterator[Finding]:
    """Check that the counts of ledger, shards and indices agree, and that vectors are finite and of unit length."""
    manifest_path = f"{snapshot_folder(snapshot_id)}/{MANIFEST}"
    if not manifest.counts.reconciled:
        yield Finding(manifest_path, f"counts do not reconcile: {manifest.counts}")
    try:
        parts = ledger_parts(store, snapshot_id, manifest)  # reads and checks all columns
        ledger = pa.concat_tables(part.select(["volume_id", "status", "slices", "shards"]) for part in parts)
    except CorruptError as error:
        yield Finding(manifest_path, f"the ledger cannot be read: {error}")
        return
    files = read_files(store, snapshot_id, manifest)
    yield from _check_embeddings(store, live_shards(ledger), files)
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded"))
    dead = read_tombstones(store, snapshot_id, manifest)
    for index in manifest.indices:
        expected = len(embedded) if index.aggregation else sum(embedded["slices"].to_pylist())
        if index.rows != expected:
            yield Finding(manifest_path, f"an index has {index.rows} rows, the ledger {expected} ({index})")
        searchable = searchable_rows(store, files, dead, index.recipe, index.aggregation)
        if searchable not in (None, expected):
            yield Finding(
                manifest_path, f"{searchable} rows of an index can be found, of {expected} in the ledger ({index})"
            )


def _check_embeddings(store: Location, live: LiveShards, files: pa.Table) -> Iterator[Finding]:
    """Check that every embedding file holds the vectors that the ledger expects in it; its other rows are dead."""
    kinds: dict[ShardKey, set[str]] = {}
    previews, slices = previews_files(files), slices_files(files)
    for key, file in previews.items():
        yield from _check_previews(store, file, slices.get(key))
    for file in stored_files(files, EMBEDDING_KINDS):
        table = read_parquet(_read(store, file), ["volume_id", "vector"], name=file.path)
        if table.num_rows != file.rows:
            yield Finding(file.path, f"has {table.num_rows} rows, the snapshot says {file.rows}")
        counted = Counter(table["volume_id"].to_pylist())
        expected = live[file.key].volumes if file.key in live else {}
        wrong = [v for v, slices in expected.items() if counted[v] != (slices if file.kind == SLICES else 1)]
        if wrong:
            yield Finding(file.path, f"rows of {len(wrong)} volumes do not match the ledger, such as {wrong[0]}")
        kinds.setdefault(file.key, set()).add(file.kind)
        yield from _check_vectors(file.path, table)
    for (recipe, shard), live_shard in live.items():
        if kinds.get((recipe, shard)) != set(EMBEDDING_KINDS):
            yield Finding(f"embeddings/{recipe}", f"shard {shard} with {live_shard.count} volumes lacks files")


def _read(store: Location, file: StoredFile) -> bytes:
    return read_checked(store, file.path, file.sha256, file.size_bytes)


def _check_previews(store: Location, file: StoredFile, slices: StoredFile | None) -> Iterator[Finding]:
    """Check that a file of previews holds pictures of slices of its shard alone. A volume may have none."""
    names = ["volume_id", "plane", "position"]
    table = read_parquet(_read(store, file), name=file.path, fields=list(PREVIEWS))
    if table.num_rows != file.rows:
        yield Finding(file.path, f"has {table.num_rows} rows, the snapshot says {file.rows}")
    if slices is None:
        yield Finding(file.path, f"holds previews of shard {file.shard}, which has no slices file")
        return
    embedded = read_parquet(_read(store, slices), names, name=slices.path)
    known = set(zip(*(embedded[name].to_pylist() for name in names), strict=True))
    shown = Counter(zip(*(table[name].to_pylist() for name in names), strict=True))
    strange = [key for key, count in shown.items() if key not in known or count > 1]
    if strange:
        volume_id, plane, position = strange[0]
        yield Finding(
            file.path,
            f"{len(strange)} previews are of no slice of the shard, or twice: {volume_id}, {plane} {position}",
        )
    bad = [problem for row in table.select(PREVIEWS.names).to_pylist() if (problem := _not_shown(row))]
    if bad:
        yield Finding(file.path, f"{len(bad)} previews cannot be shown: {bad[0]}")


def _not_shown(row: dict[str, Any]) -> str:
    """Why a preview cannot be shown; nothing if it can."""
    try:
        check_preview(Preview(row["plane"], row["position"], row["image"]))
    except ValueError as error:
        return str(error)
    return ""


def _check_vectors(path: str, table: pa.Table) -> Iterator[Finding]:
    if table.num_rows == 0:
        return
    lengths = np.linalg.norm(read_vectors(table).astype(np.float32), axis=1)
    bad = int((~(np.abs(lengths - 1) < UNIT_TOLERANCE)).sum())
    if bad:
        yield Finding(path, f"holds {bad} vectors that are not finite or not of unit length")
