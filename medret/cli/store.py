"""Commands on what a store holds: `export`, `verify`, `snapshots`, `rollback`, `gc`, `forget` and `unlock`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from medret.cli.shared import add_command, add_store, count, note
from medret.errors import UsageError
from medret.storage import Location
from medret.visible import say

EXPORT = """\
Write the vectors of the live snapshot of STORE, with labels, to the Parquet file OUT: one row per volume, or with
--slices one per slice vector. Files of a store may still hold rows of removed volumes: these are not written.
"""
EXPORT_EXAMPLES = """\
examples:
  medret export ~/ct-store vectors.parquet
  medret export s3://hospital/medret slices.parquet --slices --model dinov2

Vectors of patients are personal data: protect the file like the store.
"""
VERIFY = """\
Check every file of STORE against the checksum in its name and in the live snapshot's manifest, and check that the
counts of ledger, embedding shards and indices agree. Prints each file that is damaged, missing or not medret's.
Files that desktops and file servers leave behind (.DS_Store, @eaDir, .nfs*, Thumbs.db, ...) are counted and ignored.
"""
SNAPSHOTS = """\
List the snapshots of STORE, oldest first, with their counts, models and recall. The live one is marked.
"""
ROLLBACK = """\
Make an older snapshot of STORE the live one. Readers that open the store from now on see that snapshot, and the next
index run starts from it. Nothing is deleted.
"""
GC = """\
Delete old snapshots of STORE, and every file that no kept snapshot and no unfinished run needs. It keeps the live
snapshot, the newest --keep snapshots, and everything younger than --older-than.
"""
FORGET = """\
Remove volumes (because a patient withdrew) from every snapshot of STORE, from its Parquet files, indices, quarantine
tables, run reports and unfinished work, and say where they were. Snapshots that named them get new ids.

First it writes down what to forget, as digests of the ids. If it is stopped, the next `medret forget`, `index` or
`gc` finishes it. At the end it searches the whole store for the ids.

