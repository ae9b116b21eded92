"""How much work a plan is, and about how long it takes, by what earlier runs took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from medret.pipeline.known import Previous
from medret.pipeline.plan import Plan
from medret.recipe import SliceRecipe
from medret.storage import Location

REPORTS_READ = 5  # the latest
TYPICAL_SLICES = 100  # of a plane, where nothing better is known


@dataclass(frozen=True)
class Estimate:
    """The work of a plan. size_bytes: to be read. slices: to be embedded, by every model. seconds: None if unknown."""

    size_bytes: int
    slices: int
    seconds: float | None


def estimate(plan: Plan, models: Sequence[str], recipe: SliceRecipe, previous: Previous, store: Location) -> Estimate:
    """What the plan costs at most: objects that must be hashed first count as if they were all to be embedded."""
    steps = plan.of("embed", "check")
    slices = round(sum(len(step.missing) for step in steps) * slices_a_volume(recipe, previous))
    rate = next(_rates(store, models), None)
    size_bytes = sum(step.item.size_bytes for step in steps)
    return Estimate(size_bytes, slices, slices / rate if rate else None)


def slices_a_volume(recipe: SliceRecipe, previous: Previous) -> float:
    """As the slice plan says; for plans that depend on the volume, as it was in the live snapshot."""
    kind, _, number = recipe.slices.partition(":")
    if kind in ("uniform", "random"):
        return float(number) * len(recipe.planes)
    slices = previous.ledger.filter(pc.greater(previous.ledger["slices"], 0))["slices"]
    if len(slices):
        return float(pc.mean(slices).as_py())
    return TYPICAL_SLICES * len(recipe.planes) / (int(number) if kind == "every" else 1)


def _rates(store: Location, models: Sequence[str]) -> Iterator[float]:
    """Slices a second of earlier runs with these models, latest first."""
    for path in reversed(store.files("runs")[-REPORTS_READ:]):
        report: dict[str, Any] = json.loads(store.read(path))
        stages = {name: count for name, count in report.get("stages", {}).items() if name.startswith("embed ")}
        slices = sum(count["slices"] for count in stages.values())
        seconds = report.get("phases_s", {}).get("stream", 0)
        if set(stages) == {f"embed {model}" for model in models} and slices and seconds:
            yield slices / seconds
