"""Commands that look into a store's vectors: `study`, `duplicates` and `explain`.

`study` compares methods, `duplicates` lists volumes that are the same, and `explain` says which slices of a hit matched
the query's, and how much each pair gave to the score.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.cli.shared import (
    add_command,
    add_repeatable,
    add_storage_options,
    add_store,
    clear,
    note,
    parse_weights,
    positive_int,
    report,
    write_text,
)
from medret.errors import UsageError
from medret.search.options import LATE, SearchOptions
from medret.storage import redacted
from medret.visible import say

if TYPE_CHECKING:
    import pyarrow as pa

    from medret.evaluate.duplicates import Duplicates
    from medret.evaluate.study import Study
    from medret.search.explain import Explanation

STUDY = """\
Answer one question on the vectors that STORE holds; nothing is embedded again.

  aggregation   all slices compared with 5, 10 and 20 random ones (several seeds), evenly spaced ones, the maximum, and
                a grid of Gaussian weights over slice position; by exact search
  index         build time, bytes per vector, p50 and p95 latency and recall@10 of LSH and HNSW settings, by the number
                of vectors and their width; on synthetic vectors distributed like the stored ones
  position      late interaction with and without a cost for slices that lie at other relative positions or heights
  ensemble      each model alone, and pairs fused by weighted concatenation and by reciprocal ranks
"""

STUDY_EXAMPLES = """\
examples:
  medret study aggregation ~/ct-store --html aggregation.html
  medret study index ~/ct-store --sizes 1000 100000 1000000 --dims 768 --csv index.csv
  medret study ensemble ~/ct-store --exclude dataset --json
"""

DUPLICATES = """\
List pairs of volumes of STORE that are copies of one file, or so similar that a search with one finds the other
first: they inflate every score. Neighbours come from the index; a pair counts if its slices agree too.
"""

DUPLICATES_EXAMPLES = """\
examples:
  medret duplicates ~/ct-store --at-least 0.995
  medret duplicates ~/ct-store --list twins.txt && medret evaluate ~/ct-store --without twins.txt
"""

EXPLAIN = """\
Say why HIT scores as it does for QUERY: how much each pair of slices gave to the score. The shares sum to the score,
in mode volume to within 0.002 of it, because volume vectors are stored in 16 bits.

  late     each slice of the query gives its best cosine in the hit, weighted (the default here)
  max      the one best pair gives all
  volume   every pair gives its part of the cosine of the two volume vectors; not for the aggregation max

With --text, QUERY is words, and each slice of HIT gives its own share.
"""
EXPLAIN_EXAMPLES = """\
examples:
  medret explain ~/ct-store case.nii.gz liver/12.nii.gz
  medret explain ~/ct-store liver/3.nii.gz liver/12.nii.gz --mode volume --html why.html
  medret explain ~/ct-store "CT of the abdomen, liver with cysts" liver/12.nii.gz --text --model medsiglip
