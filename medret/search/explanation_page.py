"""The page of an explanation: the slices that gave most to a score, read from the archive."""

from __future__ import annotations

import numpy as np

from medret.embeddings import Slices
from medret.html.cards import IMAGE_SIZE, ImageRequest
from medret.html.explanation import PairCard, matrix_image, render_explanation, tile_of
from medret.search.explain import Explanation
from medret.search.query import Query
from medret.search.snapshot import Snapshots
from medret.storage import redacted

PAIRS_SHOWN = 12


def explanation_page(snapshots: Snapshots, explanation: Explanation, query: Query, model: str | None = None) -> str:
    """An explanation as one self-contained HTML file: the matrix of slices, and the pairs that gave most."""
    pairs = explanation.pairs[:PAIRS_SHOWN]
    found = snapshots.corpus.find(explanation.hit)
    assert found is not None  # it was explained
    (volume_id, _), row = found
    of_hit = ImageRequest(
        row.uri,
        (volume_id, row.labels.get("modality")),
        frozenset((pair.hit_plane or "", pair.hit) for pair in pairs),
    )
    uri = snapshots.uri_of_query(query)
    compared = frozenset((pair.query_plane or "", pair.query) for pair in pairs)
    of_query = None if uri is None else ImageRequest(uri, None, compared)
    images = snapshots.pictures.read([of_hit, *([of_query] if of_query else [])], model)
    of_both = images[of_hit], images[of_query] if of_query else None
    marked = np.zeros(explanation.shares.shape, np.bool_)
    best = np.abs(explanation.shares).argmax(axis=1)
    given = explanation.shares[np.arange(len(best)), best] != 0
    marked[np.flatnonzero(given), best[given]] = True
    entry = snapshots.corpus.recipe(model)
    return render_explanation(
        "Why this hit",
        [
            PairCard(
                f"{pair.query_plane} {pair.query} and {pair.hit_plane} {pair.hit}",
                pair.cosine,
                pair.share,
                tile_of(of_both[1], pair.query_plane, pair.query),
                tile_of(of_both[0], pair.hit_plane, pair.hit),
            )
            for pair in pairs
        ],
        matrix_image(explanation.cosines, marked),
        query=redacted(explanation.query),
        hit=explanation.hit,
        score=explanation.score,
        words=explanation.words,
        rows=_named(explanation.query_slices),
        columns=_named(explanation.hit_slices),
        random_model=entry.model if entry.random_weights else "",
        snapshot=", ".join(snapshots.manifests),
        model=entry.model,
        image_size=IMAGE_SIZE,
    )


def _named(slices: Slices) -> list[str]:
    assert slices.slice_indices is not None  # slices of explanations have one
    return [f"{plane} {index}" for plane, index in zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)]
