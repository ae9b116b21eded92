"""Retrieval metrics per query, their expected values for a random ranking, and their means. Pure functions.

Relevance is binary. Each query has `relevant`, whether the hit at each rank is relevant, best first; `total`, how many
relevant volumes there were to find, at least 1; `candidates`, how many volumes could be found at all, at least `total`.

    recall@1       1 when the first hit is relevant: the hit rate, as the literature on this task calls it
    recall@k       share of all relevant volumes that are among the first k (k > 1): at most k / total
    hit@k          1 when any of the first k is relevant
    precision@k    share of the first k that are relevant; unfilled ranks count as not relevant
    mAP            average precision; its denominator is all relevant volumes, found or not
    ndcg@10        discounted gain of the first 10, divided by that of the best possible order

Means over queries are class, macro and micro means, with intervals from resampling subjects: scans of one subject
resemble each other, so an interval over scans would be too narrow. Subjects are not drawn class by class, because
labels may name several classes and few subjects have the same ones. A class that is missing from a draw enters the
macro mean of that draw with its usual mean; otherwise the macro mean would be a different quantity. A class of one
subject has no interval, nor has a macro mean over such a class: nothing tells how much another subject would differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError

Floats = NDArray[np.float64]
Form = Literal["recall@1", "recall", "hit", "precision", "mAP", "ndcg"]

MACRO, MICRO = "macro", "micro"
PERCENTILES = (2.5, 97.5)
BLOCK_NUMBERS = 4_000_000  # resampled subjects that are in memory at the same time


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


def check_depth(depth: int | None) -> None:
    """Raise UsageError for a number of ranks that is too small for some metric; None: as many as there are."""
    if depth is not None and depth < RANKS_MIN:
        raise UsageError(
            f"depth is {depth}, expected at least {RANKS_MIN}: figures such as recall@{RANKS_MIN} need that many ranks"
        )


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


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the intervals: percentiles over `resamples` seeded draws of subjects."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """One mean over queries. low, high: its 95 % interval over subjects. chance: the mean of a random ranking.

    low and high are NaN if there is no interval: for a class of one subject, and a macro mean over such a class.
    n: queries averaged. subjects: the number of their subjects.
    """

    value: float
    low: float
    high: float
    chance: float
    n: int
    subjects: int

    @property
    def has_interval(self) -> bool:
        """Whether low and high are known."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Averages:
    """Means over queries. Row 0 is macro, row 1 is micro, then one row per class.

    value, low, high, chance: (2 + classes, metrics); NaN for a class without queries; low and high are also NaN where
    there is no interval. queries, subjects: (2 + classes,) how many were averaged.
    """

    value: Floats
    low: Floats
    high: Floats
    chance: Floats
    queries: NDArray[np.int64]
    subjects: NDArray[np.int64]

    def figure(self, row: int, metric: int) -> Figure:
        """The mean of one row and one metric."""
        parts = (self.value, self.low, self.high, self.chance)
        value, low, high, chance = (float(part[row, metric]) for part in parts)
        return Figure(value, low, high, chance, int(self.queries[row]), int(self.subjects[row]))


def average(
    values: Floats, chances: Floats, members: NDArray[np.bool_], subjects: NDArray[np.int64], bootstrap: Bootstrap
) -> Averages:
    """Average (q, metrics) values and chances.

    members: (q, classes) bool, the classes of each query: one or several. subjects: (q,) numbers, from 0.
    Macro is the mean of the classes that have queries, micro the mean of all queries.
    """
    groups = np.column_stack([np.ones(len(values), bool), members])  # micro, then the classes
    count = int(subjects.max(initial=-1)) + 1
    sums = _by_subject(values, groups, subjects, count)
    sizes = _by_subject(np.ones((len(values), 1)), groups, subjects, count)
    everyone = np.ones((1, count))
    usual = _means(everyone, sums, sizes)
    value = _with_macro(usual, usual)[0]
    present = sizes[:, :, 0].astype(bool).sum(axis=0)
    drawn = [_with_macro(_means(weights, sums, sizes), usual) for weights in _resamples(count, bootstrap)]
    low, high = _interval(np.concatenate(drawn))
    alone = np.concatenate([[(present[1:] == 1).any() or present[0] < 2], present < 2])
    low[alone] = high[alone] = np.nan
    chances_of = _means(everyone, _by_subject(chances, groups, subjects, count), sizes)
    chance = _with_macro(chances_of, chances_of)[0]
    queries = np.concatenate([[len(values)], groups.sum(axis=0)])
    return Averages(value, low, high, chance, queries, np.concatenate([[present[0]], present]))


def _by_subject(values: Floats, groups: NDArray[np.bool_], subjects: NDArray[np.int64], count: int) -> Floats:
    """Sums of (q, m) values by subject and group: (subjects, groups, m)."""
    sums = np.zeros((count, groups.shape[1], values.shape[1]))
    for group in range(groups.shape[1]):
        members = groups[:, group]
        np.add.at(sums[:, group], subjects[members], values[members])
    return sums


def _means(weights: Floats, sums: Floats, sizes: Floats) -> Floats:
    """Means of the groups under (b, subjects) weights: (b, groups, m). NaN for a group without weight."""
    flat = weights @ sums.reshape(len(sums), -1)
    total = flat.reshape(len(weights), *sums.shape[1:])
    size = (weights @ sizes[:, :, 0])[:, :, None]
    return np.where(size > 0, total / np.where(size > 0, size, 1), np.nan)


def _with_macro(means: Floats, usual: Floats) -> Floats:
    """Put the macro mean before (b, groups, m) means: (b, 1 + groups, m). usual: (1, groups, m), of all subjects."""
    classes = np.where(np.isnan(means), usual, means)[:, 1:]
    known = ~np.isnan(classes)
    number = known.sum(axis=1)
    macro = np.where(number > 0, np.where(known, classes, 0.0).sum(axis=1) / np.maximum(number, 1), np.nan)
    return np.concatenate([macro[:, None], means], axis=1)


def _interval(drawn: Floats) -> tuple[Floats, Floats]:
    """Percentiles of (b, groups, m) means over the draws that have the class; NaN if none has."""
    low, high = np.percentile(drawn, PERCENTILES, axis=0)
    lacking = np.isnan(drawn[:, :, 0]) if drawn.shape[2] else np.zeros(drawn.shape[:2], bool)
    for group in np.flatnonzero(lacking.any(axis=0)):  # in some draws the class does not occur
        present = drawn[~lacking[:, group], group]
        if len(present):
            low[group], high[group] = np.percentile(present, PERCENTILES, axis=0)
    return low, high


def _resamples(count: int, bootstrap: Bootstrap) -> Iterator[Floats]:
    """Yield how often each of `count` subjects is drawn: (b, subjects) per block. Equal seeds give equal draws."""
    rng = np.random.default_rng(bootstrap.seed)
    step = max(1, BLOCK_NUMBERS // max(count, 1))
    for start in range(0, bootstrap.resamples, step):
        draws = min(step, bootstrap.resamples - start)
        drawn = rng.integers(max(count, 1), size=(draws, count)) + count * np.arange(draws)[:, None]
        yield np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)
