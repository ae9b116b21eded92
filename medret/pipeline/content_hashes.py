"""Hash objects whose content the store may already hold, to decide whether to embed them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray

from medret.archive import ArchiveObject
from medret.archive.series import WEAK
from medret.pipeline.plan import resolve, twins, with_checks
from medret.pipeline.steps import Plan
from medret.pipeline.store_state import groups, numbered
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


def equal_samples(twins: pa.Table, items: Callable[[pa.Table], Iterable[ArchiveObject]], samples: Samples) -> set[str]:
    """Find the volume_ids of objects whose middle bytes equal those of another object in their group.

    twins: see plan.twins. items: its rows as values, as archive.Listing makes them. Reads nothing if the storage has
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
