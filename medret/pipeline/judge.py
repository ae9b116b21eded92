"""Judge what a run would publish: its losses before anything is embedded, all gates at the end.

The gates judge the vectors that this run made, and a few unchanged volumes that it embedded again (canaries).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from medret.embeddings import read_vectors
from medret.embeddings.parquet import read_parquet
from medret.errors import QuarantineCode
from medret.pipeline import gates
from medret.pipeline import new_ledger as ledgers
from medret.pipeline.embedding_shards import read_volumes
from medret.pipeline.gates import VectorFacts, lowest_cosine
from medret.pipeline.indices import Indices
from medret.pipeline.insist import losses, other_source
from medret.pipeline.plan import Plan, Step
from medret.pipeline.prepare import Inputs, State
from medret.pipeline.request import IndexRequest
from medret.pipeline.run_report import Log
from medret.pipeline.stream import Streamed
from medret.snapshot import Counts
from medret.snapshot.files import VOLUMES, ShardKey, StoredFile, slices_files, stored_files
from medret.snapshot.liveness import searchable_rows
from medret.storage import Location, read_checked

CANARIES = 3
CANARY_MAX_BYTES = 256 * 2**20
UNIT_TOLERANCE = 1e-2
FILES_PER_TASK = 64


def choose_canaries(plan: Plan, recipes: Sequence[str]) -> tuple[Step, ...]:
    """Choose a few unchanged volumes with vectors of all these recipes; an archive always gives the same ones."""
    candidates = [
        step
        for step in plan.steps
        if step.cause == "unchanged" and step.item.size_bytes <= CANARY_MAX_BYTES and set(recipes) <= set(step.shards)
    ]
    candidates.sort(key=lambda step: hashlib.sha256(step.item.volume_id.encode()).digest())
    return tuple(sorted(candidates[:CANARIES], key=lambda step: step.item.volume_id))


def canary_cosines(store: Location, canaries: pa.Table, plan: Plan, files: pa.Table) -> dict[str, float]:
    """Compare canaries with their stored slice vectors; returns volume_id -> lowest cosine.

    canaries: batch_schema.CANARIES. files: schemas.FILES. A canary whose object was replaced since it was listed proves
    nothing and is left out.
    """
    slices = slices_files(files)
    steps = {step.item.volume_id: step for step in plan.steps}
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


def findable_rows(store: Location, indices: Indices, ledger: pa.Table) -> list[tuple[int, int]]:
    """Count, per index, the rows that a search can find and the rows that the ledger (schemas.LEDGER) needs."""
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded"))
    slices = int(pc.sum(embedded["slices"]).as_py() or 0)
    return [
        (
            searchable_rows(store, indices.files, indices.tombstones, entry.recipe, entry.aggregation) or 0,
            embedded.num_rows if entry.aggregation else slices,
        )
        for entry in indices.entries
    ]


def content_by_id(ledger: pa.Table) -> Mapping[str, str | None]:
    """volume_id -> content_sha256."""
    return dict(zip(ledger["volume_id"].to_pylist(), ledger["content_sha256"].to_pylist(), strict=True))


def _facts_of(store: Location, files: Sequence[StoredFile]) -> list[VectorFacts]:
    facts = []
    for file in files:
        table = read_parquet(read_checked(store, file.path, file.sha256), ["volume_id", "vector"], name=file.path)
        vectors = read_vectors(table)
        lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
        recipe = file.folder.encode()
        keys = {
            volume_id: hashlib.blake2b(recipe + vector.tobytes(), digest_size=16).digest()
            for volume_id, vector in zip(table["volume_id"].to_pylist(), vectors, strict=True)
        }
        facts.append(VectorFacts(keys, int((~(np.abs(lengths - 1) < UNIT_TOLERANCE)).sum())))
    return facts


def lost(state: State, log: Log, plan: Plan, ledger: pa.Table | None = None) -> gates.Losses:
    """Count and log what the live snapshot loses. ledger: of the new snapshot, to count newly quarantined volumes."""
    refused = ledgers.quarantine(ledger)["volume_id"].to_pylist() if ledger is not None else ()
    result = losses(plan, state.known, refused)
    log.facts["lost"] = asdict(result)
    return result


def refuse_losing(request: IndexRequest, inputs: Inputs, state: State, log: Log, plan: Plan) -> None:
    """Raise GateError if the run would lose too much of the live snapshot; called before anything is embedded."""
    gates.enforce([gates.lost_gate(lost(state, log, plan), request.gates)], source_hint(request, inputs, state))


def source_hint(request: IndexRequest, inputs: Inputs, state: State) -> str:
    """The likely cause of a loss, as text."""
    return other_source(request, inputs.listing.archive_uri, state.base.manifest)


def all_gates(
    store: Location, request: IndexRequest, state: State, log: Log, plan: Plan, counts: Counts, made: Streamed,
    pool: pa.Table, ledger: pa.Table, indices: Indices,
) -> list[gates.Gate]:  # fmt: skip
    """Run every check before publication. pool: all stored and new embedding files. ledger: of the new snapshot."""
    limits = request.gates
    facts = vector_facts(store, pa.concat_tables([made.files, state.journal.files]))
    return [
        gates.lost_gate(lost(state, log, plan, ledger), limits),
        gates.quarantine_gate(counts, ledgers.count_of(ledger, QuarantineCode.LABEL_MASK), limits),
        gates.vector_gate(facts),
        gates.duplicate_gate(facts, content_by_id(ledger), limits),
        gates.canary_gate(canary_cosines(store, made.canaries, plan, pool), limits),
        gates.findable_gate(findable_rows(store, indices, ledger)),
        gates.recall_gate(indices.entries, limits),
    ]


def hints(request: IndexRequest, inputs: Inputs, state: State, ledger: pa.Table) -> str:
    """Text to add to a refusal: quarantined volumes per code, and whether the archive may be the wrong one."""
    codes = ledgers.codes(ledger)
    return (f" (quarantine: {codes})" if codes else "") + source_hint(request, inputs, state)
