"""The ledger of a run: from the plan to the stream's source, and from what was made to rows, counts and quarantine."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive import Labels, Listing
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
    """Objects to be read, as the stream's input: in the order of their ids, then the canaries."""
    every = [*((step, False) for step in steps), *((step, True) for step in canaries)]
    columns: list[list[Any]] = [
        [getattr(step.item, name) for step, _ in every] for name in ("volume_id", "uri", "size_bytes", "etag", "mtime")
    ]
    return pa.table([*columns, [step.modality for step, _ in every], [canary for _, canary in every]], schema=SOURCE)


def assemble(
    plan: Plan, known: StoreState, wanted: Target, made: pa.Table, copied: Mapping[tuple[str, str], str]
) -> pa.Table:
    """The snapshot's ledger (schemas.LEDGER without labels), a row a step.

    made: ledger rows of what the stream embedded or refused. copied: (recipe, volume_id) -> shard of copied vectors.
    A published volume that cannot be read for the moment keeps its vectors and is known by the object that they are of:
    the next run compares it again. Such a stale volume is embedded, with the code and reason of what it is now.
    """
    rows = made_rows(made)
    table = pa.concat_tables([known.table, made])
    offset = known.table.num_rows
    chosen, shards = [], []
    stale: dict[int, tuple[str, str]] = {}
    made_shards, made_codes, made_reasons = (made[name].to_pylist() for name in ("shards", "code", "reason"))
    for place, step in enumerate(plan.steps):
        volume_id = step.item.volume_id
        if step.action in ("embed", "copy") and (step.action == "embed" or step.leader is not None):
            at = rows[step.leader or volume_id]
            before = fallback(step, known, wanted) if made_codes[at] in TRANSIENT_CODES else None
            if before is not None:
                stale[place] = made_codes[at], made_reasons[at]
                chosen.append(before.row)
                shards.append([(recipe, before.shards[recipe]) for recipe in wanted.recipes])
                continue
            chosen.append(offset + at)
            new = dict(made_shards[at])
        else:
            assert step.row is not None  # a step that makes nothing stands on a row
            chosen.append(step.row)
            new = {}
        if step.action == "copy":
            held = ((recipe, copied.get((recipe, volume_id))) for recipe in (new or step.shards))
            new = {recipe: shard for recipe, shard in held if shard}  # none: it turned out to have no vector
        else:
            new = {**step.shards, **new}
        shards.append(list(new.items()))
    ledger = _without_mixtures(taken(table, pa.array(chosen, pa.int64())), plan)
    embedded = pc.equal(ledger["status"], "embedded").to_pylist()
    columns = _identities(plan, ledger, stale) | {
        "shards": [held if ok else [] for ok, held in zip(embedded, shards, strict=True)]
    }
    for number, name in enumerate(("code", "reason")):
        now = [stale[place][number] if place in stale else None for place in range(ledger.num_rows)]
        pairs = zip(embedded, now, ledger[name].to_pylist(), strict=True)
        columns[name] = [mark if ok else why for ok, mark, why in pairs]
    return _with_columns(ledger, columns)


def _without_mixtures(ledger: pa.Table, plan: Plan) -> pa.Table:
    """Refuse volumes that were to get further vectors beside those they have, and turned out to be other content."""
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
    """The ledger with these volumes in quarantine. ruleset_digest: see plan.Target; None leaves what stands there."""
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
    """volume_id -> row of what the stream gave."""
    return {volume_id: row for row, volume_id in enumerate(made["volume_id"].to_pylist())}


def slices_made(made: pa.Table) -> int:
    """Slices of the volumes that the stream gave, times the models that embedded them."""
    return sum(n * len(held) for n, held in zip(made["slices"].to_pylist(), made["shards"].to_pylist(), strict=True))


def contents(made: pa.Table) -> dict[str, tuple[str | None, str | None]]:
    """volume_id -> code and content_sha256 of what the stream gave."""
    columns = (made[name].to_pylist() for name in ("volume_id", "code", "content_sha256"))
    return {volume_id: (code, content) for volume_id, code, content in zip(*columns, strict=True)}


def _identities(plan: Plan, ledger: pa.Table, stale: Container[int]) -> dict[str, list[Any]]:
    """Each object as it was listed; one that was read, as it was then; a stale one as its vectors have it."""
    names = ("volume_id", "uri", "size_bytes", "etag", "mtime")
    columns = {name: ledger[name].to_pylist() for name in names}
    for place, step in enumerate(plan.steps):
        if step.action != "embed":
            for name in names:
                columns[name][place] = getattr(step.item, name)
        elif place in stale:
            columns["uri"][place] = step.item.uri
    return columns


