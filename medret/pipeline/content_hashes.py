"""Hash objects whose content the store may already hold, to decide whether to embed them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import ray

from medret.archive import ArchiveObject
from medret.archive.series import is_weak
from medret.storage import Identity, add_options, given_options
from medret.volume import VolumeSource

SAMPLE_BYTES = 64 * 1024  # from the middle of an object: enough to distinguish different volumes of equal size
SAMPLERS = 16
OBJECTS_PER_TASK, SAMPLES_PER_TASK = 16, 256

Digest = TypeVar("Digest", str, bytes)
Options = Mapping[str, Mapping[str, Any]] | None


Samples = Callable[[Sequence[ArchiveObject]], Mapping[str, bytes]]  # volume_id -> digest of the object's middle bytes


def equal_samples(groups: Iterable[Sequence[ArchiveObject]], samples: Samples) -> set[str]:
    """Find the volume_ids of objects whose middle bytes equal those of another object in their group.

    Reads nothing if the storage has etags of contents: the objects of a group then have the same etag.
    """
    alike: set[str] = set()
    unsure = []
    for group in groups:
        if group[0].etag is not None and not is_weak(group[0].etag):
            alike |= {item.volume_id for item in group}
        else:
            unsure.append(group)
    found = samples([item for group in unsure for item in group])
    for group in unsure:
        by_sample: dict[bytes, list[str]] = {}
        for item in group:
            if sample := found.get(item.volume_id):
                by_sample.setdefault(sample, []).append(item.volume_id)
        alike |= {volume_id for ids in by_sample.values() if len(ids) > 1 for volume_id in ids}
    return alike


def content_samples(items: Sequence[ArchiveObject]) -> dict[str, bytes]:
    """Read the middle bytes of objects in Ray tasks, without objects that are unreadable; see Samples."""
    return _in_tasks(sample_all, items, SAMPLES_PER_TASK)


def content_hashes(items: Sequence[ArchiveObject]) -> dict[str, str]:
    """Compute volume_id -> sha256 in Ray tasks, without objects that are unreadable or have changed."""
    return _in_tasks(hash_all, items, OBJECTS_PER_TASK)


def _in_tasks(work: Callable[..., dict[str, Digest]], items: Sequence[ArchiveObject], size: int) -> dict[str, Digest]:
    task, options = ray.remote(num_cpus=1)(work), given_options()
    refs = [task.remote(items[at : at + size], options) for at in range(0, len(items), size)]
    return {volume_id: one for found in ray.get(refs) for volume_id, one in found.items()}


def sample_all(items: Sequence[ArchiveObject], options: Options = None) -> dict[str, bytes]:
    """The work of one task of `content_samples`."""
    add_options(options or {})
    with ThreadPoolExecutor(SAMPLERS) as pool:
        found = zip(items, pool.map(_sample, items), strict=True)
        return {item.volume_id: sample for item, sample in found if sample is not None}


def _sample(item: ArchiveObject) -> bytes | None:
    try:
        data = _source_of(item).sample(item.size_bytes, SAMPLE_BYTES)
    except Exception:  # noqa: BLE001  # the read stage reports the reason
        return None
    return hashlib.sha256(data).digest()


def hash_all(items: Sequence[ArchiveObject], options: Options = None) -> dict[str, str]:
    """The work of one task of `content_hashes`."""
    add_options(options or {})
    hashes = {}
    for item in items:
        with suppress(Exception):  # as above
            source = _source_of(item)
            sha256 = source.sha256()
            if source.identity().is_same(Identity(item.size_bytes, item.etag, item.mtime)):
                hashes[item.volume_id] = sha256
    return hashes


def _source_of(item: ArchiveObject) -> VolumeSource:
    return VolumeSource(item.uri, item.parts, item.names)
