"""The ledger of a new snapshot: input rows for the stream, then ledger rows, counts and quarantine of what it made."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive import Listing, labels_of
from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.batch_schema import SOURCE
from medret.pipeline.plan import TRANSIENT_CODES, Plan, Step, Target, fallback
from medret.pipeline.store_state import StoreState
from medret.schemas import LABELS, LEDGER, QUARANTINE, in_order, in_parts, taken
from medret.snapshot import Counts
from medret.snapshot.files import StoredFile, files_table
from medret.snapshot.publish import write_quarantine
from medret.storage import Location


def source(steps: Sequence[Step], canaries: Sequence[Step] = ()) -> pa.Table:
    """Build the input of the stream (batch_schema.SOURCE): the objects to embed by id, then the canaries."""
    pairs = [*((step, False) for step in steps), *((step, True) for step in canaries)]
    columns: list[list[Any]] = [
        [getattr(step.item, name) for step, _ in pairs] for name in ("volume_id", "uri", "size_bytes", "etag", "mtime")
    ]
    return pa.table([*columns, [step.modality for step, _ in pairs], [canary for _, canary in pairs]], schema=SOURCE)


def assemble(
    plan: Plan, state: StoreState, target: Target, made: pa.Table, copied: Mapping[tuple[str, str], str]
) -> pa.Table:
    """Build the new ledger (schemas.LEDGER without labels), one row per step.

    made: ledger rows of what the stream embedded or refused. copied: (recipe, volume_id) -> shard of copied vectors.
    A live volume that cannot be read now is stale: it keeps its vectors and the identity of the object that they were
    made from, so the next run compares it again. Its status is embedded; code and reason say why it cannot be read.
    """
    rows = made_rows(made)
    table = pa.concat_tables([state.table, made])
    offset = state.table.num_rows
    chosen, shards = [], []
    stale: dict[int, tuple[str, str]] = {}
    made_shards, made_codes, made_reasons = (made[name].to_pylist() for name in ("shards", "code", "reason"))
    for place, step in enumerate(plan.steps):
        volume_id = step.item.volume_id
        if step.action in ("embed", "copy") and (step.action == "embed" or step.leader is not None):
            at = rows[step.leader or volume_id]
            live = fallback(step, state, target) if made_codes[at] in TRANSIENT_CODES else None
            if live is not None:
                stale[place] = made_codes[at], made_reasons[at]
                chosen.append(live.row)
                shards.append([(recipe, live.shards[recipe]) for recipe in target.recipes])
                continue
            chosen.append(offset + at)
            new = dict(made_shards[at])
        else:
            assert step.row is not None  # a step without new vectors refers to a stored row
            chosen.append(step.row)
            new = {}
        if step.action == "copy":
            copies = ((recipe, copied.get((recipe, volume_id))) for recipe in (new or step.shards))
            new = {recipe: shard for recipe, shard in copies if shard}  # no shard: the copy has no vector
        else:
            new = {**step.shards, **new}
        shards.append(list(new.items()))
    ledger = _without_mixtures(taken(table, pa.array(chosen, pa.int64())), plan)
    embedded = pc.equal(ledger["status"], "embedded").to_pylist()
    columns = _identities(plan, ledger, stale) | {
        "shards": [pairs if ok else [] for ok, pairs in zip(embedded, shards, strict=True)]
    }
    for number, name in enumerate(("code", "reason")):
        now = [stale[place][number] if place in stale else None for place in range(ledger.num_rows)]
        pairs = zip(embedded, now, ledger[name].to_pylist(), strict=True)
        columns[name] = [mark if ok else why for ok, mark, why in pairs]
    return _with_columns(ledger, columns)


def _without_mixtures(ledger: pa.Table, plan: Plan) -> pa.Table:
    """Refuse volumes that should get vectors of more recipes, but whose stored vectors are of other content."""
    rows = zip(plan.steps, ledger["status"].to_pylist(), ledger["content_sha256"].to_pylist(), strict=True)
    mixed = [
        step.item.volume_id
        for step, status, content in rows
        if step.cause == "recipe" and status == "embedded" and content != step.content_sha256
    ]
    reason = "it was replaced after it was listed; its stored vectors are of the content before"
    why = VolumeError(QuarantineCode.CHANGED_WHILE_READING, reason)
    return refuse(ledger, dict.fromkeys(mixed, why))


def refuse(ledger: pa.Table, refused: Mapping[str, VolumeError], ruleset_digest: str | None = None) -> pa.Table:
    """Put these volumes into quarantine. ruleset_digest: see plan.Target; None keeps the digest in the ledger."""
    if not refused:
        return ledger
    columns = {name: ledger[name].to_pylist() for name in ("status", "code", "reason", "slices", "shards", "judged_by")}
    for place, volume_id in enumerate(ledger["volume_id"].to_pylist()):
        if error := refused.get(volume_id):
            row = {"status": "quarantined", "code": str(error.code), "reason": error.reason, "slices": 0, "shards": []}
            for name, value in (row | ({"judged_by": ruleset_digest} if ruleset_digest else {})).items():
                columns[name][place] = value
    return _with_columns(ledger, columns)


def made_rows(made: pa.Table) -> dict[str, int]:
    """volume_id -> its row in the output of the stream."""
    return {volume_id: row for row, volume_id in enumerate(made["volume_id"].to_pylist())}


def slices_made(made: pa.Table) -> int:
    """Count the slices that the stream embedded, summed over models."""
    pairs = zip(made["slices"].to_pylist(), made["shards"].to_pylist(), strict=True)
    return sum(slices * len(shards) for slices, shards in pairs)


def contents(made: pa.Table) -> dict[str, tuple[str | None, str | None]]:
    """volume_id -> (code, content_sha256) in the output of the stream."""
    columns = (made[name].to_pylist() for name in ("volume_id", "code", "content_sha256"))
    return {volume_id: (code, content) for volume_id, code, content in zip(*columns, strict=True)}


def _identities(plan: Plan, ledger: pa.Table, stale: Container[int]) -> dict[str, list[Any]]:
    """Identity columns: as read for objects that were read, as stored for stale ones, as listed for all others."""
    names = ("volume_id", "uri", "size_bytes", "etag", "mtime")
    columns = {name: ledger[name].to_pylist() for name in names}
    for place, step in enumerate(plan.steps):
        if step.action != "embed":
            for name in names:
                columns[name][place] = getattr(step.item, name)
        elif place in stale:
            columns["uri"][place] = step.item.uri
    return columns


def with_labels(ledger: pa.Table, labels: pa.Table) -> pa.Table:
    """Fill the label columns of the ledger. labels: schemas.VOLUME_LABELS."""
    found = labels_of(ledger["volume_id"], labels)
    for name in (*LABELS, "metadata"):
        ledger = ledger.set_column(LEDGER.get_field_index(name), LEDGER.field(name), found[name])
    return ledger


def labels_differ(ledger: pa.Table, labels: pa.Table) -> bool:
    """Whether the labels of the ledger differ from these (schemas.VOLUME_LABELS)."""
    names = [*LABELS, "metadata"]
    return not ledger.select(names).equals(labels_of(ledger["volume_id"], labels).select(names))


def _with_columns(ledger: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        field = LEDGER.field(name)
        ledger = ledger.set_column(LEDGER.get_field_index(name), field, in_parts(values, field.type))
    return ledger


def counts(listing: Listing, plan: Plan, state: StoreState, ledger: pa.Table) -> Counts:
    """Count what became of the listed objects. ledger: of the new snapshot, one row per step.

    Equal files with new content all count as embedded, although the model saw only one of them. Stale volumes count as
    unchanged.
    """
    made = {"embedded": 0, "new": 0, "changed": 0, "unchanged": 0, "renamed": 0, "stale": 0}
    renamed_contents = set()
    published = {row.content_sha256 for row in state.live.values() if row.embedded}
    columns = (ledger[name].to_pylist() for name in ("status", "content_sha256", "code"))
    for step, status, sha256, code in zip(plan.steps, *columns, strict=True):
        if status != "embedded":
            continue
        if code is not None:
            made["stale"] += 1
            made["unchanged"] += 1
            continue
        live = state.live.get(step.item.volume_id)
        if step.action == "copy" and sha256 in published:
            made["renamed"] += 1
            made["unchanged"] += 1
            renamed_contents.add(sha256)
        elif step.cause in ("unchanged", "touched", "returned") or (
            step.action == "copy" and step.row is not None and step.row >= state.older_from
        ):
            made["unchanged"] += 1
        else:
            made["embedded"] += 1
            if live is None or not live.embedded:
                made["new"] += 1
            elif live.content_sha256 != sha256 or live.modality != step.modality:
                made["changed"] += 1
    moved = sum(state.live[volume_id].content_sha256 in renamed_contents for volume_id in plan.gone)
    return Counts(
        listed=listing.listed,
        **made,
        gone=len(plan.gone) - moved,
        quarantined=ledger.num_rows - made["embedded"] - made["unchanged"],
        skipped=sum(listing.skipped.values()),
    )


def quarantine(ledger: pa.Table) -> pa.Table:
    """The quarantined volumes (schemas.QUARANTINE)."""
    refused = ledger.filter(pc.equal(ledger["status"], "quarantined"))
    return in_order(refused.select(QUARANTINE.names).cast(QUARANTINE), "volume_id")


def stale(ledger: pa.Table) -> pa.Table:
    """The volumes that could not be read and keep their stored vectors (schemas.QUARANTINE)."""
    kept = ledger.filter(pc.and_(pc.equal(ledger["status"], "embedded"), pc.is_valid(ledger["code"])))
    return in_order(kept.select(QUARANTINE.names).cast(QUARANTINE), "volume_id")


def quarantine_file(store: Location, run: str, refused: pa.Table) -> pa.Table:
    """Write the quarantine table; returns its row of schemas.FILES."""
    written = write_quarantine(store, run, refused)
    return files_table([StoredFile.of(written, "quarantine", refused.num_rows)])


def codes(ledger: pa.Table) -> str:
    """The number of quarantined volumes per code, as text."""
    return ", ".join(f"{count} {code}" for code, count in _codes(ledger).items())


def count_of(ledger: pa.Table, code: QuarantineCode) -> int:
    """The number of volumes in quarantine with this code."""
    return _codes(ledger).get(str(code), 0)


def _codes(ledger: pa.Table) -> dict[str, int]:
    refused = ledger.filter(pc.equal(ledger["status"], "quarantined"))
    counted = refused["code"].value_counts().to_pylist()
    return {item["values"]: item["counts"] for item in counted if item["values"]}


def with_shards(ledger: pa.Table, moved: Mapping[tuple[str, str], str]) -> pa.Table:
    """Point vectors of the ledger to new shards. moved: (recipe, volume_id) -> shard."""
    rows = zip(ledger["volume_id"].to_pylist(), ledger["shards"].to_pylist(), strict=True)
    shards = [
        [(recipe, moved.get((recipe, volume_id), shard)) for recipe, shard in pairs or ()] for volume_id, pairs in rows
    ]
    return _with_columns(ledger, {"shards": shards})
