"""The checks of a run, as pure functions: what it would lose or label, and the gates before it is published.

If one fails, the old snapshot stays live.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import LabelJoin, Listing, labelled
from medret.errors import GateError, UsageError
from medret.pipeline.plan import Plan
from medret.pipeline.request import GateLimits, IndexRequest
from medret.pipeline.store_state import numbered, rows_of
from medret.snapshot import Counts, GateEntry, IndexEntry, Manifest

DUPLICATES_FROM = 10  # new contents; fewer prove nothing
LOST_FROM = 5  # volumes; losing fewer is not taken for a mistake
LOST, VECTORS, DUPLICATES, CANARIES = "lost", "vectors", "duplicates", "canaries"
# If one of these fails, the vectors themselves are in doubt, and the next run must not use them.
OF_VECTORS = frozenset({VECTORS, DUPLICATES, CANARIES})

NO_KEYS = pa.table({"volume_id": pa.array([], pa.string()), "key": pa.array([], pa.uint64())})

PLACES = {"dicom": "DICOM tags", "bids": "BIDS", "msd": "dataset.json", "path": "paths"}  # of labels without a table


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
    at = pc.fill_null(pc.index_in(keys["volume_id"], value_set=known["volume_id"]), -1).to_numpy()
    vectors, at = vectors[at >= 0], at[at >= 0]  # an unfinished run may have embedded volumes that are gone since
    contents = numbered(known["content_sha256"])[at]
    total, base = len(np.unique(contents)), int(contents.max(initial=0)) + 1
    largest = int(np.bincount(np.unique(vectors * base + contents) // base).max(initial=0))
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


def losses(plan: Plan, quarantined: pa.ChunkedArray | None = None) -> Losses:
    """The volumes that the run would lose; before contents are compared, a lower bound.

    A volume that is gone is not lost if its content is listed under another name; while contents are not known yet, an
    object of equal size that will be compared is enough. quarantined: ids of the volumes that are quarantined now.
    """
    rows = plan.state.rows.slice(0, plan.state.journal_from)
    live = pc.equal(rows["status"], "embedded")
    gone = rows_of(rows.select(["status", "content_sha256", "size_bytes"]), plan.gone)
    gone = gone.filter(pc.equal(gone["status"], "embedded"))
    moved = pa.array({step.content_sha256 for step in plan.of("copy")}, pa.string())
    elsewhere = pc.or_(pc.is_in(gone["content_sha256"], value_set=moved), has_copies(plan, gone["content_sha256"]))
    gone = gone.filter(pc.invert(elsewhere))
    unsure = pc.and_(pa.array(plan.which("check")), pc.is_null(plan.table["row"]))
    possible = Counter(plan.table["size_bytes"].filter(unsure).to_pylist())
    sizes = Counter(gone["size_bytes"].to_pylist())
    refused = pc.and_(live, pc.is_in(rows["volume_id"], value_set=quarantined)) if quarantined is not None else None
    total, newly = (int(pc.sum(mask).as_py() or 0) if mask is not None else 0 for mask in (live, refused))
    return Losses(total, (sizes - possible).total(), newly)


def has_copies(plan: Plan, contents: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each of these contents of live volumes is also that of a volume that stays as it is."""
    rows = plan.state.rows.select(["status", "content_sha256"])
    same = pc.is_in(rows["content_sha256"], value_set=contents.unique()) if len(contents) else pa.array([], pa.bool_())
    found = np.flatnonzero(pc.fill_null(same, False).to_numpy(zero_copy_only=False))
    kept = plan.table["row"].filter(pa.array(plan.which("keep"))).to_numpy() if len(found) else found
    copies = rows_of(rows, found[np.isin(found, kept)])
    copies = copies.filter(pc.equal(copies["status"], "embedded"))["content_sha256"]
    return pc.is_in(contents, value_set=copies)


