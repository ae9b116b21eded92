"""A page of search results: one self-contained HTML file with the slices of each query beside those of its hits."""

from __future__ import annotations

from collections.abc import Sequence

from medret.html.hits import QueryCard, render_page
from medret.search.hit import Hit, query_request
from medret.search.options import SCORES, VOLUME
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
    requests = [query_request(uri, hits) for _, uri, hits in results if uri is not None]
    requests += [hit.image_request() for _, _, hits in results for hit in hits]
    images = snapshot.read_images(requests)
    queries = []
    for label, uri, hits in results:
        queries.append(
            QueryCard(
                title=redacted(label.rsplit("/", 1)[-1] if label == uri else label),  # the whole path stands below it
                uri=None if uri is None else redacted(uri),
                images=NO_VOXELS if uri is None else images[query_request(uri, hits)],
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
        random_models=[entry.model for entry in manifest.recipes if entry.random_weights],
        snapshot=snapshot.id,
        models=snapshot.models,
        version=manifest.medret_version,
    )
