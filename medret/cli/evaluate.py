"""`medret evaluate`: how well a store is searched, with intervals and chance floors."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.cli.shared import (
    add_command,
    add_repeatable,
    add_store,
    clear,
    note,
    parse_weights,
    positive_int,
    report,
    write_text,
)
from medret.errors import UsageError
from medret.visible import say

if TYPE_CHECKING:
    from rich.table import Table

    from medret.evaluate import Evaluation, QuerySet, Row, SearchConfig, Selection
    from medret.search import Snapshot
    from medret.terminal import Terminal

DESCRIPTION = """\
Score the live snapshot of STORE: each volume is a query for the volumes of its class among the other subjects
(or, with --queries, labelled files are the queries). Compares all search configurations, model x aggregation x
index x mode (and all models together), in one table, at the levels modality, body region and organ. With --masks,
segmentations say which structures each slice shows, and these are scored in place of labels.
"""

EPILOG = """\
examples:
  medret evaluate ~/ct-store                           every configuration, other subjects
  medret evaluate ~/ct-store --exclude dataset --html report.html
  medret evaluate ~/ct-store --index exact --mode late --json
  medret evaluate ~/ct-store --queries ~/new-cases --labels new-cases.csv
  medret evaluate ~/ts-store --masks ~/Totalsegmentator_dataset --mask-counts slices.parquet

metrics:        recall@1 is the hit rate: how often the first hit is of the same class. recall@k for larger k is the
                share of all relevant volumes that are found. hit@k, precision@k, mAP and ndcg@10 are standard,
                with binary gains.
figures:        macro is the mean of the classes, micro of the queries. Intervals: 95 %, over subjects; a class of one
                subject has none, nor has a macro mean over such a class. chance: the score of a random ranking.
                A label may name several values, separated by `;`: volumes that share one are relevant.
masks:          slice: each slice asks for one slice. volume: all slices of a volume ask. region: those that show the
                structure ask. localised: the same, and the slices that match must show it; localisation@15 is the
                share of the 15 best matches that do, within the same in right volumes alone (docs/evaluating.md)
