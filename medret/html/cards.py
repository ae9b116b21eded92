"""Volumes on pages and in notebooks: their slices as images, and hits with labels and the pair of slices most alike.

Slices are read from the archive, chosen, and encoded as PNG data URIs; or else the store's previews are shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.errors import MedretError, NotFoundError, UsageError, VolumeError
from medret.html import render
from medret.recipe import SliceRecipe
from medret.schemas import LABELS
from medret.storage import in_words
from medret.volume import Content, read_volume
from medret.volume.previews import MEDIA_TYPE, PREVIEW_SIZE, Preview, middle_slices

IMAGE_SIZE = PREVIEW_SIZE  # px
CHIPS = LABELS[1:]  # modality, body region and organ stand beside a hit; all other labels are folded away
READERS = 4  # volumes that are read at the same time, because archives may be far away

SliceKey = tuple[str, int]  # plane, slice index
Identity = tuple[str, str | None]  # volume_id and modality label, which decide how `read_volume` slices a volume


class NotShownError(Exception):
    """A volume is not shown; the message says why, for the reader of the page."""


@dataclass(frozen=True)
class Tile:
    """One slice as an image. source: a data URI. made_from: the slice's SOP instance UID, if it has one."""

    plane: str
    slice_index: int
    source: str
    made_from: str | None = None

    def __str__(self) -> str:
        return f"{self.plane} {self.slice_index}"


@dataclass(frozen=True)
class ImageRequest:
    """A volume to show. identity: None if it follows from the bytes. slices: shown besides the middle ones."""

    uri: str
    identity: Identity | None
    slices: frozenset[SliceKey] = frozenset()


@dataclass(frozen=True)
class VolumeImages:
    """The images of a volume.

    middle: ordered by plane and index. by_slice: these and the requested slices. instead: why these are previews, which
    the store holds, and not slices that were read from the archive.
    """

    middle: tuple[Tile, ...]
    by_slice: Mapping[SliceKey, Tile]
    instead: str = ""


def load_images(
    requests: Sequence[ImageRequest],
    recipe: SliceRecipe,
    *,
    fetch: Callable[[ImageRequest], Content],
    identify: Callable[[str, Content], Identity],
    previews: Callable[[ImageRequest], Sequence[Preview]] = lambda _: (),
) -> dict[ImageRequest, VolumeImages | str]:
    """Read several volumes in parallel; the value is the reason as text where a volume cannot be shown.

    fetch: reads what a volume is made from, or raises `NotShownError`. identify: URI and content to identity, where a
    request has none. previews: what is shown of a volume that cannot be read.
    """

    def load(request: ImageRequest) -> VolumeImages | str:
        try:
            content = fetch(request)
            volume_id, modality = request.identity or identify(request.uri, content)
            volume = read_volume(content, volume_id, recipe, [IMAGE_SIZE], modality=modality)
        except NotShownError as error:
            return str(error)
        except (FileNotFoundError, NotFoundError):
            return "the file is no longer there"
        except VolumeError as error:
            return f"{error.code}: {error.reason}"
        except UsageError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # whatever a file system raises, the page is made without the image
            return f"cannot be read: {type(error).__name__}: {in_words(error)}"
        keys = [(ref.plane, ref.slice_index) for ref in volume.slices]
        middle = middle_slices(volume.slices)
        shown = {*middle, *(number for number, key in enumerate(keys) if key in request.slices)}
        tiles = {
            number: Tile(*keys[number], png_uri(volume.pixels[IMAGE_SIZE][number]), volume.slices[number].source)
            for number in shown
        }
        return VolumeImages(
            tuple(tiles[number] for number in middle), {keys[number]: tile for number, tile in tiles.items()}
        )

    def load_or_preview(request: ImageRequest) -> VolumeImages | str:
        images = load(request)
        if not isinstance(images, str):
            return images
        try:
            return preview_images(previews(request), images) or images
        except MedretError as error:
            return f"{images}; and its previews cannot be shown: {error}"

    distinct = list(dict.fromkeys(requests))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(distinct, pool.map(load_or_preview, distinct), strict=True))


def preview_images(previews: Sequence[Preview], instead: str) -> VolumeImages | None:
    """The previews of a volume as its images; None if it has none. instead: why they are shown."""
    tiles = tuple(Tile(each.plane, each.slice_index, _data_uri(each.image, MEDIA_TYPE)) for each in previews)
    return VolumeImages(tiles, {(tile.plane, tile.slice_index): tile for tile in tiles}, instead) if tiles else None


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode a (size, size) grey image as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _data_uri(buffer.getvalue(), "image/png")


def _data_uri(image: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


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
