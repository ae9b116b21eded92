"""Count what a run would publish, and judge it: its losses before anything is embedded, all gates at the end.

The gates judge the vectors that this run made, and a few unchanged volumes that it embedded again (canaries).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from medret.archive import Listing
from medret.embeddings import read_vectors
from medret.embeddings.parquet import read_parquet
from medret.errors import QuarantineCode
from medret.pipeline import gates
from medret.pipeline.embedding_shards import read_volumes
from medret.pipeline.gates import VectorFacts, losses, lowest_cosine, other_source
from medret.pipeline.indices import Indices
from medret.pipeline.new_ledger import NewLedger, row_numbers
from medret.pipeline.plan import ACTIONS, CAUSES, Plan
from medret.pipeline.prepare import Inputs, State
from medret.pipeline.request import IndexRequest
from medret.pipeline.result import Log
from medret.pipeline.store_state import picked, rows_of
from medret.pipeline.stream import Streamed
from medret.schemas import QUARANTINE
from medret.snapshot import Counts
from medret.snapshot.files import VOLUMES, ShardKey, StoredFile, entries, searchable_rows, slices_files, stored_files
from medret.storage import Location, read_checked

UNIT_TOLERANCE = 1e-2
FILES_PER_TASK = 64


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
    moved |= gates.has_copies(plan, gone).to_numpy()
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


def lost(log: Log, plan: Plan, refused: pa.Table | None = None) -> gates.Losses:
    """Count and log what the live snapshot loses. refused: schemas.QUARANTINE of the new snapshot, once it is known."""
    result = losses(plan, None if refused is None else refused["volume_id"])
    log.facts["lost"] = asdict(result)
    return result


def refuse_losing(request: IndexRequest, inputs: Inputs, state: State, log: Log, plan: Plan) -> None:
    """Raise GateError if the run would lose too much of the live snapshot; called before anything is embedded."""
    gates.enforce([gates.lost_gate(lost(log, plan), request.gates)], source_hint(request, inputs, state))


def all_gates(
    store: Location, request: IndexRequest, state: State, log: Log, plan: Plan, counts: Counts, made: Streamed,
    pool: pa.Table, ledger: NewLedger, quarantine: pa.Table, indices: Indices,
) -> list[gates.Gate]:  # fmt: skip
    """Run every check before publication. pool: all stored and new embedding files. quarantine: schemas.QUARANTINE."""
    limits = request.gates
    resumed = state.journal.files  # not what unfinished runs with other recipes have made
    resumed = resumed.filter(pc.is_in(resumed["recipe"], value_set=pa.array(plan.target.recipes, pa.string())))
    facts = vector_facts(store, pa.concat_tables([made.files, resumed]))
    masks = codes(quarantine).get(QuarantineCode.LABEL_MASK, 0)
    return [
        gates.lost_gate(lost(log, plan, quarantine), limits),
        gates.quarantine_gate(counts, masks, limits),
        gates.vector_gate(facts),
        gates.duplicate_gate(facts, lambda: content_by_id(ledger, facts), limits),
        gates.canary_gate(canary_cosines(store, made.canaries, plan, pool), limits),
        gates.findable_gate(findable_rows(store, indices, ledger)),
        gates.recall_gate(indices.entries, limits),
    ]


def hints(request: IndexRequest, inputs: Inputs, state: State, quarantine: pa.Table) -> str:
    """Text to add to a refusal: quarantined volumes per code, and whether the archive may be the wrong one."""
    per_code = ", ".join(f"{count} {code}" for code, count in codes(quarantine).items())
    return (f" (quarantine: {per_code})" if per_code else "") + source_hint(request, inputs, state)


def source_hint(request: IndexRequest, inputs: Inputs, state: State) -> str:
    """The likely cause of a loss, as text."""
    return other_source(request, inputs.listing.archive_uri, state.base.manifest)


def canary_cosines(store: Location, canaries: pa.Table, plan: Plan, files: pa.Table) -> dict[str, float]:
    """Compare canaries with their stored slice vectors; returns volume_id -> lowest cosine.

    canaries: batch_schema.CANARIES. files: schemas.FILES. A canary whose object was replaced since it was listed proves
    nothing and is left out.
    """
    slices = slices_files(files)
    places = np.flatnonzero(pc.is_in(plan.table["volume_id"], value_set=canaries["volume_id"]).to_numpy())
    steps = {step.item.volume_id: step for step in plan.steps(places)}
    lowest: dict[str, float] = {}
    for row in canaries.to_pylist():
        volume_id, recipe = row["volume_id"], row["recipe"]
        if row["content_sha256"] != steps[volume_id].content_sha256:
            continue
        volumes = read_volumes(store, slices[recipe, steps[volume_id].shards[recipe]])
        stored = next(volume.vectors for volume in volumes if volume.volume_id == volume_id)
        again = np.frombuffer(row["vectors"], np.float16).reshape(-1, stored.shape[1])
        lowest[volume_id] = min(lowest_cosine(again, stored), lowest.get(volume_id, 1.0))
    return lowest


def vector_facts(store: Location, files: pa.Table) -> list[VectorFacts]:
    """Read the facts of new volume vectors, per embedding shard from its first aggregation. files: schemas.FILES."""
    firsts: dict[ShardKey, StoredFile] = {}
    for file in stored_files(files, [VOLUMES]):
        firsts.setdefault(file.key, file)
    chosen = list(firsts.values())
    task = ray.remote(num_cpus=0.5)(_facts_of)
    parts = [task.remote(store, chosen[at : at + FILES_PER_TASK]) for at in range(0, len(chosen), FILES_PER_TASK)]
    return [facts for part in ray.get(parts) for facts in part]


def _facts_of(store: Location, files: Sequence[StoredFile]) -> list[VectorFacts]:
    facts = []
    for file in files:
        table = read_parquet(read_checked(store, file.path, file.sha256), ["volume_id", "vector"], name=file.path)
        vectors = read_vectors(table)
        lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
        recipe = file.folder.encode()
        digests = [hashlib.blake2b(recipe + vector.tobytes(), digest_size=8).digest() for vector in vectors]
        numbers = pa.array(np.frombuffer(b"".join(digests), np.uint64))
        keys = pa.table([table["volume_id"], numbers], schema=gates.NO_KEYS.schema)
        facts.append(VectorFacts(keys, int((~(np.abs(lengths - 1) < UNIT_TOLERANCE)).sum())))
    return facts


def findable_rows(store: Location, indices: Indices, ledger: NewLedger) -> list[tuple[int, int]]:
    """Count, per index, the rows that a search can find and the rows that the ledger needs."""
    rows = ledger.select("status", "slices")
    embedded = rows.filter(pc.equal(rows["status"], "embedded"))
    slices = int(pc.sum(embedded["slices"]).as_py() or 0)
    return [
        (
            searchable_rows(store, indices.files, indices.tombstones, entry.recipe, entry.aggregation) or 0,
            embedded.num_rows if entry.aggregation else slices,
        )
        for entry in indices.entries
    ]


def content_by_id(ledger: NewLedger, facts: Sequence[VectorFacts]) -> pa.Table:
    """The volumes of these vectors: `volume_id`, `content_sha256`."""
    rows = ledger.select("volume_id", "content_sha256")
    ids = pa.concat_tables([gates.NO_KEYS, *(each.keys for each in facts)])["volume_id"]
    theirs = pc.is_in(rows["volume_id"], value_set=ids)
    return rows if pc.all(theirs).as_py() else rows.filter(theirs)
