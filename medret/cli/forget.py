"""`medret forget`: remove volumes from everything in a store."""

from __future__ import annotations

import argparse
import json
from typing import Any

from medret.cli.shared import add_command
from medret.visible import say

DESCRIPTION = """\
Remove volumes (a patient withdrew) from every snapshot of STORE, from its Parquet files, indices, quarantine
tables, run reports and unfinished work. Snapshots that knew them get new ids. Says where they were.

What it is to forget is written down first (as digests of the ids); stopped half-way, it is finished by the next
`medret forget`, `index` or `gc`. At the end the whole store is searched for the ids.

Remove them from the archive too, or the next index run embeds them again. Copies of a remote store's files lie in
the cache ($MEDRET_CACHE) of machines that searched it: delete those.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "forget", run, "remove volumes from a store, wholly", DESCRIPTION, "")
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("volumes", nargs="+", metavar="VOLUME_ID", help="paths below the archive")
    parser.add_argument("--copies", action="store_true", help="and other volumes of the same content")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.snapshot import leased
    from medret.snapshot.forget import forget
    from medret.storage import Location

    store = Location(arguments.store)
    with leased(store, "forget") as lease:
        done = forget(
            store, set(arguments.volumes), lease, copies=arguments.copies, say=lambda line: say(line, error=True)
        )
    if arguments.json:
        facts = {"volumes": done.volumes, "live": done.live, "snapshots": dict(done.snapshots), "files": done.places}
        say(json.dumps({"store": store.uri, **facts, "unreadable": done.unreadable}))
        return 0
    say(f"{store.uri}: forgot {len(done.volumes)} volumes; they were in {len(done.places)} files, now gone:")
    for path in done.places:
        say(f"  {path}")
    for path in done.unreadable:
        say(f"erased whole, because it cannot be read: {path}")
    for old, new in done.snapshots.items():
        say(f"snapshot {old} is now {new}{' (live)' if new == done.live else ''}")
    say("searched the whole store for their ids: none is left")
    return 0
