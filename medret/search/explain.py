"""Why a hit scores as it does: how much each pair of slices gave to the score, as a matrix that sums to it.

Late interaction adds up the best pair of each slice of the query, `max` is one pair. The cosine of two volume vectors
is bilinear in the slices of both, since a volume vector is a weighted mean of slices: so every pair gives its part.
Words, and a volume vector, are a query of one vector: the cosine is linear in the slices of the hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import Slices, parse_aggregation
from medret.embeddings.slices import UNKNOWN, slice_weights
from medret.errors import NotFoundError, UsageError
from medret.search.corpus import Corpus, Member
from medret.search.options import LATE, MAX, VOLUME, SearchOptions
from medret.search.query import Query, QueryVectors, Volume, Words, embedding_order
from medret.search.resolve import Resolver

EXPLAINED = (VOLUME, LATE, MAX)


@dataclass(frozen=True)
class PairShare:
    """A pair of slices. query, hit: slice indices. cosine: of their vectors. share: what the pair gave to the score.

    query_plane, query: None if the query is words or a volume vector.
    """

    query_plane: str | None
    query: int | None
    hit_plane: str | None
    hit: int
    cosine: float
    share: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a volume is a hit.

    query, hit: how messages name them. query_slices, hit_slices: their slices, in the space of the index; of words
        and of a volume vector the one vector that they are.
    cosines: (slices of the query, slices of the hit). shares: what each pair gave; they sum to `score`, up to the
    rounding of stored vectors (less than 0.002).
    """

    query: str
    hit: str
    mode: str
    score: float
    words: str
    query_slices: Slices
    hit_slices: Slices
    cosines: NDArray[np.float32]
    shares: NDArray[np.float64]

    @property
    def pairs(self) -> list[PairShare]:
        """For each slice of the query the pair that gave most, the largest share first; pairs that gave nothing not.

        If the query has no slices, each slice of the hit.
        """
        rows, columns = np.arange(len(self.shares)), np.abs(self.shares).argmax(axis=1)
        if self.query_slices.slice_indices is None:
            columns = np.arange(self.shares.shape[1])
            rows = np.zeros_like(columns)
        order = np.argsort(-self.shares[rows, columns], kind="stable")
        of_query, of_hit = _places(self.query_slices), _places(self.hit_slices)
        return [
            PairShare(
                of_query[row][0],
                of_query[row][1],
                of_hit[column][0],
                of_hit[column][1],
                float(self.cosines[row, column]),
                float(self.shares[row, column]),
            )
            for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True)
            if self.shares[row, column]
        ]

    def to_json(self) -> dict[str, Any]:
        """The explanation as a JSON object."""

        def of(slices: Slices) -> list[dict[str, Any]]:
            return [{"plane": plane, "slice": index} for plane, index in _places(slices)]

        return {
            "query": self.query,
            "hit": self.hit,
            "mode": self.mode,
            "score": self.score,
            "pairs": [vars(pair) for pair in self.pairs],
            "query_slices": of(self.query_slices),
            "hit_slices": of(self.hit_slices),
            "cosines": np.round(self.cosines.astype(float), 6).tolist(),
            "shares": np.round(self.shares, 9).tolist(),
        }


def explain(corpus: Corpus, resolver: Resolver, query: Query, hit: str, options: SearchOptions) -> Explanation:
    """See `Snapshots.explain`."""
    if options.used_mode not in EXPLAINED:
        raise UsageError(
            f"mode '{options.used_mode}' scores a volume by all volumes' slices: explain takes {', '.join(EXPLAINED)}"
        )
    members = corpus.members(options)
    if len(members) > 1:
        raise UsageError("one model and one aggregation are explained at a time")
    member = members[0]
    found = corpus.find(hit)
    if found is None:
        raise NotFoundError(f"there is no volume '{hit}' in {corpus}")
    volume, row = found
    asked = resolver.resolve(query, member, options)
    hit_slices = corpus.index(member.entry, None).slices_of(volume)
    if hit_slices is None:
        raise UsageError(f"volume '{hit}' has no slice vectors in {corpus} ({row.problem or 'not indexed'})")
    wide = asked.slices.vectors.astype(np.float64), hit_slices.vectors.astype(np.float64)
    cosines = wide[0] @ wide[1].T
    if options.used_mode == VOLUME:
        shares, score = _volume_shares(corpus, member, asked, volume, hit_slices)
    else:
        shares = _late_shares(cosines, asked.slices, hit_slices, options) if options.mode != MAX else _best(cosines)
        score = float(shares.sum())
    return Explanation(
        asked.label,
        volume[0],
        options.used_mode,
        min(score, 1.0),
        options.score_words(of_words=isinstance(query, Words)),
        asked.slices,
        hit_slices,
        np.minimum(cosines, 1.0).astype(np.float32),
        shares,
    )


