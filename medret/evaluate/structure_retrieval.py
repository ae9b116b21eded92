"""An evaluation by masks: how often a search finds the structures that the query's slices show.

`medret.evaluate.structure_scores` has the four ways to ask, `slice_truth` what slices show. Only volumes with masks ask
and are found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import Slices
from medret.errors import UsageError
from medret.evaluate.configs import checked_names
from medret.evaluate.masks import Mask, find_masks
from medret.evaluate.metrics import check_depth
from medret.evaluate.query_sets import Report, known_labels
from medret.evaluate.relevance import SELF, SUBJECT, Exclusion, exclusion_of, text_column
from medret.evaluate.slice_truth import SliceCounts, read_counts
from medret.evaluate.structure_figures import Row, StructureEvaluation, StructureOptions, figure_rows
from medret.evaluate.structure_scores import (
    LEVEL,
    LOCALISED,
    REGION,
    SLICE,
    VOLUME,
    WITHIN,
    Items,
    MaskedVolumes,
    Part,
    Question,
    Truth,
    localised_items,
    matched_slices,
    questions,
    ranked_items,
    slice_items,
    within_items,
)
from medret.index import EXACT, KINDS
from medret.search import Snapshot
from medret.search.index_search import ScoredRow, ShardedIndex
from medret.search.modes import slices_found
from medret.search.options import LATE, MAX, SUM, VOTE, SearchOptions
from medret.search.options import SLICE as SLICE_MODE
from medret.search.query import QueryVectors

DEFAULT_MODES = (VOTE, LATE)
MODES = (VOTE, MAX, SUM, LATE)  # those that search by slices
DEPTH = 1000  # ranks per list
FIRST = 10  # ranks that users look at
BATCH = 64  # queries that are ranked together


def masks_of(
    snapshot: Snapshot, place: str, names_uri: str | None = None, without: AbstractSet[str] = frozenset()
) -> dict[str, tuple[Mask, ...]]:
    """The masks of a snapshot's volumes, see `find_masks`. without: ids of volumes that neither ask nor are found."""
    labels = known_labels(snapshot, without)
    contents = snapshot.corpus.stores[0]
    row = contents.ledger.row(str(labels["volume_id"][0])) if labels.num_rows else None
    archive = None if row is None else contents.place(row).removesuffix(row.volume_id).rstrip("/")
    return find_masks(place, labels, names_uri, archive)


def evaluate_structures(
    snapshot: Snapshot,
    masks: Mapping[str, Sequence[Mask]],
    options: StructureOptions,
    report: Report = lambda _: None,
) -> tuple[StructureEvaluation, dict[str, SliceCounts]]:
    """Score a snapshot by masks (`find_masks`); also returns what was counted in them.

    Raises UsageError for a mask that is not on its volume's grid, an unknown configuration, and if nothing can be
    scored.
    """
    check_depth(options.depth)
    models = checked_names("model", options.selection.models, snapshot.models, snapshot)
    built = tuple(kind for kind in KINDS if kind in snapshot.manifest.index_settings["kinds"])
    indices = checked_names(
        "index", options.selection.indices or (EXACT if EXACT in built else built[0],), built, snapshot
    )
    modes = checked_names("mode", options.selection.modes or DEFAULT_MODES, MODES, snapshot)
    recipe = snapshot.recipe(models[0]).slices
    for model in models:
        if snapshot.recipe(model).slices != recipe:
            raise UsageError(f"models {models[0]} and {model} have other slices: evaluate them one by one with --model")
    first = _stored(snapshot, sorted(masks), models[0])
    planes = {volume_id: sorted(set(map(str, slices.plane_names))) for volume_id, slices in first.items()}
    counts = read_counts(snapshot, masks, planes, recipe.crop == "foreground", report)
    volumes = MaskedVolumes(snapshot.labels(), counts, first, options.least_voxels, absent=options.absent)
    rows: list[Row] = []
    left_out: dict[str, int] = {}
    for exclusion in _exclusions(snapshot, volumes, options):
        parts = []
        for part in volumes.parts():
            asked, few = questions(part, exclusion, options.min_relevant)
            left_out |= {f"{part.level} {name}, exclude {exclusion.column}": count for name, count in few.items()}
            parts.append((part, asked))
        for model in models:
            slices = first if model == models[0] else _stored(snapshot, volumes.ids, model)
            searches = _Searches(snapshot, volumes, [slices[name] for name in volumes.ids], options)
            for index, mode in product(indices, (SLICE_MODE, *modes)):
                words = f"{model}, {index}, {mode}, exclude {exclusion.column}"
                chosen = SearchOptions(model=model, index=index, mode=mode, per_slice=options.per_slice)
                items = searches.items(parts, chosen, words, report)
                rows += figure_rows(items, volumes, exclusion.column, chosen, options)
    if not rows:
        raise UsageError(
            f"{snapshot.uri}: no structure is shown by {options.min_relevant} other volumes that have masks; try a "
            "smaller --min-relevant, or --unnamed-absent if masks name only what there is"
        )
    evaluation = StructureEvaluation(
        store=snapshot.uri,
        snapshot=snapshot.id,
        rows=rows,
        volumes=len(volumes.ids),
        without_masks=len(volumes.unmasked),
        slices=sum(map(len, volumes.levels[LEVEL].shown)),
        structures={level: _volumes_with(truth) for level, truth in volumes.levels.items()},
        unseen=volumes.unseen,
        left_out=left_out,
        options=options,
        notes=_notes(masks, volumes),
    )
    return evaluation, counts


