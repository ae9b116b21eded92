"""Judge what a run would publish: by its losses before anything is embedded, by all gates at the end."""

from __future__ import annotations

from dataclasses import asdict

import pyarrow as pa

from medret.errors import QuarantineCode
from medret.pipeline import gates
from medret.pipeline import ledger as ledgers
from medret.pipeline.gate_inputs import canary_cosines, content_by_id, findable_rows, vector_facts
from medret.pipeline.indices import Indices
from medret.pipeline.insist import losses, other_source
from medret.pipeline.plan import Plan
from medret.pipeline.prepare import Inputs, State
from medret.pipeline.request import IndexRequest
from medret.pipeline.run_report import Log
from medret.pipeline.stream import Streamed
from medret.snapshot import Counts
from medret.storage import Location


def lost(state: State, log: Log, plan: Plan, ledger: pa.Table | None = None) -> gates.Losses:
    """The losses of the live snapshot; with the ledger of the new one, newly quarantined volumes count too."""
    refused = ledgers.quarantine(ledger)["volume_id"].to_pylist() if ledger is not None else ()
    found = losses(plan, state.known, refused)
    log.facts["lost"] = asdict(found)
    return found


def refuse_losing(request: IndexRequest, inputs: Inputs, state: State, log: Log, plan: Plan) -> None:
    """Raise GateError, before anything is embedded, if the run would lose too much of the live snapshot."""
    gates.enforce([gates.lost_gate(lost(state, log, plan), request.gates)], source_hint(request, inputs, state))


def source_hint(request: IndexRequest, inputs: Inputs, state: State) -> str:
    """The likely cause of a loss, in words."""
    return other_source(request, inputs.listing.archive_uri, state.previous.manifest)


def all_gates(
    store: Location, request: IndexRequest, state: State, log: Log, plan: Plan, counts: Counts, made: Streamed,
    pool: pa.Table, ledger: pa.Table, indices: Indices,
) -> list[gates.Gate]:  # fmt: skip
    """Run every check before publication. pool: all available embedding files. ledger: of the new snapshot."""
    limits = request.gates
    facts = vector_facts(store, pa.concat_tables([made.files, state.journal.files]))
    return [
        gates.lost_gate(lost(state, log, plan, ledger), limits),
        gates.quarantine_gate(counts, ledgers.count_of(ledger, QuarantineCode.LABEL_MASK), limits),
        gates.vector_gate(facts),
        gates.duplicate_gate(facts, content_by_id(ledger), limits),
        gates.canary_gate(canary_cosines(store, made.canaries, plan, pool), limits),
        gates.findable_gate(findable_rows(store, indices, ledger)),
        gates.recall_gate(indices.entries, limits),
    ]


def hints(request: IndexRequest, inputs: Inputs, state: State, ledger: pa.Table) -> str:
    """What a refusal adds to its message: quarantined volumes by code, and whether the archive may be the wrong one."""
    found = ledgers.codes(ledger)
    return (f" (quarantine: {found})" if found else "") + source_hint(request, inputs, state)