def _places(slices: Slices) -> list[tuple[str | None, Any]]:
    """Plane and slice index of each slice; (None, None) of a vector that is none."""
    if slices.slice_indices is None:
        return [(None, None)] * len(slices)
    return list(zip(slices.plane_names, slices.slice_indices.tolist(), strict=True))


def _best(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.zeros_like(cosines)
    at = np.unravel_index(int(cosines.argmax()), cosines.shape)
    shares[at] = cosines[at]
    return shares


def _late_shares(
    cosines: NDArray[np.float64], query: Slices, hit: Slices, options: SearchOptions
) -> NDArray[np.float64]:
    """What each pair gives to `matching.late_scores`."""
    comparable = np.ones(cosines.shape, bool)
    if options.same_plane:
        unknown = (query.planes == UNKNOWN)[:, None] | (hit.planes == UNKNOWN)[None]
        same = (query.planes[:, None] == hit.planes[None]) | unknown
        comparable = same if same.any() else comparable
    forward = _best_of_each_row(np.where(comparable, cosines, -np.inf), slice_weights(query))
    if not options.symmetric:
        return forward
    backward = _best_of_each_row(np.where(comparable, cosines, -np.inf).T, slice_weights(hit))
    return (forward + backward.T) / 2


def _best_of_each_row(cosines: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.zeros(cosines.shape)
    rows, best = np.arange(len(cosines)), cosines.argmax(axis=1)
    values = cosines[rows, best]
    counted = np.isfinite(values)
    shares[rows[counted], best[counted]] = values[counted] * weights[counted] / weights[counted].sum()
    return shares


def _volume_shares(
    corpus: Corpus, member: Member, asked: QueryVectors, volume: Volume, hit: Slices
) -> tuple[NDArray[np.float64], float]:
    """What each pair gives to the cosine of the two volume vectors, and that cosine.

    A volume vector is v = sum w_i x_i / m, and the index holds (v - c) / n = sum w_i (x_i / m - c) / n, as the weights
    sum to 1.
    """
    aggregation = parse_aggregation(member.aggregation)
    if aggregation.kind == "max":
        raise UsageError("aggregation 'max' is no mean of slices, so no slice has a share of its score: use mode late")
    volumes, slices = corpus.index(member.entry, member.aggregation), corpus.index(member.entry, None)
    stored = volumes.slices_of(volume)
    assert stored is not None  # a volume with slice vectors has volume vectors
    centre = np.zeros(asked.volume.shape) if volumes.centre is None else volumes.centre.astype(np.float64)

    def parts(of: Slices, name: str, relative: NDArray[np.float32]) -> NDArray[np.float64]:
        raw = slices.uncentred(of.vectors.astype(np.float32)).astype(np.float64)
        order = embedding_order(of, member.entry.planes)
        weights = np.empty(len(order))
        weights[order] = aggregation.weights(relative[order], name)
        mean = weights @ raw
        length = np.linalg.norm(mean)
        given = weights[:, None] * (raw / length - centre)
        vector: NDArray[np.float64] = given / np.linalg.norm(mean / length - centre)
        return vector

    placed: Callable[[Slices, str, int], NDArray[np.float32]] = _positions(corpus, member)
    if asked.slices.slice_indices is None:  # it is one direction, as the index holds them
        query_parts = asked.volume[None].astype(np.float64)
    else:
        query_parts = parts(asked.slices, asked.slices.volume_id, _relative_of(asked, placed))
    hit_parts = parts(hit, volume[0], placed(hit, *volume))
    score = float(stored.vectors[0].astype(np.float64) @ asked.volume.astype(np.float64))
    return query_parts @ hit_parts.T, score


def _positions(corpus: Corpus, member: Member) -> Callable[[Slices, str, int], NDArray[np.float32]]:
    """Slices of a stored volume -> (n,) their relative positions."""

    def placed(of: Slices, volume_id: str, store: int) -> NDArray[np.float32]:
        contents = corpus.stores[store]
        row = contents.ledger.row(volume_id)
        assert row is not None  # it was found
        known = contents.with_positions(member.entry, row, replace(of, volume_id=volume_id))
        assert known.relative_position is not None
        return known.relative_position

    return placed


def _relative_of(asked: QueryVectors, placed: Callable[[Slices, str, int], NDArray[np.float32]]) -> NDArray[np.float32]:
    if asked.slices.relative_position is not None:
        return asked.slices.relative_position
    if asked.volumes:
        return placed(asked.slices, *next(iter(asked.volumes)))
    return np.linspace(0, 1, len(asked.slices), dtype=np.float32)
