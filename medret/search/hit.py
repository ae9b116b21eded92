"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medret.html.hits import HitCard
    from medret.html.images import ImageRequest, VolumeImages

Range = tuple[int, int]


@dataclass(frozen=True)
class SlicePair:
    """A slice of the query and the slice of the hit that is most like it.

    plane: of the hit's slice, axial | coronal | sagittal. query, hit: slice positions, as voxel index along the plane's
    axis in RAS+ order; for a query given as an array of slice vectors its row, for a query that is one volume
    vector None. score: cosine of the two slices' vectors.
    """

    plane: str
    query: int | None
    hit: int
    score: float

    def to_json(self) -> dict[str, Any]:
        """The pair as a JSON object."""
        return {"plane": self.plane, "query": self.query, "hit": self.hit, "score": self.score}


@dataclass(frozen=True)
class SliceMatch:
    """The contiguous range of a hit's slices that matches the query's best.

    query, hit: (first, last) positions along the plane's axis, last inclusive, `query` None for a query without slices.
    score: mean cosine along the match (of the one pair, where there is but one). pairs: for the query's slices the
    hit's slice that is most like each, in all planes; the most similar of `plane` comes first.
    """

    plane: str
    query: Range | None
    hit: Range
    score: float
    pairs: tuple[SlicePair, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The match as a JSON object."""
        query = None if self.query is None else list(self.query)
        matches = [pair.to_json() for pair in self.pairs]
        return {"query": query, "hit": list(self.hit), "plane": self.plane, "score": self.score, "matches": matches}


@dataclass(frozen=True)
class Hit:
    """One volume (in mode `slice`: one slice of a volume) that was found.

    rank: from 1. score: how alike, at most 1; what it is depends on the mode (`medret.search.modes`). labels: subject,
    modality, body_region and organ, None where unknown, and the archive's further label columns. slices: None when the
    snapshot has no slice vectors of the hit.
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

    @property
    def best_pair(self) -> SlicePair | None:
        """The slice of the query and the slice of the hit that are most alike."""
        return self.slices.pairs[0] if self.slices and self.slices.pairs else None

    def image_request(self) -> ImageRequest:
        """What to read in order to show the hit."""
        from medret.html.images import ImageRequest

        pair = self.best_pair
        slices = frozenset({(pair.plane, pair.hit)} if pair else ())
        return ImageRequest(self.uri, (self.volume_id, self.labels.get("modality")), slices)

    def card(self, images: VolumeImages | str) -> HitCard:
        """The hit as `medret.html` shows it. images: its slices, or why there are none."""
        from medret.html.hits import BestPair, HitCard

        best = self.best_pair
        pair = BestPair(best.plane, best.query, best.hit, best.score) if best else None
        return HitCard(self.rank, self.volume_id, self.uri, self.score, self.labels, pair, images)