def _stored(snapshot: Snapshot, volume_ids: Sequence[str], model: str) -> dict[str, Slices]:
    """volume_id -> its slices, as the index holds them."""
    found = {}
    for volume_id in volume_ids:
        slices = snapshot.slices_of(volume_id, model)
        if slices is None:
            raise UsageError(f"{volume_id} has no slice vectors of {model} in {snapshot.uri}")
        found[volume_id] = replace(slices, vectors=slices.vectors.astype(np.float32))
    return found


def _exclusions(snapshot: Snapshot, volumes: MaskedVolumes, options: StructureOptions) -> list[Exclusion]:
    columns = list(options.excludes) or [SUBJECT]
    if not any(text_column(volumes.labels, SUBJECT)):
        columns = [SELF if column == SUBJECT else column for column in columns]
    for column in columns:
        if column not in (*volumes.labels.column_names, SELF):
            known = ", ".join(name for name in volumes.labels.column_names if name not in ("volume_id", "uri"))
            raise UsageError(f"--exclude '{column}' is no label of {snapshot.uri}, which has {known}")
    own = [(row,) for row in range(len(volumes.ids))]
    return [exclusion_of(column, volumes.labels, volumes.labels, own) for column in dict.fromkeys(columns)]


def _volumes_with(truth: Truth) -> dict[str, int]:
    return dict(zip(truth.names, truth.by_volume.sum(axis=0).tolist(), strict=True))


def _notes(masks: Mapping[str, Sequence[Mask]], volumes: MaskedVolumes) -> list[str]:
    notes = []
    if any(mask.structure is None and not mask.names for own in masks.values() for mask in own):
        notes.append(
            "some masks have no names: equal values are taken for the same structure; name them with --mask-names"
        )
    if not volumes.all_known:
        notes.append(
            "not all masks name the same structures: only volumes whose masks name a structure are candidates for it "
            "(--unnamed-absent: it is absent from the others)"
        )
    return notes


Ways = tuple[Part, Question, tuple[str, ...]]  # the ways to ask whose answer is one search
Asked = tuple[Part, Question, tuple[str, ...], Slices]  # the same, and the slices that ask


