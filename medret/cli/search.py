"""`medret search`: the volumes of a store that look most like a query."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medret.cli.shared import add_command, parse_weights

DESCRIPTION = """\
Search the live snapshot of STORE for the volumes most similar to QUERY: a NIfTI file or URI, or the id of a
volume that is in the snapshot. A file is read, sliced and embedded exactly as the snapshot's recipe says.
"""

EPILOG = """\
examples:
  medret search ~/ct-store case.nii.gz -k 5
  medret search s3://hospital/medret case.nii.gz --index exact --json
  medret search ~/ct-store patient7/ct.nii.gz --exclude self --html hits.html
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "search", run, "find similar volumes", DESCRIPTION, EPILOG)
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("query", metavar="QUERY", help="NIfTI file or URI, or a volume id of the snapshot")
    parser.add_argument("-k", type=int, default=10, metavar="K", help="how many hits (default %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="(default: the snapshot's first)")
    parser.add_argument("--aggregation", metavar="NAME", help="(default: the snapshot's first)")
    parser.add_argument("--index", default="hnsw", choices=("hnsw", "lsh", "exact"), help="(default %(default)s)")
    parser.add_argument(
        "--mode",
        default="volume",
        metavar="MODE",
        help="volume: volume vectors; slice: each query slice finds slices (default %(default)s)",
    )
    parser.add_argument(
        "--exclude",
        default="none",
        metavar="WHAT",
        help="none, or self: leave the query's own volume out (default %(default)s)",
    )
    parser.add_argument("--modality", metavar="CT|MRI|...", help="of the query, where the voxels do not tell")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the model's weights, if they lie elsewhere here",
    )
    parser.add_argument("--snapshot", metavar="ID", help="an older snapshot (default: the live one)")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with the query's slices beside the hits'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.search import open_snapshot

    snapshot = open_snapshot(arguments.store, arguments.snapshot)
    weights = parse_weights(arguments.weights)
    model = arguments.model or next(iter(weights), None)
    hits = snapshot.search(
        arguments.query,
        k=arguments.k,
        model=model,
        aggregation=arguments.aggregation,
        index=arguments.index,
        mode=arguments.mode,
        exclude=arguments.exclude,
        weights=weights.get(model) if model else None,
        modality=arguments.modality,
    )
    if arguments.html:
        from medret.search.page import results_page

        page = results_page(snapshot, [(arguments.query, snapshot.uri_of_query(arguments.query), hits)])
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(page, encoding="utf-8")
    if arguments.json:
        print(json.dumps({"query": arguments.query, "hits": [hit.to_json() for hit in hits]}))
    else:
        from medret.cli.tables import print_hits

        print_hits(arguments.query, hits)
        if arguments.html:
            print(f"page: {arguments.html.resolve()}")
    return 0
