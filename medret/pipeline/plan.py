"""The plan of a run, a table: what becomes of every listed object, given what the store holds.

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
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import ArchiveObject, Listing, label_origins
from medret.archive.series import WEAK
from medret.errors import QuarantineCode
from medret.pipeline.store_state import KNOWN, StoreState, Target, query, rows_of, with_digests
from medret.schemas import OBJECTS, in_order

Action = Literal["keep", "refuse", "copy", "check", "embed"]
Cause = Literal[
    "unchanged", "resumed", "returned", "refused", "touched", "renamed", "recipe", "new", "changed", "retried"
]
ACTIONS, CAUSES = get_args(Action), get_args(Cause)

# The archive failed, not the volume: try again next time, also with the same ruleset.
TRANSIENT_CODES = frozenset({QuarantineCode.UNREADABLE, QuarantineCode.CHANGED_WHILE_READING})

BATCH_ROWS = 10_000  # rows that become values at once

# One row per object. row: of StoreState.rows, whose vectors are kept, copied or extended, or whose refusal stands.
# more: further rows with vectors of the same content, of other recipes. live: the volume's row in the live snapshot.
# missing: recipes to embed with; bit i is that of Target.recipes[i]. relabelled: whether the live row has
# other labels. leader: volume of this run whose vectors are copied once they exist; content_sha256: of both.
PLAN = pa.schema(
    [
        *OBJECTS,
        pa.field("modality", pa.string()),
        pa.field("action", pa.dictionary(pa.int8(), pa.string())),
        pa.field("cause", pa.dictionary(pa.int8(), pa.string())),
        pa.field("row", pa.int32()),
        pa.field("more", pa.list_(pa.int32())),
        pa.field("live", pa.int32()),
        pa.field("missing", pa.int64()),
        pa.field("relabelled", pa.bool_()),
        pa.field("leader", pa.string()),
        pa.field("content_sha256", pa.string()),
    ]
)

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


@dataclass(frozen=True)
class Step:
    """What becomes of one listed object.

    place: its row in the plan. item: the object as listed. content_sha256: of the stored vectors to keep, copy or
    extend; None if the content must be read first. row: row of StoreState.rows to keep, copy, refuse or extend. shards:
    recipe digest -> embedding shard of the stored vectors. leader: volume of this run whose vectors are copied once
    they exist. missing: digests of the recipes to embed with. live: the volume's row in the live snapshot.
    """

    place: int
    item: ArchiveObject
    modality: str | None
    action: Action
    cause: Cause
    content_sha256: str | None = None
    row: int | None = None
    shards: Mapping[str, str] = field(default_factory=dict)
    leader: str | None = None
    missing: tuple[str, ...] = ()
    live: int | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of all listed objects.

    table: PLAN, in the order of their ids. gone: rows of the live snapshot whose volumes are no longer listed. The
    other fields are what the plan was made from.
    """

    table: pa.Table
    gone: NDArray[np.int64]
    listing: Listing
    state: StoreState
    target: Target

    def codes(self, name: Literal["action", "cause"]) -> NDArray[np.int8]:
        """The action or the cause of every row, as its place in ACTIONS or CAUSES."""
        return np.concatenate([np.zeros(0, np.int8), *(part.indices.to_numpy() for part in self.table[name].chunks)])

    def which(self, *actions: Action) -> NDArray[np.bool_]:
        """Whether each row has one of these actions."""
        return np.isin(self.codes("action"), [ACTIONS.index(action) for action in actions])

    def count(self, *actions: Action) -> int:
        """Number of rows with one of these actions."""
        return int(self.which(*actions).sum())

    def causes(self) -> dict[str, int]:
        """Count the steps per cause."""
        counts = np.bincount(self.codes("cause"), minlength=len(CAUSES)).tolist()
        return {cause: count for cause, count in zip(CAUSES, counts, strict=True) if count}

    @property
    def idle(self) -> bool:
        """Whether the live snapshot already holds exactly the volumes of the archive."""
        if len(self.gone) or not self.causes().keys() <= {"unchanged", "refused"}:
            return False
        # What an unfinished run has refused is not in the snapshot yet.
        return not (pc.fill_null(self.table["row"], -1).to_numpy() >= self.state.journal_from).any()

    def of(self, *actions: Action) -> Iterator[Step]:
        """The steps with one of these actions, made in batches."""
        return self.steps(np.flatnonzero(self.which(*actions)))

    def steps(self, places: NDArray[np.int64]) -> Iterator[Step]:
        """The steps of these rows, in ascending order, made in batches."""
        for at in range(0, len(places), BATCH_ROWS):
            batch = places[at : at + BATCH_ROWS]
            columns = rows_of(self.table, batch).to_pydict()
            rows = [row for row in columns["row"] if row is not None] + [
                r for more in columns["more"] for r in more or ()
            ]
            numbers = np.unique(np.array(rows, np.int64))
            stored = rows_of(self.state.rows.select(["content_sha256", "shards"]), numbers).to_pylist()
            known = dict(zip(numbers.tolist(), stored, strict=True))
            for place, values in zip(batch.tolist(), zip(*columns.values(), strict=True), strict=True):
                yield self._step(place, dict(zip(columns, values, strict=True)), known)

    def _step(self, place: int, values: dict[str, Any], known: Mapping[int, Mapping[str, Any]]) -> Step:
        item = ArchiveObject(
            values["volume_id"], self.listing.uri_of(values["volume_id"]), values["size_bytes"], values["etag"],
            values["mtime"], values["parts"], None if values["names"] is None else tuple(values["names"]),
        )  # fmt: skip
        row, recipes = values["row"], self.target.recipes
        sources = (
            [] if row is None or values["action"] == "refuse" else [known[r] for r in (row, *(values["more"] or ()))]
        )
        shards: dict[str, str] = {}
        for source in reversed(sources):  # the first row with a recipe wins
            shards |= {digest: shard for digest, shard in source["shards"] or () if digest in recipes}
        return Step(
            place, item, values["modality"], values["action"], values["cause"],
            values["content_sha256"] or (sources[0]["content_sha256"] if sources else None), row, shards,
            values["leader"], recipes_of(values["missing"], recipes), values["live"],
        )  # fmt: skip

    def places(self, volume_ids: Collection[str]) -> NDArray[np.int64]:
        """The rows of these volumes."""
        ids = pa.array(list(volume_ids), pa.string())
        return np.flatnonzero(pc.is_in(self.table["volume_id"], value_set=ids).to_numpy())

    def changed(self, places: Sequence[int] | NDArray[np.int64], **columns: Sequence[Any]) -> Plan:
        """The plan with other values in these columns, at these rows."""
        order = np.arange(self.table.num_rows)
        order[places] = self.table.num_rows + np.arange(len(places))
        table = self.table
        for name, values in columns.items():
            replaced = pa.chunked_array([*table[name].chunks, _plan_column(name, values)]).take(pa.array(order))
            table = table.set_column(table.schema.get_field_index(name), PLAN.field(name), replaced)
        return replace(self, table=table)


