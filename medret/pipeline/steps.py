"""The plan of a run as a table, and its rows as values: what becomes of each listed object."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import ArchiveObject, Listing
from medret.errors import QuarantineCode
from medret.pipeline.store_state import StoreState, rows_of
from medret.schemas import OBJECTS

Action = Literal["keep", "refuse", "copy", "check", "embed"]
Cause = Literal[
    "unchanged", "resumed", "returned", "refused", "touched", "renamed", "recipe", "new", "changed", "retried"
]
ACTIONS, CAUSES = get_args(Action), get_args(Cause)

# The archive failed, not the volume: try again next time, also with the same ruleset.
TRANSIENT_CODES = frozenset({QuarantineCode.UNREADABLE, QuarantineCode.CHANGED_WHILE_READING})

BATCH_ROWS = 10_000  # rows that become values at once

# One row per object. row: of StoreState.rows, whose vectors are kept, copied or extended, or whose refusal stands.
# more: further rows with vectors of the same content, of other recipes. live: the volume's row in the live snapshot.
# missing: recipes to embed with; bit i is that of Target.recipes[i]. relabelled: whether the live row has
# other labels. leader: volume of this run whose vectors are copied once they exist; content_sha256: of both.
PLAN = pa.schema(
    [
        *OBJECTS,
        pa.field("modality", pa.string()),
        pa.field("action", pa.dictionary(pa.int8(), pa.string())),
        pa.field("cause", pa.dictionary(pa.int8(), pa.string())),
        pa.field("row", pa.int32()),
        pa.field("more", pa.list_(pa.int32())),
        pa.field("live", pa.int32()),
        pa.field("missing", pa.int64()),
        pa.field("relabelled", pa.bool_()),
        pa.field("leader", pa.string()),
        pa.field("content_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Target:
    """What the new snapshot must contain.

    recipes: digests. ruleset_digest: digest of all that decides whether a volume is quarantined.
    retry: try every quarantined volume again. copies: whether equal content gives equal vectors under another name
    (false if the slices are drawn by a generator seeded with the name). hidden: names of labels that tags do not give.
    """

    recipes: tuple[str, ...]
    ruleset_digest: str
    retry: bool = False
    copies: bool = True
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Step:
    """What becomes of one listed object.

    place: its row in the plan. item: the object as listed. content_sha256: of the stored vectors to keep, copy or
    extend; None if the content must be read first. row: row of StoreState.rows to keep, copy, refuse or extend. shards:
    recipe digest -> embedding shard of the stored vectors. leader: volume of this run whose vectors are copied once
    they exist. missing: digests of the recipes to embed with. live: the volume's row in the live snapshot.
    """

    place: int
    item: ArchiveObject
    modality: str | None
    action: Action
    cause: Cause
    content_sha256: str | None = None
    row: int | None = None
    shards: Mapping[str, str] = field(default_factory=dict)
    leader: str | None = None
    missing: tuple[str, ...] = ()
    live: int | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of all listed objects.

    table: PLAN, in the order of their ids. gone: rows of the live snapshot whose volumes are no longer listed. The
    other fields are what the plan was made from.
    """

    table: pa.Table
    gone: NDArray[np.int64]
    listing: Listing
    state: StoreState
    target: Target

    def codes(self, name: Literal["action", "cause"]) -> NDArray[np.int8]:
        """The action or the cause of every row, as its place in ACTIONS or CAUSES."""
        return np.concatenate([np.zeros(0, np.int8), *(part.indices.to_numpy() for part in self.table[name].chunks)])

    def which(self, *actions: Action) -> NDArray[np.bool_]:
        """Whether each row has one of these actions."""
        return np.isin(self.codes("action"), [ACTIONS.index(action) for action in actions])

    def count(self, *actions: Action) -> int:
        """Number of rows with one of these actions."""
        return int(self.which(*actions).sum())

    def causes(self) -> dict[str, int]:
        """Count the steps per cause."""
        counts = np.bincount(self.codes("cause"), minlength=len(CAUSES)).tolist()
        return {cause: count for cause, count in zip(CAUSES, counts, strict=True) if count}

    @property
    def idle(self) -> bool:
        """Whether the live snapshot already holds exactly the volumes of the archive."""
        return not len(self.gone) and self.causes().keys() <= {"unchanged", "refused"}

    def of(self, *actions: Action) -> Iterator[Step]:
        """The steps with one of these actions, made in batches."""
        return self.steps(np.flatnonzero(self.which(*actions)))

    def steps(self, places: NDArray[np.int64]) -> Iterator[Step]:
        """The steps of these rows, in ascending order, made in batches."""
        for at in range(0, len(places), BATCH_ROWS):
            batch = places[at : at + BATCH_ROWS]
            columns = rows_of(self.table, batch).to_pydict()
            rows = [row for row in columns["row"] if row is not None] + [
                r for more in columns["more"] for r in more or ()
            ]
            numbers = np.unique(np.array(rows, np.int64))
            stored = rows_of(self.state.rows.select(["content_sha256", "shards"]), numbers).to_pylist()
            known = dict(zip(numbers.tolist(), stored, strict=True))
            for place, values in zip(batch.tolist(), zip(*columns.values(), strict=True), strict=True):
                yield self._step(place, dict(zip(columns, values, strict=True)), known)

    def _step(self, place: int, values: dict[str, Any], known: Mapping[int, Mapping[str, Any]]) -> Step:
        item = ArchiveObject(
            values["volume_id"], self.listing.uri_of(values["volume_id"]), values["size_bytes"], values["etag"],
            values["mtime"], values["parts"], None if values["names"] is None else tuple(values["names"]),
        )  # fmt: skip
        row, recipes = values["row"], self.target.recipes
        sources = (
            [] if row is None or values["action"] == "refuse" else [known[r] for r in (row, *(values["more"] or ()))]
        )
        shards: dict[str, str] = {}
        for source in reversed(sources):  # the first row with a recipe wins
            shards |= {digest: shard for digest, shard in source["shards"] or () if digest in recipes}
        return Step(
            place, item, values["modality"], values["action"], values["cause"],
            values["content_sha256"] or (sources[0]["content_sha256"] if sources else None), row, shards,
            values["leader"], recipes_of(values["missing"], recipes), values["live"],
        )  # fmt: skip

    def places(self, volume_ids: Collection[str]) -> NDArray[np.int64]:
        """The rows of these volumes."""
        ids = pa.array(list(volume_ids), pa.string())
        return np.flatnonzero(pc.is_in(self.table["volume_id"], value_set=ids).to_numpy())

    def changed(self, places: Sequence[int] | NDArray[np.int64], **columns: Sequence[Any]) -> Plan:
        """The plan with other values in these columns, at these rows."""
        order = np.arange(self.table.num_rows)
        order[places] = self.table.num_rows + np.arange(len(places))
        table = self.table
        for name, values in columns.items():
            replaced = pa.chunked_array([*table[name].chunks, plan_column(name, values)]).take(pa.array(order))
            table = table.set_column(table.schema.get_field_index(name), PLAN.field(name), replaced)
        return replace(self, table=table)


def recipes_of(bits: int, recipes: Sequence[str]) -> tuple[str, ...]:
    """The recipes whose bits are set."""
    return tuple(recipe for bit, recipe in enumerate(recipes) if bits >> bit & 1)


def plan_column(name: str, values: Sequence[Any]) -> pa.Array:
    """A column of PLAN; actions and causes have the same dictionary everywhere."""
    words = {"action": ACTIONS, "cause": CAUSES}.get(name)
    if words is None:
        return pa.array(values, PLAN.field(name).type)
    codes = pa.array([words.index(value) for value in values], pa.int8())
    return pa.DictionaryArray.from_arrays(codes, pa.array(words, pa.string()))
