"""Tell what an index run would do: list the archive, read the store, write nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from medret.errors import GateError
from medret.pipeline import gates
from medret.pipeline.gates import check_labels, label_facts, label_lines, losses, other_source
from medret.pipeline.model_jobs import recipe_changes, recipe_of, refuse_replacing, with_models
from medret.pipeline.plan import Plan
from medret.pipeline.prepare import Inputs, State, is_up_to_date, plan_run, read_inputs, read_state
from medret.pipeline.request import IndexRequest
from medret.pipeline.result import begin
from medret.pipeline.store_state import BaseSnapshot, live_manifest
from medret.recipe import SliceRecipe
from medret.snapshot.names import of_kinds
from medret.storage import Location
from medret.volume import parse_slice_plan

LATEST_REPORTS = 5  # to look for a rate in
TYPICAL_SLICES, TYPICAL_MM = 100, 300  # per plane, if the store has no volumes to take a mean of


@dataclass(frozen=True)
class Estimate:
    """The work of a plan.

    size_bytes: bytes to read. slices: slices to embed, summed over models. seconds: None if unknown. ignored: paths
    below runs/ that are damaged or not run reports.
    """

    size_bytes: int
    slices: int
    seconds: float | None
    ignored: tuple[str, ...] = ()


class _Stage(msgspec.Struct):
    slices: int = 0


class _Report(msgspec.Struct):
    """The fields of a run report that the estimate reads."""

    phases_s: dict[str, float] = {}
    stages: dict[str, _Stage] = {}


def estimate(plan: Plan, models: Sequence[str], recipe: SliceRecipe, base: BaseSnapshot, store: Location) -> Estimate:
    """Estimate the most work that the plan can need: objects to hash count as if they were all embedded."""
    rows = plan.table.select(["missing", "size_bytes"]).filter(pa.array(plan.which("embed", "check")))
    per_group = rows["missing"].value_counts().to_pylist()
    vectors = sum(group["values"].bit_count() * group["counts"] for group in per_group)
    slices = round(vectors * slices_per_volume(recipe, base))
    rate, ignored = _rate(store, models)
    size_bytes = int(pc.sum(rows["size_bytes"]).as_py() or 0)
    return Estimate(size_bytes, slices, slices / rate if rate else None, ignored)


def slices_per_volume(recipe: SliceRecipe, base: BaseSnapshot) -> float:
    """Slices per volume: from the slice plan or, if that depends on the volume, the mean of the live snapshot."""
    plan = parse_slice_plan(recipe.slices)
    if plan.kind in ("uniform", "random"):
        return float(plan.count or 0) * len(recipe.planes)
    slices = base.ledger.filter(pc.greater(base.ledger["slices"], 0))["slices"]
    if len(slices):
        return float(pc.mean(slices).as_py())
    of_plane = TYPICAL_MM / plan.gap_mm if plan.gap_mm else TYPICAL_SLICES / (plan.count or 1)
    return of_plane * len(recipe.planes)


def _rate(store: Location, models: Sequence[str]) -> tuple[float | None, tuple[str, ...]]:
    """Slices per second of the latest run with these models, and the paths of files that are not valid run reports."""
    paths = store.files("runs")
    reports = of_kinds(paths, "report")
    ignored = sorted(set(paths).difference(reports))
    for path in reversed(reports[-LATEST_REPORTS:]):
        try:
            report = msgspec.json.decode(store.read(path), type=_Report)
        except (FileNotFoundError, msgspec.DecodeError, RecursionError):  # RecursionError: nested too deeply
            ignored.append(path)
            continue
        stages = {name: stage for name, stage in report.stages.items() if name.startswith("embed ")}
        slices, seconds = sum(stage.slices for stage in stages.values()), report.phases_s.get("stream", 0)
        if set(stages) == {f"embed {model}" for model in models} and slices > 0 and seconds > 0:
            return slices / seconds, tuple(ignored)
    return None, tuple(ignored)


@dataclass(frozen=True)
class IndexPlan:
    """What an index run would do.

    snapshot: id of the live snapshot; None for a new store. up_to_date: whether the run would do nothing.
    listed: objects in the archive. skipped: objects that are not volumes, per rule. labels: counts of how the labels
    match. causes: volumes per cause (`new`, `changed`, `unchanged`, `gone`, ...). lost: volumes of the live snapshot
    (`live`), and how many of them the run would lose (`gone`). to_compare: volumes whose content decides whether they
    are embedded. to_embed: volumes to embed. size_bytes, slices, seconds: upper bound of the work; seconds is None
    without an earlier run to measure. ignored_reports: paths below runs/ that are not valid run reports. embeds_anew:
    per model that must embed every volume again, the option that differs. refusals: reasons why a run would refuse.
    label_notes: lines on the inventory and the labels.
    """

    snapshot: str | None
    up_to_date: bool
    listed: int
    skipped: Mapping[str, int]
    labels: Mapping[str, Any]
    causes: Mapping[str, int]
    lost: Mapping[str, int]
    to_compare: int
    to_embed: int
    size_bytes: int
    slices: int
    seconds: float | None
    ignored_reports: tuple[str, ...]
    embeds_anew: tuple[str, ...]
    refusals: tuple[str, ...]
    label_notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        facts = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        del facts["label_notes"]
        renamed = {"causes": "plan", "size_bytes": "bytes"}
        return {renamed.get(name, name): value for name, value in facts.items()}


def plan_index(request: IndexRequest) -> IndexPlan:
    """Plan a run: list the archive, read the store, compare. Loads no model, writes nothing; raises MedretError."""
    store = request.open_store()
    request = with_models(request, live_manifest(store))
    inputs = read_inputs(request, begin())
    state = read_state(request, store, inputs)
    # A precision is None only without stored vectors; then the plan does not depend on it.
    recipes = [
        recipe_of(request, spec, weights, precision or "fp32")
        for spec, weights, precision in zip(inputs.specs, inputs.weights, state.precisions, strict=True)
    ]
    plan, _, state = plan_run(request, store, inputs, state, recipes)
    cost = estimate(plan, request.models, request.slices, state.base, store)
    lost = losses(plan)
    return IndexPlan(
        snapshot=state.base.id,
        up_to_date=is_up_to_date(request, inputs, state, recipes, plan),
        listed=inputs.listing.listed,
        skipped=dict(inputs.listing.skipped),
        labels=_label_facts(inputs, state.base.ledger),
        causes={**plan.causes(), "gone": len(plan.gone)},
        lost={"live": lost.live, "gone": lost.gone},
        to_compare=plan.count("check"),
        to_embed=plan.count("embed"),
        size_bytes=cost.size_bytes,
        slices=cost.slices,
        seconds=None if cost.seconds is None else round(cost.seconds, 1),
        ignored_reports=cost.ignored,
        embeds_anew=tuple(recipe_changes(recipes, state.base.manifest)),
        refusals=tuple(_refusals(request, inputs, state, plan)),
        label_notes=(*inputs.listing.notes, *label_lines(inputs.labels)),
    )


def _label_facts(inputs: Inputs, ledger: pa.Table) -> dict[str, Any]:
    """Counts about labels, as far as they are known before any volume is read. ledger: store_state.KNOWN."""
    tagged = ledger["volume_id"].filter(pc.is_valid(ledger["found"]))
    tagged = tagged.filter(pc.is_in(tagged, value_set=inputs.listing.objects["volume_id"]))
    return label_facts(inputs.labels, tagged, int(pc.sum(ledger["ct_without_hu"]).as_py() or 0))


def _refusals(request: IndexRequest, inputs: Inputs, state: State, plan: Plan) -> list[str]:
    """Reasons why a run would refuse that are known before any volume is read."""
    base, listing = state.base, inputs.listing

    def lost_too_much() -> None:
        source = other_source(request, listing.archive_uri, base.manifest)
        gates.enforce([gates.lost_gate(losses(plan), request.gates)], source)

    checks: list[Callable[[], object]] = [
        lambda: refuse_replacing(request, base.manifest),
        lambda: check_labels(base.ledger, listing, inputs.labels, request.gates),
        lost_too_much,
    ]
    refusals = []
    for check in checks:
        try:
            check()
        except GateError as error:
            refusals.append(str(error).removeprefix("refused to publish: ").removeprefix("refused: "))
    return refusals
