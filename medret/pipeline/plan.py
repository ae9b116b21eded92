"""The plan of a run: what becomes of every listed object, given what the store holds. Pure functions.

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

Each step carries what was judged: the object as listed, and the sha256 of the content that its stored vectors are of.
docs/architecture.md says where both are compared again.
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

# The archive failed, not the volume: try again next time, also with the same ruleset.
TRANSIENT_CODES = frozenset({QuarantineCode.UNREADABLE, QuarantineCode.CHANGED_WHILE_READING})


@dataclass(frozen=True)
class Target:
    """What the new snapshot must contain.

    recipes: digests. ruleset_digest: digest of all that decides whether a volume is quarantined.
    retry: try every quarantined volume again. copies: whether equal content gives equal vectors under another name
    (false if the slices are drawn by a generator seeded with the name).
    """

    recipes: tuple[str, ...]
    ruleset_digest: str
    retry: bool = False
    copies: bool = True


@dataclass(frozen=True)
class Step:
    """What becomes of one listed object.

    item: the object as listed. content_sha256: of the stored vectors to keep, copy or extend; None if the content must
    be read first. row: row of StoreState.table to keep, copy, refuse or extend. shards: recipe digest -> embedding
    shard of the stored vectors. leader: volume of this run whose vectors are copied once they exist. missing: digests
    of the recipes to embed with.
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
    """One step per object, in the order of their ids. gone: volumes of the live snapshot that are no longer listed."""

    steps: tuple[Step, ...]
    gone: tuple[str, ...]

    def of(self, *actions: Action) -> tuple[Step, ...]:
        """The steps with one of these actions."""
        return tuple(step for step in self.steps if step.action in actions)

    def causes(self) -> dict[str, int]:
        """Count the steps per cause."""
        return dict(Counter(step.cause for step in self.steps))

    @property
    def idle(self) -> bool:
        """Whether the live snapshot already holds exactly the volumes of the archive."""
        return not self.gone and all(step.cause in ("unchanged", "refused") for step in self.steps)


def make_plan(
    objects: Sequence[ArchiveObject], modalities: Mapping[str, str | None], state: StoreState, target: Target
) -> Plan:
    """Plan a run. modalities: volume_id -> label. Steps with action `check` need content hashes; see `resolve`."""
    sizes: dict[int, list[KnownVolume]] = {}
    if target.copies:
        for volume in state.embedded():
            if _has_all(volume, target):
                sizes.setdefault(volume.size_bytes, []).append(volume)
    steps = [_step(item, modalities.get(item.volume_id), state, target, sizes) for item in objects]
    listed = {item.volume_id for item in objects}
    return Plan(tuple(steps), tuple(sorted(set(state.live) - listed)))


def _step(
    item: ArchiveObject, modality: str | None, state: StoreState, target: Target, sizes: Mapping[int, list[KnownVolume]]
) -> Step:
    live = state.live.get(item.volume_id)
    rows = (*([live] if live else []), *state.others.get(item.volume_id, ()))
    fitting = [row for row in rows if _is_same_object(row, item) and row.modality == modality]
    refused = next((row for row in fitting if not row.embedded and row.ruleset_digest == target.ruleset_digest), None)
    stays_refused = refused is not None and not target.retry and refused.code not in TRANSIENT_CODES
    if stays_refused:  # do not take vectors from an older medret that accepted it
        fitting = [row for row in fitting if row.origin != "older"]
    match = next((row for row in fitting if row.embedded), None)
    if match is not None:
        # Rows are ordered live, journal, older; reversed, so that the first row with a recipe wins.
        stored = {
            digest: (shard, row.origin)
            for row in reversed(fitting)
            if row.embedded and row.content_sha256 == match.content_sha256
            for digest, shard in row.shards.items()
            if digest in target.recipes
        }
        shards = {digest: shard for digest, (shard, _) in stored.items()}
        missing = tuple(digest for digest in target.recipes if digest not in stored)
        if not missing:
            origins = {origin for _, origin in stored.values()}
            kept: Cause = "resumed" if "journal" in origins else "returned" if "older" in origins else "unchanged"
            if kept == "unchanged" and match.code is not None:  # it was stale, and now matches its vectors again
                kept = "touched"
            return Step(item, modality, "keep", kept, match.content_sha256, match.row, shards)
    if stays_refused and refused is not None:
        return Step(item, modality, "refuse", "refused", row=refused.row)
    if match is not None:
        return Step(item, modality, "embed", "recipe", match.content_sha256, match.row, shards, missing=missing)
    cause: Cause = "new" if live is None else "changed" if live.embedded else "retried"
    if live and live.embedded and live.size_bytes == item.size_bytes and live.modality == modality:
        if _has_all(live, target):
            shards = _shards(live, target)
            return Step(
                item, modality, "check", "touched", live.content_sha256, live.row, shards, missing=target.recipes
            )
        cause = "changed"
    if any(_may_be_equal(item, volume) for volume in sizes.get(item.size_bytes, ())):
        return Step(item, modality, "check", cause, missing=target.recipes)
    return Step(item, modality, "embed", cause, missing=target.recipes)


