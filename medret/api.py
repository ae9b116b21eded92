"""The functions of `import medret` that run something: index an archive, plan a run, score a snapshot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from medret.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from medret.evaluate import Evaluation
    from medret.evaluate.structure_figures import StructureEvaluation
    from medret.pipeline.dry_run import IndexPlan
    from medret.pipeline.request import IndexKeywords
    from medret.pipeline.result import IndexOutcome
    from medret.search import Snapshot

Place = str | os.PathLike[str]


def index_archive(
    archive: Place, store: Place, *, progress: bool = False, **options: Unpack[IndexKeywords]
) -> IndexOutcome:
    """Bring a store up to date with an archive of NIfTI files and DICOM series, and publish what has changed.

        outcome = medret.index_archive("nifti/", "store/", labels="labels.csv", models=["dinov2"], slices="uniform:20")
        print(outcome.snapshot, outcome.counts.embedded, "embedded,", outcome.counts.quarantined, "in quarantine")

    Starts a Ray on this machine, or uses the cluster of the Ray job that it runs in; needs `medret[job]`. A volume that
    cannot be used is a row of `outcome.quarantine`, with a code and a reason, and never stops the run.

    Args:
        archive: Folder or fsspec URI with NIfTI files (.nii, .nii.gz) and DICOM series below it.
        store: Folder or URI to publish in; made if it is missing.
        progress: Show on standard error what `medret index` shows. Otherwise these lines go to the log.
        **options: What `medret index --help` explains, with defaults from there. `IndexKeywords` lists them.

    Raises:
        UsageError: The request cannot be met as made.
        GateError: A check refused to publish; the old snapshot stays live.
        BusyError: Another run holds the store.
        MedretError: Any other failure. Finished work is kept for the next run.
    """
    with needs_extra():
        from medret.pipeline.request import IndexRequest
        from medret.pipeline.result import Reporter
        from medret.pipeline.run import run_index

        request = IndexRequest.of(os.fspath(archive), os.fspath(store), options)
        return run_index(request, Reporter(quiet=not progress))


def plan_index(archive: Place, store: Place, **options: Unpack[IndexKeywords]) -> IndexPlan:
    """Say what `index_archive` with the same arguments would do. Loads no model and writes nothing.

        plan = medret.plan_index("nifti/", "store/", labels="labels.csv")
        print(plan.to_embed, "volumes to embed,", plan.size_bytes / 2**20, "MiB to read")

    Raises:
        UsageError: The request cannot be met as made.
        MedretError: The archive or the store cannot be read.
    """
    with needs_extra():
        from medret.pipeline import dry_run
        from medret.pipeline.request import IndexRequest

        return dry_run.plan_index(IndexRequest.of(os.fspath(archive), os.fspath(store), options))


def evaluate_snapshot(
    snapshot: Snapshot,
    *,
    levels: Sequence[str] = (),
    excludes: Sequence[str] = (),
    models: Sequence[str] = (),
    aggregations: Sequence[str] = (),
    indices: Sequence[str] = (),
    modes: Sequence[str] = (),
    min_relevant: int | None = None,
    without: AbstractSet[str] = frozenset(),
    queries: str | None = None,
    labels: str | None = None,
    weights: Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score how often a search finds volumes of the query's modality, body region and organ.

        evaluation = medret.evaluate_snapshot(medret.open_snapshot("store/"), levels=["organ"], modes=["volume"])
        for row in evaluation.rows:
            if (row.class_, row.metric) == ("macro", "recall@1"):
                print(row.config.label, row.value)

    Args:
        snapshot: What `open_snapshot` returned.
        levels: Label columns to score; by default modality, body_region and organ.
        excludes: Label columns. Volumes that share the query's value cannot be found; each column is scored on its own.
            By default `subject`.
        models: Names; by default all of the snapshot. The same holds for `aggregations`, `indices` and `modes`.
        aggregations: Names such as `mean`.
        indices: Of `hnsw`, `lsh` and `exact`.
        modes: Of `volume`, `vote`, `max`, `sum` and `late`.
        min_relevant: Queries with fewer relevant volumes are counted, not scored; by default 3.
        without: Ids of volumes that are neither queries nor hits.
        queries: Folder or URI of NIfTI files or DICOM series to query with; by default the snapshot's own volumes ask.
        labels: The table of labels of `queries`.
        storage_options: For `queries` and `labels`, as for `open_snapshot`.
        weights: For `queries`, model name to path or URI of its weights, where they are not at their usual place.

    Raises:
        UsageError: A column or a name does not exist, or nothing can be scored.
    """
    from medret.evaluate import Options, Selection, archive_queries, evaluate
    from medret.evaluate.query_sets import file_queries
    from medret.storage import use_options

    selection = Selection(models, aggregations, indices, modes)
    options = Options(levels=levels, excludes=excludes, selection=selection)
    if min_relevant is not None:
        options = replace(options, min_relevant=min_relevant)
    if queries is not None:
        use_options(
            storage_options or {}, others=[place for place in (queries, labels, *(weights or {}).values()) if place]
        )
        query_set = file_queries(
            snapshot, queries, labels, selection, weights or {}, frozenset(without), lambda _: None
        )
    elif labels is not None or weights:
        raise UsageError("labels and weights belong to queries: without it the snapshot's own volumes are the queries")
    else:
        query_set = archive_queries(snapshot, frozenset(without))
    return evaluate(snapshot, query_set, options)


