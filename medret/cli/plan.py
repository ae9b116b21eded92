"""`medret plan`: what `medret index` would do."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from medret.cli.index import add_options, request_of
from medret.cli.shared import add_command
from medret.errors import GateError
from medret.visible import say

if TYPE_CHECKING:
    from medret.pipeline.estimate import Estimate
    from medret.pipeline.plan import Plan
    from medret.pipeline.prepare import Inputs, State
    from medret.pipeline.request import IndexRequest

DESCRIPTION = """\
Say what `medret index` with the same options would do: how many volumes are new, changed, gone or to be tried
again, the bytes to read, the slices to embed, and about how long that takes. Touches nothing, loads no model.

A volume whose size is as before but whose time or etag is not is `touched`; one that has the size of known
content may be a copy. The run compares their contents first, and embeds only those that differ.

Where `medret index` would refuse because too much of the live snapshot would be lost, it says so and why.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "plan", run, "say what an index run would do", DESCRIPTION, "")
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.pipeline.estimate import estimate
    from medret.pipeline.insist import embedded_anew, with_models
    from medret.pipeline.labelled import label_lines
    from medret.pipeline.model_jobs import recipe_of
    from medret.pipeline.prepare import is_up_to_date, plan_run, read_inputs, read_state
    from medret.pipeline.report import begin
    from medret.pipeline.store_state import live_manifest
    from medret.storage import Location

    request = request_of(arguments)
    store = Location(request.store)
    request = with_models(request, live_manifest(store))
    inputs = read_inputs(request, begin())
    state = read_state(request, store, inputs)
    # Without any vectors at hand, the precision that the device would choose does not matter to the plan.
    recipes = [
        recipe_of(request, spec, weights, precision or "fp32")
        for spec, weights, precision in zip(inputs.specs, inputs.weights, state.precisions, strict=True)
    ]
    plan, _, state = plan_run(request, store, inputs, state, recipes)
    cost = estimate(plan, request.models, request.slices, state.previous, store)
    idle = is_up_to_date(request, inputs, state, recipes, plan)
    document = to_json(plan, inputs, state, cost, idle=idle) | {
        "embeds_anew": embedded_anew(recipes, state.previous.manifest),
        "refusals": _refusals(request, inputs, state, plan),
    }
    if arguments.json:
        say(json.dumps(document))
    else:
        from medret.cli.tables import print_plan

        print_plan(document, label_lines(inputs.labels))
    return 0


def _refusals(request: IndexRequest, inputs: Inputs, state: State, plan: Plan) -> list[str]:
    """Why `medret index` with the same options would refuse, as far as that can be said before anything is read."""
    from medret.pipeline import gates
    from medret.pipeline.insist import losses, other_source, refuse_replacing
    from medret.pipeline.labelled import check_labels

    manifest, found = state.previous.manifest, []
    try:
        refuse_replacing(request, manifest)
    except GateError as error:
        found.append(str(error).removeprefix("refused: "))
    try:
        check_labels(state.previous.ledger, inputs.listing, inputs.labels, request.gates)
    except GateError as error:
        found.append(str(error).removeprefix("refused to publish: "))
    try:
        source = other_source(request, inputs.listing.archive_uri, manifest)
        gates.enforce([gates.lost_gate(losses(plan, state.known), request.gates)], source)
    except GateError as error:
        found.append(str(error).removeprefix("refused to publish: "))
    return found


def to_json(plan: Plan, inputs: Inputs, state: State, cost: Estimate, *, idle: bool) -> dict[str, Any]:
    """The document that `--json` prints."""
    from medret.pipeline.insist import losses
    from medret.pipeline.labelled import label_facts

    lost = losses(plan, state.known)
    return {
        "snapshot": state.previous.id,
        "up_to_date": idle,
        "listed": inputs.listing.listed,
        "skipped": dict(inputs.listing.skipped),
        "labels": label_facts(inputs.labels, state.previous.ledger),
        "plan": {**plan.causes(), "gone": len(plan.gone)},
        "lost": {"live": lost.live, "gone": lost.gone},
        "to_compare": len(plan.of("check")),
        "to_embed": len(plan.of("embed")),
        "bytes": cost.size_bytes,
        "slices": cost.slices,
        "seconds": None if cost.seconds is None else round(cost.seconds, 1),
        "ignored_reports": list(cost.ignored),
    }
