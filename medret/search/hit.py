"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Range = tuple[int, int]


@dataclass(frozen=True)
class SliceMatch:
    """The slice of the query and the slice of the hit that are most alike.

    plane: of the hit's slice, axial | coronal | sagittal. query, hit: (first, last) slice positions, last inclusive, as
    voxel index along the plane's axis in RAS+ order; for a query given as an array of slice vectors its
    row, for a query that is one volume vector None. score: cosine of the two slices' vectors.
    """

    plane: str
    query: Range | None
    hit: Range
    score: float

    def to_json(self) -> dict[str, Any]:
        """The match as a JSON object."""
        query = None if self.query is None else list(self.query)
        return {"query": query, "hit": list(self.hit), "plane": self.plane, "score": self.score}


@dataclass(frozen=True)
class Hit:
    """One volume (in mode `slice`: one slice of a volume) that was found.

    rank: from 1. score: cosine of the query's vector and this one's. labels: subject, modality, body_region and organ,
    None where unknown, and the archive's further label columns. slices: None when the snapshot has no slice index.
    """

    rank: int
    volume_id: str
    uri: str
    score: float
    labels: Mapping[str, str | None]
    slices: SliceMatch | None

    def to_json(self) -> dict[str, Any]:
        """The hit as a JSON object."""
        return {
            "rank": self.rank,
            "volume_id": self.volume_id,
            "uri": self.uri,
            "score": self.score,
            "labels": dict(self.labels),
            "slices": None if self.slices is None else self.slices.to_json(),
        }
