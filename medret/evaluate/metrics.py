"""Retrieval metrics per query, and their expected values for a random ranking. Pure functions.

Relevance is binary. Each query has `relevant`, whether the hit at each rank is relevant, best first; `total`, how many
relevant volumes there were to find, at least 1; `candidates`, how many volumes could be found at all, at least `total`.

    recall@1       1 when the first hit is relevant: the hit rate, as the literature on this task calls it
    recall@k       share of all relevant volumes that are among the first k (k > 1): at most k / total
    hit@k          1 when any of the first k is relevant
    precision@k    share of the first k that are relevant; unfilled ranks count as not relevant
    mAP            average precision; its denominator is all relevant volumes, found or not
    ndcg@10        discounted gain of the first 10, divided by that of the best possible order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Form = Literal["recall@1", "recall", "hit", "precision", "mAP", "ndcg"]


@dataclass(frozen=True)
class Metric:
    """A metric. cut: the number of ranks that count; 0 for all."""

    name: str
    form: Form
    cut: int


METRICS = (
    Metric("recall@1", "recall@1", 1),
    *(Metric(f"recall@{k}", "recall", k) for k in (3, 5, 10)),
    *(Metric(f"hit@{k}", "hit", k) for k in (3, 5, 10)),
    *(Metric(f"precision@{k}", "precision", k) for k in (1, 3, 5, 10)),
    Metric("mAP", "mAP", 0),
    Metric("ndcg@10", "ndcg", 10),
)
NAMES = tuple(metric.name for metric in METRICS)
RANKS_MIN = max(metric.cut for metric in METRICS)  # a shorter list would make some names untrue


def measure(relevant: NDArray[np.bool_], total: NDArray[np.int64]) -> Floats:
    """Compute every metric of every query: (q, len(METRICS)), in the order of METRICS.

    relevant: (q, depth), False beyond the end of a list. total: (q,).
    """
    return np.column_stack([_measure(metric, relevant, total) for metric in METRICS])


def _measure(metric: Metric, relevant: NDArray[np.bool_], total: NDArray[np.int64]) -> Floats:
    cut = metric.cut or relevant.shape[1]
    first = relevant[:, :cut].astype(np.float64)
    if not first.shape[1]:
        return np.zeros(len(first))
    hits: Floats = first.sum(axis=1)
    match metric.form:
        case "recall@1" | "hit":
            return np.minimum(hits, 1.0)
        case "recall":
            return hits / total
        case "precision":
            return hits / metric.cut
        case "mAP":
            precision = np.cumsum(first, axis=1) / np.arange(1, first.shape[1] + 1)
            average: Floats = (precision * first).sum(axis=1) / total
            return average
        case "ndcg":
            gain: Floats = first @ _discounts(first.shape[1])
            return gain / _ideal(total, cut)


def chance(total: NDArray[np.int64], candidates: NDArray[np.int64], depth: int) -> Floats:
    """Compute the expected value of each metric if all candidates are ranked at random: (q, len(METRICS)).

    depth: the number of ranks of the lists; average precision ends there.
    """
    values = np.zeros((len(total), len(METRICS)))
    share = total / candidates
    for number, metric in enumerate(METRICS):
        cut = np.minimum(metric.cut or depth, candidates)
        match metric.form:
            case "recall@1":
                values[:, number] = share
            case "hit":
                values[:, number] = 1 - _none_found(total, candidates, metric.cut)
            case "recall":
                values[:, number] = cut / candidates
            case "precision":
                values[:, number] = share * cut / metric.cut
            case "mAP":
                values[:, number] = _expected_precision(total, candidates, cut)
            case "ndcg":
                reached = np.append(0.0, np.cumsum(_discounts(metric.cut)))[cut]
                values[:, number] = share * reached / _ideal(total, metric.cut)
    return values


def _none_found(total: NDArray[np.int64], candidates: NDArray[np.int64], cut: int) -> Floats:
    """Probability that none of the first `cut` is relevant: drawing without replacement."""
    missed = np.ones(len(total))
    for drawn in range(cut):
        left = np.maximum(candidates - drawn, 1)
        missed *= np.clip((candidates - total - drawn) / left, 0.0, 1.0)
    return missed


def _expected_precision(total: NDArray[np.int64], candidates: NDArray[np.int64], cut: NDArray[np.int64]) -> Floats:
    """Expected average precision: the hit at rank i is relevant with share R/N, and then (R-1)/(N-1) of those above."""
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, int(cut.max(initial=0)) + 1)))[cut]
    above = (total - 1) / np.maximum(candidates - 1, 1)
    expected: Floats = (harmonic + above * (cut - harmonic)) / candidates
    return expected


def _discounts(ranks: int) -> Floats:
    discounts: Floats = 1 / np.log2(np.arange(2, ranks + 2))
    return discounts


def _ideal(total: NDArray[np.int64], cut: int) -> Floats:
    ideal: Floats = np.append(0.0, np.cumsum(_discounts(cut)))[np.minimum(total, cut)]
    return ideal
