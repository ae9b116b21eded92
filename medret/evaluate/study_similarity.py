"""Studies of volume vectors by exact search: which aggregation is best, and whether two models beat one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from medret.embeddings import Aggregation, Slices, parse_aggregation
from medret.embeddings.shards import volume_vector
from medret.errors import UsageError
from medret.evaluate.levels import Options
from medret.evaluate.study import (
    Report,
    Similarity,
    SimilarityScorer,
    Study,
    is_centred,
    read_slices,
    score_rows,
    score_table,
)
from medret.html.plots import Bar, bars, grid
from medret.index import centred, fit_centre
from medret.search import Snapshot
from medret.search.answer import RRF_CONSTANT

COUNTS = (5, 10, 20)
CENTRES = (0.3, 0.4, 0.5, 0.6, 0.7)
SIGMAS = (0.05, 0.1, 0.2, 0.4)
SEEDS = 5


def study_aggregation(
    snapshot: Snapshot,
    options: Options,
    *,
    model: str | None = None,
    seeds: int = SEEDS,
    centres: Sequence[float] = CENTRES,
    sigmas: Sequence[float] = SIGMAS,
    report: Report = lambda _: None,
) -> Study:
    """Aggregate the stored slice vectors in many ways and score each by exact search."""
    slices = read_slices(snapshot, model)
    scorer = SimilarityScorer(snapshot, options)
    subtract_centre = is_centred(snapshot)
    variants: dict[str, list[Aggregation]] = {"mean": [parse_aggregation("mean")], "max": [parse_aggregation("max")]}
    for count in COUNTS:
        variants[f"random:{count}"] = [Aggregation("random", count=count, seed=seed) for seed in range(seeds)]
        variants[f"uniform:{count}"] = [Aggregation("uniform", count=count)]
    for centre in centres:
        for sigma in sigmas:
            gaussian = Aggregation("gaussian", centre=centre, sigma=sigma)
            variants[gaussian.name] = [gaussian]
    rows = []
    for number, (name, aggregations) in enumerate(variants.items(), start=1):
        report(f"{number}/{len(variants)} {name}")
        similarities = (_aggregated_cosines(slices, scorer.volume_ids, each, subtract_centre) for each in aggregations)
        rows += score_rows(name, [scorer.score(similarity) for similarity in similarities])
    table = score_table(rows)
    most = max(map(len, slices.values()))
    notes = [
        f"slices stored: at most {most} per volume; a subsample of that size equals the mean",
        *scorer.notes,
    ]
    return Study("aggregation", snapshot.uri, snapshot.id, table, _aggregation_plots(table, centres, sigmas), notes)


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


def _aggregation_plots(table: pa.Table, centres: Sequence[float], sigmas: Sequence[float]) -> list[tuple[str, Markup]]:
    rows = [row for row in table.to_pylist() if row["metric"] == "recall@1"]
    plots = []
    for exclude, level in dict.fromkeys((row["exclude"], row["level"]) for row in rows):
        by_variant = {row["arm"]: row for row in rows if (row["exclude"], row["level"]) == (exclude, level)}
        heading = f"{level.replace('_', ' ')}, exclude {exclude}: macro recall@1"
        plain = [row for name, row in by_variant.items() if not name.startswith("gaussian")]
        drawn = bars([_bar(row) for row in plain], heading)
        values = np.array(
            [[by_variant[f"gaussian:{centre:g},{sigma:g}"]["value"] for sigma in sigmas] for centre in centres]
        )
        cells = grid(values, [f"centre {c:g}" for c in centres], [f"sigma {s:g}" for s in sigmas], heading)
        plots += [(heading, drawn), (f"{heading}, Gaussian weights", cells)]
    return plots


def _bar(row: dict[str, object]) -> Bar:
    known = row["low"] is not None or int(str(row["seeds"])) > 1
    value, low, high, chance = (float(str(row[name] or 0)) for name in ("value", "low", "high", "chance"))
    if int(str(row["seeds"])) > 1:  # whiskers of repeated draws: two standard deviations over seeds
        spread = 2 * float(str(row["spread"]))
        low, high = max(0.0, value - spread), min(1.0, value + spread)
    return Bar(str(row["arm"]), int(str(row["n"])), value, low, high, chance, known, row["arm"] == "mean")


WEIGHTS = (0.25, 0.5, 0.75)


def study_ensemble(
    snapshot: Snapshot,
    options: Options,
    *,
    aggregation: str | None = None,
    weights: Sequence[float] = WEIGHTS,
    report: Report = lambda _: None,
) -> Study:
    """Score every model and every pair of models by exact search over volume vectors."""
    if len(snapshot.models) < 2:
        raise UsageError(
            f"{snapshot.uri} has one model, {snapshot.models[0]}: an ensemble needs two; index with --model A --model B"
        )
    scorer = SimilarityScorer(snapshot, options)
    alone = {model: _model_cosines(snapshot, scorer, model, aggregation) for model in snapshot.models}
    variants: dict[str, Similarity] = dict(alone)
    for first, second in combinations(snapshot.models, 2):
        for weight in weights:
            variants[f"{first} {weight:g} + {second} {1 - weight:g}"] = _concatenated(
                alone[first], alone[second], weight
            )
        variants[f"{first} rrf {second}"] = _fused(alone[first], alone[second])
    rows: list[dict[str, Any]] = []
    for number, (name, similarity) in enumerate(variants.items(), start=1):
        report(f"{number}/{len(variants)} {name}")
        rows += score_rows(name, [scorer.score(similarity)])
    table = score_table(rows)
    notes = [
        "A + B: cosine of the weighted, concatenated vectors",
        "rrf: reciprocal-rank fusion, the ranks counted among all other volumes",
        *scorer.notes,
    ]
    return Study("ensemble", snapshot.uri, snapshot.id, table, _ensemble_plots(table, set(alone)), notes)


def _model_cosines(snapshot: Snapshot, scorer: SimilarityScorer, model: str, aggregation: str | None) -> Similarity:
    queries = (snapshot.resolve(name, model=model, aggregation=aggregation) for name in scorer.volume_ids)
    vectors = np.array([query.volume for query in queries], np.float32)

    return _cosines(vectors)


def _cosines(vectors: NDArray[np.float32]) -> Similarity:
    def similarity(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        cosines: NDArray[np.float32] = vectors[rows] @ vectors.T
        return cosines

    return similarity


def _concatenated(one: Similarity, other: Similarity, weight: float) -> Similarity:
    return lambda rows: weight * one(rows) + (1 - weight) * other(rows)


def _fused(one: Similarity, other: Similarity) -> Similarity:
    def similarity(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        fused = np.zeros((len(rows), 0))
        for member in (one, other):
            scores = np.asarray(member(rows), np.float64)
            scores[np.arange(len(rows)), rows] = -np.inf  # a query's own volume takes no rank
            ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
            part = 1 / (RRF_CONSTANT + ranks)
            fused = fused + part if fused.size else part
        return fused

    return similarity


def _ensemble_plots(table: pa.Table, alone: set[str]) -> list[tuple[str, Markup]]:
    rows = [row for row in table.to_pylist() if row["metric"] == "recall@1"]
    plots = []
    for exclude, level in dict.fromkeys((row["exclude"], row["level"]) for row in rows):
        of_level = [row for row in rows if (row["exclude"], row["level"]) == (exclude, level)]
        heading = f"{level.replace('_', ' ')}, exclude {exclude}: macro recall@1"
        drawn = [
            Bar(
                row["arm"],
                row["n"],
                row["value"],
                row["low"] or 0,
                row["high"] or 0,
                row["chance"],
                row["low"] is not None,
                row["arm"] in alone,
            )
            for row in of_level
        ]
        plots.append((heading, bars(drawn, heading, name_px=330)))
    return plots
