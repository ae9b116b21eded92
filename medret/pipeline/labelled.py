"""What a run says of its labels, and when it refuses to go on with them."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa

from medret.archive import LabelJoin, Listing
from medret.errors import GateError, UsageError
from medret.pipeline.gates import GateLimits, label_gate
from medret.pipeline.progress import Reporter
from medret.schemas import LABELS


def check_labels(ledger: pa.Table, listing: Listing, labels: LabelJoin, limits: GateLimits) -> None:
    """Refuse labels that were meant for other volumes, before any work is done.

    ledger: of the live snapshot (schemas.LEDGER), empty where there is none. Raises GateError where it had labels and
    the next one would have far fewer, UsageError where a table matches nothing.
    """
    had = _labelled(ledger) & {item.volume_id for item in listing.objects}
    kept = sum(bool(labels.labels.get(volume_id)) for volume_id in had)
    gate = label_gate(len(had), kept, limits)
    if not gate.passed:
        why = labels.mismatch or f"{labels.unmatched_rows} rows match no volume"
        hint = why if labels.source else "no table was given (--labels), and no dataset.json was found"
        raise GateError(
            f"refused to publish: {gate.found}, expected {gate.limit}; {hint}; the live snapshot stays as it is"
        )
    if labels.mismatch:
        raise UsageError(labels.mismatch)


def _labelled(ledger: pa.Table) -> set[str]:
    """The volumes of a ledger that have any label."""
    columns = [ledger[name].to_pylist() for name in (*LABELS, "metadata")]
    rows = zip(*columns, strict=True)
    return {volume_id for volume_id, row in zip(ledger["volume_id"].to_pylist(), rows, strict=True) if any(row)}


class _Facts(msgspec.Struct):
    ct_without_hu: bool = False


def ct_without_hu(ledger: pa.Table) -> int:
    """How many volumes are labelled CT and hold no Hounsfield units (medret.volume.facts)."""
    decode = msgspec.json.Decoder(_Facts).decode
    return sum(decode(facts).ct_without_hu for facts in ledger["facts"].to_pylist() if facts)


def label_facts(labels: LabelJoin, ledger: pa.Table) -> dict[str, Any]:
    """The counts of a run's labels, for reports. ledger: what is known of the volumes."""
    return {**labels.to_json(), "ct_without_hu": ct_without_hu(ledger)}


def say_labels(reporter: Reporter, labels: LabelJoin) -> None:
    """What was found in the table of labels, or in dataset.json files."""
    for line in label_lines(labels):
        reporter.say(line)


def label_lines(labels: LabelJoin) -> list[str]:
    """The same as lines of text."""
    lines = [f"{path} is ignored: {reason}" for path, reason in labels.ignored.items()]
    if labels.source is None:
        return [*lines, f"no labels: {labels.unlabelled_volumes} volumes have none (--labels TABLE gives them)"]
    several = f" ({labels.ambiguous_rows} fit several)" if labels.ambiguous_rows else ""
    such = f", such as {labels.unmatched_example!r}" if labels.unmatched_example else ""
    lines.append(
        f"labels from {labels.source}: {len(labels.labels)} volumes matched, {labels.unlabelled_volumes} have none; "
        f"{labels.unmatched_rows} rows match no volume{several}{such}"
    )
    if labels.root:
        lines.append(f"paths of the table below {labels.root} are taken for those below the archive")
    return lines
