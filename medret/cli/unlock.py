"""`medret unlock`: break the lease of a run that will not come back."""

from __future__ import annotations

import argparse
from typing import Any

from medret.cli.shared import add_command
from medret.visible import say

DESCRIPTION = """\
Break the lease on STORE of a run that died, where it would lapse too late: a clock was ahead when it was taken, or
the machine is known to be gone. Says who held it. A holder that looks alive keeps it, unless --force is given: it
then finds out, and publishes nothing.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "unlock",
        run,
        "break the lease of a run that died",
        DESCRIPTION,
        "exit codes: 0 nobody holds the store, 5 the holder looks alive",
    )
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument("--force", action="store_true", help="also if the holder looks alive")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.snapshot.lease import unlock
    from medret.storage import Location

    store = Location(arguments.store)
    holder, ran = unlock(store, force=arguments.force)
    if holder is None or not ran:
        last = f"; the last was {holder.holder}, since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder else ""
        say(f"{store.uri}: nobody holds it{last}")
        return 0
    say(
        f"{store.uri}: broke the lease of {holder.holder}, since {holder.since:%Y-%m-%d %H:%M:%S} UTC, that ran until "
        f"{holder.expires:%Y-%m-%d %H:%M:%S} UTC"
    )
    return 0
