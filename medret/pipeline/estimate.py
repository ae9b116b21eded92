"""Estimate the work of a plan, and its duration from the rate of earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pyarrow.compute as pc

from medret.pipeline.plan import Plan
from medret.pipeline.store_state import BaseSnapshot
from medret.recipe import SliceRecipe
from medret.snapshot.names import own
from medret.storage import Location

REPORTS_READ = 5  # the latest ones
TYPICAL_SLICES = 100  # per plane, if nothing better is known


@dataclass(frozen=True)
class Estimate:
    """The work of a plan.

    size_bytes: bytes to read. slices: slices to embed, summed over models. seconds: None if unknown. ignored: paths of
    files among the run reports that are damaged or not reports.
    """

    size_bytes: int
    slices: int
    seconds: float | None
    ignored: tuple[str, ...] = ()


class _Stage(msgspec.Struct):
    slices: int = 0


class _Report(msgspec.Struct):
    """The part of a run report that the estimate reads."""

    phases_s: dict[str, float] = {}
    stages: dict[str, _Stage] = {}


def estimate(
    plan: Plan, models: Sequence[str], recipe: SliceRecipe, previous: BaseSnapshot, store: Location
) -> Estimate:
    """The most work that the plan can be: objects to hash first count as if all of them were embedded."""
    steps = plan.of("embed", "check")
    slices = round(sum(len(step.missing) for step in steps) * slices_per_volume(recipe, previous))
    rate, ignored = _rate(store, models)
    size_bytes = sum(step.item.size_bytes for step in steps)
    return Estimate(size_bytes, slices, slices / rate if rate else None, ignored)


def slices_per_volume(recipe: SliceRecipe, previous: BaseSnapshot) -> float:
    """Slices per volume: by the slice plan or, if that depends on the volume, as in the live snapshot."""
    kind, _, number = recipe.slices.partition(":")
    if kind in ("uniform", "random"):
        return float(number) * len(recipe.planes)
    slices = previous.ledger.filter(pc.greater(previous.ledger["slices"], 0))["slices"]
    if len(slices):
        return float(pc.mean(slices).as_py())
    return TYPICAL_SLICES * len(recipe.planes) / (int(number) if kind == "every" else 1)


def _rate(store: Location, models: Sequence[str]) -> tuple[float | None, tuple[str, ...]]:
    """Slices per second of the latest run with these models, and the paths of files that are not run reports."""
    paths = store.files("runs")
    reports = own(paths, "report")
    ignored = sorted(set(paths).difference(reports))
    for path in reversed(reports[-REPORTS_READ:]):
        try:
            report = msgspec.json.decode(store.read(path), type=_Report)
        except (FileNotFoundError, msgspec.DecodeError, RecursionError):  # RecursionError: nested without end
            ignored.append(path)
            continue
        stages = {name: stage for name, stage in report.stages.items() if name.startswith("embed ")}
        slices, seconds = sum(stage.slices for stage in stages.values()), report.phases_s.get("stream", 0)
        if set(stages) == {f"embed {model}" for model in models} and slices > 0 and seconds > 0:
            return slices / seconds, tuple(ignored)
    return None, tuple(ignored)
