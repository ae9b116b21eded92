"""The plan of a run: what becomes of every listed object, given what the store holds.

object                                                what is done              cause
as the ledger knows it, vectors of all recipes        kept                      unchanged; resumed (from the
                                                                                journal), returned (from an
                                                                                older snapshot)
as the ledger knows it, refused by the same code      stays in quarantine       refused
as the ledger knows it, refused by other code         read and embedded         retried
as the ledger knows it, vectors of some recipes       embedded for the others   recipe
same size, other etag or time                         hashed: kept if equal     touched, else changed
an unknown name, with the size of known content       hashed: copied if equal   renamed, else new
several unknown ones that seem to be equal            hashed: embedded once     new, all of them
anything else                                         read and embedded         new, changed, retried

The table is a query, STEPS, and the plan an Arrow table. Rows become values (`Step`) only in batches that are worked
on. Each step carries what was judged: the object as listed, and the sha256 of the content that its stored vectors are
of. docs/architecture.md says where both are compared again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import Listing, label_origins
from medret.archive.series import WEAK
from medret.pipeline.sql import query
from medret.pipeline.steps import CAUSES, PLAN, TRANSIENT_CODES, Cause, Plan, Target, plan_column
from medret.pipeline.store_state import KNOWN, StoreState, groups, numbered, rows_of, with_digests
from medret.schemas import OBJECTS, in_order

RANGE_ROWS = 1 << 18  # objects per query: the tables are sorted, so one range of ids is joined after the other

# objects, labels, known: the listing, the labels by volume, and StoreState.rows with their numbers (row) and the
# recipes that they have vectors of (stored). $all: bits of all recipes.
STEPS = """
WITH listed AS (
    SELECT objects.*, labels.modality, labels.labels FROM objects LEFT JOIN labels USING (volume_id)
), fitting AS (  -- the stored rows of an object as it is listed; the lowest counts: live, then journal, then older
    SELECT listed.place, known.*
    FROM listed JOIN known ON known.volume_id = listed.volume_id AND known.size_bytes = listed.size_bytes
        AND known.etag IS NOT DISTINCT FROM listed.etag AND known.mtime IS NOT DISTINCT FROM listed.mtime
        AND known.modality IS NOT DISTINCT FROM listed.modality
), refused AS (  -- objects whose refusal stands
    SELECT place, min(row) AS row
    FROM fitting WHERE status <> 'embedded' AND judged_by = $ruleset GROUP BY place
    HAVING NOT $retry AND NOT list_contains($transient, arg_min(coalesce(code, ''), row))
), embedded AS (  -- rows with vectors of one content; no older snapshot overrules a refusal that stands
    SELECT place, fitting.row, stored
    FROM fitting LEFT JOIN refused USING (place)
    WHERE status = 'embedded' AND (refused.row IS NULL OR fitting.row < $older_from)
    QUALIFY content_sha256 IS NOT DISTINCT FROM first_value(content_sha256)
        OVER (PARTITION BY place ORDER BY fitting.row)
), vectors AS (
    SELECT place, list(row ORDER BY row) AS rows, bit_or(stored) AS stored,
        coalesce(bit_or(stored) FILTER (row < $journal_from), 0) AS live,
        coalesce(bit_or(stored) FILTER (row < $older_from), 0) AS recent
    FROM embedded GROUP BY place
), live AS (
    SELECT * FROM known WHERE row < $journal_from
)
SELECT
    listed.modality,
    CASE
        WHEN vectors.live = $all AND live.code IS NULL THEN 'keep unchanged'
        WHEN vectors.live = $all THEN 'keep touched'  -- it was stale, and now matches its vectors again
        WHEN vectors.stored = $all AND recent <> vectors.live THEN 'keep resumed'
        WHEN vectors.stored = $all THEN 'keep returned'
        WHEN refused.row IS NOT NULL THEN 'refuse refused'
        WHEN vectors.place IS NOT NULL THEN 'embed recipe'
        WHEN live.row IS NULL THEN 'embed new'
        WHEN live.status <> 'embedded' THEN 'embed retried'
        WHEN live.size_bytes = listed.size_bytes AND live.modality IS NOT DISTINCT FROM listed.modality
            AND live.stored = $all THEN 'check touched'
        ELSE 'embed changed'
    END AS step,
    CASE step WHEN 'refuse refused' THEN refused.row WHEN 'check touched' THEN live.row ELSE rows[1] END AS row,
    CASE WHEN len(rows) > 1 AND step <> 'refuse refused' THEN rows[2:] END AS more,
    live.row AS live,
    CASE step WHEN 'refuse refused' THEN 0 ELSE $all & ~coalesce(vectors.stored, 0) END AS missing,
    live.labels IS DISTINCT FROM listed.labels AS relabelled