Remove the volumes from the archive too, or the next index run embeds them again. Machines that searched a remote store
keep copies of its files in their cache ($MEDRET_CACHE): delete those too.
"""
UNLOCK = """\
Break the lease on STORE of a run that has died, when waiting for it to end takes too long: the machine is gone, or its
clock was ahead. Says who held it. If the holder looks alive, the lease stays unless you give --force. A holder that
is alive after all notices that it lost the lease, and publishes nothing.
"""

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_parser(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_export(commands)

    def add(
        run: Callable[[argparse.Namespace], int], summary: str, text: str, codes: str = "", *, as_json: bool = True
    ) -> argparse.ArgumentParser:
        parser = add_command(commands, run.__name__.removeprefix("run_"), run, summary, text, codes)
        add_store(parser, snapshot=False, as_json=as_json)
        return parser

    add(run_verify, "check every file of a store", VERIFY, "exit codes: 0 sound, 1 not sound")
    add(run_snapshots, "list the snapshots of a store", SNAPSHOTS)
    parser = add(run_rollback, "make an older snapshot live", ROLLBACK, as_json=False)
    parser.add_argument("snapshot", metavar="ID", help="as `medret snapshots` lists it")
    parser = add(run_gc, "delete what is no longer needed", GC)
    parser.add_argument("--keep", type=count, default=3, metavar="N", help="newest snapshots (default %(default)s)")
    parser.add_argument(
        "--older-than", type=age, default=timedelta(days=7), metavar="AGE", help="such as 12h or 7d (default 7d)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser = add(run_forget, "remove volumes completely from a store", FORGET)
    parser.add_argument("volumes", nargs="+", metavar="VOLUME_ID", help="path below the archive")
    parser.add_argument("--copies", action="store_true", help="also remove other volumes with the same content")
    codes = "exit codes: 0 nobody holds the store, 5 the holder looks alive"
    parser = add(run_unlock, "break the lease of a run that has died", UNLOCK, codes, as_json=False)
    parser.add_argument("--force", action="store_true", help="break the lease even if the holder looks alive")


def _add_export(commands: Any) -> None:
    parser = add_command(commands, "export", run_export, "vectors and labels as Parquet", EXPORT, EXPORT_EXAMPLES)
    add_store(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="the Parquet file to write")
    parser.add_argument("--model", metavar="NAME", help="(default: the snapshot's first)")
    parser.add_argument("--aggregation", metavar="NAME", help="of volume vectors (default: the snapshot's first)")
    parser.add_argument("--slices", action="store_true", help="slice vectors instead of volume vectors")


def age(text: str) -> timedelta:
    """A number and a unit: 90s, 30m, 12h, 7d, 2w."""
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not an age such as 90s, 30m, 12h, 7d or 2w")
    try:
        found = timedelta(**{UNITS[match[2]]: int(match[1])})
        datetime.now(UTC) - found
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is longer than calendars reach") from error
    return found


def _store(arguments: argparse.Namespace) -> Location:
    """The store to change; raises UsageError where there is none, because taking its lease would begin one."""
    store = Location(arguments.store)
    if not store.exists(""):
        raise UsageError(f"{store.uri}: no store is there; `medret index ARCHIVE {store.uri}` makes one")
    return store


def run_export(arguments: argparse.Namespace) -> int:
    """Run `medret export`."""
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


def run_verify(arguments: argparse.Namespace) -> int:
    """Run `medret verify`."""
    from medret.snapshot import current_id, verify_store
    from medret.snapshot.names import is_litter
    from medret.snapshot.removal import FORGETTING

    store = Location(arguments.store)
    findings = verify_store(store)
    litter, stopped = sum(map(is_litter, store.files())), store.exists(FORGETTING)
    if arguments.json:
        facts = {"findings": [asdict(finding) for finding in findings], "litter": litter, "forgetting": stopped}
        say(json.dumps({"store": store.uri, **facts}))
        return 1 if findings else 0
    for finding in findings:
        say(f"{store.uri_of(finding.path)}: {finding.problem}")
    if not findings:
        say(f"{store.uri}: sound; snapshot {current_id(store)} is live")
    if litter:
        say(f"{store.uri}: ignored {litter} files of desktops and file servers, such as .DS_Store")
    if stopped:
        say(f"{store.uri}: a `medret forget` was stopped; the next forget, index or gc finishes it")
    return 1 if findings else 0


def run_snapshots(arguments: argparse.Namespace) -> int:
    """Run `medret snapshots`."""
    from medret.snapshot.publish import history

    snapshots = [
        {
            "snapshot": past.id,
            "live": past.live,
            "created": past.manifest.created if past.manifest else None,
            "parent": past.manifest.parent if past.manifest else None,
            "counts": msgspec.structs.asdict(past.manifest.counts) if past.manifest else None,
            "models": [
                {"name": entry.model, "recipe": entry.digest}
                for entry in (past.manifest.recipes if past.manifest else [])
            ],
            "aggregations": past.manifest.aggregations if past.manifest else None,
            "recall_at_10": past.recall,
            "problem": past.problem,
        }
        for past in history(Location(arguments.store))
    ]
    if arguments.json:
        say(json.dumps({"store": arguments.store, "snapshots": snapshots}))
    else:
        from medret.cli.tables import print_snapshots

        print_snapshots(snapshots)
    return 0


def run_rollback(arguments: argparse.Namespace) -> int:
    """Run `medret rollback`."""
    from medret.snapshot import leased
    from medret.snapshot.publish import rollback

    store = _store(arguments)
    with leased(store, "rollback") as lease:
        before = rollback(store, arguments.snapshot, lease)
    say(f"{store.uri}: snapshot {arguments.snapshot} is live; it was {before}")
    return 0


def run_gc(arguments: argparse.Namespace) -> int:
    """Run `medret gc`."""
    from medret.snapshot import leased
    from medret.snapshot.removal import gc

    store = _store(arguments)
    with leased(store, "gc") as lease:
        result = gc(
            store, lease, keep=arguments.keep, older_than=arguments.older_than, dry_run=arguments.dry_run, say=note
        )
    if arguments.json:
        document = {"kept": result.kept, "dropped": result.dropped, "files": result.paths, "bytes": result.size_bytes}
        document["foreign"] = result.strangers
        say(json.dumps({"store": store.uri, "dry_run": arguments.dry_run, **document}))
        return 0
    verb = "would delete" if arguments.dry_run else "deleted"
    say(f"{store.uri}: kept {len(result.kept)} snapshots, {verb} {len(result.dropped)}")
    say(f"{verb} {len(result.paths)} files, {result.size_bytes / 2**20:.1f} MiB")
    if result.strangers:
        say(f"{len(result.strangers)} files are not medret's and stay, such as {result.strangers[0]}")
    return 0


def run_forget(arguments: argparse.Namespace) -> int:
    """Run `medret forget`."""
    from medret.snapshot import leased
    from medret.snapshot.removal import forget

    store = _store(arguments)
    with leased(store, "forget") as lease:
        result = forget(store, set(arguments.volumes), lease, copies=arguments.copies, say=note)
    if arguments.json:
        places = {"files": result.places, "unreadable": result.unreadable}
        facts = {"volumes": result.volumes, "live": result.live, "snapshots": dict(result.snapshots), **places}
        say(json.dumps({"store": store.uri, **facts}))
        return 0
    say(f"{store.uri}: forgot {len(result.volumes)} volumes; they were in {len(result.places)} files, now deleted:")
    for path in result.places:
        say(f"  {path}")
    for path in result.unreadable:
        say(f"deleted as a whole, because it cannot be read: {path}")
    for old, new in result.snapshots.items():
        say(f"snapshot {old} is now {new}{' (live)' if new == result.live else ''}")
    say("searched the whole store for their ids and found none")
    return 0


def run_unlock(arguments: argparse.Namespace) -> int:
    """Run `medret unlock`."""
    from medret.snapshot.lease import unlock

    store = _store(arguments)
    holder, ran = unlock(store, force=arguments.force)
    if holder is None or not ran:
        last = f"; the last holder was {holder.holder}, since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder else ""
        say(f"{store.uri}: nobody holds it{last}")
        return 0
    say(
        f"{store.uri}: broke the lease of {holder.holder}, held since {holder.since:%Y-%m-%d %H:%M:%S} UTC and valid "
        f"until {holder.expires:%Y-%m-%d %H:%M:%S} UTC"
    )
    return 0
