"""Scores of retrieval by structure: what each slice shows decides what is relevant. Pure functions over arrays.

The four ways to ask are those of Khun Jush et al. (arXiv 2405.09334). An item is one question about one structure; a
figure of a structure is the mean over its items.

    slice       item: a slice of the query and a structure that it shows. 1 if the nearest slice shows it too
    volume      item: a volume and a structure that its slices show. All its slices ask; a volume that shows it is
                relevant
    region      item: the same, but only the slices that show the structure ask
    localised   item: as for region. The best volume is right only if its matched slices show the structure

The matched slices of a volume: for each slice of the query its most similar slice there (of the same plane, where there
is one); of these matches the L = 15 with the highest cosines. `recall@1` of localised is 1 if any of them shows the
structure, and `localisation@15` is the share that does: 0 for a volume that does not show it at all. Its chance is that
of a volume drawn at random, most of which do not show it. So `within` tells the same share for right volumes alone,
beside the chance of a slice drawn from a volume that shows it: what finding the slice adds to finding the volume.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.embeddings import Slices
from medret.evaluate.masks import coarse_of
from medret.evaluate.metrics import NAMES, Floats, chance, measure
from medret.evaluate.relevance import Exclusion, subject_numbers
from medret.evaluate.slice_truth import SliceCounts

SLICE, VOLUME, REGION, LOCALISED, WITHIN = "slice", "volume", "region", "localised", "within"
ASKING = (SLICE, VOLUME, REGION, LOCALISED, WITHIN)
LOCALISATION_L = 15
RECALL = "recall@1"
LOCALISATION = f"localisation@{LOCALISATION_L}"
LEVEL, COARSE_LEVEL = "structure", "coarse_structure"
METRICS_OF = {
    SLICE: (RECALL,),
    VOLUME: NAMES,
    REGION: NAMES,
    LOCALISED: (RECALL, LOCALISATION),
    WITHIN: (LOCALISATION,),
}


@dataclass(frozen=True)
class Truth:
    """What the slices of some volumes show.

    names: of structures. shown: per volume (slices, structures) bool, in the order of its stored slices.
    """

    names: tuple[str, ...]
    shown: Sequence[NDArray[np.bool_]]

    @cached_property
    def by_volume(self) -> NDArray[np.bool_]:
        """(volumes, structures): whether any slice of a volume shows a structure."""
        return np.array([one.any(axis=0) for one in self.shown]).reshape(len(self.shown), len(self.names))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(volumes, structures): how many slices of a volume show a structure."""
        return np.array([one.sum(axis=0) for one in self.shown]).reshape(len(self.shown), len(self.names))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(volumes,): how many slices each has."""
        return np.array([len(one) for one in self.shown])

    def joined(self, groups: Sequence[tuple[str, Sequence[int]]]) -> Truth:
        """Coarser structures: (name, the numbers of those that it is made of) each."""
        shown = [np.stack([one[:, list(members)].any(axis=1) for _, members in groups], axis=1) for one in self.shown]
        return Truth(tuple(name for name, _ in groups), shown)


@dataclass(frozen=True)
class Question:
    """A volume that asks.

    volume: its number. structures: numbers of those it asks for: it shows them, and so do enough others. kept:
    (volumes,) which it may find; at least one.
    """

    volume: int
    structures: NDArray[np.int64]
    kept: NDArray[np.bool_]


@dataclass(frozen=True)
class Items:
    """Questions and how they were answered.

    volumes: (n,) the number of the volume that asks. structures: (n,) what for. values, chances: (n, metrics), the
    metrics of METRICS_OF.
    """

    volumes: NDArray[np.int64]
    structures: NDArray[np.int64]
    values: Floats
    chances: Floats

    @classmethod
    def of(cls, parts: Sequence[Items]) -> Items:
        """Several as one."""
        volumes, structures = (np.concatenate([getattr(part, name) for part in parts]) for name in _NUMBERS)
        values, chances = (np.concatenate([getattr(part, name) for part in parts]) for name in _FIGURES)
        return cls(volumes, structures, values, chances)


_NUMBERS, _FIGURES = ("volumes", "structures"), ("values", "chances")


def ranked_items(truth: Truth, question: Question, ranking: NDArray[np.int64]) -> Items:
    """Items of `volume` and `region`: one ranking, judged for each structure of the question.

    ranking: (depth,) numbers of volumes that may be found, best first, -1 past the end.
    """
    relevant = truth.by_volume[:, question.structures]
    filled = ranking >= 0
    hits = relevant[np.where(filled, ranking, 0)].T & filled
    total = (relevant & question.kept[:, None]).sum(axis=0)
    candidates = np.full(len(total), question.kept.sum(), np.int64)
    volumes = np.full(len(total), question.volume, np.int64)
    return Items(volumes, question.structures, measure(hits, total), chance(total, candidates, len(ranking)))


def slice_items(truth: Truth, question: Question, nearest: Sequence[tuple[int, int] | None]) -> Items:
    """Items of `slice`. nearest: for each slice that asks, the number of the volume of the nearest one, and its own.

    None for a slice that found nothing. Chance: the share of all slices that may be found that show the structure.
    """
    own = truth.shown[question.volume]
    found = np.zeros(own.shape, bool)
    for row, hit in enumerate(nearest):
        if hit is not None:
            found[row] = truth.shown[hit[0]][hit[1]]
    slices, at = np.nonzero(own[:, question.structures])
    structures = question.structures[at]
    share = truth.counts[question.kept].sum(axis=0) / truth.lengths[question.kept].sum()
    return Items(
        np.full(len(slices), question.volume, np.int64),
        structures,
        found[slices, structures][:, None].astype(np.float64),
        share[structures][:, None],
    )


def localised_items(
    truth: Truth, question: Question, asking: int, matched: tuple[int, NDArray[np.int64]] | None
) -> Items:
    """The item of `localised`, of a question about one structure.

    asking: how many slices ask. matched: the best volume, and its slices in the L best matches; None if none was found.
    Chance: a volume drawn at random, and each slice that asks matched to a slice of it drawn at random.
    """
    structure = int(question.structures[0])
    values = np.zeros((1, 2))
    if matched is not None:
        shows = truth.shown[matched[0]][matched[1], structure]
        values[0] = float(shows.any()), float(shows.mean())
    shares = truth.counts[question.kept, structure] / truth.lengths[question.kept]
    drawn = min(asking, LOCALISATION_L)
    chances = np.array([[np.mean(1 - (1 - shares) ** drawn), np.mean(shares)]])
    return Items(np.array([question.volume]), question.structures, values, chances)


def within_items(truth: Truth, question: Question, matched: tuple[int, NDArray[np.int64]] | None) -> Items | None:
    """The item of `within`; None if no volume was found, or one that does not show the structure.

    Chance: a slice drawn at random from a volume, drawn at random, that may be found and shows the structure.
    """
    structure = int(question.structures[0])
    if matched is None or not truth.by_volume[matched[0], structure]:
        return None
    share = float(truth.shown[matched[0]][matched[1], structure].mean())
    showing = question.kept & truth.by_volume[:, structure]
    chances = np.mean(truth.counts[showing, structure] / truth.lengths[showing])
    return Items(np.array([question.volume]), question.structures, np.array([[share]]), np.array([[chances]]))


def matched_slices(query: Slices, hit: Slices) -> NDArray[np.int64]:
    """The slices of a hit in the L best matches of a query's slices, best first; equal ones in the query's order."""
    cosines = query.vectors.astype(np.float64) @ hit.vectors.astype(np.float64).T
    same_plane = query.planes[:, None] == hit.planes[None]
    cosines = np.where(same_plane | ~same_plane.any(axis=1, keepdims=True), cosines, -np.inf)
    best = cosines.argmax(axis=1)
    order = np.argsort(-cosines[np.arange(len(best)), best], kind="stable")[:LOCALISATION_L]
    matched: NDArray[np.int64] = best[order]
    return matched


# --- who asks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Structures that are scored together: the masks of the same volumes name them.

    truth: of all structures of the level. structures: numbers of those. candidates: (volumes,) which masks name them.
    """

    level: str
    truth: Truth
    structures: NDArray[np.int64]
    candidates: NDArray[np.bool_]


