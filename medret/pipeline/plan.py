"""The plan of a run: what becomes of every listed object, given what is known. Pure functions.

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

What was judged travels with each step: the object as it was listed, and the sha256 of the content that the vectors
at hand are of. docs/architecture.md says where both are compared again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Literal

from medret.archive import ArchiveObject
from medret.errors import QuarantineCode
from medret.pipeline.store_state import KnownVolume, StoreState

Action = Literal["keep", "refuse", "copy", "check", "embed"]
Cause = Literal[
    "unchanged", "resumed", "returned", "refused", "touched", "renamed", "recipe", "new", "changed", "retried"
]

# What the archive may do better next time, whatever the code.
TRANSIENT_CODES = frozenset({QuarantineCode.UNREADABLE, QuarantineCode.CHANGED_WHILE_READING})


@dataclass(frozen=True)
class Target:
    """What the new snapshot is to have.

    recipes: digests. ruleset_digest: digest of the code, limits and recipes that put a volume into quarantine.
    retry: try every quarantined volume again. copies: whether equal content gives equal vectors under another name
    (not so where the slices are drawn by a generator seeded with the name).
    """

    recipes: tuple[str, ...]
    ruleset_digest: str
    retry: bool = False
    copies: bool = True


@dataclass(frozen=True)
class Step:
    """What becomes of one listed object.

    item: as it was listed. content_sha256: of what is kept, copied or added to; None where only reading tells. row: in
    StoreState.table, of what is kept, copied, refused or added to. shards: recipe digest -> embedding shard of the
    vectors at hand. leader: volume of this run whose vectors are copied once they are made. missing: digests of the
    recipes to embed with.
    """

    item: ArchiveObject
    modality: str | None
    action: Action
    cause: Cause
    content_sha256: str | None = None
    row: int | None = None
    shards: Mapping[str, str] = field(default_factory=dict)
    leader: str | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One step an object, in the order of their ids. gone: volumes of the snapshot that are listed no more."""

    steps: tuple[Step, ...]
    gone: tuple[str, ...]

    def of(self, *actions: Action) -> tuple[Step, ...]:
        """The steps that do this."""
        return tuple(step for step in self.steps if step.action in actions)

    def causes(self) -> dict[str, int]:
        """How many steps have each cause."""
        return dict(Counter(step.cause for step in self.steps))

    @property
    def idle(self) -> bool:
        """Whether the snapshot's volumes are the archive's already."""
        return not self.gone and all(step.cause in ("unchanged", "refused") for step in self.steps)


def make_plan(
    objects: Sequence[ArchiveObject], modalities: Mapping[str, str | None], known: StoreState, wanted: Target
) -> Plan:
    """Plan a run. modalities: label by volume_id. Steps with action `check` need content hashes; see `resolve`."""
    sizes: dict[int, list[KnownVolume]] = {}
    if wanted.copies:
        for volume in known.embedded():
            if _has_all(volume, wanted):
                sizes.setdefault(volume.size_bytes, []).append(volume)
    steps = [_step(item, modalities.get(item.volume_id), known, wanted, sizes) for item in objects]
    listed = {item.volume_id for item in objects}
    return Plan(tuple(steps), tuple(sorted(set(known.previous) - listed)))


def _step(
    item: ArchiveObject, modality: str | None, known: StoreState, wanted: Target, sizes: Mapping[int, list[KnownVolume]]
) -> Step:
    before = known.previous.get(item.volume_id)
    rows = (*([before] if before else []), *known.further.get(item.volume_id, ()))
    fitting = [row for row in rows if _is_same_object(row, item) and row.modality == modality]
    refused = next((row for row in fitting if not row.embedded and row.ruleset_digest == wanted.ruleset_digest), None)
    stands = refused is not None and not wanted.retry and refused.code not in TRANSIENT_CODES
    if stands:  # an older medret may have thought otherwise
        fitting = [row for row in fitting if row.origin != "older"]
    base = next((row for row in fitting if row.embedded), None)
    if base is not None:
        # The live snapshot's rows come first, then the journal's: what several have is the first one's.
        held = {
            digest: (shard, row.origin)
            for row in reversed(fitting)
            if row.embedded and row.content_sha256 == base.content_sha256
            for digest, shard in row.shards.items()
            if digest in wanted.recipes
        }
        shards = {digest: shard for digest, (shard, _) in held.items()}
        missing = tuple(digest for digest in wanted.recipes if digest not in held)
        if not missing:
            origins = {origin for _, origin in held.values()}
            kept: Cause = "resumed" if "journal" in origins else "returned" if "older" in origins else "unchanged"
            if kept == "unchanged" and base.code is not None:  # it was stale, and is again what its vectors are of
                kept = "touched"
            return Step(item, modality, "keep", kept, base.content_sha256, base.row, shards)
    if stands and refused is not None:
        return Step(item, modality, "refuse", "refused", row=refused.row)
    if base is not None:
        return Step(item, modality, "embed", "recipe", base.content_sha256, base.row, shards, missing=missing)
    cause: Cause = "new" if before is None else "changed" if before.embedded else "retried"
    if before and before.embedded and before.size_bytes == item.size_bytes and before.modality == modality:
        if _has_all(before, wanted):
            held_shards = _shards(before, wanted)
            return Step(
                item, modality, "check", "touched", before.content_sha256, before.row, held_shards,
                missing=wanted.recipes,
            )  # fmt: skip
        cause = "changed"
    if any(_may_be_equal(item, volume) for volume in sizes.get(item.size_bytes, ())):
        return Step(item, modality, "check", cause, missing=wanted.recipes)
    return Step(item, modality, "embed", cause, missing=wanted.recipes)


