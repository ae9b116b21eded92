"""`medret verify`: every checksum, count and invariant of a store."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from medret.cli.shared import add_command
from medret.visible import say

DESCRIPTION = """\
Check every file of STORE against the checksum in its name and in the live snapshot's manifest, and that the
counts of ledger, embedding shards and indices agree. Prints each file that is damaged, missing or foreign.
Litter of desktops and file servers (.DS_Store, @eaDir, .nfs*, Thumbs.db, ...) is counted and passed over.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands, "verify", run, "check every file of a store", DESCRIPTION, "exit codes: 0 sound, 1 not"
    )
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.snapshot import current_id, verify_store
    from medret.snapshot.forgetting import FORGETTING
    from medret.snapshot.names import is_litter
    from medret.storage import Location

    store = Location(arguments.store)
    findings = verify_store(store)
    litter, stopped = sum(map(is_litter, store.files())), store.exists(FORGETTING)
    if arguments.json:
        facts = {"findings": [asdict(finding) for finding in findings], "litter": litter, "forgetting": stopped}
        say(json.dumps({"store": store.uri, **facts}))
    elif findings:
        for finding in findings:
            say(f"{store.uri_of(finding.path)}: {finding.problem}")
    else:
        say(f"{store.uri}: sound; snapshot {current_id(store)} is live")
    if litter and not arguments.json:
        say(f"{store.uri}: passed over {litter} files of desktops and file servers, such as .DS_Store")
    if stopped and not arguments.json:
        say(f"{store.uri}: a `medret forget` was stopped; the next forget, index or gc finishes it")
    return 1 if findings else 0
