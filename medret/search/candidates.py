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
from medret.search.query import QueryVectors

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
    """What some queries may find. queries: their numbers. kept: None for all volumes. excluded: ids per query."""

    queries: tuple[int, ...]
    kept: CandidateFilter | None
    excluded: tuple[AbstractSet[str], ...]


def query_groups(
    excluded: Sequence[AbstractSet[str]], kept: CandidateFilter | None, ids: pa.StringArray | None
) -> Iterator[QueryGroup]:
    """Queries in groups that can be searched together. ids: of all volumes, sorted; None when no set is large."""
    groups: dict[frozenset[str], list[int]] = {}
    for number, volume_ids in enumerate(excluded):
        groups.setdefault(frozenset(volume_ids) if len(volume_ids) > MANY else frozenset(), []).append(number)
    for shared, numbers in groups.items():
        if not shared:
            yield QueryGroup(tuple(numbers), kept, tuple(excluded[number] for number in numbers))
            continue
        import pyarrow.compute as pc

        assert ids is not None
        mask = ~mask_of(pc.is_in(ids, value_set=pa.array(sorted(shared), pa.string())))
        group_kept = CandidateFilter(ids, mask if kept is None else mask & kept.mask)
        yield QueryGroup(tuple(numbers), group_kept, (frozenset[str](),) * len(numbers))


def excluded_of(queries: Sequence[QueryVectors], exclude: str, labels: pa.Table) -> list[frozenset[str]]:
    """The volumes that each query excludes: itself and all with its value in the column `exclude`.

    A volume without a value is excluded only for itself. Raises UsageError if there is no such column, or if a query is
    not a volume of the snapshot, because then its value is not known.
    """
    import pyarrow.compute as pc

    if exclude not in labels.column_names or exclude in ("volume_id", "uri"):
        choices = ", ".join([NONE, SELF, *(name for name in labels.column_names if name not in ("volume_id", "uri"))])
        raise UsageError(f"exclude '{exclude}' is not available; there are {choices}")
    ids = labels["volume_id"].combine_chunks()
    find = SortedIds(ids)
    values = labels[exclude].combine_chunks()
    sharing: dict[str, frozenset[str]] = {}
    excluded = []
    for query in queries:
        if not query.volume_ids:
            raise UsageError(
                f"query {query.label} is not a volume of the snapshot, so its {exclude} is not known and cannot be "
                f"excluded; name it in a filter, such as \"{exclude} <> 'VALUE'\", or exclude none"
            )
        volume_ids = query.volume_ids
        for volume_id in query.volume_ids:
            place = find.find(volume_id)
            value = values[place.start].as_py() if place.stop > place.start else None
            if value is None:
                continue
            if value not in sharing:
                sharing[value] = frozenset(ids.filter(pc.equal(values, value)).to_pylist())
            volume_ids = sharing[value] if volume_ids <= sharing[value] else volume_ids | sharing[value]
        excluded.append(volume_ids)
    return excluded