def evaluate_masks(
    snapshot: Snapshot,
    masks: Place,
    *,
    names: Place | None = None,
    excludes: Sequence[str] = (),
    models: Sequence[str] = (),
    indices: Sequence[str] = (),
    modes: Sequence[str] = (),
    min_relevant: int | None = None,
    without: AbstractSet[str] = frozenset(),
    least_voxels: int = 1,
    unnamed_absent: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> StructureEvaluation:
    """Score how often a search finds the structures that the query's slices show, as segmentations say.

        evaluation = medret.evaluate_masks(medret.open_snapshot("store/"), "Totalsegmentator_dataset/")
        for row in evaluation.rows:
            if (row["asks"], row["metric"]) == ("region", "recall@1"):
                print(row["mode"], row["class"], row["value"], "chance", row["chance"])

    Args:
        snapshot: What `open_snapshot` returned. Its volumes must be in reach: each is read once, with its masks.
        masks: Table or folder, as `medret evaluate --help` explains for `--masks`.
        names: A dataset.json, or a table of value and name, with the names of the values.
        excludes: As for `evaluate_snapshot`.
        models: Names; by default all of the snapshot.
        indices: By default `exact`, if the snapshot has it.
        modes: Of `vote`, `max`, `sum` and `late`; by default `vote` and `late`.
        min_relevant: Structures that fewer other volumes show are counted, not scored; by default 3.
        without: Ids of volumes that neither ask nor are found.
        least_voxels: From how many voxels on a slice shows a structure.
        unnamed_absent: Whether a structure that no mask of a volume names is absent from it; otherwise it is not known.
        storage_options: For `masks` and `names`, as for `open_snapshot`.

    Raises:
        UsageError: A mask is not on the grid of its volume, a name does not exist, or nothing can be scored.
    """
    from medret.evaluate import Selection
    from medret.evaluate.structure_figures import StructureOptions
    from medret.evaluate.structure_retrieval import evaluate_structures, masks_of
    from medret.storage import use_options

    places = [os.fspath(place) for place in (masks, names) if place is not None]
    use_options(storage_options or {}, others=places)
    found = masks_of(snapshot, places[0], None if names is None else places[1], without)
    options = StructureOptions(
        excludes=excludes,
        selection=Selection(models=models, indices=indices, modes=modes),
        least_voxels=least_voxels,
        absent=unnamed_absent,
    )
    if min_relevant is not None:
        options = replace(options, min_relevant=min_relevant)
    return evaluate_structures(snapshot, found, options)[0]
