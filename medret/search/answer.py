"""From queries to hits: resolve, rank, then labels and matching slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medret.errors import MedretError, UsageError
from medret.search.contents import Contents
from medret.search.ensemble import CONCAT, Member, members_of, rank_ensemble
from medret.search.hit import Hit, SliceMatch, SlicePair
from medret.search.kept import NONE, SELF, excluded_of
from medret.search.ledger import LedgerRow
from medret.search.matching import match_of, match_slices, nearest_of_each
from medret.search.merge import ScoredRow, merge_slices
from medret.search.modes import SLICE, ModeOptions, check_mode, slices_found
from medret.search.options import ResolveOptions, SearchOptions
from medret.search.query import Query, QueryVectors
from medret.search.region import AXES
from medret.search.score import mode_of
from medret.search.shards import StoredRows

if TYPE_CHECKING:
    from medret.search.snapshot import Snapshot

DEFAULT_INDEX = "hnsw"


def answer(
    snapshot: Snapshot, contents: Contents, queries: Sequence[Query], k: int, options: SearchOptions
) -> list[list[Hit]]:
    """The hits of each query; see `Snapshot.search_many`."""
    mode, index = mode_of(options), options.get("index", DEFAULT_INDEX)
    _check_count("k", k)
    check_mode(mode)
    unknown = sorted(set(options) - SearchOptions.__optional_keys__)
    if unknown:
        raise UsageError(f"search has no option '{unknown[0]}'; there are {', '.join(SearchOptions.__optional_keys__)}")
    members = members_of(contents, options.get("model"), options.get("aggregation"))
    how = _mode_options(options)
    for member in members:
        contents.indices(member.model, member.aggregation, index, mode)  # before a model is loaded
    if not queries:
        return []
    asked = [[snapshot.resolve(query, **_resolving(options, member)) for query in queries] for member in members]
    excluded = _excluded(contents, asked[0], options.get("exclude", NONE))
    where = options.get("where")
    if mode == SLICE:
        if len(members) > 1:
            raise UsageError(f"mode '{SLICE}' takes one model: the slices of several are not fused")
        return _by_slice(contents, members[0], asked[0], k, index, excluded, where)
    if len(members) > 1:
        found = rank_ensemble(
            snapshot, contents, members, asked, k,
            fuse=options.get("fuse", CONCAT), index=index, mode=mode, excluded=excluded, where=where, options=how,
        )  # fmt: skip
    else:
        found = snapshot.rank(
            asked[0], k, model=members[0].model, aggregation=members[0].aggregation, index=index, mode=mode,
            excluded=excluded, where=where, options=how,
        )  # fmt: skip
    entry = contents.recipe(members[0].model)
    rows = _rows(contents, (one for ranked in found for one in ranked))
    hits = []
    for query, ranked in zip(asked[0], found, strict=True):
        stored = contents.stored(entry, None, [rows[one.volume_id] for one in ranked])
        if query.slices.positions is None:
            matches = _match_vector(query.slices.vectors[0], stored)
        else:
            own = zip(ranked, stored, strict=True)
            matches = [_match(contents, query, one.volume_id, slices) for one, slices in own]
        hits.append(_hits(rows, ranked, matches))
    return hits


def _rows(contents: Contents, found: Iterable[ScoredRow]) -> dict[str, LedgerRow]:
    """The ledger's rows of all that was found."""
    wanted = {one.volume_id for one in found}
    rows = contents.ledger.rows(wanted)
    if missing := sorted(wanted - rows.keys()):
        raise MedretError(f"snapshot {contents.id}: its ledger has no row of {missing[0]}; run `medret verify`")
    return rows


def _match_vector(vector: NDArray[np.float32], stored: Sequence[StoredRows | None]) -> list[SliceMatch | None]:
    """For a query that is one volume vector, the slice of each hit that is most like it: as `match_slices` finds it."""
    there = [one for one in stored if one is not None]
    nearest = iter(nearest_of_each(vector, [one.shard.exact.codes(one.rows) for one in there]))
    matches: list[SliceMatch | None] = []
    for one in stored:
        if one is None:
            matches.append(None)
            continue
        at, score = next(nearest)
        plane, position = one.shard.table.slice_at(one.rows.start + at)
        pair = SlicePair(plane, None, position, score)
        matches.append(SliceMatch(plane, None, (position, position), score, (pair,)))
    return matches


def _match(contents: Contents, query: QueryVectors, volume_id: str, stored: StoredRows | None) -> SliceMatch | None:
    if stored is None:
        return None
    theirs = contents.ledger.spacing_mm(volume_id) if query.spacing_mm else None
    paces = None
    if query.spacing_mm and theirs:
        paces = {plane: own / other for plane, own, other in zip(AXES, query.spacing_mm, theirs, strict=True)}
    return match_slices(query.slices, stored.vectors(), query.asked, paces)


def _mode_options(options: SearchOptions) -> ModeOptions:
    given: dict[str, Any] = {name: value for name, value in options.items() if name in _OF_MODE}
    for name in ("per_slice", "candidates"):
        if name in given:
            _check_count(name, given[name])
    return ModeOptions(**given)


def _resolving(options: SearchOptions, member: Member) -> ResolveOptions:
    shared = cast("ResolveOptions", {n: value for n, value in options.items() if n in ResolveOptions.__optional_keys__})
    weights = options.get("weights")
    own = weights.get(member.model) if isinstance(weights, Mapping) else weights
    return {**shared, "model": member.model, "aggregation": member.aggregation, "weights": own}


def _excluded(contents: Contents, asked: Sequence[QueryVectors], exclude: str) -> list[frozenset[str]]:
    if exclude in (NONE, SELF):
        return [query.own_ids if exclude == SELF else frozenset[str]() for query in asked]
    return excluded_of(asked, exclude, contents.labels)


def _by_slice(
    contents: Contents,
    member: Member,
    asked: Sequence[QueryVectors],
    k: int,
    index: str,
    excluded: Sequence[frozenset[str]],
    where: str | None,
) -> list[list[Hit]]:
    indices = contents.indices(member.model, member.aggregation, index, SLICE)
    assert indices.slices is not None
    hits: list[list[Hit]] = [[] for _ in asked]
    for scope in contents.scopes(excluded, where):
        own = [asked[number] for number in scope.queries]
        for number, query, found in zip(scope.queries, own, slices_found(own, k, indices, scope), strict=True):
            best = merge_slices(found, k)
            at = [indices.slices.vector_at(one) for one, _ in best]
            pairs = zip(best, at, strict=True)
            matches = [match_of(query.slices, place, stored, 0, one.score) for (one, place), stored in pairs]
            volumes = [one for one, _ in best]
            hits[number] = _hits(_rows(contents, volumes), volumes, matches)
    return hits


def _hits(rows: Mapping[str, LedgerRow], found: Sequence[ScoredRow], matches: Sequence[SliceMatch | None]) -> list[Hit]:
    hits = []
    for rank, (one, match) in enumerate(zip(found, matches, strict=True), start=1):
        row = rows[one.volume_id]
        score = min(one.score, 1.0)  # float16 lengths may exceed 1 by a little
        hits.append(Hit(rank, one.volume_id, row.uri, score, row.labels, match))
    return hits


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is {value!r}, expected a whole number of {_COUNTED[name]}, at least 1")


_OF_MODE = frozenset(field.name for field in fields(ModeOptions))
_COUNTED = {"k": "hits", "per_slice": "slices", "candidates": "volumes"}