def recipes_of(bits: int, recipes: Sequence[str]) -> tuple[str, ...]:
    """The recipes whose bits are set."""
    return tuple(recipe for bit, recipe in enumerate(recipes) if bits >> bit & 1)


def _plan_column(name: str, values: Sequence[Any]) -> pa.Array:
    """A column of PLAN; actions and causes have the same dictionary everywhere."""
    words = {"action": ACTIONS, "cause": CAUSES}.get(name)
    if words is None:
        return pa.array(values, PLAN.field(name).type)
    codes = pa.array([words.index(value) for value in values], pa.int8())
    return pa.DictionaryArray.from_arrays(codes, pa.array(words, pa.string()))


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
        "action": _plan_column("action", [action for action, _ in words]).take(steps.indices),
        "cause": _plan_column("cause", [cause for _, cause in words]).take(steps.indices),
        "leader": nothing,
        "content_sha256": nothing,
    }
    return pa.table([columns[name] for name in PLAN.names], schema=PLAN)


def _perhaps_stored(plan: Plan, known: pa.Table) -> Plan:
    """Return the plan with objects checked whose content may be stored under another name. known: as in STEPS."""
    undecided = np.flatnonzero(plan.which("embed") & (plan.codes("cause") != CAUSES.index("recipe")))
    if not plan.target.copies or not len(undecided) or not known.num_rows:
        return plan
    objects = contents_of(rows_of(plan.table, undecided)).append_column("place", pa.array(undecided))
    complete = pc.equal(known["stored"], (1 << len(plan.target.recipes)) - 1)
    sizes = pc.is_in(known["size_bytes"], value_set=objects["size_bytes"].unique())
    alike = contents_of(known.filter(pc.and_(complete, sizes)))
    if not alike.num_rows:
        return plan
    return checked(plan, query(PERHAPS_STORED, {"objects": objects, "known": alike})["place"].to_numpy())


def contents_of(table: pa.Table) -> pa.Table:
    """Size and etag of each row, as far as they tell its content: an etag that was made from times does not."""
    weak = pc.starts_with(table["etag"], WEAK)
    return pa.table({"size_bytes": table["size_bytes"], "etag": pc.if_else(weak, None, table["etag"])})


def checked(plan: Plan, places: NDArray[np.int64]) -> Plan:
    """Return the plan with the objects at these rows hashed before they are embedded."""
    return plan.changed(places, action=["check"] * len(places))
