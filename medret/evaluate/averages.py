"""From queries to figures: means of classes, macro and micro, with intervals from resampling subjects. Pure functions.

Scans of one subject resemble each other, so subjects are drawn, not scans: an interval over scans would be too narrow.
They are drawn from among those of the same classes, as many as there are: a class of few subjects would otherwise be
missing from many draws, and the macro mean of the others is another quantity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MACRO, MICRO = "macro", "micro"
PERCENTILES = (2.5, 97.5)
BLOCK_NUMBERS = 4_000_000  # resampled subjects held at a time


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentile intervals of `resamples` draws of subjects, seeded."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Averages:
    """Means over queries. Row 0 is macro, row 1 micro, then one row a class.

    value, low, high, chance: (2 + classes, metrics); NaN for a class without queries.
    queries, subjects: (2 + classes,) how many were averaged.
    """

    value: Floats
    low: Floats
    high: Floats
    chance: Floats
    queries: NDArray[np.int64]
    subjects: NDArray[np.int64]


def average(
    values: Floats, chances: Floats, members: NDArray[np.bool_], subjects: NDArray[np.int64], bootstrap: Bootstrap
) -> Averages:
    """Average (q, metrics) values, and chances alike.

    members: (q, classes), which classes a query is of: one, or several. subjects: (q,) numbers, from 0.
    Macro is the mean of the classes that have queries; micro the mean of all queries.
    """
    groups = np.column_stack([np.ones(len(values), bool), members])  # micro, then the classes
    count = int(subjects.max(initial=-1)) + 1
    sums = _by_subject(values, groups, subjects, count)
    sizes = _by_subject(np.ones((len(values), 1)), groups, subjects, count)
    everyone = np.ones((1, count))
    value = _means(everyone, sums, sizes)[0]
    strata = np.unique(sizes[:, :, 0] > 0, axis=0, return_inverse=True)[1].ravel()
    drawn = np.concatenate([_means(weights, sums, sizes) for weights in _resamples(strata, bootstrap)])
    low, high = np.percentile(drawn, PERCENTILES, axis=0)  # a class is in every draw or, without queries, in none
    chance = _means(everyone, _by_subject(chances, groups, subjects, count), sizes)[0]
    queries = np.concatenate([[len(values)], groups.sum(axis=0)])
    present = sizes[:, :, 0].astype(bool).sum(axis=0)
    return Averages(value, low, high, chance, queries, np.concatenate([[present[0]], present]))


def _by_subject(values: Floats, groups: NDArray[np.bool_], subjects: NDArray[np.int64], count: int) -> Floats:
    """Sums of (q, m) values by subject and group: (subjects, groups, m)."""
    sums = np.zeros((count, groups.shape[1], values.shape[1]))
    for group in range(groups.shape[1]):
        own = groups[:, group]
        np.add.at(sums[:, group], subjects[own], values[own])
    return sums


def _means(weights: Floats, sums: Floats, sizes: Floats) -> Floats:
    """Means under (b, subjects) weights: (b, 1 + groups, m), macro first. NaN for a group without weight."""
    flat = weights @ sums.reshape(len(sums), -1)
    total = flat.reshape(len(weights), *sums.shape[1:])
    size = weights @ sizes[:, :, 0]
    with np.errstate(invalid="ignore"):
        means = np.where(size[:, :, None] > 0, total / size[:, :, None], np.nan)
    classes = means[:, 1:]
    counted = ~np.isnan(classes[:, :, :1])
    number = np.maximum(counted.sum(axis=1), 1)
    macro = np.where(counted.any(axis=1), np.where(counted, classes, 0.0).sum(axis=1) / number, np.nan)
    joined: Floats = np.concatenate([macro[:, None], means], axis=1)
    return joined


def _resamples(strata: NDArray[np.int64], bootstrap: Bootstrap) -> Iterator[Floats]:
    """How often each subject is drawn, (b, subjects) at a time. strata: (subjects,), who may stand in for whom.

    The same for the same strata and seed.
    """
    rng = np.random.default_rng(bootstrap.seed)
    members = [np.flatnonzero(strata == stratum) for stratum in range(int(strata.max(initial=-1)) + 1)]
    step = max(1, BLOCK_NUMBERS // max(len(strata), 1))
    for start in range(0, bootstrap.resamples, step):
        weights = np.zeros((min(step, bootstrap.resamples - start), len(strata)))
        for own in members:
            drawn = rng.integers(len(own), size=(len(weights), len(own))) + len(own) * np.arange(len(weights))[:, None]
            weights[:, own] = np.bincount(drawn.ravel(), minlength=len(weights) * len(own)).reshape(-1, len(own))
        yield weights
