"""The centre of each index of a run: kept from the snapshot before, or fitted to the embedding files by Ray tasks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from medret.embeddings import read_vectors
from medret.embeddings.shards import read_parquet
from medret.index import CENTRE_KIND, IndexSettings, fit_centre, refit_needed
from medret.pipeline.rows import file_row
from medret.recipe import Recipe
from medret.schemas import FILES
from medret.storage import Location, read_checked

# A mean over so many embedding files, evenly spaced, is as good as one over all of a larger archive.
FILES_MAX = 256
FILES_A_TASK = 8

Key = tuple[str, str | None]  # recipe digest, aggregation (None: slice vectors)


def centre_files(
    store: Location, embeddings: pa.Table, previous: pa.Table, recipes: Sequence[Recipe], settings: IndexSettings
) -> pa.Table:
    """A row of schemas.FILES for the centre of each index over `embeddings`; none when the settings want none.

    previous: FILES of the snapshot before, or an empty table. `rows` of a centre counts the volumes it was fitted on.
    """
    if not settings.centred:
        return FILES.empty_table()
    held = {_key(row): row for row in previous.filter(pc.equal(previous["kind"], CENTRE_KIND)).to_pylist()}
    chosen: dict[Key, dict[str, Any]] = {}
    sums: dict[Key, list[Any]] = {}
    counts: dict[Key, tuple[int, int]] = {}
    task = ray.remote(num_cpus=1, max_retries=3)(_sum_of)
    for recipe in recipes:
        groups: dict[str | None, list[dict[str, Any]]] = {}
        for row in embeddings.filter(pc.equal(embeddings["recipe"], recipe.digest)).to_pylist():
            groups.setdefault(row["aggregation"], []).append(row)
        volumes = max((sum(row["rows"] for row in rows) for name, rows in groups.items() if name), default=0)
        for aggregation, rows in groups.items():
            key = (recipe.digest, aggregation)
            if key in held and not refit_needed(volumes, held[key]["rows"]):
                chosen[key] = held[key]
                continue
            picked = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), FILES_MAX)).astype(int))]
            named = [(row["path"], row["sha256"]) for row in picked]
            sums[key] = [task.remote(store, named[i : i + FILES_A_TASK]) for i in range(0, len(named), FILES_A_TASK)]
            counts[key] = (sum(row["rows"] for row in picked), volumes)
    for key, parts in sums.items():
        rows_summed, volumes = counts[key]
        centre = fit_centre(ray.get(parts), rows_summed, volumes)
        chosen[key] = _write(store, key, centre, volumes)
    return pa.Table.from_pylist(list(chosen.values()), schema=FILES)


def _key(row: dict[str, Any]) -> Key:
    return row["recipe"], row["aggregation"]


def _sum_of(store: Location, files: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    tables = (read_parquet(read_checked(store, path, sha256), ["vector"]) for path, sha256 in files)
    total: NDArray[np.float64] = sum(
        (read_vectors(table).sum(axis=0, dtype=np.float64) for table in tables if table.num_rows), start=np.zeros(())
    )
    return total


def _write(store: Location, key: Key, centre: NDArray[np.float32], volumes: int) -> dict[str, Any]:
    data = io.BytesIO()
    np.save(data, centre, allow_pickle=False)
    written = store.write_named("indices/centres", CENTRE_KIND, ".npy", data.getvalue())
    return file_row(written, CENTRE_KIND, volumes, *key, None)


def read_centre(store: Location, path: str, sha256: str) -> NDArray[np.float32]:
    """The centre in a file that `centre_files` names, checked."""
    data = read_checked(store, path, sha256)
    centre: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
    return centre
