"""What a search returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

if TYPE_CHECKING:
    from medret.html.cards import HitCard, ImageRequest, VolumeImages

Range = tuple[int, int]
Sources = Mapping[tuple[str, int], str]  # plane and slice index -> the SOP instance UID of the slice, where it has one


@dataclass(frozen=True)
class SlicePair:
    """A slice of the query and the slice of the hit that is most like it.

    plane: of the hit's slice, axial | coronal | sagittal. query, hit: slice indices, in voxels along the plane's axis,
    RAS+ order. `query` is the row for a query given as an array of slice vectors, None for one volume vector.
    score: cosine of the two slices' vectors. query_source, hit_source: SOP instance UIDs (`UID#7`: frame 7) of the
    instances that the two slices were made from; None for NIfTI, and where a slice crosses instances.
    """

    plane: str
    query: int | None
    hit: int
    score: float
    query_source: str | None = None
    hit_source: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The pair as a JSON object; its sources only where it has one."""
        pair: dict[str, Any] = {"plane": self.plane, "query": self.query, "hit": self.hit, "score": self.score}
        if self.query_source or self.hit_source:
            pair |= {"query_source": self.query_source, "hit_source": self.hit_source}
        return pair


@dataclass(frozen=True)
class SliceMatch:
    """The contiguous range of a hit's slices that matches the query's best.

    query, hit: first and last slice index along the plane's axis, inclusive; None for a query without slices.
    score: mean cosine along the match. pairs: each slice of the query with the most similar slice of the hit, in all
    planes; the most similar pair of `plane` comes first. query_sources, hit_sources: the SOP instance UIDs behind the
    embedded slices of the two ranges, in their order; none for NIfTI.
    """

    plane: str
    query: Range | None
    hit: Range
    score: float
    pairs: tuple[SlicePair, ...] = ()
    query_sources: tuple[str, ...] = ()
    hit_sources: tuple[str, ...] = ()

    def with_sources(self, of_query: Sources, of_hit: Sources) -> SliceMatch:
        """The match with what the slices of both sides were made from."""
        pairs = (
            replace(
                pair,
                query_source=None if pair.query is None else of_query.get((pair.plane, pair.query)),
                hit_source=of_hit.get((pair.plane, pair.hit)),
            )
            for pair in self.pairs
        )
        query_sources = () if self.query is None else _within(of_query, self.plane, self.query)
        hit_sources = _within(of_hit, self.plane, self.hit)
        return replace(self, pairs=tuple(pairs), query_sources=query_sources, hit_sources=hit_sources)

    def to_json(self) -> dict[str, Any]:
        """The match as a JSON object; its sources only where it has some."""
        query = None if self.query is None else list(self.query)
        matches = [pair.to_json() for pair in self.pairs]
        match: dict[str, Any] = {
            "query": query,
            "hit": list(self.hit),
            "plane": self.plane,
            "score": self.score,
            "matches": matches,
        }
        if self.query_sources or self.hit_sources:
            match |= {"query_sources": list(self.query_sources), "hit_sources": list(self.hit_sources)}
        return match


def _within(sources: Sources, plane: str, bounds: Range) -> tuple[str, ...]:
    """The distinct sources of the slices within a range, in the order of the slices."""
    keys = sorted(key for key in sources if key[0] == plane and bounds[0] <= key[1] <= bounds[1])
    return tuple(dict.fromkeys(sources[key] for key in keys))


@dataclass(frozen=True)
class Hit:
    """One volume (in mode `slice`: one slice of a volume) that was found.

    rank: from 1. score: how alike, at most 1; what it is depends on the mode (`medret.search.modes`). labels: subject,
    modality, body_region and organ, None where unknown, and the archive's further label columns. slices: None when the
    snapshot has no slice vectors of the hit. store: URI of the store that holds the volume.
    """

    rank: int
    volume_id: str
    uri: str
    score: float
    labels: Mapping[str, str | None]
    slices: SliceMatch | None
    store: str = ""

    def to_json(self) -> dict[str, Any]:
        """The hit as a JSON object."""
        return {
            "rank": self.rank,
            "volume_id": self.volume_id,
            "store": self.store,
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
        from medret.html.cards import ImageRequest

        pair = self.best_pair
        slices = frozenset({(pair.plane, pair.hit)} if pair else ())
        return ImageRequest(self.uri, (self.volume_id, self.labels.get("modality")), slices)

    def card(self, images: VolumeImages | str) -> HitCard:
        """The hit as `medret.html` shows it. images: its slices, or why there are none."""
        from medret.html.cards import BestPair, HitCard

        best = self.best_pair
        pair = BestPair(best.plane, best.query, best.hit, best.score, best.hit_source) if best else None
        return HitCard(self.rank, self.volume_id, self.uri, self.score, self.labels, pair, images, self.store)


class Hits(list[Hit]):
    """The hits of one query, best first: a list that a notebook shows with its slices, as the page of results does.

    show: hits to HTML; reads volumes, so it is called only when hits are shown. A copy of the list is a plain list.
    """

    def __init__(self, hits: Iterable[Hit] = (), show: Callable[[Sequence[Hit]], str] | None = None) -> None:
        super().__init__(hits)
        self._show = show

    @overload
    def __getitem__(self, index: SupportsIndex) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Hits: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Hit | Hits:
        """One hit, or some of them, which a notebook shows as well."""
        return Hits(super().__getitem__(index), self._show) if isinstance(index, slice) else super().__getitem__(index)

    def __reduce__(self) -> tuple[type[list[Hit]], tuple[list[Hit]]]:
        return list, (list(self),)  # pickled without the snapshot

    def _repr_html_(self) -> str | None:
        return None if self._show is None else self._show(self)


def query_request(uri: str, hits: Sequence[Hit]) -> ImageRequest:
    """What to read in order to show a query: its volume, with the slices that its hits matched."""
    from medret.html.cards import ImageRequest

    pairs = (hit.best_pair for hit in hits)
    matched = frozenset((pair.plane, pair.query) for pair in pairs if pair and pair.query is not None)
    return ImageRequest(uri, None, matched)