exit codes:     0 done, 4 done, but some --queries could not be used, 2 wrong usage or nothing to score, 1 failed
"""

COLUMNS = ("recall@1", "mAP")  # what fits in 80 columns; all others are in --json, --csv and --html


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "evaluate", run, "score how well a store is searched", DESCRIPTION, EPILOG)
    add_store(parser)

    group = parser.add_argument_group("what is scored")
    add_repeatable(group, "--level", "LABEL", "(default modality, body_region and organ)")
    exclude = "exclude volumes with the query's value of this label; `self` excludes only the query. "
    add_repeatable(group, "--exclude", "LABEL", f"{exclude}Repeatable: each is scored separately (default subject)")
    source = "label that says where volumes come from: warn if it predicts a level, and score without the same source"
    add_repeatable(group, "--source", "LABEL", source)
    group.add_argument(
        "--min-relevant",
        type=positive_int,
        default=3,
        metavar="N",
        help="queries with fewer relevant volumes are counted but not scored (default %(default)s)",
    )
    group.add_argument(
        "--without",
        type=Path,
        metavar="FILE",
        help="volumes to leave out, one id per line, as `medret duplicates --list` writes them",
    )
    group.add_argument("--sample", type=positive_int, metavar="N", help="use only N random volumes as queries")

    group = parser.add_argument_group("masks (segmentations) in place of labels")
    group.add_argument(
        "--masks",
        metavar="PLACE",
        help="table with the columns volume_id (or path) and mask, or folder: TotalSegmentator's segmentations/, MSD's "
        "labelsTr/, the label `mask` of the store, or files with the volumes' own paths",
    )
    names = "names of the values: a dataset.json, or a table of value and name"
    group.add_argument("--mask-names", metavar="FILE", help=names)
    least = "a slice shows a structure from N voxels on (default 1)"
    group.add_argument("--mask-voxels", type=positive_int, metavar="N", help=least)
    absent = "take a structure that no mask of a volume names for absent from it (default: not known)"
    group.add_argument("--unnamed-absent", action="store_true", help=absent)
    counts = "also write the voxels of each structure on each slice, as Parquet"
    group.add_argument("--mask-counts", type=Path, metavar="FILE", help=counts)

    group = parser.add_argument_group(
        "search configurations (each option is repeatable; default: all, with --masks the exact index, vote and late)"
    )
    add_repeatable(group, "--model", "NAME")
    add_repeatable(group, "--aggregation", "NAME")
    group.add_argument("--index", action="append", default=[], choices=("hnsw", "lsh", "exact"))
    add_repeatable(group, "--mode", "MODE", "volume, vote, max, sum, late")
    group.add_argument(
        "--depth",
        type=positive_int,
        metavar="K",
        help="ranks per list (default all; 1000 by hnsw, by lsh, with --masks and in archives of over 20000)",
    )

    group = parser.add_argument_group("a query archive instead of the store's own volumes")
    group.add_argument("--queries", metavar="ARCHIVE", help="folder or URI with NIfTI files or DICOM series")
    group.add_argument("--labels", metavar="TABLE", help="their labels, as for `medret index`")
    add_repeatable(group, "--weights", "NAME=PATH", "where a model's weights are, if moved")

    group = parser.add_argument_group("intervals")
    draws = "draws of subjects (default %(default)s)"
    group.add_argument("--bootstrap", type=positive_int, default=1000, metavar="N", help=draws)
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws and of --sample (default 0)")

    group = parser.add_argument_group("output")
    group.add_argument("--csv", type=Path, metavar="FILE", help="also write every figure as a CSV table")
    group.add_argument("--html", type=Path, metavar="FILE", help="also write a self-contained report with plots")
    group.add_argument(
        "--archive",
        metavar="URI",
        help="where the volumes are, for the images of --html and for --masks (default: where the store says, if that "
        "is on this machine's disks or on the store's own server)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.evaluate import Bootstrap, Options, Selection, evaluate
    from medret.evaluate.figures import notes_of
    from medret.evaluate.levels import SOURCE
    from medret.search import open_snapshot

    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}, expected 0 or above")
    snapshot = open_snapshot(
        arguments.store, arguments.snapshot, archive=arguments.archive, storage_options=arguments.storage_options
    )
    selection = Selection(arguments.model, arguments.aggregation, arguments.index, arguments.mode)
    if arguments.masks:
        return _run_masks(arguments, snapshot, selection)
    for option in ("mask_names", "mask_voxels", "unnamed_absent", "mask_counts"):
        if getattr(arguments, option):
            raise UsageError(f"--{option.replace('_', '-')} is of --masks: without it labels are scored")
    query_set = _query_set(arguments, snapshot, selection)
    options = Options(
        levels=arguments.level,
        excludes=arguments.exclude,
        sources=list(dict.fromkeys([*arguments.source, SOURCE])),
        selection=selection,
        min_relevant=arguments.min_relevant,
        depth=arguments.depth,
        bootstrap=Bootstrap(arguments.bootstrap, arguments.seed),
    )
    evaluation = evaluate(snapshot, query_set, options, report)
    clear()
    if arguments.csv:
        write_text(arguments.csv, evaluation.to_csv())
    if arguments.html:
        from medret.evaluate.evaluation_report import report_page

        write_text(arguments.html, report_page(snapshot, evaluation))
    if arguments.json:
        say(json.dumps({**evaluation.to_json(), "notes": notes_of(evaluation)}, allow_nan=False))
    else:
        _print(evaluation)
        for path in filter(None, (arguments.csv, arguments.html)):
            say(f"written: {path.resolve()}")
    for failure in query_set.failures:
        note(f"medret evaluate: {failure.reason}", logging.WARNING)
    if arguments.json:  # the table shows them too
        for warning in evaluation.warnings:
            note(f"medret evaluate: warning: {warning}", logging.WARNING)
    return 4 if query_set.failures else 0


def _run_masks(arguments: argparse.Namespace, snapshot: Snapshot, selection: Selection) -> int:
    from medret.evaluate import Bootstrap
    from medret.evaluate.slice_truth import write_counts
    from medret.evaluate.structure_figures import StructureOptions
    from medret.evaluate.structure_retrieval import evaluate_structures, masks_of

    for option in ("level", "source", "sample", "queries", "labels", "weights", "aggregation"):
        if getattr(arguments, option):
            raise UsageError(f"--{option} is of an evaluation by labels: leave it out, or leave --masks out")
    masks = masks_of(snapshot, arguments.masks, arguments.mask_names, _names(arguments.without))
    options = StructureOptions(
        excludes=arguments.exclude,
        selection=selection,
        min_relevant=arguments.min_relevant,
        bootstrap=Bootstrap(arguments.bootstrap, arguments.seed),
        least_voxels=arguments.mask_voxels or 1,
        absent=arguments.unnamed_absent,
        depth=arguments.depth,
    )
    evaluation, counts = evaluate_structures(snapshot, masks, options, report)
    clear()
    if arguments.mask_counts:
        write_counts(arguments.mask_counts, counts)
    if arguments.csv:
        write_text(arguments.csv, evaluation.study().to_csv())
    if arguments.html:
        from medret.evaluate.study import study_page

        write_text(arguments.html, study_page(evaluation.study()))
    if arguments.json:
        say(json.dumps(evaluation.to_json(), allow_nan=False))
        return 0
    for line in evaluation.lines():
        say(line)
    for path in filter(None, (arguments.csv, arguments.html, arguments.mask_counts)):
        say(f"written: {path.resolve()}")
    return 0


def _query_set(arguments: argparse.Namespace, snapshot: Snapshot, selection: Selection) -> QuerySet:
    from medret.evaluate import archive_queries
    from medret.evaluate.query_sets import file_queries

    without = _names(arguments.without)
    if not arguments.queries:
        for option in ("labels", "weights"):
            if getattr(arguments, option):
                raise UsageError(f"--{option} is of --queries: without it the store's own volumes ask")
        return archive_queries(snapshot, without, arguments.sample, arguments.seed)
    if arguments.sample:
        raise UsageError("--sample draws from the store's own volumes, --queries asks with others: give one of them")
    weights = parse_weights(arguments.weights)
    return file_queries(snapshot, arguments.queries, arguments.labels, selection, weights, without, report)


def _names(path: Path | None) -> frozenset[str]:
    """The lines of a file, without blank ones."""
    if path is None:
        return frozenset()
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # a volume_id may hold other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--without {path}: cannot be read: {error}") from error
    return frozenset(line.removesuffix("\r") for line in lines if line.strip())


def _print(evaluation: Evaluation) -> None:
    """Print what a person reads of an evaluation on the terminal."""
    from medret.evaluate.figures import notes_of
    from medret.terminal import Terminal

    console = Terminal()
    console.print(
        f"snapshot {evaluation.snapshot}: {evaluation.query_set.queries.num_rows} queries among "
        f"{evaluation.query_set.candidates.num_rows} volumes; only queries with at least {evaluation.min_relevant} "
        "relevant volumes left count (--min-relevant)",
        soft_wrap=True,
    )
    for exclude in evaluation.excludes:
        _print_configs(console, evaluation, exclude)
    console.print("* what `medret search` does when told nothing. ANN: recall@10 of the index against exact search")
    for exclude in evaluation.excludes:
        for level in evaluation.levels:
            if (exclude, level) in evaluation.places:
                _print_classes(console, evaluation, exclude, level)
    for at_level in evaluation.left_out:
        if at_level.too_few_relevant or at_level.unlabelled:
            classes = ", ".join(f"{name} {count}" for name, count in at_level.by_class.items())
            unlabelled = f"; {at_level.unlabelled} without a label" if at_level.unlabelled else ""
            console.print(
                f"not scored, {at_level.level}, exclude {at_level.exclude}: {at_level.too_few_relevant} queries"
                f"{f' ({classes})' if classes else ''}{unlabelled}",
                soft_wrap=True,
            )
    for sentence in notes_of(evaluation):
        console.print(f"note: {sentence}", soft_wrap=True)
    for warning in evaluation.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, style="yellow")


def _print_configs(console: Terminal, evaluation: Evaluation, exclude: str) -> None:
    levels = [level for place, level in evaluation.places if place == exclude]
    table = _table(f"exclude {exclude}: macro recall@1/mAP")
    table.add_column("search", no_wrap=True)
    table.add_column("ANN", justify="right", no_wrap=True)
    for level in levels:
        table.add_column(level, justify="right", no_wrap=True)
    table.add_row(
        "  chance", "", *(_pair(evaluation, evaluation.leading, exclude, level, chance=True) for level in levels)
    )
    for config in evaluation.distinct_configs:
        recall = evaluation.figure(config, exclude, "all", "all", "ann_recall@10")
        name = f"* {config.label}" if config.default else f"  {config.label}"
        cells = (_pair(evaluation, config, exclude, level) for level in levels)
        table.add_row(name, short(recall.value) if recall else "", *cells, style="bold" if config.default else "")
    console.print(table)


def _pair(evaluation: Evaluation, config: SearchConfig, exclude: str, level: str, chance: bool = False) -> str:
    rows = evaluation.figures(config, exclude, level, "macro", COLUMNS)
    return "/".join(short(row.chance if chance else row.value) for row in rows)


def _print_classes(console: Terminal, evaluation: Evaluation, exclude: str, level: str) -> None:
    names = [*evaluation.classes_of(evaluation.leading, exclude, level), "macro", "micro"]
    rows = {name: evaluation.figures(evaluation.leading, exclude, level, name, COLUMNS) for name in names}
    table = _table(f"{level}, exclude {exclude}: {evaluation.leading.label}")
    table.add_column("class", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for metric in COLUMNS:
        for heading in (metric, "95 %", "chance"):
            table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in rows.items():
        cells = (cell for row in figures for cell in _cells(row))
        table.add_row(name, str(figures[0].n), *cells, style="bold" if name in ("macro", "micro") else "")
    console.print(table)


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _cells(row: Row) -> tuple[str, str, str]:
    interval = f"{short(row.low)} {short(row.high)}" if row.has_interval else "none"
    return short(row.value), interval, short(row.chance)


def short(value: float) -> str:
    """Three digits: .875, 1.00."""
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"
