"""Late interaction against the cheaper modes: where it is worse, for which classes, and by how many queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medret.evaluate.averages import MACRO
from medret.evaluate.configs import SearchConfig
from medret.evaluate.result import Evaluation
from medret.index import EXACT
from medret.search.options import LATE, VOLUME, VOTE

METRIC = "recall@1"


def late_notes(found: Evaluation) -> list[str]:
    """A sentence for every model, level and exclusion at which another mode has the better macro recall@1 than late."""
    notes: list[str] = []
    for late in _late_arms(found):
        for exclude in found.excludes:
            for level in found.levels:
                notes += _compared(found, late, exclude, level)
    return notes


def _late_arms(found: Evaluation) -> Iterator[SearchConfig]:
    """One a model: with the exact index where that was run."""
    for model in dict.fromkeys(arm.model for arm in found.arms):
        own = [arm for arm in found.arms if (arm.model, arm.mode) == (model, LATE)]
        if own:
            yield min(own, key=lambda arm: arm.index != EXACT)


def _compared(found: Evaluation, late: SearchConfig, exclude: str, level: str) -> Iterator[str]:
    mine = found.figure(late, exclude, level, MACRO, METRIC)
    for mode in (VOLUME, VOTE):
        arm = replace(late, mode=mode)
        theirs = found.figure(arm, exclude, level, MACRO, METRIC)
        if mine is None or theirs is None or mine.value >= theirs.value - 1e-9:
            continue
        classes = [
            _difference(found, late, arm, exclude, level, name) for name in found.classes_of(late, exclude, level)
        ]
        apart = "their intervals do not overlap" if mine.high < theirs.low else "their intervals overlap"
        if not (mine.has_interval and theirs.has_interval):
            apart = "without intervals: a class has one subject"
        yield (
            f"{late.model}, {level}, exclude {exclude}: late has macro {METRIC} {mine.value:.3f}, {mode} "
            f"{theirs.value:.3f} ({apart}); worse for {', '.join(filter(None, classes))}"
        )


def _difference(found: Evaluation, late: SearchConfig, other: SearchConfig, exclude: str, level: str, name: str) -> str:
    """The queries whose first hit is right, where late has fewer of them."""
    mine, theirs = (found.figure(arm, exclude, level, name, METRIC) for arm in (late, other))
    if mine is None or theirs is None or mine.value >= theirs.value - 1e-9:
        return ""
    right = [round(row.value * row.n) for row in (mine, theirs)]
    return f"{name} ({right[0]} of {mine.n} queries right, {other.mode} {right[1]})"
