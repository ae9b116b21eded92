"""What an index run would do, without doing it: reads the archive's listing and the store, writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from medret.errors import GateError
from medret.pipeline import gates
from medret.pipeline.estimate import estimate
from medret.pipeline.insist import (
    check_labels,
    embedded_anew,
    label_facts,
    label_lines,
    losses,
    other_source,
    refuse_replacing,
    with_models,
)
from medret.pipeline.model_jobs import recipe_of
from medret.pipeline.plan import Plan
from medret.pipeline.prepare import Inputs, State, is_up_to_date, plan_run, read_inputs, read_state
from medret.pipeline.request import IndexRequest
from medret.pipeline.run_report import begin
from medret.pipeline.store_state import live_manifest
from medret.storage import Location


@dataclass(frozen=True)
class IndexPlan:
    """What an index run would do.

    snapshot: id of the live snapshot, None for a new store. up_to_date: whether the run would do nothing.
    listed: objects in the archive. skipped: objects that are not volumes, per rule. labels: how labels match, in
    counts. causes: volumes per cause (`new`, `changed`, `unchanged`, `gone`, ...). lost: volumes of the live snapshot
    (`live`), and how many of them the run would lose (`gone`). to_compare: volumes whose content decides whether they
    are embedded. to_embed: volumes to embed. size_bytes, slices, seconds: the most work that this is; seconds is None
    if no earlier run tells. ignored_reports: files among the run reports that are none. embeds_anew: per model that
    embeds every volume again, which option differs. refusals: why a run would refuse. label_notes: lines on labels.
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
    """Plan a run: list the archive, read the store, compare. Loads no model and writes nothing; raises MedretError."""
    store = Location(request.store)
    request = with_models(request, live_manifest(store))
    inputs = read_inputs(request, begin())
    state = read_state(request, store, inputs)
    # Without any stored vectors, the precision that the device would choose does not matter to the plan.
    recipes = [
        recipe_of(request, spec, weights, precision or "fp32")
        for spec, weights, precision in zip(inputs.specs, inputs.weights, state.precisions, strict=True)
    ]
    plan, _, state = plan_run(request, store, inputs, state, recipes)
    cost = estimate(plan, request.models, request.slices, state.previous, store)
    lost = losses(plan, state.known)
    return IndexPlan(
        snapshot=state.previous.id,
        up_to_date=is_up_to_date(request, inputs, state, recipes, plan),
        listed=inputs.listing.listed,
        skipped=dict(inputs.listing.skipped),
        labels=label_facts(inputs.labels, state.previous.ledger),
        causes={**plan.causes(), "gone": len(plan.gone)},
        lost={"live": lost.live, "gone": lost.gone},
        to_compare=len(plan.of("check")),
        to_embed=len(plan.of("embed")),
        size_bytes=cost.size_bytes,
        slices=cost.slices,
        seconds=None if cost.seconds is None else round(cost.seconds, 1),
        ignored_reports=cost.ignored,
        embeds_anew=tuple(embedded_anew(recipes, state.previous.manifest)),
        refusals=tuple(_refusals(request, inputs, state, plan)),
        label_notes=tuple(label_lines(inputs.labels)),
    )


def _refusals(request: IndexRequest, inputs: Inputs, state: State, plan: Plan) -> list[str]:
    """Why a run would refuse, as far as that is known before any volume is read."""
    previous, listing = state.previous, inputs.listing

    def lost_too_much() -> None:
        source = other_source(request, listing.archive_uri, previous.manifest)
        gates.enforce([gates.lost_gate(losses(plan, state.known), request.gates)], source)

    checks: list[Callable[[], object]] = [
        lambda: refuse_replacing(request, previous.manifest),
        lambda: check_labels(previous.ledger, listing, inputs.labels, request.gates),
        lost_too_much,
    ]
    refusals = []
    for check in checks:
        try:
            check()
        except GateError as error:
            refusals.append(str(error).removeprefix("refused to publish: ").removeprefix("refused: "))
    return refusals