class MaskedVolumes:
    """The volumes with masks, and what their slices show.

    labels: of all volumes of the snapshot. counts: of those with masks. stored: the slices of a volume, as an index
    holds them. least_voxels: from how many voxels on a slice shows a structure. absent: whether a structure that no
    mask of a volume names counts as absent from it; else nothing is known about it there.
    """

    def __init__(
        self,
        labels: pa.Table,
        counts: Mapping[str, SliceCounts],
        stored: Mapping[str, Slices],
        least_voxels: int = 1,
        *,
        absent: bool = False,
    ) -> None:
        names: list[str] = labels["volume_id"].to_pylist()
        rows = [row for row, name in enumerate(names) if name in counts]
        self.labels = labels.take(rows)
        self.ids = [names[row] for row in rows]
        self.number_of = {name: number for number, name in enumerate(self.ids)}
        self.unmasked = frozenset(names) - counts.keys()
        self.subjects = subject_numbers(self.labels)
        structures = tuple(sorted(frozenset[str]().union(*(one.structures for one in counts.values()))))
        shown = [counts[name].shown(stored[name], structures, least_voxels) for name in self.ids]
        truth = Truth(structures, shown)
        known = np.array([[absent or name in counts[one].structures for name in structures] for one in self.ids])
        self.levels = {LEVEL: truth}
        self._known = {LEVEL: known}
        if groups := _coarse(structures):
            self.levels[COARSE_LEVEL] = truth.joined(groups)
            self._known[COARSE_LEVEL] = np.stack([known[:, members].any(axis=1) for _, members in groups], axis=1)
        self.unseen = _unseen(truth, [counts[name] for name in self.ids])

    @property
    def all_known(self) -> bool:
        """Whether it is known of every volume and every structure whether one shows the other."""
        return bool(self._known[LEVEL].all())

    def parts(self) -> Iterator[Part]:
        """The structures of all levels, in groups about which the same volumes are known."""
        for level, truth in self.levels.items():
            together: dict[bytes, list[int]] = defaultdict(list)
            for number in range(len(truth.names)):
                together[self._known[level][:, number].tobytes()].append(number)
            for numbers in together.values():
                yield Part(level, truth, np.array(numbers), self._known[level][:, numbers[0]])


