"""Hash objects whose content the store may already hold, to decide whether to embed them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray

from medret.archive import ArchiveObject
from medret.archive.series import is_weak
from medret.storage import Identity, add_options, given_options
from medret.volume import VolumeSource

SAMPLE_BYTES = 64 * 1024  # from the middle of an object: enough to distinguish different volumes of equal size
SAMPLERS = 16
OBJECTS_PER_TASK = 16


def equal_samples(groups: Iterable[Sequence[ArchiveObject]]) -> set[str]:
    """Find the volume_ids of objects whose middle bytes equal those of another object in their group.

    Reads nothing if the storage has etags of contents: the objects of a group then have the same etag.
    """
    alike: set[str] = set()
    with ThreadPoolExecutor(SAMPLERS) as pool:
        for group in groups:
            if group[0].etag is not None and not is_weak(group[0].etag):
                alike |= {item.volume_id for item in group}
                continue
            by_sample: dict[bytes, list[str]] = {}
            for item, sample in zip(group, pool.map(_sample, group), strict=True):
                if sample is not None:
                    by_sample.setdefault(sample, []).append(item.volume_id)
            alike |= {volume_id for ids in by_sample.values() if len(ids) > 1 for volume_id in ids}
    return alike


def content_hashes(items: Sequence[ArchiveObject]) -> dict[str, str]:
    """Compute volume_id -> sha256 in Ray tasks, without objects that are unreadable or have changed."""
    task = ray.remote(num_cpus=1)(_hash_all)
    options = given_options()
    refs = [task.remote(items[at : at + OBJECTS_PER_TASK], options) for at in range(0, len(items), OBJECTS_PER_TASK)]
    return {volume_id: sha256 for hashes in ray.get(refs) for volume_id, sha256 in hashes.items()}


def _sample(item: ArchiveObject) -> bytes | None:
    try:
        data = _source_of(item).sample(item.size_bytes, SAMPLE_BYTES)
    except Exception:  # noqa: BLE001  # the read stage reports the reason
        return None
    return hashlib.sha256(data).digest()


def _hash_all(items: Sequence[ArchiveObject], options: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
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
