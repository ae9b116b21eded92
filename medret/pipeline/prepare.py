"""Read archive, store and model weights, and plan the run. Does not start Ray and loads no model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret._version import __version__
from medret.archive import LabelJoin, Listing, list_archive, read_labels
from medret.errors import MedretError, require
from medret.models import ModelSpec, Weights, check_installed
from medret.pipeline.model_jobs import known_precisions, recipe_of, wanted_models
from medret.pipeline.plan import Plan, make_plan
from medret.pipeline.request import IndexRequest
from medret.pipeline.result import Log
from medret.pipeline.store_state import BaseSnapshot, StoreState, Target, listed_before, read_base, release, store_state
from medret.recipe import Precision, Recipe, digest_of
from medret.schemas import FILES, LEDGER
from medret.snapshot import Journal, Manifest, ledger_parts, read_files, read_journal, read_manifest, snapshot_ids
from medret.snapshot.files import SHARD_KINDS, SLICES, StoredFile, files_table, stored_files
from medret.snapshot.tables import read_table
from medret.storage import Location

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Older:
    """Rows and files of older snapshots that the plan can use.

    ledger: schemas.LEDGER. files: schemas.FILES of their embedding shards, named as in no index. unread: snapshots that
    could not be read, and why.
    """

    ledger: pa.Table
    files: pa.Table
    unread: tuple[str, ...] = ()


NOTHING = Older(LEDGER.empty_table(), FILES.empty_table())


def read_older(store: Location, base: BaseSnapshot, plan: Plan) -> Older:
    """Find stored vectors of these recipes (digests) for objects that the plan would embed, newest snapshot first.

    Takes only rows with the size of such an object, one row per content: memory grows with the objects to embed, not
    with the history of the archive. Of ledgers that share the live one's base, reads only what differs. Reads nothing
    if the plan embeds nothing.
    """
    recipes = plan.target.recipes
    sizes = plan.table["size_bytes"].filter(pa.array(plan.which("embed", "check"))).unique()
    others = [other for other in reversed(snapshot_ids(store)) if other != base.id] if len(sizes) else []
    if not others:
        return NOTHING
    present = {path for recipe in recipes for path in store.files(f"embeddings/{recipe}")}
    bits = plan.state.stored(recipes)
    complete = bits == (1 << len(recipes)) - 1
    known = plan.state.rows.select(["size_bytes", "content_sha256", "shards"])
    stored = known["content_sha256"].filter(pa.array(complete))
    seen = _contents(known.filter(pa.array((bits > 0) & ~complete)), sizes)
    hidden = cache(lambda: _hidden_rows(store, base.manifest))
    ledgers, files, unread = [NOTHING.ledger], [NOTHING.files], []
    for snapshot_id in others:
        try:
            manifest = read_manifest(store, snapshot_id)
            if not any(entry.digest in recipes for entry in manifest.recipes):
                continue
            embedding_files = _embedding_files(store, snapshot_id, manifest, recipes)
            readable = [file for file in embedding_files if file.path in present]
            shards = {file.key for file in readable if file.kind == SLICES}
            rows: list[dict[str, Any]] = []
            if base.manifest is not None and manifest.tables_of("ledger") == base.manifest.tables_of("ledger"):
                changes = (read_table(store, entry) for entry in manifest.tables_of("changes"))
                pieces: Iterable[pa.Table] = chain(changes, [hidden()])
            else:
                pieces = ledger_parts(store, snapshot_id, manifest)
            for piece in pieces:  # one at a time: they may be large
                useful = pc.and_(pc.equal(piece["status"], "embedded"), pc.is_in(piece["size_bytes"], value_set=sizes))
                piece = piece.filter(useful).cast(LEDGER)
                piece = piece.filter(pc.invert(pc.is_in(piece["content_sha256"], value_set=stored)))
                rows += [row for row in piece.to_pylist() if _trimmed(row, shards, seen)["shards"]]
        except (MedretError, pa.ArrowInvalid, ValueError) as error:  # a snapshot of another medret, or damaged
            unread.append(f"{snapshot_id}: {error}")
            continue
        seen |= {(row["content_sha256"], recipe) for row in rows for recipe, _ in row["shards"]}
        used = {key for row in rows for key in row["shards"]}
        ledgers.append(pa.Table.from_pylist(rows, schema=LEDGER))
        files.append(files_table(file for file in readable if file.key in used))
    return Older(pa.concat_tables(ledgers), pa.concat_tables(files), tuple(unread))


def _hidden_rows(store: Location, base: Manifest | None) -> pa.Table:
    """The rows in the base of a ledger that its changes replace or remove (schemas.LEDGER)."""
    hidden = [LEDGER.empty_table()]
    if base is None:
        return hidden[0]
    for changes in (read_table(store, entry, ["volume_id"]) for entry in base.tables_of("changes")):
        parts = (read_table(store, entry) for entry in base.tables_of("ledger"))
        hidden += [part.filter(pc.is_in(part["volume_id"], value_set=changes["volume_id"])) for part in parts]
    return pa.concat_tables(hidden)


def _contents(rows: pa.Table, sizes: pa.Array) -> set[tuple[str | None, str]]:
    """The pairs of content and recipe that these rows have vectors of, among objects of these sizes."""
    chosen = rows.filter(pc.is_in(rows["size_bytes"], value_set=sizes))
    return {(row["content_sha256"], recipe) for row in chosen.to_pylist() for recipe, _ in row["shards"] or ()}


def _embedding_files(
    store: Location, snapshot_id: str, manifest: Manifest, recipes: Collection[str]
) -> list[StoredFile]:
    """The embedding files of these recipes, without their index shards: another snapshot has other indices."""
    files = read_files(store, snapshot_id, manifest).cast(FILES)
    return [replace(file, indexed_in=None) for file in stored_files(files, SHARD_KINDS) if file.recipe in recipes]


def _trimmed(
    row: dict[str, Any], shards: Collection[tuple[str, str]], seen: Collection[tuple[str | None, str]]
) -> dict[str, Any]:
    """Drop from the ledger row the vectors outside these shards, and those already seen in a newer snapshot."""
    row["shards"] = [
        (recipe, shard)
        for recipe, shard in row["shards"]
        if (recipe, shard) in shards and (row["content_sha256"], recipe) not in seen
    ]
    return row


@dataclass(frozen=True)
class Inputs:
    """The archive as it is now, and the requested models."""

    listing: Listing
    labels: LabelJoin
    specs: tuple[ModelSpec, ...]
    weights: tuple[Weights, ...]


@dataclass(frozen=True)
class State:
    """The store as it is now.

    known: every ledger row that the store holds. precisions: per model; None if the device decides. older: None until
    `plan_run` has read it.
    """

    base: BaseSnapshot
    journal: Journal
    known: StoreState
    precisions: tuple[Precision | None, ...]
    older: Older | None = None

    @property
    def files(self) -> pa.Table:
        """All stored embedding files, those of the live snapshot first (schemas.FILES)."""
        return pa.concat_tables([self.base.files, self.journal.files, (self.older or NOTHING).files])


def read_inputs(request: IndexRequest, log: Log, warn: Callable[[str], None] = logger.warning) -> Inputs:
    """List the archive, join the labels, resolve the weights; raises UsageError."""
    require("duckdb")
    models = wanted_models(request)
    for model in models:
        check_installed(model.spec)
        if model.spec.terms:
            warn(f"{model.spec.name} ({model.spec.licence}): {model.spec.terms}")
    with log.phase("list"):
        listing = list_archive(
            request.archive,
            request.pattern,
            exclude=request.exclude,
            include_masks=request.include_masks,
            inventory=request.inventory,
            known=lambda: listed_before(Location(request.store)),
        )
        if pc.any(pc.is_valid(listing.objects["parts"])).as_py():
            require("pydicom")
        labels = read_labels(request.labels, listing)
    with log.phase("weights"):
        found = [model.resolve() for model in models]
    return Inputs(listing, labels, tuple(spec for spec, _ in found), tuple(weights for _, weights in found))


def read_state(request: IndexRequest, store: Location, inputs: Inputs) -> State:
    """Read the live snapshot and the journal, and find the precision of each model."""
    base, journal = read_base(store), read_journal(store)
    precisions = known_precisions(request, inputs.specs, inputs.weights, base, journal)
    return State(base, journal, store_state(base, journal), tuple(precisions))


def known_recipes(request: IndexRequest, inputs: Inputs, state: State) -> list[Recipe] | None:
    """The recipes of the run; None if the device decides a precision, which only a running cluster can tell."""
    recipes = []
    for spec, weights, precision in zip(inputs.specs, inputs.weights, state.precisions, strict=True):
        if precision is None:
            return None
        recipes.append(recipe_of(request, spec, weights, precision))
    return recipes


def plan_run(
    request: IndexRequest, store: Location, inputs: Inputs, state: State, recipes: Sequence[Recipe]
) -> tuple[Plan, Target, State]:
    """Plan the run from the listing, reading older snapshots for vectors to reuse; returns the state with them."""
    target = Target(
        recipes=tuple(recipe.digest for recipe in recipes),
        ruleset_digest=ruleset_digest(request, recipes),
        retry=request.retry_quarantined,
        copies=not request.slices.slices.startswith("random"),
        hidden=request.hidden_labels,
    )
    plan = make_plan(inputs.listing, inputs.labels.labels, state.known, target)
    if state.older is None:
        older = read_older(store, state.base, plan)
        state = replace(state, older=older)
        if older.ledger.num_rows:
            state = replace(state, known=store_state(state.base, state.journal, older.ledger))
            plan = make_plan(inputs.listing, inputs.labels.labels, state.known, target)
    release()
    return plan, target, state


def ruleset_digest(request: IndexRequest, recipes: Sequence[Recipe]) -> str:
    """Digest of all that decides whether a volume is quarantined: medret version, limits, recipes, aggregations."""
    return digest_of(
        {
            "medret": __version__,
            "limits": asdict(request.volume_limits),
            "recipes": sorted(recipe.digest for recipe in recipes),
            "aggregations": sorted(aggregation.name for aggregation in request.aggregations),
        }
    )


def changes_every_row(inputs: Inputs, state: State, target: Target) -> bool:
    """Whether no row of the live ledger can stay: all have other URIs now, or vectors of recipes that go.

    They do not stay either if some have labels from tags that are hidden now: a base of the ledger must not keep those.
    """
    manifest = state.base.manifest
    if manifest is None:
        return False
    stored = {entry.digest for entry in manifest.recipes}
    moved = manifest.archive_uri != inputs.listing.archive_uri
    return moved or not stored <= set(target.recipes) or _keeps_hidden(state, target)


def _keeps_hidden(state: State, target: Target) -> bool:
    """Whether the live ledger has labels from tags that are hidden now."""
    named = pc.unique(state.base.ledger["found"]).drop_null().to_pylist()
    return any(not target.hidden.isdisjoint(names.split(",")) for names in named)


def is_up_to_date(request: IndexRequest, inputs: Inputs, state: State, recipes: Sequence[Recipe], plan: Plan) -> bool:
    """Whether the run would publish the live snapshot again."""
    manifest = state.base.manifest
    if manifest is None or not plan.idle:
        return False
    requested = [
        [recipe.digest for recipe in recipes],
        [aggregation.name for aggregation in request.aggregations],
        request.index.to_json(),
        inputs.listing.archive_uri,
    ]
    published = [
        [entry.load().digest for entry in manifest.recipes],
        manifest.aggregations,
        manifest.index_settings,
        manifest.archive_uri,
    ]
    relabelled = plan.table["relabelled"].filter(pc.is_valid(plan.table["live"]))
    return requested == published and not pc.any(relabelled).as_py() and not _keeps_hidden(state, plan.target)
