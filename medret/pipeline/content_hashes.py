"""Hash objects whose content the store may already hold, and decide whether to embed them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from medret.archive import ArchiveObject
from medret.archive.series import WEAK
from medret.pipeline.plan import CAUSES, TRANSIENT_CODES, Cause, Plan, checked, contents_of
from medret.pipeline.store_state import groups, numbered, rows_of
from medret.schemas import OBJECTS
from medret.storage import Identity, add_options, given_options
from medret.volume import VolumeSource

SAMPLE_BYTES = 64 * 1024  # from the middle of an object: enough to distinguish different volumes of equal size
SAMPLERS = 16
OBJECTS_PER_TASK, SAMPLES_PER_TASK = 16, 256
OBJECTS_AT_ONCE = 16_384  # in tasks that have not ended: the driver holds what they were told

Options = Mapping[str, Mapping[str, Any]] | None
Samples = Callable[[Iterable[ArchiveObject]], pa.ChunkedArray]  # binary: digests of middle bytes; null: unreadable
Result = TypeVar("Result")


def compare_contents(plan: Plan, say: Callable[[str], None]) -> Plan:
    """Hash the objects whose content may be stored already, and decide what becomes of them."""
    if plan.target.copies:
        plan = with_checks(plan, equal_samples(twins(plan), plan.listing.items, content_samples))
    unsure = plan.table.filter(pa.array(plan.which("check")))
    if unsure.num_rows:
        say(f"{unsure.num_rows} objects may hold known content; comparing")
    return resolve(plan, content_hashes(plan.listing.items(unsure)))


def twins(plan: Plan) -> pa.Table:
    """The objects to embed that may be equal, by id: schemas.OBJECTS, and as `alike` the number of their group.

    A group has one size and, if the storage has etags, one etag.
    """
    chosen = np.flatnonzero(plan.which("embed") & (plan.codes("cause") != CAUSES.index("recipe")))
    contents = contents_of(rows_of(plan.table.select(["size_bytes", "etag"]), chosen))
    group, size = groups(contents["size_bytes"].to_numpy(), numbered(contents["etag"]))
    objects = rows_of(plan.table.select(OBJECTS.names), chosen[size > 1])
    return objects.append_column("alike", pa.array(group[size > 1]))


def equal_samples(twins: pa.Table, items: Callable[[pa.Table], Iterable[ArchiveObject]], samples: Samples) -> set[str]:
    """Find the volume_ids of objects whose middle bytes equal those of another object in their group.

    twins: see `twins`. items: its rows as values, as archive.Listing makes them. Reads nothing if the storage has
    etags of contents: the objects of a group then have the same etag.
    """
    decided = pc.fill_null(pc.invert(pc.starts_with(twins["etag"], WEAK)), False)
    unsure = twins.filter(pc.invert(decided))
    if not unsure.num_rows:
        return set(twins["volume_id"].to_pylist())
    found = samples(items(unsure))
    _, size = groups(unsure["alike"].to_numpy(), numbered(found))
    equal = unsure["volume_id"].filter(pc.and_(pa.array(size > 1), found.is_valid()))
    return {*twins["volume_id"].filter(decided).to_pylist(), *equal.to_pylist()}


def with_checks(plan: Plan, volume_ids: Collection[str]) -> Plan:
    """Return the plan with these volumes hashed before they are embedded."""
    return checked(plan, plan.places(volume_ids))


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


def _decided(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan with these values; each row has its `place`."""
    names = ("action", "cause", "row", "missing", "leader", "content_sha256")
    return plan.changed([row["place"] for row in rows], **{name: [row[name] for row in rows] for name in names})


def content_samples(items: Iterable[ArchiveObject]) -> pa.ChunkedArray:
    """Read the middle bytes of objects in Ray tasks; see Samples."""
    found = _in_tasks(sample_all, items, SAMPLES_PER_TASK)
    return pa.chunked_array([chunk for part in found for chunk in part.chunks], pa.binary())


def content_hashes(items: Iterable[ArchiveObject]) -> dict[str, str]:
    """Compute volume_id -> sha256 in Ray tasks, without objects that are unreadable or have changed."""
    found = _in_tasks(hash_all, items, OBJECTS_PER_TASK)
    return {volume_id: sha256 for part in found for volume_id, sha256 in part.items()}


def _in_tasks(
    work: Callable[[Sequence[ArchiveObject], Options], Result], items: Iterable[ArchiveObject], size: int
) -> list[Result]:
    """What the work finds in each group of so many objects, in their order."""
    task, options, rest = ray.remote(num_cpus=1)(work), given_options(), iter(items)
    waiting: deque[Any] = deque()
    found: list[Result] = []
    for group in iter(lambda: list(islice(rest, size)), []):
        if len(waiting) * size >= OBJECTS_AT_ONCE:
            found.append(ray.get(waiting.popleft()))
        waiting.append(task.remote(group, options))
    return found + ray.get([*waiting])


def sample_all(items: Iterable[ArchiveObject], options: Options = None) -> pa.ChunkedArray:
    """The work of one task of `content_samples`."""
    add_options(options or {})
    with ThreadPoolExecutor(SAMPLERS) as pool:
        return pa.chunked_array([pa.array(pool.map(_sample, items), pa.binary())])


def hash_all(items: Iterable[ArchiveObject], options: Options = None) -> dict[str, str]:
    """The work of one task of `content_hashes`."""
    add_options(options or {})
    hashes = {}
    for item in items:
        with suppress(Exception):  # the read stage reports the reason
            source = _source_of(item)
            sha256 = source.sha256()
            if source.identity().is_same(Identity(item.size_bytes, item.etag, item.mtime)):
                hashes[item.volume_id] = sha256
    return hashes


def _sample(item: ArchiveObject) -> bytes | None:
    try:
        data = _source_of(item).sample(item.size_bytes, SAMPLE_BYTES)
    except Exception:  # noqa: BLE001  # as above
        return None
    return hashlib.sha256(data).digest()


def _source_of(item: ArchiveObject) -> VolumeSource:
    return VolumeSource(item.uri, item.parts, item.names)
