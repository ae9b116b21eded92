"""`medret explain`: which slices of a hit matched the query's, and how much each pair gave to the score."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.cli.shared import add_command, add_storage_options, parse_weights, write_text
from medret.search.options import LATE, SearchOptions
from medret.storage import redacted
from medret.visible import say

if TYPE_CHECKING:
    from medret.search.explain import Explanation

DESCRIPTION = """\
Say why HIT scores as it does for QUERY: how much each pair of slices gave to the score. The shares sum to the score.

  late     each slice of the query gives its best cosine in the hit, weighted (the default here)
  max      the one best pair gives all
  volume   every pair gives its part of the cosine of the two volume vectors; not for the aggregation max
"""

EXAMPLES = """\
examples:
  medret explain ~/ct-store case.nii.gz liver/12.nii.gz
  medret explain ~/ct-store liver/3.nii.gz liver/12.nii.gz --mode volume --html why.html
"""

PAIRS_SHOWN = 20


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "explain", run, "say which slices made a volume a hit", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("store", metavar="STORE", help="folder or URI of a store")
    add("query", metavar="QUERY", help="NIfTI file, DICOM folder or URI, or volume id")
    add("hit", metavar="HIT", help="volume id of a hit, or of any volume of the store")
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


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.search import open_snapshot

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
    explanation = snapshot.explain(arguments.query, arguments.hit, **vars(options))
    if arguments.html:
        from medret.search.explanation_page import explanation_page

        write_text(arguments.html, explanation_page(snapshot, explanation, arguments.query, arguments.model))
    if arguments.json:
        say(json.dumps(explanation.to_json() | {"query": redacted(explanation.query)}))
    else:
        _print(explanation)
        if arguments.html:
            say(f"page: {arguments.html.resolve()}")
    return 0


def _print(explanation: Explanation) -> None:
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
            f"{pair.query_plane} {pair.query}",
            f"{pair.hit_plane} {pair.hit}",
            f"{pair.cosine:.4f}",
            f"{pair.share:.4f}",
        )
    console.print(table)
    if len(pairs) > PAIRS_SHOWN:
        console.print(f"and {len(pairs) - PAIRS_SHOWN} more slices of the query; --json gives all pairs")
