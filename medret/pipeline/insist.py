"""What a run would lose, replace, repeat or label, checked and reported before any work is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive import LabelJoin, Listing, labelled
from medret.errors import GateError, UsageError
from medret.pipeline.gates import GateLimits, Losses, label_gate
from medret.pipeline.request import DEFAULT_MODEL, IndexRequest
from medret.pipeline.result import Reporter
from medret.pipeline.steps import Plan
from medret.pipeline.store_state import rows_of
from medret.recipe import Recipe
from medret.snapshot import Manifest

PLACES = {"dicom": "DICOM tags", "bids": "BIDS", "msd": "dataset.json", "path": "paths"}  # of labels without a table


def losses(plan: Plan, quarantined: pa.ChunkedArray | None = None) -> Losses:
    """The volumes that the run would lose; before contents are compared, a lower bound.

    A volume that is gone is not lost if its content is listed under another name; while contents are not known yet, an
    object of equal size that will be compared is enough. quarantined: ids of the volumes that are quarantined now.
    """
    rows = plan.state.rows.slice(0, plan.state.journal_from)
    live = pc.equal(rows["status"], "embedded")
    gone = rows_of(rows.select(["status", "content_sha256", "size_bytes"]), plan.gone)
    moved = pa.array({step.content_sha256 for step in plan.of("copy")}, pa.string())
    gone = gone.filter(
        pc.and_(pc.equal(gone["status"], "embedded"), pc.invert(pc.is_in(gone["content_sha256"], value_set=moved)))
    )
    unsure = pc.and_(pa.array(plan.which("check")), pc.is_null(plan.table["row"]))
    possible = Counter(plan.table["size_bytes"].filter(unsure).to_pylist())
    sizes = Counter(gone["size_bytes"].to_pylist())
    refused = pc.and_(live, pc.is_in(rows["volume_id"], value_set=quarantined)) if quarantined is not None else None
    total, newly = (int(pc.sum(mask).as_py() or 0) if mask is not None else 0 for mask in (live, refused))
    return Losses(total, (sizes - possible).total(), newly)


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


def with_models(request: IndexRequest, manifest: Manifest | None) -> IndexRequest:
    """Fill in the models of a request that names none: those of the live snapshot, else the default.

    Models of the store get the weights that their names stand for, or random ones as before. Raises UsageError for
    weights that were loaded from a path or URI: the store must not decide what is loaded from where.
    """
    if request.models:
        return request
    if manifest is None or not manifest.recipes:
        return replace(request, models=(DEFAULT_MODEL,))
    weights = dict(request.weights)
    for entry in manifest.recipes:
        name = entry.model
        if name not in weights and entry.weights_uri is not None:
            if not entry.random_weights:
                raise UsageError(
                    f"model {name} of the live snapshot was loaded from {entry.weights_uri}; give its weights again: "
                    f"--weights {name}={entry.weights_uri}"
                )
            weights[name] = entry.weights_uri
    return replace(request, models=model_names(manifest), weights=weights)


def model_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of a snapshot's models."""
    return tuple(entry.model for entry in manifest.recipes)


def refuse_replacing(request: IndexRequest, manifest: Manifest | None) -> None:
    """Raise GateError if the run would drop models of the live snapshot and the request does not say so."""
    live = model_names(manifest) if manifest else ()
    dropped = [name for name in live if name not in request.models]
    if dropped and not request.replace_models:
        every = " ".join(f"--model {name}" for name in dict.fromkeys([*live, *request.models]))
        raise GateError(
            f"refused: the live snapshot has {', '.join(live)}, this run {', '.join(request.models)}: "
            f"{', '.join(dropped)} could not be searched any more. To keep all: {every}; to drop them: --replace-models"
        )


def recipe_changes(recipes: Sequence[Recipe], manifest: Manifest | None) -> list[str]:
    """Options that differ from the recipes of the live snapshot, so that the model must embed every volume again."""
    before = {entry.model: entry for entry in manifest.recipes} if manifest else {}
    changes = []
    for recipe in recipes:
        entry = before.get(recipe.model.name)
        if entry is None or entry.digest == recipe.digest:
            continue
        for part in ("slices", "model"):
            now, was = recipe.to_json()[part], entry.recipe[part]
            changes += [
                f"{recipe.model.name}: {name} is {_short(value)}, was {_short(was.get(name))}"
                for name, value in now.items()
                if _plain(value) != _plain(was.get(name))
            ]
    return list(dict.fromkeys(changes))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


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


def say_labels(reporter: Reporter, labels: LabelJoin) -> None:
    """Report which labels were found, and where."""
    for line in label_lines(labels):
        reporter.say(line)


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
