"""Hits as HTML, for pages and notebooks: per hit its labels, its middle slices and the pair of slices most alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medret.html import render
from medret.html.images import IMAGE_SIZE, Tile, VolumeImages
from medret.schemas import LABELS

CHIPS = LABELS[1:]  # modality, body region and organ stand beside a hit; all other labels are folded away


@dataclass(frozen=True)
class BestPair:
    """The slice of the query (index `query`, None if it has no slices) and of the hit that are most alike.

    plane: of both. cosine: of their vectors. hit_source: the SOP instance UID behind the hit's slice, if it has one.
    """

    plane: str
    query: int | None
    hit: int
    cosine: float
    hit_source: str | None = None


@dataclass(frozen=True)
class HitCard:
    """What is shown of a hit. images: its slices, or why there are none. store: URI of the store that holds it."""

    rank: int
    volume_id: str
    uri: str
    score: float
    labels: Mapping[str, str | None]
    pair: BestPair | None
    images: VolumeImages | str
    store: str = ""

    @property
    def chips(self) -> list[str]:
        """The labels that stand beside the hit."""
        return [str(self.labels[name]) for name in CHIPS if self.labels.get(name)]

    @property
    def details(self) -> dict[str, str]:
        """The labels that are folded away, the URI, the instance that is most like the query, and the store."""
        others = {name: value for name, value in self.labels.items() if value and name not in CHIPS}
        more = {"instance": self.pair.hit_source if self.pair else None, "store": self.store}
        return others | {"uri": self.uri} | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class QueryCard:
    """A query and its hits. uri: where its voxels are, without secrets. images: its slices, or why there are none."""

    title: str
    uri: str | None
    images: VolumeImages | str
    hits: Sequence[HitCard]


@dataclass(frozen=True)
class _Figure:
    """One image. alt: what it shows, in words. source: what its slice was made from, if the caption names that."""

    tile: Tile
    alt: str
    caption: str
    source: str | None = None


def render_hits(hits: Sequence[HitCard], query: VolumeImages | str = "") -> str:
    """Render hits as a fragment for notebooks: a `<div>` with its own style, which changes nothing around it.

    query: its slices, shown beside those of the hits.
    """
    return _render("hits_fragment.html.j2", hits=hits, query=query)


def render_page(title: str, queries: Sequence[QueryCard], **values: object) -> str:
    """Render queries and their hits as a whole page. values: what else `hits_page.html.j2` names."""
    return _render("hits_page.html.j2", title=title, queries=queries, **values)


def _render(template: str, **values: object) -> str:
    return render(template, **values, image_size=IMAGE_SIZE, strip=_strip, pair=_pair, matched=_matched)


def _strip(images: VolumeImages | str, name: str) -> list[_Figure]:
    """The middle slices of the volume called `name`."""
    return [] if isinstance(images, str) else [_Figure(tile, f"{name}: {tile}", str(tile)) for tile in images.middle]


def _matched(query: QueryCard) -> list[_Figure]:
    """The slice of the query that its first hit matched, and the ranks of all hits that matched it."""
    pair = query.hits[0].pair if query.hits else None
    if pair is None or pair.query is None or isinstance(query.images, str):
        return []
    key = (pair.plane, pair.query)
    tile = query.images.by_slice.get(key)
    if tile is None:
        return []
    ranks = [f"#{hit.rank}" for hit in query.hits if hit.pair and (hit.pair.plane, hit.pair.query) == key]
    caption = f"{tile}, matched by {', '.join(ranks)}"
    return [_Figure(tile, f"query: {caption}", caption, tile.made_from)]


def _pair(hit: HitCard, query: VolumeImages | str) -> list[_Figure]:
    """The slice of the query and the slice of the hit that are most alike, as far as they can be shown."""
    pair = hit.pair
    if pair is None:
        return []
    figures = []
    if pair.query is not None and not isinstance(query, str):
        tile = query.by_slice.get((pair.plane, pair.query))
        if tile:
            figures.append(_Figure(tile, f"query: {tile}, most like hit {hit.rank}", f"query, {tile}", tile.made_from))
    tile = None if isinstance(hit.images, str) else hit.images.by_slice.get((pair.plane, pair.hit))
    if tile:
        alt = f"hit {hit.rank}, {hit.volume_id}: {tile}, most like the query, cosine {pair.cosine:.3f}"
        figures.append(_Figure(tile, alt, f"hit, {tile}: {pair.cosine:.3f}", tile.made_from))
    return figures