def with_labels(ledger: pa.Table, labels: Mapping[str, Labels]) -> pa.Table:
    """The ledger with its label columns filled."""
    rows = [labels.get(volume_id, Labels()) for volume_id in ledger["volume_id"].to_pylist()]
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in LABELS}
    return _with_columns(ledger, columns | {"metadata": [list(row.metadata.items()) for row in rows]})


def labels_differ(ledger: pa.Table, labels: Mapping[str, Labels]) -> bool:
    """Whether the ledger's labels are other ones than these."""
    names = (*LABELS, "metadata")
    fresh = with_labels(ledger, labels)
    return any(ledger[name].to_pylist() != fresh[name].to_pylist() for name in names)


def _with_columns(ledger: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        field = LEDGER.field(name)
        ledger = ledger.set_column(LEDGER.get_field_index(name), field, in_parts(values, field.type))
    return ledger


def counts(listing: Listing, plan: Plan, known: StoreState, ledger: pa.Table) -> Counts:
    """What became of every listed object. ledger: of the new snapshot, a row a step.

    Equal files whose content no snapshot had all count as embedded, although the model saw one of them. Stale volumes
    are part of the unchanged.
    """
    made = {"embedded": 0, "new": 0, "changed": 0, "unchanged": 0, "renamed": 0, "stale": 0}
    sources = set()
    published = {row.content_sha256 for row in known.previous.values() if row.embedded}
    columns = (ledger[name].to_pylist() for name in ("status", "content_sha256", "code"))
    for step, state, sha256, code in zip(plan.steps, *columns, strict=True):
        if state != "embedded":
            continue
        if code is not None:
            made["stale"] += 1
            made["unchanged"] += 1
            continue
        before = known.previous.get(step.item.volume_id)
        if step.action == "copy" and sha256 in published:
            made["renamed"] += 1
            made["unchanged"] += 1
            sources.add(sha256)
        elif step.cause in ("unchanged", "touched", "returned") or (
            step.action == "copy" and step.row is not None and step.row >= known.older_from
        ):
            made["unchanged"] += 1
        else:
            made["embedded"] += 1
            if before is None or not before.embedded:
                made["new"] += 1
            elif before.content_sha256 != sha256 or before.modality != step.modality:
                made["changed"] += 1
    moved = sum(known.previous[volume_id].content_sha256 in sources for volume_id in plan.gone)
    return Counts(
        listed=listing.listed,
        **made,
        gone=len(plan.gone) - moved,
        quarantined=ledger.num_rows - made["embedded"] - made["unchanged"],
        skipped=sum(listing.skipped.values()),
    )


def quarantine(ledger: pa.Table) -> pa.Table:
    """The refused volumes (schemas.QUARANTINE)."""
    refused = ledger.filter(pc.equal(ledger["status"], "quarantined"))
    return in_order(refused.select(QUARANTINE.names).cast(QUARANTINE), "volume_id")


def stale(ledger: pa.Table) -> pa.Table:
    """The volumes that could not be read and keep their published vectors (schemas.QUARANTINE)."""
    kept = ledger.filter(pc.and_(pc.equal(ledger["status"], "embedded"), pc.is_valid(ledger["code"])))
    return in_order(kept.select(QUARANTINE.names).cast(QUARANTINE), "volume_id")


def quarantine_file(store: Location, run: str, refused: pa.Table) -> pa.Table:
    """Write the quarantine table; its row of schemas.FILES."""
    written = write_quarantine(store, run, refused)
    return files_table([StoredFile.of(written, "quarantine", refused.num_rows)])


def codes(ledger: pa.Table) -> str:
    """How often each quarantine code stands in the ledger, in words."""
    return ", ".join(f"{count} {code}" for code, count in _codes(ledger).items())


def count_of(ledger: pa.Table, code: QuarantineCode) -> int:
    """How many volumes are in quarantine with this code."""
    return _codes(ledger).get(str(code), 0)


def _codes(ledger: pa.Table) -> dict[str, int]:
    refused = ledger.filter(pc.equal(ledger["status"], "quarantined"))
    counted = refused["code"].value_counts().to_pylist()
    return {item["values"]: item["counts"] for item in counted if item["values"]}


def with_shards(ledger: pa.Table, moved: Mapping[tuple[str, str], str]) -> pa.Table:
    """The ledger with some vectors elsewhere. moved: (recipe, volume_id) -> shard."""
    rows = zip(ledger["volume_id"].to_pylist(), ledger["shards"].to_pylist(), strict=True)
    shards = [
        [(recipe, moved.get((recipe, volume_id), shard)) for recipe, shard in held or ()] for volume_id, held in rows
    ]
    return _with_columns(ledger, {"shards": shards})
