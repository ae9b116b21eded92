"""How much work a plan is, and about how long it takes, by what earlier runs took."""

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

REPORTS_READ = 5  # the latest
TYPICAL_SLICES = 100  # of a plane, where nothing better is known


@dataclass(frozen=True)
class Estimate:
    """The work of a plan.

    size_bytes: to be read. slices: to be embedded, by every model. seconds: None if unknown. ignored: paths of files
    beside the run reports that are none, or are damaged.
    """

    size_bytes: int
    slices: int
    seconds: float | None
    ignored: tuple[str, ...] = ()


class _Stage(msgspec.Struct):
    slices: int = 0


class _Report(msgspec.Struct):
    """What is read of a run report."""

    phases_s: dict[str, float] = {}
    stages: dict[str, _Stage] = {}


def estimate(
    plan: Plan, models: Sequence[str], recipe: SliceRecipe, previous: BaseSnapshot, store: Location
) -> Estimate:
    """What the plan costs at most: objects that must be hashed first count as if they were all to be embedded."""
    steps = plan.of("embed", "check")
    slices = round(sum(len(step.missing) for step in steps) * slices_a_volume(recipe, previous))
    rate, ignored = _rate(store, models)
    size_bytes = sum(step.item.size_bytes for step in steps)
    return Estimate(size_bytes, slices, slices / rate if rate else None, ignored)


def slices_a_volume(recipe: SliceRecipe, previous: BaseSnapshot) -> float:
    """As the slice plan says; for plans that depend on the volume, as it was in the live snapshot."""
    kind, _, number = recipe.slices.partition(":")
    if kind in ("uniform", "random"):
        return float(number) * len(recipe.planes)
    slices = previous.ledger.filter(pc.greater(previous.ledger["slices"], 0))["slices"]
    if len(slices):
        return float(pc.mean(slices).as_py())
    return TYPICAL_SLICES * len(recipe.planes) / (int(number) if kind == "every" else 1)


def _rate(store: Location, models: Sequence[str]) -> tuple[float | None, tuple[str, ...]]:
    """Slices per second of the latest of some earlier runs with these models; files that are no run reports."""
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