FROM listed LEFT JOIN live USING (volume_id) LEFT JOIN vectors USING (place) LEFT JOIN refused USING (place)
ORDER BY place
"""

GONE = "SELECT row FROM known ANTI JOIN objects USING (volume_id) WHERE row < $journal_from ORDER BY row"

# Objects of the size of a stored content, and of its etag if both storages have one.
PERHAPS_STORED = """
SELECT place FROM objects
WHERE CASE WHEN etag IS NULL THEN size_bytes IN (SELECT size_bytes FROM known)
    ELSE size_bytes IN (SELECT size_bytes FROM known WHERE etag IS NULL)
        OR (size_bytes, etag) IN (SELECT (size_bytes, etag) FROM known WHERE etag IS NOT NULL) END
"""


def make_plan(listing: Listing, labels: pa.Table, state: StoreState, target: Target) -> Plan:
    """Plan a run. labels: schemas.VOLUME_LABELS. Steps with action `check` need content hashes; see `resolve`."""
    names = [name for name in KNOWN.names if name not in ("slices", "shards", "ct_without_hu")]
    known = state.numbered(*names).append_column("stored", pa.array(state.stored(target.recipes)))
    live, others = known.slice(0, state.journal_from), in_order(known.slice(state.journal_from), "volume_id")
    numbers = {"journal_from": state.journal_from, "older_from": state.older_from}
    judged = {"ruleset": target.ruleset_digest, "retry": target.retry, "transient": sorted(map(str, TRANSIENT_CODES))}
    parts, gone = [PLAN.empty_table()], [np.zeros(0, np.int64)]
    for objects, *stored, labelled in _ranges(listing.objects, live, others, labels):
        places = pa.array(np.arange(objects.num_rows, dtype=np.int32))
        tables = {"objects": objects.append_column("place", places), "known": pa.concat_tables(stored)}
        given = with_digests(label_origins.own(labelled, _found(labelled, stored[0])))
        found = query(STEPS, tables | {"labels": given}, **judged, **numbers, all=(1 << len(target.recipes)) - 1)
        parts.append(_part(objects, found))
        gone.append(query(GONE, tables, journal_from=state.journal_from)["row"].to_numpy().astype(np.int64))
    plan = Plan(pa.concat_tables(parts), np.concatenate(gone), listing, state, target)
    return _perhaps_stored(plan, known)


def _found(labels: pa.Table, live: pa.Table) -> pa.Array:
    """The names of the labels that the live ledger's rows of these volumes have from tags."""
    found = live.select(["volume_id", "found"]).filter(pc.is_valid(live["found"])).combine_chunks()
    return (
        found["found"]
        .cast(pa.string())
        .combine_chunks()
        .take(pc.index_in(labels["volume_id"], found["volume_id"]).combine_chunks())
    )


def _ranges(objects: pa.Table, *tables: pa.Table) -> Iterator[list[pa.Table]]:
    """Cut tables that are sorted by volume_id at the same ids."""
    starts = [0] * len(tables)
    for at in range(0, max(1, objects.num_rows), RANGE_ROWS):
        ends = [table.num_rows for table in tables]
        if at + RANGE_ROWS < objects.num_rows:
            bound = objects["volume_id"][at + RANGE_ROWS].as_py()
            pairs = zip(tables, starts, strict=True)
            ends = [
                bisect_left(table["volume_id"], bound, start, key=lambda one: one.as_py()) for table, start in pairs
            ]
        cut = zip(tables, starts, ends, strict=True)
        yield [objects.slice(at, RANGE_ROWS), *(table.slice(start, end - start) for table, start, end in cut)]
        starts = ends


def _part(objects: pa.Table, found: pa.Table) -> pa.Table:
    """The rows of PLAN of a range. found: result of STEPS, one row per object."""
    steps = found["step"].combine_chunks().dictionary_encode()
    words = [step.split() for step in steps.dictionary.to_pylist()]
    nothing = pa.nulls(objects.num_rows, pa.string())
    columns = {
        **{name: objects[name] for name in OBJECTS.names},
        **{name: found[name] for name in found.schema.names},
        "action": plan_column("action", [action for action, _ in words]).take(steps.indices),
        "cause": plan_column("cause", [cause for _, cause in words]).take(steps.indices),
        "leader": nothing,
        "content_sha256": nothing,
    }
    return pa.table([columns[name] for name in PLAN.names], schema=PLAN)


def _perhaps_stored(plan: Plan, known: pa.Table) -> Plan:
    """Return the plan with objects checked whose content may be stored under another name. known: as in STEPS."""
    undecided = np.flatnonzero(plan.which("embed") & (plan.codes("cause") != CAUSES.index("recipe")))
    if not plan.target.copies or not len(undecided) or not known.num_rows:
        return plan
    objects = _contents_of(rows_of(plan.table, undecided)).append_column("place", pa.array(undecided))
    complete = pc.equal(known["stored"], (1 << len(plan.target.recipes)) - 1)
    sizes = pc.is_in(known["size_bytes"], value_set=objects["size_bytes"].unique())
    alike = _contents_of(known.filter(pc.and_(complete, sizes)))
    if not alike.num_rows:
        return plan
    return _checked(plan, query(PERHAPS_STORED, {"objects": objects, "known": alike})["place"].to_numpy())


