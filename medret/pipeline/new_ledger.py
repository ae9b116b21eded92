"""The ledger of a new snapshot: the rows of the live one that stay, and those that change, worked on by column."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import label_origins, labels_of
from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.batch_schema import PackedFacts
from medret.pipeline.plan import CAUSES, TRANSIENT_CODES, Plan
from medret.pipeline.store_state import Rows, StoreState, picked, rows_of, without_hu
from medret.schemas import LEDGER, QUARANTINE, VOLUME_LABELS, in_order, in_parts, taken
from medret.snapshot.files import ShardKey, entries

IDENTITY = ("volume_id", "size_bytes", "etag", "mtime")
PART_ROWS = 1 << 12  # rows that are worked on at once: while they are, each takes several times what it takes then


@dataclass(frozen=True)
class NewLedger:
    """The ledger of the new snapshot.

    state: what the store held. kept: whether each live row stays as it is. changed: all other rows (schemas.LEDGER),
    by volume_id. gone: ids of the live volumes that are no longer listed. rows: reads stored rows whole. facts:
    those of the changed rows that this run has made.
    """

    state: StoreState
    kept: NDArray[np.bool_]
    changed: pa.Table
    gone: pa.Array
    rows: Rows
    facts: PackedFacts = field(default_factory=PackedFacts)

    def select(self, *names: str) -> pa.Table:
        """Columns of all rows, out of store_state.PLANNED: first those that stay, then those that change."""
        kept = self.state.rows.slice(0, len(self.kept)).select(names).filter(pa.array(self.kept))
        return pa.concat_tables([kept, self.changed.select(names).cast(kept.schema)])

    @property
    def touched(self) -> frozenset[ShardKey]:
        """The embedding shards that rows point to that change or go, before or now."""
        before = self.state.rows["shards"].slice(0, len(self.kept)).filter(pa.array(~self.kept))
        return frozenset([*entries(before).keys, *entries(self.changed["shards"]).keys])

    def refused(self, refused: Mapping[str, VolumeError], ruleset_digest: str | None = None) -> NewLedger:
        """Put these volumes into quarantine. ruleset_digest: see Target; None keeps the digest in the ledger."""
        if not refused:
            return self
        ledger = self._with_changed(refused)
        return replace(ledger, changed=_refused(ledger.changed, refused, ruleset_digest))

    def moved(self, moved: Mapping[tuple[str, str], str]) -> NewLedger:
        """Point vectors to new shards. moved: (recipe, volume_id) -> shard."""
        ledger = self._with_changed({volume_id for _, volume_id in moved})

        def pointed(part: pa.Table) -> pa.Table:
            columns = (part[name].to_pylist() for name in ("volume_id", "shards"))
            shards = [
                [(recipe, moved.get((recipe, volume_id), shard)) for recipe, shard in pairs or ()]
                for volume_id, pairs in zip(*columns, strict=True)
            ]
            return _with_columns(part, {"shards": shards})

        return replace(ledger, changed=_where(ledger.changed, {volume_id for _, volume_id in moved}, pointed))

    def _with_changed(self, volume_ids: Iterable[str]) -> NewLedger:
        """The same ledger, with the rows of these volumes among those that change."""
        ids = pa.array(sorted(volume_ids), pa.string())
        live = self.state.rows["volume_id"].slice(0, len(self.kept))
        numbers = np.flatnonzero(pc.is_in(live, value_set=ids).to_numpy() & self.kept)
        if not len(numbers):
            return self
        kept = self.kept.copy()
        kept[numbers] = False
        changed = in_order(pa.concat_tables([self.changed, self.rows(numbers)]), "volume_id")
        return replace(self, kept=kept, changed=changed)

    def unusable(self) -> pa.Table:
        """The volumes with a code (schemas.QUARANTINE, and status): in quarantine, or stale with stored vectors."""
        names = [*QUARANTINE.names, "status"]
        live = self.state.rows.slice(0, len(self.kept))
        coded = np.flatnonzero(pc.is_valid(live["code"]).to_numpy() & self.kept)
        stored = self.rows(coded, names) if len(coded) else LEDGER.empty_table().select(names)
        table = pa.concat_tables([stored, self.changed.select(names)])
        return in_order(table.filter(pc.is_valid(table["code"])), "volume_id")

    @property
    def tagged(self) -> pa.ChunkedArray:
        """The volumes with labels in their own tags."""
        live = self.state.rows.slice(0, len(self.kept)).select(["volume_id", "found"]).filter(pa.array(self.kept))
        stay = live["volume_id"].filter(pc.is_valid(live["found"]))
        new = self.changed["volume_id"].filter(pc.is_valid(label_origins.names_of(self.changed["found"])))
        return pa.chunked_array([*stay.chunks, *new.chunks], pa.string())

    @property
    def ct_without_hu(self) -> int:
        """Number of volumes labelled CT that hold no Hounsfield units (medret.volume.read.VolumeFacts)."""
        live = self.state.rows["ct_without_hu"].slice(0, len(self.kept)).to_numpy()
        changed = self.changed.select(["facts"])
        parts = (self.facts.unpacked(changed.slice(at, PART_ROWS)) for at in range(0, changed.num_rows, PART_ROWS))
        return int((live & self.kept).sum()) + sum(int(pc.sum(without_hu(part["facts"])).as_py()) for part in parts)


def unchanged(state: StoreState, rows: Rows) -> NewLedger:
    """The ledger of the live snapshot."""
    return NewLedger(
        state, np.ones(state.journal_from, np.bool_), LEDGER.empty_table(), pa.array([], pa.string()), rows
    )


def assemble(
    plan: Plan, made: pa.Table, copied: Mapping[tuple[str, str], str], labels: pa.Table, rows: Rows,
    facts: PackedFacts | None = None, *, whole: bool,
) -> NewLedger:  # fmt: skip
    """Put the new ledger together, in parts, so that no array of texts grows with the archive.

    made: ledger rows of what the stream embedded or refused. copied: (recipe, volume_id) -> shard of copied vectors.
    labels: schemas.VOLUME_LABELS. facts: those of `made`. whole: write every row again, because all have another URI or
    other recipes.

    A live volume that cannot be read now is stale: it keeps its vectors and the identity of the object that they were
    made from, so the next run compares it again. Its status is embedded; code and reason say why it cannot be read.
    """
    state, table = plan.state, plan.table
    as_before = plan.codes("cause") == CAUSES.index("unchanged")
    as_before |= plan.which("refuse") & (row_numbers(table["row"]) < state.journal_from)
    written = ~as_before | table["relabelled"].to_numpy() | whole
    kept = np.zeros(state.journal_from, np.bool_)
    kept[row_numbers(table["live"])[~written]] = True
    sources = _sources(plan, np.flatnonzero(written), made)
    stored, parts, first = rows(sources.number[~sources.made_now]), [LEDGER.empty_table()], 0
    for part in sources.parts():
        count = int((~part.made_now).sum())
        ledger = _rows_of_part(plan, part, stored.slice(first, count), made, copied)
        parts.append(_with_labels(ledger, labels, plan.target.hidden))
        first += count
    gone = rows_of(state.rows.select(["volume_id"]), plan.gone)["volume_id"].combine_chunks()
    return NewLedger(state, kept, pa.concat_tables(parts), gone, rows, facts or PackedFacts())


@dataclass(frozen=True)
class _Sources:
    """Where ledger rows come from, one value per row to write.

    places: rows of the plan. reads: whether the plan reads the object. at: rows of what the stream made, of the volume
    or its leader; -1: none. made_now: whether the row is taken from there. stale: whether the volume keeps its live
    row, because it could not be read. number: row of StoreState.rows otherwise.
    """

    places: NDArray[np.int64]
    reads: NDArray[np.bool_]
    at: NDArray[np.int64]
    made_now: NDArray[np.bool_]
    stale: NDArray[np.bool_]
    number: NDArray[np.int64]

    def parts(self) -> Iterator[_Sources]:
        """Cut into parts."""
        for first in range(0, len(self.places), PART_ROWS):
            yield _Sources(*(values[first : first + PART_ROWS] for values in vars(self).values()))


def _sources(plan: Plan, places: NDArray[np.int64], made: pa.Table) -> _Sources:
    table = rows_of(plan.table.select(["volume_id", "modality", "row", "live", "leader"]), places)
    names = pc.coalesce(table["leader"], table["volume_id"])
    at = row_numbers(pc.index_in(names, value_set=made["volume_id"]))
    reads = plan.which("embed")[places]
    made_now = reads | pc.is_valid(table["leader"]).to_numpy()
    unread = pc.is_in(made["code"], value_set=pa.array(sorted(map(str, TRANSIENT_CODES)))).to_numpy()
    stale = np.zeros(len(places), np.bool_)
    stale[made_now] = unread[at[made_now]]
    stale[stale] = _can_stay(plan, table.filter(pa.array(stale)))
    number = np.where(stale, row_numbers(table["live"]), row_numbers(table["row"]))
    return _Sources(places, reads, at, made_now & ~stale, stale, number)


def _rows_of_part(
    plan: Plan, sources: _Sources, stored: pa.Table, made: pa.Table, copied: Mapping[tuple[str, str], str]
) -> pa.Table:
    """The ledger rows of a part (schemas.LEDGER without labels). stored: those that are taken from the store."""
    part = rows_of(plan.table, sources.places).combine_chunks()
    found, reads = sources.at >= 0, sources.reads
    made = picked(made, sources.at[found])
    at = np.where(found, np.cumsum(found) - 1, -1)
    fresh = (sources.made_now & reads).all()  # such rows are those of the stream, and share its memory
    ledger = made if fresh else _mixed(plan, sources, part, stored, made, at)
    settled = ~sources.stale & reads & pc.not_equal(part["cause"].cast(pa.string()), "recipe").to_numpy()
    if not settled.all():
        shards = made["shards"].take(pa.array(at, mask=~found))
        pairs = _shards(plan, sources, np.flatnonzero(~settled), ledger, shards, copied)
        ledger = _with_columns(ledger, {"shards": pairs})
    return _without_mixtures(ledger, plan, part)


def _mixed(
    plan: Plan, sources: _Sources, part: pa.Table, stored: pa.Table, made: pa.Table, at: NDArray[np.int64]
) -> pa.Table:
    """The ledger rows of a part of which some are taken from the store. at: per row, its place in `made`; -1: none."""
    order = np.where(sources.made_now, stored.num_rows + at, np.cumsum(~sources.made_now) - 1)
    ledger = taken(pa.concat_tables([stored, made]), pa.array(order)).combine_chunks()
    reads, stale = sources.reads, sources.stale
    columns: dict[str, Any] = {"uri": pc.if_else(pa.array(~reads | stale), _uris(plan, part), ledger["uri"])}
    for name in IDENTITY:  # as read for objects that were read, as stored for stale ones, as listed for all others
        columns[name] = pc.if_else(pa.array(~reads), part[name], ledger[name])
    for name in ("code", "reason"):
        now = made[name].take(pa.array(at, mask=~stale))
        columns[name] = pc.if_else(pc.equal(ledger["status"], "embedded"), now, ledger[name])
    return _with_columns(ledger, columns)


def _can_stay(plan: Plan, part: pa.Table) -> NDArray[np.bool_]:
    """Whether each volume has a live row, with all vectors and the same label, to keep while it cannot be read."""
    live = row_numbers(part["live"])
    found = live >= 0
    stored = picked(plan.state.rows.select(["status", "modality", "shards"]), live[found]).to_pylist()
    modalities = part["modality"].filter(pa.array(found)).to_pylist()
    wanted = set(plan.target.recipes)
    found[found] = [
        row["status"] == "embedded" and row["modality"] == modality and wanted <= dict(row["shards"] or ()).keys()
        for row, modality in zip(stored, modalities, strict=True)
    ]
    return found


def _shards(
    plan: Plan, sources: _Sources, open_: NDArray[np.int64], ledger: pa.Table, made: pa.ChunkedArray,
    copied: Mapping[tuple[str, str], str],
) -> list[Any]:  # fmt: skip
    """The shards of the rows of a part. open_: rows whose shards are not those of their ledger row.

    made: per row, shards that the stream made.
    """
    shards: list[Any] = ledger["shards"].to_pylist()
    recipes = plan.target.recipes
    embedded = pc.equal(ledger["status"], "embedded").to_numpy()
    for at, step in zip(open_.tolist(), plan.steps(sources.places[open_]), strict=True):
        if not embedded[at]:
            shards[at] = []
        elif sources.stale[at]:
            shards[at] = [pair for pair in shards[at] if pair[0] in recipes]
        elif step.action == "copy":
            copies = (
                (recipe, copied.get((recipe, step.item.volume_id)))
                for recipe in (dict(made[at].as_py() or ()) if step.leader else step.shards)
            )
            shards[at] = [(recipe, shard) for recipe, shard in copies if shard]  # no shard: the copy has no vector
        elif step.action == "embed":
            shards[at] = list({**step.shards, **dict(made[at].as_py())}.items())
        else:
            shards[at] = list(step.shards.items())
    return shards


def _without_mixtures(ledger: pa.Table, plan: Plan, part: pa.Table) -> pa.Table:
    """Refuse volumes that should get vectors of more recipes, but whose stored vectors are of other content."""
    keeps_some = pc.not_equal(part["missing"], (1 << len(plan.target.recipes)) - 1)
    extended = pc.and_(pc.equal(part["cause"].cast(pa.string()), "recipe"), keeps_some)
    rows = ledger.select(["volume_id", "status", "content_sha256"]).filter(extended)
    stored = picked(plan.state.rows.select(["content_sha256"]), row_numbers(part["row"].filter(extended)))[
        "content_sha256"
    ]
    mixed = pc.and_(pc.equal(rows["status"], "embedded"), pc.not_equal(rows["content_sha256"], stored))
    reason = "it was replaced after it was listed; its stored vectors are of the content before"
    why = VolumeError(QuarantineCode.CHANGED_WHILE_READING, reason)
    return _refused(ledger, dict.fromkeys(rows["volume_id"].filter(mixed).to_pylist(), why), None)


def _refused(ledger: pa.Table, refused: Mapping[str, VolumeError], ruleset_digest: str | None) -> pa.Table:
    names = ("status", "code", "reason", "slices", "shards", "judged_by")

    def with_reasons(part: pa.Table) -> pa.Table:
        columns = {name: part[name].to_pylist() for name in names}
        for place, volume_id in enumerate(part["volume_id"].to_pylist()):
            if error := refused.get(volume_id):
                row = {"status": "quarantined", "code": str(error.code), "reason": error.reason, "slices": 0}
                judged = {"judged_by": ruleset_digest} if ruleset_digest else {}
                for name, value in (row | {"shards": []} | judged).items():
                    columns[name][place] = value
        return _with_columns(part, columns)

    return _where(ledger, refused, with_reasons)


def _where(ledger: pa.Table, volume_ids: Collection[str], change: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Change the parts of a ledger in which any of these volumes is."""
    ids = pa.array(list(volume_ids), pa.string())
    concerned = pc.is_in(ledger["volume_id"], value_set=ids).to_numpy()
    parts = [LEDGER.empty_table()]
    for at in range(0, ledger.num_rows if concerned.any() else 0, PART_ROWS):
        part = ledger.slice(at, PART_ROWS)
        parts.append(change(part) if concerned[at : at + PART_ROWS].any() else part)
    return pa.concat_tables(parts) if concerned.any() else ledger


def _with_labels(ledger: pa.Table, labels: pa.Table, hidden: Collection[str]) -> pa.Table:
    """Fill the label columns of a part of the ledger, which is in order, from `labels` and from what tags say."""
    ids, found = ledger["volume_id"], label_origins.without(ledger["found"], hidden)
    given = labels_of(ids, label_origins.between(labels, ids[0].as_py(), ids[-1].as_py()))
    merged = label_origins.with_found(given, found)
    columns = {name: merged[name] for name in VOLUME_LABELS.names[1:]}
    return _with_columns(ledger, columns | {"found": found})


def _uris(plan: Plan, part: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(plan.listing.prefix, part["volume_id"], "")


def row_numbers(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """Row numbers; -1 for null."""
    numbers: NDArray[np.int64] = pc.fill_null(column, -1).to_numpy().astype(np.int64)
    return numbers


def _with_columns(ledger: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    for name, values in columns.items():
        field = LEDGER.field(name)
        made = in_parts(values, field.type) if isinstance(values, list) else values
        ledger = ledger.set_column(LEDGER.get_field_index(name), field, made)
    return ledger
