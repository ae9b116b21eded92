"""The centre of each index of a run: kept from the snapshot before, or fitted to the embedding files by Ray tasks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from medret.embeddings import read_vectors
from medret.index import CENTRE_KIND, IndexSettings, centre_of, fit_centre, refit_needed
from medret.pipeline.shards import read_live
from medret.snapshot.files import StoredFile, stored_files
from medret.snapshot.liveness import LiveFile
from medret.storage import Location, read_checked

# A mean over so many embedding files, evenly spaced, is as good as one over all of a larger archive.
FILES_MAX = 256
FILES_A_TASK = 8

Key = tuple[str, str | None]  # recipe digest, aggregation (None: slice vectors)


def centre_files(
    store: Location,
    members: Mapping[Key, Sequence[LiveFile]],
    volumes: int,
    previous: pa.Table,
    settings: IndexSettings,
) -> list[StoredFile]:
    """Keep or fit the centre of each index; no files when the settings want no centres.

    members: the files of each index. volumes: in the snapshot. previous: FILES of the snapshot before. `rows` of a
    centre counts the volumes that it was fitted on. An index of one shard is built anew anyway, and so is its centre:
    it does not depend on how the archive grew.
    """
    if not settings.centred:
        return []
    kept = {(file.recipe, file.aggregation): file for file in stored_files(previous, [CENTRE_KIND])}
    chosen: dict[Key, StoredFile] = {}
    sums: dict[Key, tuple[list[Any], int]] = {}
    task = ray.remote(num_cpus=1, max_retries=3)(_sum_of)
    for key, files in members.items():
        large = sum(file.live_rows for file in files) > settings.shard_rows
        if large and key in kept and not refit_needed(volumes, kept[key].rows):
            chosen[key] = kept[key]
            continue
        every = np.unique(np.linspace(0, max(len(files) - 1, 0), min(len(files), FILES_MAX)).astype(int))
        picked = [files[place] for place in every.tolist()]
        tasks = [task.remote(store, picked[i : i + FILES_A_TASK]) for i in range(0, len(picked), FILES_A_TASK)]
        sums[key] = tasks, sum(file.live_rows for file in picked)
    for key, (tasks, rows) in sums.items():
        chosen[key] = _write(store, key, fit_centre(ray.get(tasks), rows, volumes), volumes)
    return list(chosen.values())


def _sum_of(store: Location, files: Sequence[LiveFile]) -> NDArray[np.float64]:
    tables = (read_live(store, file, ["volume_id", "vector"]) for file in files)
    total: NDArray[np.float64] = sum(
        (read_vectors(table).sum(axis=0, dtype=np.float64) for table in tables if table.num_rows), start=np.zeros(())
    )
    return total


def _write(store: Location, key: Key, centre: NDArray[np.float32], volumes: int) -> StoredFile:
    data = io.BytesIO()
    np.save(data, centre, allow_pickle=False)
    written = store.write_content_addressed("indices/centres", CENTRE_KIND, ".npy", data.getvalue())
    return StoredFile.of(written, CENTRE_KIND, volumes, *key)


def read_centre(store: Location, file: StoredFile) -> NDArray[np.float32]:
    """The centre in a file that `centre_files` names, checked."""
    return centre_of(read_checked(store, file.path, file.sha256), store.uri_of(file.path))