def twins(plan: Plan) -> list[list[ArchiveObject]]:
    """Group objects to embed that may be equal: same size and, if the storage has etags, same etag."""
    groups: dict[tuple[int, str | None], list[ArchiveObject]] = {}
    for step in plan.steps:
        if step.action == "embed" and step.cause != "recipe":
            groups.setdefault((step.item.size_bytes, step.item.etag), []).append(step.item)
    return [group for group in groups.values() if len(group) > 1]


def with_checks(plan: Plan, volume_ids: Iterable[str]) -> Plan:
    """Return the plan with these volumes hashed before they are embedded."""
    chosen = frozenset(volume_ids)
    steps = (
        replace(step, action="check") if step.action == "embed" and step.item.volume_id in chosen else step
        for step in plan.steps
    )
    return Plan(tuple(steps), plan.gone)


def resolve(plan: Plan, hashes: Mapping[str, str], state: StoreState, target: Target) -> Plan:
    """Decide every check. hashes: volume_id -> sha256 of the objects to check; an object without one is embedded."""
    content: dict[tuple[str, str | None], KnownVolume] = {}
    if target.copies:
        for volume in state.embedded():
            if volume.content_sha256 and _has_all(volume, target):
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
            copied = _shards(source, target)
            steps.append(replace(step, action="copy", cause="renamed", row=source.row, shards=copied, missing=()))
        elif sha256 and key in leaders and target.copies:
            steps.append(replace(step, action="copy", cause="renamed", leader=leaders[key], missing=()))
        else:
            if sha256:
                leaders[key] = step.item.volume_id
            cause: Cause = "changed" if step.cause == "touched" else step.cause
            steps.append(replace(step, action="embed", cause=cause, content_sha256=None))
    return Plan(tuple(steps), plan.gone)


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


def embedded_instead(plan: Plan, volume_ids: AbstractSet[str], target: Target) -> Plan:
    """Return the plan with these volumes read and embedded instead of copied."""
    steps = (
        replace(step, action="embed", cause="new", content_sha256=None, leader=None, missing=target.recipes)
        if step.item.volume_id in volume_ids
        else step
        for step in plan.steps
    )
    return Plan(tuple(steps), plan.gone)


def fallback(step: Step, state: StoreState, target: Target) -> KnownVolume | None:
    """The live row to keep while the object cannot be read; None if it lacks vectors or has another label."""
    live = state.live.get(step.item.volume_id)
    fits = live is not None and live.embedded and live.modality == step.modality and _has_all(live, target)
    return live if fits else None


def _is_same_object(row: KnownVolume, item: ArchiveObject) -> bool:
    return (row.size_bytes, row.etag, row.mtime) == (item.size_bytes, item.etag, item.mtime)


def _has_all(row: KnownVolume, target: Target) -> bool:
    return all(digest in row.shards for digest in target.recipes)


def _shards(row: KnownVolume, target: Target) -> dict[str, str]:
    return {digest: row.shards[digest] for digest in target.recipes}


def _may_be_equal(item: ArchiveObject, volume: KnownVolume) -> bool:
    return item.etag is None or volume.etag is None or item.etag == volume.etag
