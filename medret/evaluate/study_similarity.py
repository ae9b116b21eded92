"""Studies by exact search: which aggregation is best, whether two models beat one, and whether position helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medret.embeddings import Aggregation, Slices, parse_aggregation
from medret.embeddings.slices import volume_vector
from medret.errors import UsageError
from medret.evaluate.levels import Options
from medret.evaluate.query_sets import Report
from medret.evaluate.scoring import ALL, chosen_by_half
from medret.evaluate.study import Row, Similarity, SimilarityScorer, Study, is_centred, read_slices
from medret.html.plots import Bar, bars, grid
from medret.index import centred, fit_centre
from medret.search import Snapshot
from medret.search.answer import RRF_CONSTANT
from medret.search.query import VolumeName

COUNTS = (5, 10, 20)
CENTRES = (0.3, 0.4, 0.5, 0.6, 0.7)
SIGMAS = (0.05, 0.1, 0.2, 0.4)
SEEDS = 5
WEIGHTS = (0.25, 0.5, 0.75)
PENALTIES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def study_aggregation(
    snapshot: Snapshot,
    options: Options,
    *,
    model: str | None = None,
    seeds: int = SEEDS,
    report: Report = lambda _: None,
) -> Study:
    """Aggregate the stored slice vectors in many ways and score each by exact search."""
    scorer = SimilarityScorer(snapshot, options)
    slices = read_slices(snapshot, model)
    subtract_centre = is_centred(snapshot)
    variants: dict[str, list[Aggregation]] = {"mean": [parse_aggregation("mean")], "max": [parse_aggregation("max")]}
    for count in COUNTS:
        variants[f"random:{count}"] = [Aggregation("random", count=count, seed=seed) for seed in range(seeds)]
        variants[f"uniform:{count}"] = [Aggregation("uniform", count=count)]
    for centre in CENTRES:
        for sigma in SIGMAS:
            gaussian = Aggregation("gaussian", centre=centre, sigma=sigma)
            variants[gaussian.name] = [gaussian]
    rows = []
    for number, (name, aggregations) in enumerate(variants.items(), start=1):
        report(f"{number}/{len(variants)} {name}")
        similarities = (_aggregated_cosines(slices, scorer.volume_ids, each, subtract_centre) for each in aggregations)
        rows += scorer.score(name, similarities)
    most = max(map(len, slices.values()))
    notes = [f"slices stored: at most {most} per volume; a subsample of that size equals the mean", *scorer.notes]
    return Study("aggregation", snapshot.uri, snapshot.id, rows, _aggregation_plots(rows), notes)


def _aggregated_cosines(
    slices: Mapping[str, Slices], volume_ids: Sequence[str], aggregation: Aggregation, subtract_centre: bool
) -> Similarity:
    vectors = np.zeros((len(volume_ids), next(iter(slices.values())).vectors.shape[1]), np.float32)
    for row, name in enumerate(volume_ids):
        if name in slices:
            vectors[row] = volume_vector(slices[name], aggregation)
    if subtract_centre:  # as an index of these vectors would do
        total = vectors.sum(axis=0, dtype=np.float64)
        vectors = centred(vectors, fit_centre([total], len(vectors), len(vectors)))
    return _cosines(vectors)


def _aggregation_plots(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    plots = []
    for heading, by_variant in _recalls(rows):
        plain = [_bar(row, row["arm"] == "mean") for name, row in by_variant.items() if not name.startswith("gaussian")]
        values = np.array(
            [[by_variant[f"gaussian:{centre:g},{sigma:g}"]["value"] for sigma in SIGMAS] for centre in CENTRES]
        )
        cells = grid(values, [f"centre {c:g}" for c in CENTRES], [f"sigma {s:g}" for s in SIGMAS], heading)
        plots += [(heading, bars(plain, heading)), (f"{heading}, Gaussian weights", cells)]
    return plots


def _recalls(rows: Sequence[Row]) -> list[tuple[str, dict[str, Row]]]:
    """Per exclusion and level: a heading, and the rows of recall@1 by variant."""
    recalls: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["metric"] == "recall@1" and row["queries"] == ALL:
            heading = f"{row['level'].replace('_', ' ')}, exclude {row['exclude']}: macro recall@1"
            recalls.setdefault(heading, {})[row["arm"]] = row
    return list(recalls.items())


def _bar(row: Row, strong: bool) -> Bar:
    low, high = row["low"], row["high"]
    return Bar(row["arm"], row["n"], row["value"], low or 0, high or 0, row["chance"], low is not None, strong)


def study_ensemble(
    snapshot: Snapshot,
    options: Options,
    *,
    aggregation: str | None = None,
    report: Report = lambda _: None,
) -> Study:
    """Score every model and every pair of models by exact search over volume vectors."""
    if len(snapshot.models) < 2:
        raise UsageError(
            f"{snapshot.uri} has one model, {snapshot.models[0]}: an ensemble needs two; index with --model A --model B"
        )
    scorer = SimilarityScorer(snapshot, options)
    alone: dict[str, Similarity] = {}
    for model in snapshot.models:
        names = map(VolumeName, scorer.volume_ids)
        queries = (snapshot.resolve(name, model=model, aggregation=aggregation) for name in names)
        alone[model] = _cosines(np.array([query.volume for query in queries], np.float32))
    variants = dict(alone)
    for first, second in combinations(snapshot.models, 2):
        for weight in WEIGHTS:
            name = f"{first} {weight:g} + {second} {1 - weight:g}"
            variants[name] = _concatenated(alone[first], alone[second], weight)
        variants[f"{first} rrf {second}"] = _fused(alone[first], alone[second])
    rows = _scored(scorer, variants, report)
    notes = [
        "A + B: cosine of the weighted, concatenated vectors",
        "rrf: reciprocal-rank fusion, the ranks counted among all other volumes",
        *chosen_by_half(rows, snapshot.models[0]),
        *scorer.notes,
    ]
    plots = [
        (heading, bars([_bar(row, name in alone) for name, row in by_variant.items()], heading))
        for heading, by_variant in _recalls(rows)
    ]
    return Study("ensemble", snapshot.uri, snapshot.id, rows, plots, notes)


def study_position(
    snapshot: Snapshot, options: Options, *, model: str | None = None, report: Report = lambda _: None
) -> Study:
    """Score late interaction over the stored slices, with and without what is known of where a slice lies.

    score(query, volume) = mean over the query's slices q of (max over the volume's v of cos(q, v) - w |p(q) - p(v)|)

    p is the relative position (0 the first slice of the volume, 1 the last), or the height in units of 100 mm, counted
    from the middle of a volume's slices: scanner coordinates of two scanners have no common origin.
    """
    scorer = SimilarityScorer(snapshot, options)
    slices = read_slices(snapshot, model)
    stored = [slices[name] for name in scorer.volume_ids if name in slices]
    if len(stored) < len(scorer.volume_ids):
        raise UsageError(f"{snapshot.uri}: {len(scorer.volume_ids) - len(stored)} volumes have no slice vectors")
    vectors = np.concatenate([one.vectors for one in stored])
    if is_centred(snapshot):  # as an index of these vectors would be
        vectors = centred(vectors, fit_centre([vectors.sum(axis=0, dtype=np.float64)], len(vectors), len(stored)))
    planes = np.concatenate([one.planes for one in stored])
    starts = np.cumsum([0, *(len(one) for one in stored)])
    relative = np.concatenate([_known(one.relative_position) for one in stored])
    heights = np.concatenate([_height(one) for one in stored])
    variants = {"late": late_with_position(vectors, planes, starts, relative, 0.0)}
    for name, places in (("relative", relative), ("height", heights)):
        for weight in PENALTIES:
            variants[f"late, {name} {weight:g}"] = late_with_position(vectors, planes, starts, places, weight)
        variants[f"{name} alone"] = late_with_position(np.zeros_like(vectors[:, :1]), planes, starts, places, 1.0)
    rows = _scored(scorer, variants, report)
    notes = [
        "relative W: each match costs W times the difference of the relative positions, 0 to 1",
        "height W: each match costs W per 100 mm between the slices' heights over the middle of their volumes",
        "alone: the vectors take no part, so the figure is that of where slices lie, and of how far a volume reaches",
        *chosen_by_half(rows, "late"),
        *scorer.notes,
    ]
    plots = [
        (heading, bars([_bar(row, name == "late") for name, row in by_variant.items()], heading))
        for heading, by_variant in _recalls(rows)
    ]
    return Study("position", snapshot.uri, snapshot.id, rows, plots, notes)


def _scored(scorer: SimilarityScorer, variants: Mapping[str, Similarity], report: Report) -> list[Row]:
    """The figures of each variant, in order."""
    rows = []
    for number, (name, similarity) in enumerate(variants.items(), start=1):
        report(f"{number}/{len(variants)} {name}")
        rows += scorer.score(name, [similarity])
    return rows


def _known(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert values is not None  # stored slices have one
    return values


def _height(slices: Slices) -> NDArray[np.float32]:
    """(n,) heights of the slices of one volume over the middle of those of their plane, in units of 100 mm."""
    mm = _known(slices.position_mm).astype(np.float64)
    heights = np.zeros(len(mm), np.float32)
    for plane in np.unique(slices.planes):
        own = slices.planes == plane
        heights[own] = (mm[own] - (mm[own].min() + mm[own].max()) / 2) / 100
    return heights


def late_with_position(
    vectors: NDArray[np.float32],
    planes: NDArray[np.int8],
    starts: NDArray[np.int64],
    places: NDArray[np.float32],
    weight: float,
) -> Similarity:
    """Late interaction between volumes, less `weight` times how far apart matching slices lie: see `study_position`.

    Slices match in their own plane. One whose plane a volume lacks does not count, unless the two share no plane.

    vectors: (n, dim) of the slices of all volumes. planes, places: (n,). starts: (volumes + 1,) first slice of each
    volume, and n.
    """

    def similarity(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        scores = np.zeros((len(rows), len(starts) - 1))
        for at, row in enumerate(rows.tolist()):
            own = slice(starts[row], starts[row + 1])
            cosines = (vectors[own] @ vectors.T).astype(np.float64)
            cosines -= weight * np.abs(places[own][:, None] - places[None])
            in_plane = np.where(planes[own][:, None] == planes[None], cosines, -np.inf)
            best = np.maximum.reduceat(in_plane, starts[:-1], axis=1)
            across = np.maximum.reduceat(cosines, starts[:-1], axis=1)
            compared = np.isfinite(best) | ~np.isfinite(best).any(axis=0)  # volumes without a shared plane: across
            scores[at] = np.where(compared, np.where(np.isfinite(best), best, across), 0).sum(axis=0)
            scores[at] /= compared.sum(axis=0)
        return scores

    return similarity


def _cosines(vectors: NDArray[np.float32]) -> Similarity:
    def similarity(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        cosines: NDArray[np.float32] = vectors[rows] @ vectors.T
        return cosines

    return similarity


def _concatenated(one: Similarity, other: Similarity, weight: float) -> Similarity:
    return lambda rows: weight * one(rows) + (1 - weight) * other(rows)


def _fused(one: Similarity, other: Similarity) -> Similarity:
    def similarity(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        fused = np.zeros(())
        for member in (one, other):
            scores = np.asarray(member(rows), np.float64)
            scores[np.arange(len(rows)), rows] = -np.inf  # a query's own volume takes no rank
            ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
            fused = fused + 1 / (RRF_CONSTANT + ranks)
        return fused

    return similarity