@dataclass(frozen=True)
class _Searches:
    """The searches of one model. slices: per volume, as the index holds them."""

    snapshot: Snapshot
    volumes: MaskedVolumes
    slices: Sequence[Slices]
    options: StructureOptions

    def items(
        self, parts: Sequence[tuple[Part, Sequence[Question]]], options: SearchOptions, words: str, report: Report
    ) -> dict[tuple[str, str], list[Items]]:
        """Level and way to ask -> the items of one search mode."""
        found: dict[tuple[str, str], list[Items]] = defaultdict(list)
        asked = list(self._asked(parts, options.used_mode))
        for start in range(0, len(asked), BATCH):
            batch = [(*one, self._asking(*one)) for one in asked[start : start + BATCH]]
            report(f"{words}: {start}/{len(asked)}")
            queries = [self._query(question.volume, slices) for _, question, _, slices in batch]
            hidden = [self._hidden(question.kept) for _, question, _, _ in batch]
            judged = self._sliced if options.used_mode == SLICE_MODE else self._ranked
            for (part, *_), scored in zip(batch, judged(batch, queries, hidden, options), strict=True):
                for asking, items in scored:
                    found[part.level, asking].append(items)
        return found

    def _asked(self, parts: Sequence[tuple[Part, Sequence[Question]]], mode: str) -> Iterator[Ways]:
        for part, asked in parts:
            for question in asked:
                yield part, question, (SLICE,) if mode == SLICE_MODE else (VOLUME,)
                if mode != SLICE_MODE:
                    for structure in question.structures:
                        yield part, replace(question, structures=np.array([structure])), (REGION, LOCALISED)

    def _asking(self, part: Part, question: Question, ways: tuple[str, ...]) -> Slices:
        """The slices that ask: all of the volume, or those that show the one structure."""
        slices = self.slices[question.volume]
        if REGION not in ways:
            return slices
        return slices.take(part.truth.shown[question.volume][:, int(question.structures[0])])

    def _ranked(
        self,
        batch: Sequence[Asked],
        queries: Sequence[QueryVectors],
        hidden: Sequence[frozenset[str]],
        options: SearchOptions,
    ) -> Iterator[list[tuple[str, Items]]]:
        depth = min(len(self.volumes.ids), self.options.depth or DEPTH)
        ranked = self._volumes_found(queries, hidden, depth, options)
        if options.index != EXACT and options.used_mode == LATE and depth > options.candidates:
            # More candidates are compared for a longer list. The first ten are those of a search for ten.
            nearest = self._volumes_found(queries, hidden, FIRST, options)
            ranked = [list(dict.fromkeys([*near, *far]))[:depth] for near, far in zip(nearest, ranked, strict=True)]
        for (part, question, ways, slices), found in zip(batch, ranked, strict=True):
            ranking = np.full(depth, -1, np.int64)
            ranking[: len(found)] = found
            scored = [(ways[0], ranked_items(part.truth, question, ranking))]
            if LOCALISED in ways:
                best = int(ranking[0])
                matched = None if best < 0 else (best, matched_slices(slices, self.slices[best]))
                scored.append((LOCALISED, localised_items(part.truth, question, len(slices), matched)))
                if (within := within_items(part.truth, question, matched)) is not None:
                    scored.append((WITHIN, within))
            yield scored

    def _volumes_found(
        self, queries: Sequence[QueryVectors], hidden: Sequence[frozenset[str]], k: int, options: SearchOptions
    ) -> list[list[int]]:
        """Per query the numbers of the volumes that a search for k of them finds, the best first."""
        ranked = self.snapshot.rank(
            queries,
            k,
            excluded=hidden,
            model=options.model,
            index=options.index,
            mode=options.mode,
            per_slice=options.per_slice,
        )
        return [[self.volumes.number_of[hit.volume_id] for hit in hits] for hits in ranked]

    def _sliced(
        self,
        batch: Sequence[Asked],
        queries: Sequence[QueryVectors],
        hidden: Sequence[frozenset[str]],
        options: SearchOptions,
    ) -> Iterator[list[tuple[str, Items]]]:
        corpus = self.snapshot.corpus
        with corpus.reading():
            (member,) = corpus.members(options)
            indices = corpus.indices(member, options)
            assert indices.slices is not None
            nearest: list[list[tuple[int, int] | None]] = [[] for _ in queries]
            for group in corpus.query_groups([frozenset((name, 0) for name in names) for names in hidden], None):
                some = [queries[number] for number in group.queries]
                for number, by_slice in zip(group.queries, slices_found(some, 1, indices, group), strict=True):
                    nearest[number] = [self._place(indices.slices, hits[0]) if hits else None for hits in by_slice]
        for (part, question, _, _), hits in zip(batch, nearest, strict=True):
            yield [(SLICE, slice_items(part.truth, question, hits))]

    def _query(self, volume: int, slices: Slices) -> QueryVectors:
        name = self.volumes.ids[volume]
        return QueryVectors(name, frozenset([(name, 0)]), slices.vectors[0], slices)  # no mode searches by the volume

    def _hidden(self, kept: NDArray[np.bool_]) -> frozenset[str]:
        return self.volumes.unmasked.union(self.volumes.ids[number] for number in np.flatnonzero(~kept))

    def _place(self, index: ShardedIndex, hit: ScoredRow) -> tuple[int, int]:
        """The number of the volume of a slice that was found, and the slice's own number there."""
        volume = self.volumes.number_of[hit.volume_id]
        return volume, self._slice_numbers[volume][index.shards[hit.shard].table.slice_at(hit.row)]

    @cached_property
    def _slice_numbers(self) -> list[dict[tuple[str | None, int], int]]:
        """Per volume the number of each slice, by plane and position."""
        numbers = []
        for slices in self.slices:
            assert slices.slice_indices is not None
            names = zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)
            numbers.append({name: number for number, name in enumerate(names)})
        return numbers