def twins(plan: Plan) -> list[list[ArchiveObject]]:
    """Objects to be embedded that look equal to each other: same size and, where the store has them, same etag."""
    groups: dict[tuple[int, str | None], list[ArchiveObject]] = {}
    for step in plan.steps:
        if step.action == "embed" and step.cause != "recipe":
            groups.setdefault((step.item.size_bytes, step.item.etag), []).append(step.item)
    return [group for group in groups.values() if len(group) > 1]


def with_checks(plan: Plan, volume_ids: Iterable[str]) -> Plan:
    """The plan with these volumes hashed before they are embedded."""
    chosen = frozenset(volume_ids)
    steps = (
        replace(step, action="check") if step.action == "embed" and step.item.volume_id in chosen else step
        for step in plan.steps
    )
    return Plan(tuple(steps), plan.gone)


def resolve(plan: Plan, hashes: Mapping[str, str], known: StoreState, wanted: Target) -> Plan:
    """The plan without checks. hashes: sha256 by volume_id of what was checked; one that is missing is embedded."""
    content: dict[tuple[str, str | None], KnownVolume] = {}
    if wanted.copies:
        for volume in known.embedded():
            if volume.content_sha256 and _has_all(volume, wanted):
                content.setdefault((volume.content_sha256, volume.modality), volume)
    leaders: dict[tuple[str, str | None], str] = {}
    steps = []
    for step in plan.steps:
        if step.action != "check":
            steps.append(step)
            continue
        sha256 = hashes.get(step.item.volume_id)
        key = (sha256 or "", step.modality)
        if sha256 and sha256 == step.content_sha256:
            steps.append(replace(step, action="keep", missing=()))
            continue
        step = replace(step, content_sha256=sha256, row=None, shards={})
        if sha256 and key in content:
            source = content[key]
            copied = _shards(source, wanted)
            steps.append(replace(step, action="copy", cause="renamed", row=source.row, shards=copied, missing=()))
        elif sha256 and key in leaders and wanted.copies:
            steps.append(replace(step, action="copy", cause="renamed", leader=leaders[key], missing=()))
        else:
            if sha256:
                leaders[key] = step.item.volume_id
            cause: Cause = "changed" if step.cause == "touched" else step.cause
            steps.append(replace(step, action="embed", cause=cause, content_sha256=None))
    return Plan(tuple(steps), plan.gone)


def orphans(plan: Plan, made: Mapping[str, tuple[str | None, str | None]]) -> frozenset[str]:
    """Volumes whose leader did not turn out to be what they are copies of. made: volume_id -> code, content_sha256.

    A leader that cannot be read says nothing about its copies; one that was replaced is no leader of theirs.
    """
    found = []
    for step in plan.of("copy"):
        if step.leader is not None and step.leader in made:  # a run that is told to stop does not make them all
            code, content = made[step.leader]
            if content != step.content_sha256 or code in TRANSIENT_CODES:
                found.append(step.item.volume_id)
    return frozenset(found)


def embedded_instead(plan: Plan, volume_ids: AbstractSet[str], wanted: Target) -> Plan:
    """The plan with these volumes read and embedded for themselves."""
    steps = (
        replace(step, action="embed", cause="new", content_sha256=None, leader=None, missing=wanted.recipes)
        if step.item.volume_id in volume_ids
        else step
        for step in plan.steps
    )
    return Plan(tuple(steps), plan.gone)


def fallback(step: Step, known: StoreState, wanted: Target) -> KnownVolume | None:
    """The published row that stands while the object cannot be read: with vectors of all recipes and this label."""
    before = known.previous.get(step.item.volume_id)
    fits = before is not None and before.embedded and before.modality == step.modality and _has_all(before, wanted)
    return before if fits else None


def _is_same_object(row: KnownVolume, item: ArchiveObject) -> bool:
    return (row.size_bytes, row.etag, row.mtime) == (item.size_bytes, item.etag, item.mtime)


def _has_all(row: KnownVolume, wanted: Target) -> bool:
    return all(digest in row.shards for digest in wanted.recipes)


def _shards(row: KnownVolume, wanted: Target) -> dict[str, str]:
    return {digest: row.shards[digest] for digest in wanted.recipes}


def _may_be_equal(item: ArchiveObject, volume: KnownVolume) -> bool:
    return item.etag is None or volume.etag is None or item.etag == volume.etag
