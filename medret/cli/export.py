"""`medret export`: the live vectors of a store with their labels, for other tools."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medret.cli.shared import add_command
from medret.visible import say

DESCRIPTION = """\
Write the vectors of the live snapshot of STORE, with labels, to the Parquet file OUT: one row per volume, or with
--slices one per slice vector. Files of a store may still hold rows of removed volumes: these are not written.
"""

EPILOG = """\
examples:
  medret export ~/ct-store vectors.parquet
  medret export s3://hospital/medret slices.parquet --slices --model dinov2

Vectors of patients are personal data: protect the file like the store.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "export", run, "vectors and labels as Parquet", DESCRIPTION, EPILOG)
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("out", metavar="OUT", type=Path, help="the Parquet file to write")
    parser.add_argument("--model", metavar="NAME", help="(default: the snapshot's first)")
    parser.add_argument("--aggregation", metavar="NAME", help="of volume vectors (default: the snapshot's first)")
    parser.add_argument("--slices", action="store_true", help="slice vectors instead of volume vectors")
    parser.add_argument("--snapshot", metavar="ID", help="an older snapshot (default: the live one)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.errors import UsageError
    from medret.search import open_snapshot
    from medret.search.export import export_rows

    if arguments.slices and arguments.aggregation:
        raise UsageError("--aggregation applies to volume vectors: remove it, or --slices")
    snapshot = open_snapshot(arguments.store, arguments.snapshot)
    rows = export_rows(
        snapshot, arguments.out, model=arguments.model, aggregation=arguments.aggregation, slices=arguments.slices
    )
    if arguments.json:
        say(json.dumps({"snapshot": snapshot.id, "rows": rows, "path": str(arguments.out.resolve())}))
    else:
        say(f"{rows} rows of snapshot {snapshot.id}: {arguments.out.resolve()}")
    return 0
