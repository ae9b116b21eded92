"""The ledger of a new snapshot: the rows of the live one that stay, and those that change, worked on by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import Listing, labels_of
from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.steps import ACTIONS, CAUSES, TRANSIENT_CODES, Plan
from medret.pipeline.store_state import Rows, StoreState, picked, rows_of, without_hu
from medret.schemas import LABELS, LEDGER, PART_ROWS, QUARANTINE, in_order, in_parts
from medret.snapshot import Counts
from medret.snapshot.files import ShardKey
from medret.snapshot.liveness import entries

IDENTITY = ("volume_id", "size_bytes", "etag", "mtime")


@dataclass(frozen=True)
class NewLedger:
    """The ledger of the new snapshot.

    state: what the store held. kept: whether each live row stays as it is. changed: all other rows (schemas.LEDGER),
    by volume_id. gone: ids of the live volumes that are no longer listed. rows: reads stored rows whole.
    """

    state: StoreState
    kept: NDArray[np.bool_]
    changed: pa.Table
    gone: pa.Array
    rows: Rows

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
        """Put these volumes into quarantine. ruleset_digest: see plan.Target; None keeps the digest in the ledger."""
        if not refused:
            return self
        ledger = self._with_changed(refused)
        return replace(ledger, changed=_refused(ledger.changed, refused, ruleset_digest))

    def moved(self, moved: Mapping[tuple[str, str], str]) -> NewLedger:
        """Point vectors to new shards. moved: (recipe, volume_id) -> shard."""
        ledger = self._with_changed({volume_id for _, volume_id in moved})
        columns = (ledger.changed[name].to_pylist() for name in ("volume_id", "shards"))
        shards = [
            [(recipe, moved.get((recipe, volume_id), shard)) for recipe, shard in pairs or ()]
            for volume_id, pairs in zip(*columns, strict=True)
        ]
        return replace(ledger, changed=_with_columns(ledger.changed, {"shards": shards}))

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
    def ct_without_hu(self) -> int:
        """Number of volumes labelled CT that hold no Hounsfield units (medret.volume.facts)."""
        live = self.state.rows["ct_without_hu"].slice(0, len(self.kept)).to_numpy()
        return int((live & self.kept).sum()) + int(pc.sum(without_hu(self.changed["facts"])).as_py() or 0)


def unchanged(state: StoreState, rows: Rows) -> NewLedger:
    """The ledger of the live snapshot."""
    return NewLedger(
        state, np.ones(state.journal_from, np.bool_), LEDGER.empty_table(), pa.array([], pa.string()), rows
    )


def assemble(
    plan: Plan, made: pa.Table, copied: Mapping[tuple[str, str], str], labels: pa.Table, rows: Rows, *, whole: bool
) -> NewLedger:
    """Put the new ledger together, in parts, so that no array of texts grows with the archive.

    made: ledger rows of what the stream embedded or refused. copied: (recipe, volume_id) -> shard of copied vectors.
    labels: schemas.VOLUME_LABELS. whole: write every row again, because all have another URI or other recipes.
    A live volume that cannot be read now is stale: it keeps its vectors and the identity of the object that they were
    made from, so the next run compares it again. Its status is embedded; code and reason say why it cannot be read.
    """
    state, table = plan.state, plan.table
    as_before = plan.codes("cause") == CAUSES.index("unchanged")
    as_before |= plan.which("refuse") & (_numbers(table["row"]) < state.journal_from)
    written = ~as_before | table["relabelled"].to_numpy() | whole
    kept = np.zeros(state.journal_from, np.bool_)
    kept[_numbers(table["live"])[~written]] = True
    places = np.flatnonzero(written)
    ids = made["volume_id"].combine_chunks()
    parts = [
        _with_labels(_rows_of_part(plan, places[at : at + PART_ROWS], made, ids, copied, rows), labels)
        for at in range(0, len(places), PART_ROWS)
    ]
    gone = rows_of(state.rows.select(["volume_id"]), plan.gone)["volume_id"].combine_chunks()
    return NewLedger(state, kept, pa.concat_tables([LEDGER.empty_table(), *parts]), gone, rows)


def _rows_of_part(
    plan: Plan,
    places: NDArray[np.int64],
    made: pa.Table,
    ids: pa.Array,
    copied: Mapping[tuple[str, str], str],
    rows: Rows,
) -> pa.Table:
    """The ledger rows of these rows of the plan (schemas.LEDGER without labels). ids: volumes of `made`."""
    part = rows_of(plan.table, places).combine_chunks()
    action = part["action"].cast(pa.string())
    reads = pc.equal(action, "embed").to_numpy()
    follows = pc.is_valid(part["leader"]).to_numpy()
    at = _numbers(pc.index_in(pc.coalesce(part["leader"], part["volume_id"]), value_set=ids))
    unread = pc.is_in(made["code"], value_set=pa.array(sorted(map(str, TRANSIENT_CODES)))).to_numpy()
    live = _numbers(part["live"])
    stale = np.zeros(len(places), np.bool_)
    stale[reads | follows] = unread[at[reads | follows]]
    stale[stale] = _can_stay(plan, part.filter(pa.array(stale)))
    from_made = (reads | follows) & ~stale
    number = np.where(stale, live, _numbers(part["row"]))
    stored = rows(number[~from_made])
    order = np.empty(len(places), np.int64)
    order[~from_made] = np.arange(stored.num_rows)
    order[from_made] = stored.num_rows + at[from_made]
    ledger = picked(pa.concat_tables([stored, made]), order).combine_chunks()
    ok = pc.equal(ledger["status"], "embedded")
    columns: dict[str, Any] = {"uri": pc.if_else(_mask(~reads | stale), _uris(plan, part), ledger["uri"])}
    for name in IDENTITY:  # as read for objects that were read, as stored for stale ones, as listed for all others
        columns[name] = pc.if_else(_mask(~reads), part[name], ledger[name])
    for name in ("code", "reason"):
        now = made[name].take(pa.array(at, mask=~stale))
        columns[name] = pc.if_else(ok, now, ledger[name])
    settled = ~stale & reads & pc.not_equal(part["cause"].cast(pa.string()), "recipe").to_numpy()
    columns["shards"] = _shards(
        plan, places, np.flatnonzero(~settled), stale, ledger, made["shards"].take(pa.array(at, mask=at < 0)), copied
    )
    return _without_mixtures(_with_columns(ledger, columns), plan, part)


def _can_stay(plan: Plan, part: pa.Table) -> NDArray[np.bool_]:
    """Whether each volume has a live row, with all vectors and the same label, to keep while it cannot be read."""
    live = _numbers(part["live"])
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
    plan: Plan, places: NDArray[np.int64], open_: NDArray[np.int64], stale: NDArray[np.bool_], ledger: pa.Table,
    made: pa.ChunkedArray, copied: Mapping[tuple[str, str], str],
) -> pa.ChunkedArray | list[Any]:  # fmt: skip
    """The shards of the rows of a part. open_: rows whose shards are not those of their ledger row.

    made: per row, shards that the stream made.
    """
    if not len(open_):
        return ledger["shards"]
    shards, recipes = ledger["shards"].to_pylist(), plan.target.recipes
    embedded = pc.equal(ledger["status"], "embedded").to_numpy()
    for at, step in zip(open_.tolist(), plan.steps(places[open_]), strict=True):
        if not embedded[at]:
            shards[at] = []
        elif stale[at]:
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
    extended = pc.equal(part["cause"].cast(pa.string()), "recipe")
    rows = ledger.select(["volume_id", "status", "content_sha256"]).filter(extended)
    stored = picked(plan.state.rows.select(["content_sha256"]), _numbers(part["row"].filter(extended)))[
        "content_sha256"
    ]
    mixed = pc.and_(pc.equal(rows["status"], "embedded"), pc.not_equal(rows["content_sha256"], stored))
    reason = "it was replaced after it was listed; its stored vectors are of the content before"
    why = VolumeError(QuarantineCode.CHANGED_WHILE_READING, reason)
    return _refused(ledger, dict.fromkeys(rows["volume_id"].filter(mixed).to_pylist(), why), None)


def _refused(ledger: pa.Table, refused: Mapping[str, VolumeError], ruleset_digest: str | None) -> pa.Table:
    if not refused:
        return ledger
    columns = {name: ledger[name].to_pylist() for name in ("status", "code", "reason", "slices", "shards", "judged_by")}
    for place, volume_id in enumerate(ledger["volume_id"].to_pylist()):
        if error := refused.get(volume_id):
            row = {"status": "quarantined", "code": str(error.code), "reason": error.reason, "slices": 0, "shards": []}
            for name, value in (row | ({"judged_by": ruleset_digest} if ruleset_digest else {})).items():
                columns[name][place] = value
    return _with_columns(ledger, columns)


def _with_labels(ledger: pa.Table, labels: pa.Table) -> pa.Table:
    """Fill the label columns of the ledger. labels: schemas.VOLUME_LABELS."""
    found = labels_of(ledger["volume_id"], labels)
    return _with_columns(ledger, {name: found[name] for name in (*LABELS, "metadata")})


def _uris(plan: Plan, part: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(plan.listing.prefix, part["volume_id"], "")


def _numbers(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """Row numbers; -1 for null."""
    numbers: NDArray[np.int64] = pc.fill_null(column, -1).to_numpy().astype(np.int64)
    return numbers


def _mask(values: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values)


def _with_columns(ledger: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    for name, values in columns.items():
        field = LEDGER.field(name)
        made = in_parts(values, field.type) if isinstance(values, list) else values
        ledger = ledger.set_column(LEDGER.get_field_index(name), field, made)
    return ledger


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
    older = copied & (_numbers(part["row"]) >= state.older_from)
    unchanged = np.isin(cause, [CAUSES.index(name) for name in ("unchanged", "touched", "returned")]) | older
    made = embedded & ~stale & ~renamed & ~unchanged
    number = _numbers(part["live"])
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


def contents(made: pa.Table) -> dict[str, tuple[str | None, str | None]]:
    """volume_id -> (code, content_sha256) in the output of the stream."""
    columns = (made[name].to_pylist() for name in ("volume_id", "code", "content_sha256"))
    return {volume_id: (code, content) for volume_id, code, content in zip(*columns, strict=True)}
