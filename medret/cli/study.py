"""Commands that look into a store's vectors: `study` compares methods, `duplicates` lists volumes that are the same."""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.cli.shared import add_command, add_repeatable, add_store, clear, note, positive_int, report, write_text
from medret.errors import UsageError
from medret.visible import say

if TYPE_CHECKING:
    import pyarrow as pa

    from medret.evaluate.duplicates import Duplicates
    from medret.evaluate.study import Study

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

SHOWN = 50


def add_parser(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_study(commands)
    _add_duplicates(commands)


def _add_study(commands: Any) -> None:
    parser = add_command(commands, "study", run_study, "answer a question about the method", STUDY, STUDY_EXAMPLES)
    parser.add_argument("question", choices=("aggregation", "index", "ensemble", "position"), metavar="QUESTION")
    add_store(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default 0)")

    group = parser.add_argument_group("aggregation, ensemble and position")
    add_repeatable(group, "--level", "LABEL", "as for `medret evaluate`")
    add_repeatable(group, "--exclude", "LABEL", "as for `medret evaluate`")
    group.add_argument("--min-relevant", type=positive_int, default=3, metavar="N", help="(default %(default)s)")
    group.add_argument(
        "--model", metavar="NAME", help="for aggregation, index and position (default: the snapshot's first)"
    )
    group.add_argument("--aggregation", metavar="NAME", help="for ensemble (default: the snapshot's first)")
    group.add_argument(
        "--draws", type=positive_int, default=5, metavar="N", help="seeds of random slices (default %(default)s)"
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
    snapshot = open_snapshot(arguments.store, arguments.snapshot)
    options = Options(
        levels=arguments.level,
        excludes=arguments.exclude,
        min_relevant=arguments.min_relevant,
        bootstrap=Bootstrap(seed=arguments.seed),
    )
    if arguments.question == "aggregation":
        from medret.evaluate.study_similarity import study_aggregation

        return study_aggregation(snapshot, options, model=arguments.model, seeds=arguments.draws, report=report)
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

    shown = duplicates.pairs[:SHOWN]
    known = labels_of(labels, {name for pair in shown for name in (pair.first, pair.second)})
    for pair in shown:
        words = "copy  " if pair.copy else f"{pair.score:.4f}"
        for name in (pair.first, pair.second):
            values = ", ".join(str(value) for value in known[name].values() if value)
            say(f"{words}  {name}" + (f"  ({values})" if values else ""))
            words = " " * len(words)
    if len(duplicates.pairs) > SHOWN:
        say(f"... and {len(duplicates.pairs) - SHOWN} more: --json lists all")
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
