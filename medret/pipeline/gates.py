"""The checks before a snapshot is published. Pure functions; if a gate fails, the old snapshot stays live."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.errors import GateError
from medret.pipeline.store_state import numbered
from medret.snapshot import Counts, GateEntry, IndexEntry

DUPLICATES_FROM = 10  # new contents; fewer prove nothing
LOST_FROM = 5  # volumes; losing fewer is not taken for a mistake
LOST, VECTORS, DUPLICATES, CANARIES = "lost", "vectors", "duplicates", "canaries"
# If one of these fails, the vectors themselves are in doubt, and the next run must not use them.
OF_VECTORS = frozenset({VECTORS, DUPLICATES, CANARIES})

NO_KEYS = pa.table({"volume_id": pa.array([], pa.string()), "key": pa.array([], pa.uint64())})


@dataclass(frozen=True)
class GateLimits:
    """The limits of the gates.

    min_recall: recall@10 of each index. max_gone: share of the live snapshot's volumes that may be lost.
    max_quarantined, max_duplicates: shares of volumes. min_canary: cosine to the stored vectors. min_labelled: share of
    the volumes with labels, among those still listed, that must keep some.
    """

    min_recall: float = 0.9
    max_gone: float = 0.2
    max_quarantined: float = 0.5
    max_duplicates: float = 0.5
    min_canary: float = 0.999
    min_labelled: float = 0.5


@dataclass(frozen=True)
class Gate:
    """The outcome of one check.

    found, limit: texts that name no volume, because manifests keep them. worst: id of the volume to look at first, for
    the terminal and the run report only.
    """

    name: str
    passed: bool
    found: str
    limit: str
    worst: str | None = None

    def entry(self) -> GateEntry:
        """The manifest's record of this gate."""
        return GateEntry(name=self.name, found=self.found, limit=self.limit)


@dataclass(frozen=True)
class Losses:
    """Volumes of the live snapshot that the new one would not find.

    live: embedded volumes of the live snapshot. gone: those not listed any more, under any name. quarantined: those
    that are still listed and quarantined now.
    """

    live: int
    gone: int
    quarantined: int = 0

    @property
    def lost(self) -> int:
        """Number of lost volumes, for either reason."""
        return self.gone + self.quarantined


@dataclass(frozen=True)
class VectorFacts:
    """What a volumes file holds. keys: `volume_id`, and `key`, a digest of its vector. bad: vectors not of length 1."""

    keys: pa.Table
    bad: int


def recall_gate(entries: Sequence[IndexEntry], limits: GateLimits) -> Gate:
    """Check that every index finds what exact search finds."""
    worst = min(
        ((value, kind, entry.aggregation or "slices") for entry in entries for kind, value in entry.recall.items()),
        default=(1.0, "", ""),
    )
    found = f"{worst[0]:.4f} ({worst[1]} over {worst[2]})" if worst[1] else "nothing to measure"
    return Gate("recall@10", worst[0] >= limits.min_recall, found, f"at least {limits.min_recall:g} (--min-recall)")


def quarantine_gate(counts: Counts, masks: int, limits: GateLimits) -> Gate:
    """Check that not too many volumes were quarantined. masks: quarantined segmentations, which do not count."""
    volumes = counts.listed - counts.skipped - masks
    refused = counts.quarantined - masks
    share = refused / volumes if volumes else 0.0
    found = f"{refused} of {volumes} volumes ({share:.1%})"
    limit = f"at most {limits.max_quarantined:.0%} (--max-quarantined)"
    return Gate("quarantined", share <= limits.max_quarantined, found, limit)


def label_gate(had: int, kept: int, limits: GateLimits) -> Gate:
    """Check that labels were not lost. had: volumes with labels that stay. kept: those of them that keep some."""
    found = f"labels for {kept} of the {had} volumes that had some and stay"
    limit = f"at least {limits.min_labelled:.0%} (--min-labelled)"
    return Gate("labels", kept >= limits.min_labelled * had, found, limit)


