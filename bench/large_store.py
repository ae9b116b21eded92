"""The driver's work on a large archive: a listing and a store of any size, made on the spot, without bytes behind them.

    python bench/large_store.py make FOLDER ROWS      objects.parquet (the listing) and store (ledger, table of files)
    python bench/large_store.py idle FOLDER           a run that finds nothing new
    python bench/large_store.py daily FOLDER NEW      NEW further volumes: all of a run but reading, embedding, indexing

Each measures itself and prints one JSON object. A row is made as a run over S3 makes it: an id of 27 characters, an
etag, facts that differ from row to row, one model, 64 volumes and three files per embedding shard, 262,144 volumes per
index shard.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from medret.archive import Listing
from medret.index import IndexSettings
from medret.pipeline import judge
from medret.pipeline import new_ledger as ledgers
from medret.pipeline.gates import losses
from medret.pipeline.layout import Live, compactions, embedding_files, findable, plan_index_shards, tombstones
from medret.pipeline.plan import Plan, make_plan
from medret.pipeline.prepare import read_older
from medret.pipeline.store_state import BaseSnapshot, StoreState, Target, read_base, store_state, stored_rows
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import LEDGER, OBJECTS, VOLUME_LABELS
from medret.snapshot import Counts, IndexEntry, RecipeEntry, publish, read_journal
from medret.snapshot.files import (
    LIVE_COLUMNS,
    PREVIEWS,
    SLICES,
    VOLUMES,
    StoredFile,
    files_table,
    live_files,
    live_shards,
)
from medret.snapshot.publish import make_live, write_snapshot
from medret.snapshot.tables import write_table
from medret.storage import Location

RECIPE = Recipe(
    SliceRecipe(slices="uniform:16"), ModelRecipe("made", "0" * 64, 224, (0.5,) * 3, (0.5,) * 3, 768, "bf16")
)
TARGET = Target((RECIPE.digest,), "0123456789abcdef")
URI, SHARD, INDEX_SHARD, PART = "s3://archive/nifti", 64, 262_144, 100_000
SETTINGS = IndexSettings()

OBJECT = """
    format('{:05d}/{:08d}.nii.gz', i // 1000, i) AS volume_id, 1000000 + i * 7919 % 40000000 AS size_bytes,
    md5(i::VARCHAR) AS etag, '2026-01-01T00:00:00+00:00' AS mtime, NULL::INTEGER AS parts, NULL::VARCHAR[] AS names
"""
ROW = f"""
    SELECT {OBJECT}, '{URI}/' || volume_id AS uri, sha256(i::VARCHAR) AS content_sha256, 'embedded' AS status,
        16::INTEGER AS slices, MAP {{'{RECIPE.digest}': md5((i // {SHARD})::VARCHAR)[:16]}} AS shards,
        '{TARGET.ruleset_digest}' AS judged_by, MAP {{}}::MAP(VARCHAR, VARCHAR) AS metadata,
        MAP {{}}::MAP(VARCHAR, VARCHAR) AS origins,
        format('{{{{"shape": [512, 512, {{}}], "spacing_mm": [0.7, 0.7, {{}}], "orientation": "LPS", "affine": "sform",
            "dtype": "int16", "modality": "CT", "ct_without_hu": false}}}}', i % 800, i % 997 / 100) AS facts
    FROM range({{first}}, {{last}}) numbers(i) ORDER BY i
"""  # noqa: S608


def rows(connection: duckdb.DuckDBPyConnection, first: int, last: int) -> pa.Table:
    """Ledger rows of these volumes."""
    table = connection.sql(ROW.replace("{first}", str(first)).replace("{last}", str(last))).to_arrow_table()
    columns = [table[f.name] if f.name in table.schema.names else pa.nulls(table.num_rows, f.type) for f in LEDGER]
    return pa.table([column.cast(f.type) for column, f in zip(columns, LEDGER, strict=True)], schema=LEDGER)


def embedding_shards(first: int, last: int, indexed: bool) -> list[StoredFile]:
    """The files of the embedding shards of these volumes."""
    files = []
    for at in range(first // SHARD, -(-last // SHARD)):
        volumes = min(last, (at + 1) * SHARD) - max(first, at * SHARD)
        kinds = ((SLICES, None, 16 * volumes), (VOLUMES, "mean", volumes), (PREVIEWS, None, 3 * volumes))
        for kind, aggregation, count in kinds:
            digest = hashlib.sha256(f"{kind}{at}".encode()).hexdigest()
            key = (
                hashlib.sha256(f"{aggregation}{at * SHARD // INDEX_SHARD}".encode()).hexdigest()[:16]
                if indexed and kind != PREVIEWS
                else None
            )
            path = f"embeddings/{RECIPE.digest}/{kind}-{digest[:16]}.parquet"
            shard = md5_16(at)
            files.append(StoredFile(path, kind, digest, 1, count, RECIPE.digest, aggregation, shard, key))
    return files


def md5_16(number: int) -> str:
    """The key of an embedding shard."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:16]


def fields(volumes: int, **counts: int) -> dict[str, Any]:
    """The fields of a manifest."""
    entries = [
        IndexEntry(recipe=RECIPE.digest, aggregation=over, rows=n, dim=768, shards=1, recall={})
        for over, n in ((None, 16 * volumes), ("mean", volumes))
    ]
    return {
        "medret_version": "0", "run": "20260101T000000Z", "archive_uri": URI, "aggregations": ["mean"],
        "index_settings": SETTINGS.to_json(), "indices": entries, "skipped": {}, "slices": 16 * volumes,
        "recipes": [RecipeEntry(recipe=RECIPE.to_json(), weights_source="made for a benchmark")],
        "counts": Counts(listed=volumes, **({"embedded": volumes, "new": volumes} | counts)),
    }  # fmt: skip


def make(folder: Path, number: int) -> dict[str, Any]:
    """Write the listing and the store."""
    store = Location(str(folder / "store"))
    connection = duckdb.connect(config={"temp_directory": ""})
    listed = f"SELECT {OBJECT} FROM range({number}) numbers(i) ORDER BY i"  # noqa: S608
    connection.execute(f"COPY ({listed}) TO '{folder}/objects.parquet'")
    parts = [
        write_table(store, "ledger", rows(connection, at, min(number, at + PART))) for at in range(0, number, PART)
    ]
    files = files_table(embedding_shards(0, number, indexed=True))
    snapshot, _ = write_snapshot(store, parts, files, None, datetime.now(UTC), parent=None, **fields(number))
    make_live(store, snapshot, None)
    return {"rows": number, "ledger_bytes": sum(part.size_bytes for part in parts)}


def listing(folder: Path, more: pa.Table | None = None) -> Listing:
    """The listing of the archive, with further objects."""
    objects = pq.read_table(folder / "objects.parquet").cast(OBJECTS)
    pa.default_memory_pool().release_unused()  # a listing is not made from Parquet
    if more is not None:
        known = more.select([name for name in OBJECTS.names if name in LEDGER.names])
        objects = pa.concat_tables([objects, known], promote_options="default").cast(OBJECTS)
    return Listing(URI, objects, {})


def planned(store: Location, archive: Listing) -> tuple[BaseSnapshot, StoreState, Plan]:
    """What every run does first: read the store, plan."""
    base = read_base(store)
    state = store_state(base, read_journal(store))
    return base, state, make_plan(archive, VOLUME_LABELS.empty_table(), state, TARGET)


def idle(folder: Path) -> dict[str, Any]:
    """A run that finds nothing new, to its last line."""
    store, archive = Location(str(folder / "store")), listing(folder)
    base, state, plan = planned(store, archive)
    ledger = ledgers.unchanged(state, stored_rows(store, base, state))
    counts = judge.counts(archive, plan, ledger)
    unusable, hu, lost = ledger.unusable(), ledger.ct_without_hu, losses(plan)
    if not plan.idle or counts.unchanged != archive.objects.num_rows or unusable.num_rows or hu or lost.lost:
        raise SystemExit(f"the run was to find nothing new: {plan.causes()}, {counts}, {lost}")
    return {"rows": archive.objects.num_rows}


def daily(folder: Path, new: int) -> dict[str, Any]:
    """A run that finds new volumes; what the stream and the indices would make is put in its place."""
    store = Location(str(folder / "store"))
    old = pq.read_metadata(folder / "objects.parquet").num_rows
    first = -(-old // SHARD) * SHARD  # in shards of their own
    made = rows(duckdb.connect(config={"temp_directory": ""}), first, first + new)
    made_files = files_table(embedding_shards(first, first + new, indexed=False))
    before, began = written(folder / "store"), time.perf_counter()
    archive = listing(folder, made)
    base, state, plan = planned(store, archive)
    read_older(store, base, plan)
    ledger = ledgers.assemble(plan, made, {}, VOLUME_LABELS.empty_table(), stored_rows(store, base, state), whole=False)
    now = ledger.select(*LIVE_COLUMNS)
    live = Live(now, live_shards(now), ledger.touched)
    files, _ = embedding_files(pa.concat_tables([base.files, made_files]), live.shards, ["mean"])
    if compactions(files, live.shards, RECIPE.digest, SHARD):
        raise SystemExit("no embedding shard was to be compacted")
    files = findable(files, base, live)
    kept: list[str] = []
    for aggregation in (None, "mean"):
        members = live_files(files, live.shards, RECIPE.digest, aggregation)
        held = {member.file.indexed_in: INDEX_SHARD * (1 if aggregation else 16) for member in members}
        kept += plan_index_shards(members, {key: n for key, n in held.items() if key}, SETTINGS).kept
    dead = tombstones(kept, base, files, live)
    counts = judge.counts(archive, plan, ledger)
    unusable, total = ledger.unusable(), archive.objects.num_rows
    if counts != replace_counts(total, new) or unusable.num_rows or dead.num_rows:
        raise SystemExit(f"the run was to find {new} new volumes, it found {counts}, {dead.num_rows} dead rows")
    publish(
        store, ledger.changed, ledger.gone.to_pylist(), files, dead, parent=base.id,
        **fields(total, embedded=new, new=new, unchanged=total - new),
    )  # fmt: skip
    return {
        "rows": old,
        "new": new,
        "seconds_here": time.perf_counter() - began,
        "written": written(folder / "store") - before,
    }


def replace_counts(total: int, new: int) -> Counts:
    """What a run with so many new volumes counts."""
    return Counts(listed=total, embedded=new, new=new, unchanged=total - new)


def written(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    command, folder, *numbers = sys.argv[1:]
    began, spent = time.perf_counter(), time.process_time()
    found = {"make": make, "idle": idle, "daily": daily}[command](Path(folder), *map(int, numbers))  # type: ignore[operator]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - spent,
        "peak_mib": usage.ru_maxrss / 1024,
    }
    print(json.dumps(found | facts))
