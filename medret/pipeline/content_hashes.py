"""Hash the objects whose content medret may know already, before deciding whether to embed them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import ray

from medret.archive import ArchiveObject
from medret.storage import Identity, StoredObject

SAMPLE_BYTES = 64 * 1024  # from the middle of an object: enough to distinguish different volumes of equal size
SAMPLERS = 16
HASHED_TOGETHER = 16  # objects per task


def equal_samples(groups: Iterable[Sequence[ArchiveObject]]) -> set[str]:
    """The volume_ids of objects whose middle bytes equal those of another object in their group.

    If the store has etags, the groups are by etag already, and nothing is read.
    """
    alike: set[str] = set()
    with ThreadPoolExecutor(SAMPLERS) as pool:
        for group in groups:
            if group[0].etag is not None:
                alike |= {item.volume_id for item in group}
                continue
            found: dict[bytes, list[str]] = {}
            for item, sample in zip(group, pool.map(_sample, group), strict=True):
                if sample is not None:
                    found.setdefault(sample, []).append(item.volume_id)
            alike |= {volume_id for ids in found.values() if len(ids) > 1 for volume_id in ids}
    return alike


def content_hashes(items: Sequence[ArchiveObject]) -> dict[str, str]:
    """sha256 by volume_id, computed in Ray tasks; none for objects that are unreadable or have changed."""
    task = ray.remote(num_cpus=1)(_hash_all)
    refs = [task.remote(items[at : at + HASHED_TOGETHER]) for at in range(0, len(items), HASHED_TOGETHER)]
    found: dict[str, str] = {}
    for part in ray.get(refs):
        found |= part
    return found


def _sample(item: ArchiveObject) -> bytes | None:
    start = max(0, (item.size_bytes - SAMPLE_BYTES) // 2)
    try:
        data = StoredObject(item.uri).read(start, start + SAMPLE_BYTES)
    except Exception:  # noqa: BLE001  # the read stage reports why
        return None
    return hashlib.sha256(data).digest()


def _hash_all(items: Sequence[ArchiveObject]) -> dict[str, str]:
    found = {}
    for item in items:
        with suppress(Exception):  # as above
            source = StoredObject(item.uri)
            sha256 = source.sha256()
            if source.identity().is_same(Identity(item.size_bytes, item.etag, item.mtime)):
                found[item.volume_id] = sha256
    return found