def lost_gate(losses: Losses, limits: GateLimits) -> Gate:
    """Check that the archive still has most live volumes: an unmounted disk must not pass for a smaller archive."""
    share = losses.lost / losses.live if losses.live else 0.0
    found = (
        f"{losses.lost} of the {losses.live} live volumes ({share:.1%}: {losses.gone} gone, "
        f"{losses.quarantined} newly in quarantine)"
    )
    limit = f"at most {limits.max_gone:.0%} (--max-gone {math.ceil(share * 100) / 100:g} lets them go)"
    passed = share <= limits.max_gone or losses.lost < LOST_FROM
    return Gate(LOST, passed, found, limit if not passed else f"at most {limits.max_gone:.0%} (--max-gone)")


def findable_gate(rows: Sequence[tuple[int, int]]) -> Gate:
    """Check that searches find every row of the ledger. rows: per index, findable rows and rows of the ledger."""
    wrong = [f"{found} rows of an index, of {held} in the ledger" for found, held in rows if found != held]
    return Gate("findable", not wrong, ", ".join(wrong) or "every row", "every row of the ledger, once")


def vector_gate(facts: Iterable[VectorFacts]) -> Gate:
    """Check that the new vectors are finite and of length 1."""
    bad = sum(one.bad for one in facts)
    return Gate(VECTORS, bad == 0, f"{bad} that are zero, not finite or not of length 1", "none")


def duplicate_gate(facts: Sequence[VectorFacts], content: Callable[[], pa.Table], limits: GateLimits) -> Gate:
    """Check that different contents mostly have different vectors: a broken model gives one vector for all.

    content: reads `volume_id`, `content_sha256`; asked only if two vectors are equal. Fewer than DUPLICATES_FROM
    contents pass: one image may be stored in several ways.
    """
    keys, limit = pa.concat_tables([NO_KEYS, *(one.keys for one in facts)]), f"at most {limits.max_duplicates:.0%}"
    _, vectors, times = np.unique(keys["key"].to_numpy(), return_inverse=True, return_counts=True)
    if times.max(initial=1) == 1:
        return Gate(DUPLICATES, True, "none", limit)
    known = content()
    at = pc.index_in(keys["volume_id"], value_set=known["volume_id"]).to_numpy()
    contents = numbered(known["content_sha256"])[at]
    total, base = len(np.unique(contents)), int(contents.max()) + 1
    largest = int(np.bincount(np.unique(vectors * base + contents) // base).max())
    found = f"{largest} of {total} new contents share one vector"
    passed = largest <= limits.max_duplicates * total or total < DUPLICATES_FROM
    return Gate(DUPLICATES, passed, found if largest > 1 else "none", limit)


def canary_gate(cosines: Mapping[str, float], limits: GateLimits) -> Gate:
    """Check that unchanged volumes still get their stored vectors. cosines: the lowest per canary, over its slices."""
    if not cosines:
        return Gate(CANARIES, True, "none to compare", f"cosine above {limits.min_canary:g}")
    volume_id, lowest = min(cosines.items(), key=lambda item: item[1])
    found, limit = f"lowest cosine {lowest:.5f} of {len(cosines)}", f"above {limits.min_canary:g} (--min-canary)"
    return Gate(CANARIES, lowest > limits.min_canary, found, limit, volume_id)


def lowest_cosine(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    """The lowest cosine between the rows of two (n, dim) arrays of unit vectors; -1 if they differ in shape."""
    if one.shape != other.shape or not len(one):
        return -1.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    products = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.nan_to_num(products, nan=-1.0).min())


def enforce(gates: Sequence[Gate], hints: str = "") -> list[GateEntry]:
    """The manifest's records of the gates. Raises GateError, with names and numbers, if any gate failed."""
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        what = "; ".join(
            f"{gate.name}: found {gate.found}{f' ({gate.worst})' if gate.worst else ''}, expected {gate.limit}"
            for gate in failed
        )
        raise GateError(f"refused to publish: {what}{hints}; the previous snapshot, if any, stays live")
    return [gate.entry() for gate in gates]
