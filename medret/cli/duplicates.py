"""`medret duplicates`: volumes of a store that are the same, or nearly."""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.cli.shared import add_command, note
from medret.visible import say

if TYPE_CHECKING:
    import pyarrow as pa

    from medret.evaluate.duplicates import Duplicates

DESCRIPTION = """\
List pairs of volumes of STORE that are copies of one file, or so similar that a search with one finds the other
first: they inflate every score. Neighbours come from the index; a pair counts if its slices agree too.
"""

EPILOG = """\
examples:
  medret duplicates ~/ct-store --at-least 0.995
  medret duplicates ~/ct-store --list twins.txt && medret evaluate ~/ct-store --without twins.txt
"""

SHOWN = 50


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "duplicates", run, "list volumes that are nearly the same", DESCRIPTION, EPILOG)
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("--snapshot", metavar="ID", help="an older snapshot (default: the live one)")
    parser.add_argument(
        "--at-least",
        type=float,
        default=0.99,
        metavar="COSINE",
        help="least cosine of the volume vectors, and score of their slices (default %(default)s)",
    )
    parser.add_argument("--model", metavar="NAME", help="(default: the snapshot's first)")
    parser.add_argument("--aggregation", metavar="NAME", help="(default: the snapshot's first)")
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="write one id per line: leave these out and no pair remains",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.cli.shared import clear, report, write_text
    from medret.evaluate.duplicates import find_duplicates
    from medret.search import open_snapshot

    snapshot = open_snapshot(arguments.store, arguments.snapshot)
    found = find_duplicates(snapshot, arguments.at_least, arguments.model, arguments.aggregation, report)
    clear()
    if arguments.list:
        write_text(arguments.list, "".join(f"{name}\n" for name in found.to_leave_out()))
    if arguments.json:
        say(json.dumps({"store": snapshot.uri, "snapshot": snapshot.id, **found.to_json(snapshot.labels())}))
    else:
        _print(found, snapshot.labels(), arguments)
    return 0


def _print(found: Duplicates, labels: pa.Table, arguments: argparse.Namespace) -> None:
    from medret.evaluate.duplicates import labels_of

    shown = found.pairs[:SHOWN]
    known = labels_of(labels, {name for pair in shown for name in (pair.first, pair.second)})
    for pair in shown:
        words = "copy  " if pair.copy else f"{pair.score:.4f}"
        for name in (pair.first, pair.second):
            values = ", ".join(str(value) for value in known[name].values() if value)
            say(f"{words}  {name}" + (f"  ({values})" if values else ""))
            words = " " * len(words)
    if len(found.pairs) > SHOWN:
        say(f"... and {len(found.pairs) - SHOWN} more: --json lists all")
    leave_out = found.to_leave_out()
    copies = sum(pair.copy for pair in found.pairs)
    say(
        f"{len(found.pairs)} pairs among {found.volumes} volumes, {copies} of them copies, the others at least "
        f"{found.at_least:g} alike"
    )
    if found.crowded:
        note(f"{found.crowded} volumes have more near neighbours than were compared: raise --at-least", logging.WARNING)
    if leave_out:
        path = os.fspath(arguments.list) if arguments.list else "FILE"
        write = "written to" if arguments.list else "--list FILE writes"
        say(
            f"leave out {len(leave_out)} volumes and no pair is left; {write} {path if arguments.list else 'them'}; "
            f"then: medret evaluate {arguments.store} --without {path}"
        )
