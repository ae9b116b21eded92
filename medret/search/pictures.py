"""The page of hits, and hits in notebooks: the slices of queries beside those of their hits."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medret.errors import MedretError
from medret.search.contents import Contents
from medret.search.corpus import Corpus
from medret.search.hit import Hit, query_request
from medret.search.ledger import LedgerRow
from medret.search.options import SCORES, VOLUME
from medret.search.places import Refused
from medret.search.query import Query, VolumeName
from medret.search.query_files import read_volume_query
from medret.search.resolve import Resolver
from medret.storage import normalise_uri, redacted

if TYPE_CHECKING:
    from medret.html.cards import ImageRequest, VolumeImages
    from medret.volume import Content
    from medret.volume.previews import Preview

PATIENCE_S = 30.0  # with an archive: after that, previews stand in for volumes that are not read yet
NO_VOXELS = "the query has no voxels to show: it is words, an array of vectors, or a list of files"

Result = tuple[str, str | None, list[Hit]]  # label, path or URI of the voxels, hits


class Pictures:
    """What is shown of the volumes of a corpus and of queries to it."""

    def __init__(self, corpus: Corpus, resolver: Resolver) -> None:
        self._corpus = corpus
        self._resolver = resolver

    def uri_of_query(self, query: Query) -> str | None:
        """See `Snapshots.uri_of_query`."""
        if isinstance(query, VolumeName):
            text = query.text
        elif not isinstance(query, str | os.PathLike) or os.fspath(query).endswith(".npy"):
            return None
        elif self._resolver.names_file(query):
            return normalise_uri(query)
        else:
            text = os.fspath(query)
        with self._corpus.reading():
            found = self._corpus.find(text)
        return self._corpus.stores[found[0][1]].place(found[1]) if found else None

    def read(
        self, requests: Sequence[ImageRequest], model: str | None = None, *, previews: bool = False
    ) -> dict[ImageRequest, VolumeImages | str]:
        """Read the images of volumes and query files, sliced as for `model`; as text, why a volume cannot be shown.

        previews: show stored ones of volumes that cannot be read, and of those that would be read after PATIENCE_S.
        """
        from medret.html.cards import NotShownError, load_images
        from medret.volume import content_sha256

        deadline = time.monotonic() + PATIENCE_S

        def fetch(request: ImageRequest) -> Content:
            if previews and time.monotonic() > deadline and stored(request):
                raise NotShownError(f"reading the volumes before it took more than {PATIENCE_S:g} s")
            place = request.uri if request.identity is None else self._place(request.identity[0], request.uri)
            if isinstance(place, Refused):
                raise NotShownError(place.reason)
            return read_volume_query(place)

        def identify(uri: str, content: Content) -> tuple[str, str | None]:
            return self._corpus.identify(uri, self._corpus.with_content(content_sha256(content)))

        def stored(request: ImageRequest) -> tuple[Preview, ...]:
            if not previews:
                return ()
            with self._corpus.reading():
                found = self._row(request.identity[0], request.uri) if request.identity else self._row_at(request.uri)
                return found[0].previews(found[1]) if found else ()

        slices = self._corpus.recipe(model).load().slices
        return load_images(requests, slices, fetch=fetch, identify=identify, previews=stored)

    def page(self, results: Sequence[Result], title: str = "Search results", score: str = SCORES[VOLUME]) -> str:
        """Render search results as one self-contained HTML file: the slices of each query beside those of its hits.

        results: per query its label, the path or URI of its voxels (None if it has none, such as a vector) and its
        hits. score: what the score of a hit is, in words. Slices are read from the archive; a volume that is out
        of reach, or was not read after PATIENCE_S, is shown by its previews, or else by a note.
        """
        from medret.html.cards import QueryCard, render_page

        requests = [query_request(uri, hits) for _, uri, hits in results if uri is not None]
        requests += [hit.image_request() for _, _, hits in results for hit in hits]
        images = self.read(requests, previews=True)
        queries = []
        for label, uri, hits in results:
            name = label.rsplit("/", 1)[-1] if label == uri else label  # the whole path stands below it
            queries.append(
                QueryCard(
                    title=redacted(name),
                    uri=None if uri is None else redacted(uri),
                    images=NO_VOXELS if uri is None else images[query_request(uri, hits)],
                    hits=[hit.card(images[hit.image_request()]) for hit in hits],
                )
            )
        manifests = {contents.id: contents.manifest for contents in self._corpus.stores}
        random = {entry.model for manifest in manifests.values() for entry in manifest.recipes if entry.random_weights}
        return render_page(
            title,
            queries,
            score=score,
            archives=[manifest.archive_uri for manifest in manifests.values()],
            volumes=self._corpus.volumes,
            random_models=[model for model in self._corpus.models if model in random],
            snapshots=list(manifests),
            models=self._corpus.models,
            versions=sorted({manifest.medret_version for manifest in manifests.values()}),
        )

    def cards(self, query: Query, hits: Sequence[Hit]) -> str:
        """The hits of a query as HTML for a notebook."""
        from medret.html.cards import render_hits

        requests = [hit.image_request() for hit in hits]
        try:
            uri = self.uri_of_query(query)
            of_query = None if uri is None else query_request(uri, hits)
            images = self.read([*requests, of_query] if of_query else requests, previews=True)
        except MedretError as error:  # the query's file or the snapshot was removed since
            of_query, images = None, dict.fromkeys(requests, str(error))
        cards = [hit.card(images[request]) for hit, request in zip(hits, requests, strict=True)]
        return render_hits(cards, images[of_query] if of_query else "")

    def _place(self, volume_id: str, uri: str) -> str:
        """Where a volume of a snapshot with that URI is read, or `Refused`; a file that is none of them stays."""
        with self._corpus.reading():
            found = self._row(volume_id, uri)
        return found[0].place(found[1]) if found else uri

    def _row_at(self, place: str) -> tuple[Contents, LedgerRow] | None:
        """The store that has a volume which is read at that place, and what its ledger says about it."""
        rows = ((number, contents, contents.row_at(place)) for number, contents in enumerate(self._corpus.stores))
        seen = ((contents, row) for number, contents, row in rows if row and self._corpus.sees((row.volume_id, number)))
        return next(seen, None)

    def _row(self, volume_id: str, uri: str) -> tuple[Contents, LedgerRow] | None:
        """The store that has a volume with that URI, and what its ledger says about it."""
        rows = ((contents, contents.ledger.row(volume_id)) for contents in self._corpus.stores)
        return next(((contents, row) for contents, row in rows if row and row.uri == uri), None)