def questions(part: Part, exclusion: Exclusion, min_relevant: int) -> tuple[list[Question], dict[str, int]]:
    """The volumes that ask, and per structure how many do not, as fewer than `min_relevant` others show it."""
    by_volume = part.truth.by_volume[:, part.structures]
    asked, left_out = [], defaultdict[str, int](int)
    for row in np.flatnonzero(part.candidates & by_volume.any(axis=1)).tolist():
        kept = exclusion.kept(np.array([row]))[0] & part.candidates
        enough = (by_volume & kept[:, None]).sum(axis=0) >= min_relevant
        for structure in part.structures[by_volume[row] & ~enough].tolist():
            left_out[part.truth.names[structure]] += 1
        if len(scored := part.structures[by_volume[row] & enough]):
            asked.append(Question(row, scored, kept))
    return asked, dict(left_out)


def _coarse(structures: Sequence[str]) -> list[tuple[str, list[int]]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(structures):
        if coarse := coarse_of(name):
            groups[coarse].append(number)
    return sorted(groups.items())


def _unseen(truth: Truth, counts: Sequence[SliceCounts]) -> dict[str, int]:
    """Structures that volumes have in what was sliced, but that no embedded slice shows: in how many volumes."""
    lost: dict[str, int] = defaultdict(int)
    for seen, one in zip(truth.by_volume, counts, strict=True):
        there = set(one.table["structure"].to_pylist())
        for number, name in enumerate(truth.names):
            lost[name] += name in there and not seen[number]
    return {name: count for name, count in lost.items() if count}
