"""`medret snapshots`, `medret rollback`, `medret gc`: the history of a store."""

from __future__ import annotations

import argparse
import json
import re
from datetime import timedelta
from typing import Any

from msgspec.structs import asdict

from medret.cli.shared import add_command
from medret.visible import say

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_parser(commands: Any) -> None:
    """Add the commands to the parser."""
    text = "List the snapshots of STORE, oldest first: when, of what, with which recall; the live one is marked."
    parser = add_command(commands, "snapshots", run_snapshots, "list the snapshots of a store", text, "")
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")

    text = """\
Make an older snapshot of STORE the live one. Readers that open it from now on see that one; nothing is deleted,
and the next index run starts from it."""
    parser = add_command(commands, "rollback", run_rollback, "make an older snapshot live", text, "")
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("snapshot", metavar="ID", help="as `medret snapshots` lists it")

    text = """\
Delete old snapshots of STORE and whatever no kept snapshot and no unfinished run needs. The live snapshot, the
newest --keep ones, and everything younger than --older-than stay."""
    parser = add_command(commands, "gc", run_gc, "delete what is not needed any more", text, "")
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("--keep", type=count, default=3, metavar="N", help="newest snapshots (default %(default)s)")
    parser.add_argument(
        "--older-than", type=age, default=timedelta(days=7), metavar="AGE", help="such as 12h or 7d (default 7d)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def count(text: str) -> int:
    """A whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


count.__name__ = "whole number"  # argparse names the type in its message


def age(text: str) -> timedelta:
    """A number and a unit: 90s, 30m, 12h, 7d, 2w."""
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not an age such as 90s, 30m, 12h, 7d or 2w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def run_snapshots(arguments: argparse.Namespace) -> int:
    """Run `medret snapshots`."""
    from medret.snapshot.history import history
    from medret.storage import Location

    found = [
        {
            "snapshot": past.id,
            "live": past.live,
            "created": past.manifest.created if past.manifest else None,
            "parent": past.manifest.parent if past.manifest else None,
            "counts": asdict(past.manifest.counts) if past.manifest else None,
            "models": [
                {"name": entry.recipe["model"]["name"], "recipe": entry.recipe["digest"]}
                for entry in (past.manifest.recipes if past.manifest else [])
            ],
            "aggregations": past.manifest.aggregations if past.manifest else None,
            "recall_at_10": past.recall,
            "problem": past.problem,
        }
        for past in history(Location(arguments.store))
    ]
    if arguments.json:
        say(json.dumps({"store": arguments.store, "snapshots": found}))
    else:
        from medret.cli.tables import print_snapshots

        print_snapshots(found)
    return 0


def run_rollback(arguments: argparse.Namespace) -> int:
    """Run `medret rollback`."""
    from medret.snapshot import leased
    from medret.snapshot.history import rollback
    from medret.storage import Location

    store = Location(arguments.store)
    with leased(store, "rollback") as lease:
        before = rollback(store, arguments.snapshot, lease)
    say(f"{store.uri}: snapshot {arguments.snapshot} is live; it was {before}")
    return 0


def run_gc(arguments: argparse.Namespace) -> int:
    """Run `medret gc`."""
    from medret.snapshot import leased
    from medret.snapshot.gc import gc
    from medret.storage import Location

    store = Location(arguments.store)
    with leased(store, "gc") as lease:
        swept = gc(
            store, lease, keep=arguments.keep, older_than=arguments.older_than, dry_run=arguments.dry_run,
            say=lambda line: say(line, error=True),
        )  # fmt: skip
    if arguments.json:
        document = {"kept": swept.kept, "dropped": swept.dropped, "files": swept.paths, "bytes": swept.size_bytes}
        document["foreign"] = swept.strangers
        say(json.dumps({"store": store.uri, "dry_run": arguments.dry_run, **document}))
        return 0
    verb = "would delete" if arguments.dry_run else "deleted"
    say(f"{store.uri}: kept {len(swept.kept)} snapshots, {verb} {len(swept.dropped)}")
    say(f"{verb} {len(swept.paths)} files, {swept.size_bytes / 2**20:.1f} MiB")
    if swept.strangers:
        say(f"{len(swept.strangers)} files are not medret's and stay, such as {swept.strangers[0]}")
    return 0
