"""A page of search results: one self-contained HTML file with the slices of each query beside those of its hits."""

from __future__ import annotations

from collections.abc import Sequence

from medret.html.hits import QueryCard, render_page
from medret.html.images import ImageRequest, NotShownError, VolumeImages, load_images
from medret.search.hit import Hit
from medret.search.options import SCORES, VOLUME
from medret.search.places import Refused
from medret.search.resolve import sha256_of
from medret.search.snapshot import Snapshot
from medret.storage import redacted

NO_VOXELS = "the query is an array of vectors: it has no voxels"

Result = tuple[str, str | None, list[Hit]]


def results_page(
    snapshot: Snapshot, results: Sequence[Result], title: str = "Search results", score: str = SCORES[VOLUME]
) -> str:
    """Render a page.

    results: per query its label, the path or URI of its voxels (None if it has none, such as a vector) and its hits.
    score: what the score of a hit is, in words. Slices are read from the archive; a file that is out of reach leaves a
    note in their place.
    """
    requests = [_query_request(uri, hits) for _, uri, hits in results if uri is not None]
    requests += [hit.image_request() for _, _, hits in results for hit in hits]
    images = read_images(snapshot, requests)
    queries = []
    for label, uri, hits in results:
        queries.append(
            QueryCard(
                title=redacted(label.rsplit("/", 1)[-1] if label == uri else label),  # the whole path stands below it
                uri=None if uri is None else redacted(uri),
                images=NO_VOXELS if uri is None else images[_query_request(uri, hits)],
                hits=[hit.card(images[hit.image_request()]) for hit in hits],
            )
        )
    manifest = snapshot.manifest
    return render_page(
        title,
        queries,
        score=score,
        archive=manifest.archive_uri,
        volumes=manifest.counts.embedded + manifest.counts.unchanged,
        random_models=[entry.recipe["model"]["name"] for entry in manifest.recipes if entry.random_weights],
        snapshot=snapshot.id,
        models=snapshot.models,
        version=manifest.medret_version,
    )


def read_images(
    snapshot: Snapshot, requests: Sequence[ImageRequest], model: str | None = None
) -> dict[ImageRequest, VolumeImages | str]:
    """Read the images of volumes and query files, sliced as for `model`; as text, why a volume cannot be shown."""

    def locate(request: ImageRequest) -> str:
        place = request.uri if request.identity is None else snapshot.place(request.identity[0], request.uri)
        if isinstance(place, Refused):
            raise NotShownError(place.reason)
        return place

    def identify(uri: str, data: bytes) -> tuple[str, str | None]:
        return snapshot.identify(uri, sha256_of(data))

    return load_images(requests, snapshot.recipe(model).slices, locate=locate, identify=identify)


def _query_request(uri: str, hits: Sequence[Hit]) -> ImageRequest:
    """The query's volume, with the slices that its hits matched."""
    pairs = (hit.best_pair for hit in hits)
    matched = frozenset((pair.plane, pair.query) for pair in pairs if pair and pair.query is not None)
    return ImageRequest(uri, None, matched)
