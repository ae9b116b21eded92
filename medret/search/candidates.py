"""Which volumes a search may find: those that a filter keeps, except those that a query excludes.

A few excluded volumes (the query itself, its subject) are looked up by id. Many, and filters, become a mask over all
volumes of the snapshot, which is made once and turned into row masks shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.index.rows import SortedIds
from medret.search.ledger import int64_of, mask_of
from medret.search.options import NONE, SELF
from medret.search.query import QueryVectors, Volume

MANY = 32  # excluded volumes; beyond this a mask is cheaper than looking up each of them


@dataclass(frozen=True, eq=False)
class CandidateFilter:
    """Volumes that may be found. ids: of all volumes, sorted. mask: (volumes,) bool, True if kept."""

    ids: pa.StringArray
    mask: NDArray[np.bool_]

    def of(self, volume_ids: pa.StringArray) -> NDArray[np.bool_]:
        """Whether each of these volumes is kept; volumes without a row of labels are not."""
        import pyarrow.compute as pc

        places = int64_of(pc.fill_null(pc.index_in(volume_ids, value_set=self.ids), -1))
        kept: NDArray[np.bool_] = (places >= 0) & self.mask[places] if len(self.mask) else places >= 0
        return kept


@dataclass(frozen=True)
class QueryGroup:
    """What some queries may find. queries: their numbers. kept: per store; None for all. excluded: per query."""

    queries: tuple[int, ...]
    kept: Sequence[CandidateFilter] | None
    excluded: tuple[AbstractSet[Volume], ...]


def query_groups(
    excluded: Sequence[AbstractSet[Volume]],
    kept: Sequence[CandidateFilter] | None,
    ids: Sequence[pa.StringArray],
) -> Iterator[QueryGroup]:
    """Queries in groups that can be searched together. ids: per store all volumes, sorted; empty if no set is large."""
    groups: dict[frozenset[Volume], list[int]] = {}
    for number, volumes in enumerate(excluded):
        groups.setdefault(frozenset(volumes) if len(volumes) > MANY else frozenset(), []).append(number)
    for shared, numbers in groups.items():
        if not shared:
            yield QueryGroup(tuple(numbers), kept, tuple(excluded[number] for number in numbers))
            continue
        import pyarrow.compute as pc

        masked = []
        for store, ids_of_store in enumerate(ids):
            named = pa.array(sorted(volume_id for volume_id, of_store in shared if of_store == store), pa.string())
            mask = ~mask_of(pc.is_in(ids_of_store, value_set=named))
            masked.append(CandidateFilter(ids_of_store, mask if kept is None else mask & kept[store].mask))
        yield QueryGroup(tuple(numbers), masked, (frozenset[Volume](),) * len(numbers))


def excluded_of(queries: Sequence[QueryVectors], exclude: str, labels: Sequence[pa.Table]) -> list[frozenset[Volume]]:
    """The volumes that each query excludes: itself and all, in every store, with its value in the column `exclude`.

    labels: per store, with the same columns. A volume without a value is excluded only for itself. Raises UsageError if
    there is no such column, or if a query is not a volume of a store, because then its value is not known.
    """
    import pyarrow.compute as pc

    names = [name for name in labels[0].column_names if name not in ("volume_id", "uri")]
    if exclude not in names:
        raise UsageError(f"exclude '{exclude}' is not available; there are {', '.join([NONE, SELF, *names])}")
    ids = [table["volume_id"].combine_chunks() for table in labels]
    find = [SortedIds(ids_of_store) for ids_of_store in ids]
    values = [table[exclude].combine_chunks() for table in labels]
    sharing: dict[str, frozenset[Volume]] = {}
    excluded = []
    for query in queries:
        if not query.volumes:
            raise UsageError(
                f"query {query.label} is not a volume of the snapshot, so its {exclude} is not known and cannot be "
                f"excluded; name it in a filter, such as \"{exclude} <> 'VALUE'\", or exclude none"
            )
        volumes = query.volumes
        for volume_id, store in query.volumes:
            place = find[store].find(volume_id)
            value = values[store][place.start].as_py() if place.stop > place.start else None
            if value is None:
                continue
            if value not in sharing:
                sharing[value] = frozenset(
                    (name, number)
                    for number, of_store in enumerate(values)
                    for name in ids[number].filter(pc.equal(of_store, value)).to_pylist()
                )
            volumes = sharing[value] if volumes <= sharing[value] else volumes | sharing[value]
        excluded.append(volumes)
    return excluded