def other_source(request: IndexRequest, archive_uri: str, manifest: Manifest | None) -> str:
    """The likely cause of a loss: the live snapshot is of another archive, or another part of it. "" if it is not."""
    if manifest is None:
        return ""
    before = _source(manifest.archive_uri, manifest.pattern, manifest.exclude, include_masks=manifest.include_masks)
    now = _source(archive_uri, request.pattern, request.exclude, include_masks=request.include_masks)
    return "" if before == now else f" (the live snapshot is of {before}; this run reads {now})"


def _source(uri: str, pattern: str | None, exclude: Sequence[str], *, include_masks: bool) -> str:
    words = [uri, *([f"--glob {pattern}"] if pattern else []), *(f"--exclude {one}" for one in exclude)]
    return " ".join([*words, *(["--include-masks"] if include_masks else [])])


def check_labels(ledger: pa.Table, listing: Listing, labels: LabelJoin, limits: GateLimits) -> None:
    """Refuse labels that were meant for other volumes, before any work is done.

    ledger: of the live snapshot (store_state.KNOWN), empty if there is none. Raises GateError if far fewer of its
    volumes would keep labels, UsageError if no row of the table matches a volume.
    """
    had = ledger["volume_id"].filter(pc.is_valid(ledger["labels"]))
    had = had.filter(pc.is_in(had, value_set=listing.objects["volume_id"])) if len(had) else had
    kept = pc.sum(pc.is_in(had, value_set=labelled(labels.labels))).as_py() or 0
    gate = label_gate(len(had), kept, limits)
    if not gate.passed:
        why = labels.mismatch or f"{labels.unmatched_rows} rows match no volume"
        hint = why if labels.source else "no table was given (--labels), and paths give none"
        raise GateError(
            f"refused to publish: {gate.found}, expected {gate.limit}; {hint}; the live snapshot stays as it is"
        )
    if labels.mismatch:
        raise UsageError(labels.mismatch)


def label_facts(labels: LabelJoin, tagged: pa.ChunkedArray, ct_without_hu: int) -> dict[str, Any]:
    """Counts about the labels of a run, for reports.

    tagged: ids of the volumes with labels in their own tags. ct_without_hu: volumes labelled CT without Hounsfield
    units.
    """
    facts = labels.to_json()
    if len(tagged):
        more = pc.sum(pc.invert(pc.is_in(tagged, value_set=labels.labels["volume_id"]))).as_py()
        facts |= {"matched": facts["matched"] + more, "unlabelled_volumes": facts["unlabelled_volumes"] - more}
        facts["from_dicom"] = len(tagged)
    return {**facts, "ct_without_hu": ct_without_hu}


def label_lines(labels: LabelJoin) -> list[str]:
    """Which labels were found, and where, as lines of text."""
    lines = [f"{path} is ignored: {reason}" for path, reason in labels.ignored.items()]
    for origin, found in labels.origins.items():
        if origin in PLACES:
            counts = ", ".join(f"{name} of {count}" for name, count in found.items() if name != "volumes")
            lines.append(f"labels from {PLACES[origin]} for {found['volumes']} volumes: {counts}")
    if labels.series:
        lines.append(f"labels of {labels.series} DICOM series are read from their tags, with the volumes")
    if labels.source is None:
        bare = labels.unlabelled_volumes - labels.series
        if bare > 0 and not labels.labels.num_rows:
            lines.append(f"no labels: {bare} volumes have none (--labels TABLE gives them)")
        return lines
    several = f" ({labels.ambiguous_rows} fit several)" if labels.ambiguous_rows else ""
    such = f", such as {labels.unmatched_example!r}" if labels.unmatched_example else ""
    lines.append(
        f"labels from {labels.source}: {labels.matched_volumes} volumes matched, {labels.unlabelled_volumes} have "
        f"none; {labels.unmatched_rows} rows match no volume{several}{such}"
    )
    if labels.root:
        lines.append(f"paths below {labels.root} in the table are read as paths below the archive")
    return lines
