"""Several stores on one basis: the centre that all of them share, and index shards moved to it.

A score is the cosine of two directions from one centre, and each store has its own. Searched together, all stores are
seen from one: the mean of their centres, weighted by their volumes. Moved vectors are computed from the embedding
files, as an index of all stores would compute them, so equal vectors score the same in whatever store they lie. Each
moved shard is made once and kept in the cache. See docs/decisions/0018-several-stores-share-one-centre.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.embeddings import read_vectors
from medret.errors import CorruptError
from medret.index import EXACT, centred, pooled_centre
from medret.index.approximate import Walked
from medret.index.exact import BATCH_ROWS, build_exact
from medret.index.rows import RowTable, row_order
from medret.schemas import ROWS
from medret.search.cache import LocalFiles
from medret.search.shard import Moved, ShardFiles

MOVED_VERSION = 2  # of how `write_moved` writes

OwnCentre = tuple[NDArray[np.float32], int]  # of one index, and the number of volumes that it was fitted to
ReadVectors = Callable[[str], pa.Table]  # key of an index shard -> its live rows: schemas.ROWS and `vector`


def shared_centre(centres: Sequence[OwnCentre | None]) -> NDArray[np.float32] | None:
    """The centre of several indices together; None if they are not centred."""
    known = [centre for centre in centres if centre is not None]
    return pooled_centre(known) if known else None


def moved_to(
    shared: NDArray[np.float32] | None, own: OwnCentre | None, read: ReadVectors, local: LocalFiles
) -> Moved | None:
    """How the shards of an index are seen from another centre; None if that is their own."""
    if shared is None or own is None or np.array_equal(shared, own[0]):
        return None
    centre, own_centre = shared, own[0]

    def exact(listed: ShardFiles, table: RowTable) -> Path:
        facts = (MOVED_VERSION, listed.files[EXACT][1], sorted(listed.dead), centre.tobytes())
        key = hashlib.sha256(repr(facts).encode()).hexdigest()
        return local.derived(key, lambda path: write_moved(path, listed, table, read(listed.key), centre))

    return Moved(exact, walked_from(own_centre, centre))


def walked_from(own: NDArray[np.float32], shared: NDArray[np.float32]) -> Walked:
    """How an index around its own centre is searched for what is near a query around the shared one.

    Let d be the shift from the own centre to the shared one, and D the distance of vectors from the shared centre. A
    vector in direction u from there lies in direction D u + d from the own centre, whose cosine with p is about
    p u + (p d) / D - (p u) (u d) / D. Among vectors of about score s, p = q + (s / D) d ranks as q u does.
    """
    wide = own.astype(np.float64)
    shift = shared - wide
    distance = np.sqrt(max(1 - float(wide @ wide), 0) + float(shift @ shift))  # the mean vector is at the own centre

    def walked(queries: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        tilted = queries + scores[:, None] / distance * shift
        tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
        return np.ascontiguousarray(tilted, np.float32)

    return walked


def write_moved(path: Path, listed: ShardFiles, table: RowTable, stored: pa.Table, centre: NDArray[np.float32]) -> None:
    """Write the exact index of a shard around another centre; rows that are dead get the zero vector.

    Of equal vectors an index holds the first row: if that is dead, it gets the vector of a live copy.
    stored: the shard's live rows as they were embedded. Raises CorruptError if they are not those of the row table.
    """
    ids = table.volume_ids(slice(0, len(table)))
    alive = np.array([row for row, volume_id in enumerate(ids) if volume_id not in listed.dead], np.int64)
    stored = stored.take(pa.array(row_order(stored.select(ROWS.names))))
    keys = [stored[name].to_pylist() for name in ROWS.names]
    if keys != [table.volume_ids(alive), table.planes(alive), table.slice_indices(alive)]:
        raise CorruptError(
            f"index shard {listed.key}: the embedding files that it was built from hold other rows than its row table; "
            "run `medret verify`"
        )
    vectors = np.zeros((len(table), len(centre)), np.float16)
    raw = read_vectors(stored)
    for start in range(0, len(alive), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        vectors[alive[part]] = centred(raw[part], centre).astype(np.float16)
    firsts = np.asarray(table.same_as)[alive]
    bereft = ~np.isin(firsts, alive)
    vectors[firsts[bereft]] = vectors[alive[bereft]]
    path.write_bytes(faiss.serialize_index(build_exact(vectors)).data)
