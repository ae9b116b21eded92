"""Pairs of volumes that are equal or nearly equal: they inflate every score, and a split by subject may not part them.

Copies have the same bytes. Other candidate pairs are neighbours in the index; a pair counts if its slices agree too.
That is measured by the symmetric late-interaction score, which does not favour the volume with more slices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.errors import UsageError
from medret.evaluate.query_sets import Report
from medret.index import EXACT, HNSW
from medret.schemas import LABELS
from medret.search import Snapshot
from medret.search.matching import late_scores
from medret.search.query import VolumeName
from medret.snapshot import read_ledger
from medret.storage import Location

AT_LEAST = 0.99
NEIGHBOURS = 16  # of the first search; doubled for a volume whose neighbours are all that near
NEIGHBOURS_MAX = 256
BATCH = 512
ROUNDING = 5e-4  # of cosines, because float16 vectors are not exactly of length 1


@dataclass(frozen=True)
class Pair:
    """Two volumes. cosine: of their volume vectors, None if they were no neighbours. score: of their slices."""

    first: str
    second: str
    copy: bool
    cosine: float | None
    score: float


@dataclass(frozen=True)
class Duplicates:
    """pairs: most similar first. crowded: the number of volumes with more near neighbours than were searched."""

    pairs: tuple[Pair, ...]
    at_least: float
    volumes: int
    crowded: int

    def to_leave_out(self) -> list[str]:
        """Volumes to leave out so that no pair is left: all of each group but the first by id."""
        root: dict[str, str] = {}

        def find(name: str) -> str:
            while root.setdefault(name, name) != name:
                name = root[name]
            return name

        for pair in self.pairs:
            first, second = sorted((find(pair.first), find(pair.second)))
            root[second] = first
        return sorted(name for name in root if find(name) != name)

    def to_json(self, labels: pa.Table) -> dict[str, Any]:
        """The pairs as a JSON object, with the labels of both."""
        known = labels_of(labels, {name for pair in self.pairs for name in (pair.first, pair.second)})
        pairs = [
            {
                "volumes": [pair.first, pair.second],
                "copy": pair.copy,
                "cosine": pair.cosine,
                "score": pair.score,
                "labels": [known[pair.first], known[pair.second]],
            }
            for pair in self.pairs
        ]
        counts = {"volumes": self.volumes, "pairs": len(pairs), "copies": sum(pair.copy for pair in self.pairs)}
        leave_out = self.to_leave_out()
        return {"at_least": self.at_least, **counts, "crowded": self.crowded, "leave_out": leave_out, "pairs": pairs}


def find_duplicates(
    snapshot: Snapshot,
    at_least: float = AT_LEAST,
    model: str | None = None,
    aggregation: str | None = None,
    report: Report = lambda _: None,
) -> Duplicates:
    """Find all near-duplicate pairs. at_least: cosine of the volume vectors, and score of the slices."""
    if not 0 < at_least <= 1:
        raise UsageError(f"--at-least is {at_least:g}, expected a cosine above 0 and at most 1")
    ids: list[str] = snapshot.labels()["volume_id"].to_pylist()
    cosines: dict[tuple[str, str], float] = {}
    crowded = 0
    for start in range(0, len(ids), BATCH):
        report(f"neighbours of {start}/{len(ids)} volumes")
        near, full = _near(snapshot, ids[start : start + BATCH], at_least, model, aggregation)
        cosines |= near
        crowded += full
    copies = set(_copies(snapshot))
    pairs = []
    for number, (first, second) in enumerate(sorted(copies | cosines.keys())):
        if number % BATCH == 0:
            report(f"slices of {number}/{len(copies | cosines.keys())} pairs")
        copy = (first, second) in copies
        score = 1.0 if copy else _slice_score(snapshot, first, second, model)
        if copy or score >= at_least - ROUNDING:
            pairs.append(Pair(first, second, copy, cosines.get((first, second)), score))
    pairs.sort(key=lambda pair: (not pair.copy, -pair.score, pair.first, pair.second))
    return Duplicates(tuple(pairs), at_least, len(ids), crowded)


def _near(
    snapshot: Snapshot, ids: Sequence[str], at_least: float, model: str | None, aggregation: str | None
) -> tuple[dict[tuple[str, str], float], int]:
    """Cosines of near pairs that contain one of these volumes, and how many of these have too many neighbours."""
    index = HNSW if HNSW in snapshot.manifest.index_settings["kinds"] else EXACT
    everything = snapshot.labels().num_rows
    cosines: dict[tuple[str, str], float] = {}
    left, k = list(ids), NEIGHBOURS
    while left and k <= NEIGHBOURS_MAX:
        queries = [snapshot.resolve(VolumeName(name), model=model, aggregation=aggregation) for name in left]
        volume_ids = [query.volume_ids for query in queries]
        ranked = snapshot.rank(queries, k, model=model, aggregation=aggregation, index=index, excluded=volume_ids)
        full = []
        for name, hits in zip(left, ranked, strict=True):
            near = [hit for hit in hits if hit.score >= at_least - ROUNDING]
            for hit in near:
                first, second = sorted((name, hit.volume_id))
                cosines[first, second] = min(hit.score, 1.0)
            if len(near) == k < everything - 1:
                full.append(name)
        left, k = full, 2 * k
    return cosines, len(left)


def _copies(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield pairs of volumes with the same bytes; of a large group of copies, the first with each of the others."""
    columns = ["volume_id", "status", "content_sha256"]
    ledger = read_ledger(Location(snapshot.uri), snapshot.id, snapshot.manifest, columns)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for volume_id, status, sha256 in zip(*(ledger[name].to_pylist() for name in columns), strict=True):
        if status == "embedded" and sha256:
            groups[sha256].append(volume_id)
    for group in groups.values():
        if len(group) <= NEIGHBOURS:
            yield from combinations(sorted(group), 2)
        else:
            first, *others = sorted(group)
            yield from ((first, other) for other in others)


def _slice_score(snapshot: Snapshot, first: str, second: str, model: str | None) -> float:
    sides = [snapshot.slices_of(name, model) for name in (first, second)]
    sets = [replace(side, vectors=side.vectors.astype(np.float64)) for side in sides if side is not None]
    if len(sets) < 2:
        return 1.0  # no slice vectors to compare: the volume vectors stand alone
    return min(float(late_scores(sets[0], sets[1], symmetric=True)[0, 0]), 1.0)


def labels_of(labels: pa.Table, names: AbstractSet[str]) -> dict[str, dict[str, str | None]]:
    """Look up the labels of some volumes, by volume_id."""
    known = labels.filter(pc.is_in(labels["volume_id"], pa.array(sorted(names), pa.string())))
    return {row.pop("volume_id"): row for row in known.select(["volume_id", *LABELS]).to_pylist()}