"""
STUDY_OPTIONS = {
    "aggregation": ("level", "exclude", "min_relevant", "model", "draws"),
    "index": ("model", "sizes", "dims"),
    "ensemble": ("level", "exclude", "min_relevant", "aggregation"),
    "position": ("level", "exclude", "min_relevant", "model"),
}
MIN_RELEVANT = 3
DUPLICATES_SHOWN = 50
PAIRS_SHOWN = 20


def add_parser(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_study(commands)
    _add_duplicates(commands)


def _add_study(commands: Any) -> None:
    parser = add_command(commands, "study", run_study, "answer a question about the method", STUDY, STUDY_EXAMPLES)
    parser.add_argument("question", choices=tuple(STUDY_OPTIONS), metavar="QUESTION")
    add_store(parser)
    seed = "of the intervals, and of the vectors of index (default 0)"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=seed)

    group = parser.add_argument_group("aggregation, ensemble and position")
    add_repeatable(group, "--level", "LABEL", "as for `medret evaluate`")
    add_repeatable(group, "--exclude", "LABEL", "as for `medret evaluate`")
    group.add_argument("--min-relevant", type=positive_int, metavar="N", help="as for `medret evaluate` (default 3)")
    group.add_argument(
        "--model", metavar="NAME", help="for aggregation, index and position (default: the snapshot's first)"
    )
    group.add_argument("--aggregation", metavar="NAME", help="for ensemble (default: the snapshot's first)")
    group.add_argument(
        "--draws", type=positive_int, metavar="N", help="for aggregation: draws of random slices (default 5)"
    )

    group = parser.add_argument_group("index")
    group.add_argument(
        "--sizes", type=positive_int, nargs="+", metavar="N", help="vectors, up to 1000000 (default 1000 10000 100000)"
    )
    group.add_argument("--dims", type=positive_int, nargs="+", metavar="D", help="widths (default 384 768 1280 2048)")

    group = parser.add_argument_group("output")
    group.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    group.add_argument("--html", type=Path, metavar="FILE", help="also write a self-contained page with plots")


def _add_duplicates(commands: Any) -> None:
    parser = add_command(
        commands, "duplicates", run_duplicates, "list volumes that are nearly the same", DUPLICATES, DUPLICATES_EXAMPLES
    )
    add_store(parser)
    least = "least cosine of the volume vectors, and score of their slices (default %(default)s)"
    parser.add_argument("--at-least", type=float, default=0.99, metavar="COSINE", help=least)
    parser.add_argument("--model", metavar="NAME", help="(default: the snapshot's first)")
    parser.add_argument("--aggregation", metavar="NAME", help="(default: the snapshot's first)")
    leave_out = "write one id per line: leave these out and no pair remains"
    parser.add_argument("--list", type=Path, metavar="FILE", help=leave_out)


def run_study(arguments: argparse.Namespace) -> int:
    """Run `medret study`."""
    study = _study(arguments)
    clear()
    if arguments.csv:
        write_text(arguments.csv, study.to_csv())
    if arguments.html:
        from medret.evaluate.study import study_page

        write_text(arguments.html, study_page(study))
    if arguments.json:
        say(json.dumps(study.to_json(), allow_nan=False))
        return 0
    _print_study(study)
    for path in filter(None, (arguments.csv, arguments.html)):
        say(f"written: {path.resolve()}")
    return 0


def _study(arguments: argparse.Namespace) -> Study:
    from medret.evaluate import Bootstrap, Options
    from medret.search import open_snapshot

    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}, expected 0 or above")
    own = STUDY_OPTIONS[arguments.question]
    for option in sorted({name for names in STUDY_OPTIONS.values() for name in names} - set(own)):
        if getattr(arguments, option):
            others = [question for question, names in STUDY_OPTIONS.items() if option in names]
            words = f"--{option.replace('_', '-')} is of {', '.join(others)}"
            raise UsageError(f"{words}: leave it out for the question {arguments.question}")
    snapshot = open_snapshot(arguments.store, arguments.snapshot)
    options = Options(
        levels=arguments.level,
        excludes=arguments.exclude,
        min_relevant=arguments.min_relevant or MIN_RELEVANT,
        bootstrap=Bootstrap(seed=arguments.seed),
    )
    if arguments.question == "aggregation":
        from medret.evaluate.study_similarity import SEEDS, study_aggregation

        draws = arguments.draws or SEEDS
        return study_aggregation(snapshot, options, model=arguments.model, seeds=draws, report=report)
    if arguments.question == "ensemble":
        from medret.evaluate.study_similarity import study_ensemble

        return study_ensemble(snapshot, options, aggregation=arguments.aggregation, report=report)
    if arguments.question == "position":
        from medret.evaluate.study_similarity import study_position

        return study_position(snapshot, options, model=arguments.model, report=report)
    from medret.evaluate.study_index import DIMS, SIZES, study_index

    sizes, dims = arguments.sizes or SIZES, arguments.dims or DIMS
    return study_index(snapshot, model=arguments.model, sizes=sizes, dims=dims, seed=arguments.seed, report=report)


def _print_study(study: Study) -> None:
    """Print the table without cutting it to the width of the terminal."""
    rows = [list(study.rows[0]), *([_text(value) for value in row.values()] for row in study.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for text in study.notes:
        say(f"note: {text}")


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def run_duplicates(arguments: argparse.Namespace) -> int:
    """Run `medret duplicates`."""
    from medret.evaluate.duplicates import find_duplicates
    from medret.search import open_snapshot

    snapshot = open_snapshot(arguments.store, arguments.snapshot)
    duplicates = find_duplicates(snapshot, arguments.at_least, arguments.model, arguments.aggregation, report)
    clear()
    if arguments.list:
        write_text(arguments.list, "".join(f"{name}\n" for name in duplicates.to_leave_out()))
    if arguments.json:
        say(json.dumps({"store": snapshot.uri, "snapshot": snapshot.id, **duplicates.to_json(snapshot.labels())}))
    else:
        _print_pairs(duplicates, snapshot.labels(), arguments)
    return 0


def _print_pairs(duplicates: Duplicates, labels: pa.Table, arguments: argparse.Namespace) -> None:
    from medret.evaluate.duplicates import labels_of

    shown = duplicates.pairs[:DUPLICATES_SHOWN]
    known = labels_of(labels, {name for pair in shown for name in (pair.first, pair.second)})
    for pair in shown:
        words = "copy  " if pair.copy else f"{pair.score:.4f}"
        for name in (pair.first, pair.second):
            values = ", ".join(str(value) for value in known[name].values() if value)
            say(f"{words}  {name}" + (f"  ({values})" if values else ""))
            words = " " * len(words)
    if len(duplicates.pairs) > DUPLICATES_SHOWN:
        say(f"... and {len(duplicates.pairs) - DUPLICATES_SHOWN} more: --json lists all")
    leave_out = duplicates.to_leave_out()
    copies = sum(pair.copy for pair in duplicates.pairs)
    say(
        f"{len(duplicates.pairs)} pairs among {duplicates.volumes} volumes, {copies} of them copies, the others at "
        f"least {duplicates.at_least:g} alike"
    )
    if duplicates.crowded:
        note(
            f"{duplicates.crowded} volumes have more near neighbours than were compared: raise --at-least",
            logging.WARNING,
        )
    if leave_out:
        path = os.fspath(arguments.list) if arguments.list else "FILE"
        write = "written to" if arguments.list else "--list FILE writes"
        say(
            f"leave out {len(leave_out)} volumes and no pair is left; {write} {path if arguments.list else 'them'}; "
            f"then: medret evaluate {arguments.store} --without {path}"
        )


def add_explain(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands, "explain", run_explain, "say which slices made a volume a hit", EXPLAIN, EXPLAIN_EXAMPLES
    )
    add = parser.add_argument
    add("store", metavar="STORE", help="folder or URI of a store")
    add("query", metavar="QUERY", help="NIfTI file, DICOM folder or URI, or volume id; words with --text")
    add("hit", metavar="HIT", help="volume id of a hit, or of any volume of the store")
    add("--text", action="store_true", help="QUERY is words, for models that put words beside images")
    add("--mode", default=LATE, choices=("volume", "late", "max"), help="(default %(default)s)")
    add("--model", metavar="NAME", help="(default: the snapshot's first)")
    add("--aggregation", metavar="NAME", help="for --mode volume (default: the snapshot's first)")
    add("--symmetric", action="store_true", help="late: the mean of both directions")
    add("--slices", metavar="FIRST:LAST", help="only these slices of the query, as in `medret search`")
    add("--plane", metavar="PLANE", help="the plane of --slices (default: the first that was embedded)")
    add("--weights", action="append", default=[], metavar="NAME=PATH", help="a model's weights, if they are elsewhere")
    add("--archive", metavar="URI", help="where the volumes of STORE lie, for --html (default: where it says)")
    add_storage_options(parser)
    add("--snapshot", metavar="ID", help="an older snapshot (default: the live one)")
    add("--html", type=Path, metavar="FILE", help="also write a page with the matrix of slices and the best pairs")
    add("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def run_explain(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.search import Words, open_snapshot

    snapshot = open_snapshot(
        arguments.store, arguments.snapshot, archive=arguments.archive, storage_options=arguments.storage_options
    )
    options = SearchOptions(
        model=arguments.model,
        aggregation=arguments.aggregation,
        weights=parse_weights(arguments.weights) or None,
        mode=arguments.mode,
        symmetric=arguments.symmetric,
        slices=arguments.slices,
        plane=arguments.plane,
    )
    query = Words(arguments.query) if arguments.text else arguments.query
    explanation = snapshot.explain(query, arguments.hit, **vars(options))
    if arguments.html:
        from medret.search.explanation_page import explanation_page

        write_text(arguments.html, explanation_page(snapshot, explanation, query, arguments.model))
    if arguments.json:
        say(json.dumps(explanation.to_json() | {"query": redacted(explanation.query)}))
    else:
        _print_explanation(explanation)
        if arguments.html:
            say(f"page: {arguments.html.resolve()}")
    return 0


def _print_explanation(explanation: Explanation) -> None:
    from rich.table import Table

    from medret.terminal import Terminal

    console = Terminal()
    console.print(
        f"score {explanation.score:.4f} of {explanation.hit}: {explanation.words}", markup=False, soft_wrap=True
    )
    table = Table(title="slices that gave most", title_justify="left")
    for name, align in (("query", "left"), ("hit", "left"), ("cosine", "right"), ("share of the score", "right")):
        table.add_column(name, justify=align)  # type: ignore[arg-type]
    pairs = explanation.pairs
    for pair in pairs[:PAIRS_SHOWN]:
        table.add_row(
            "" if pair.query is None else f"{pair.query_plane or 'row'} {pair.query}",
            f"{pair.hit_plane} {pair.hit}",
            f"{pair.cosine:.4f}",
            f"{pair.share:.4f}",
        )
    console.print(table)
    if len(pairs) > PAIRS_SHOWN:
        side = "hit" if explanation.query_slices.slice_indices is None else "query"
        console.print(f"and {len(pairs) - PAIRS_SHOWN} more slices of the {side}; --json gives all pairs")