def _contents_of(table: pa.Table) -> pa.Table:
    """Size and etag of each row, as far as they tell its content: an etag that was made from times does not."""
    weak = pc.starts_with(table["etag"], WEAK)
    return pa.table({"size_bytes": table["size_bytes"], "etag": pc.if_else(weak, None, table["etag"])})


def twins(plan: Plan) -> pa.Table:
    """The objects to embed that may be equal, by id: schemas.OBJECTS, and as `alike` the number of their group.

    A group has one size and, if the storage has etags, one etag.
    """
    chosen = np.flatnonzero(plan.which("embed") & (plan.codes("cause") != CAUSES.index("recipe")))
    contents = _contents_of(rows_of(plan.table.select(["size_bytes", "etag"]), chosen))
    group, size = groups(contents["size_bytes"].to_numpy(), numbered(contents["etag"]))
    objects = rows_of(plan.table.select(OBJECTS.names), chosen[size > 1])
    return objects.append_column("alike", pa.array(group[size > 1]))


def with_checks(plan: Plan, volume_ids: Collection[str]) -> Plan:
    """Return the plan with these volumes hashed before they are embedded."""
    return _checked(plan, plan.places(volume_ids))


def _checked(plan: Plan, places: NDArray[np.int64]) -> Plan:
    return plan.changed(places, action=["check"] * len(places))


def resolve(plan: Plan, hashes: Mapping[str, str]) -> Plan:
    """Decide every check. hashes: volume_id -> sha256 of the objects to check; an object without one is embedded."""
    contents = _contents(plan, set(hashes.values())) if plan.target.copies else {}
    leaders: dict[tuple[str, str | None], str] = {}
    decided = []
    everything = (1 << len(plan.target.recipes)) - 1
    for step in plan.of("check"):
        sha256 = hashes.get(step.item.volume_id)
        key = (sha256 or "", step.modality)
        row: dict[str, Any] = {"place": step.place, "row": None, "missing": 0, "leader": None, "content_sha256": None}
        if sha256 and sha256 == step.content_sha256:
            row |= {"action": "keep", "cause": step.cause, "row": step.row}
        elif sha256 and key in contents:
            row |= {"action": "copy", "cause": "renamed", "row": contents[key]}
        elif sha256 and key in leaders and plan.target.copies:
            row |= {"action": "copy", "cause": "renamed", "leader": leaders[key], "content_sha256": sha256}
        else:
            if sha256:
                leaders[key] = step.item.volume_id
            cause: Cause = "changed" if step.cause == "touched" else step.cause
            row |= {"action": "embed", "cause": cause, "missing": everything}
        decided.append(row)
    return _decided(plan, decided)


def _contents(plan: Plan, hashes: Collection[str]) -> dict[tuple[str, str | None], int]:
    """(content, modality) -> the first stored row that has vectors of all recipes, among these contents."""
    rows = plan.state.numbered("content_sha256", "modality", "shards")
    rows = rows.filter(pc.is_in(rows["content_sha256"], value_set=pa.array(sorted(hashes), pa.string())))
    found: dict[tuple[str, str | None], int] = {}
    for row in rows.to_pylist():
        if {digest for digest, _ in row["shards"] or ()} >= set(plan.target.recipes):
            found.setdefault((row["content_sha256"], row["modality"]), row["row"])
    return found


def _decided(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan with these values; each row has its `place`."""
    names = ("action", "cause", "row", "missing", "leader", "content_sha256")
    return plan.changed([row["place"] for row in rows], **{name: [row[name] for row in rows] for name in names})


def orphans(plan: Plan, made: Mapping[str, tuple[str | None, str | None]]) -> frozenset[str]:
    """Find copies whose leader turned out to have other content. made: volume_id -> (code, content_sha256).

    A copy is also an orphan if its leader could not be read: that says nothing about the copy.
    """
    orphaned = []
    for step in plan.of("copy"):
        if step.leader is not None and step.leader in made:  # a run that was stopped has not read every leader
            code, content = made[step.leader]
            if content != step.content_sha256 or code in TRANSIENT_CODES:
                orphaned.append(step.item.volume_id)
    return frozenset(orphaned)


def embedded_instead(plan: Plan, volume_ids: Collection[str]) -> Plan:
    """Return the plan with these volumes read and embedded instead of copied."""
    row = {"action": "embed", "cause": "new", "row": None, "leader": None, "content_sha256": None}
    missing = (1 << len(plan.target.recipes)) - 1
    return _decided(plan, [row | {"place": place, "missing": missing} for place in plan.places(volume_ids).tolist()])
