"""Whether models are better together: each alone, and pairs by weighted concatenation and by reciprocal ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.evaluate.plan import Options
from medret.evaluate.report_plots import Bar, bars
from medret.evaluate.study import Report, Similarity, SimilarityScorer, Study, score_rows, score_table
from medret.search import Snapshot
from medret.search.answer import RRF_CONSTANT

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
    bench = SimilarityScorer(snapshot, options)
    alone = {model: _cosines(snapshot, bench, model, aggregation) for model in snapshot.models}
    arms: dict[str, Similarity] = dict(alone)
    for one, other in combinations(snapshot.models, 2):
        for weight in weights:
            arms[f"{one} {weight:g} + {other} {1 - weight:g}"] = _concatenated(alone[one], alone[other], weight)
        arms[f"{one} rrf {other}"] = _fused(alone[one], alone[other])
    rows: list[dict[str, Any]] = []
    for number, (name, similarity) in enumerate(arms.items(), start=1):
        report(f"{number}/{len(arms)} {name}")
        rows += score_rows(name, [bench.score(similarity)])
    table = score_table(rows)
    notes = [
        "A + B: cosine of the weighted, concatenated vectors",
        "rrf: reciprocal-rank fusion, the ranks counted among all other volumes",
        *bench.notes,
    ]
    return Study("ensemble", snapshot.uri, snapshot.id, table, _plots(table, set(alone)), notes)


def _cosines(snapshot: Snapshot, bench: SimilarityScorer, model: str, aggregation: str | None) -> Similarity:
    asked = (snapshot.resolve(name, model=model, aggregation=aggregation) for name in bench.volume_ids)
    vectors = np.array([query.volume for query in asked], np.float32)

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


def _plots(table: pa.Table, alone: set[str]) -> list[tuple[str, str]]:
    rows = [row for row in table.to_pylist() if row["metric"] == "recall@1"]
    plots = []
    for exclude, level in dict.fromkeys((row["exclude"], row["level"]) for row in rows):
        own = [row for row in rows if (row["exclude"], row["level"]) == (exclude, level)]
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
            for row in own
        ]
        plots.append((heading, bars(drawn, heading, name_px=330)))
    return plots
