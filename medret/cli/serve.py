"""`medret serve`: search stores from a browser, and over HTTP."""

from __future__ import annotations

import argparse
from typing import Any

from medret.cli.shared import add_command, add_storage_options
from medret.extras import require

DESCRIPTION = """\
Serve the live snapshots of stores: a page for people at /, an HTTP API below /v1, its description at /docs. A new
snapshot is taken up as soon as it is published, without a restart.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "serve", run, "search from a browser and over HTTP", DESCRIPTION)
    parser.add_argument(
        "stores", metavar="STORE", nargs="+", help="folder or URI of a store; several are searched as one"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (default %(default)s)")
    parser.add_argument(
        "--archive",
        metavar="URI",
        help="where the volumes of the first STORE lie, for pictures and boxes (default: where it says, if that is on "
        "this machine's disks or on the store's own server)",
    )
    add_storage_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    require("fastapi", "uvicorn")
    from medret.serve import LiveStores, Service
    from medret.serve.server import run_server

    live = LiveStores(arguments.stores, archive=arguments.archive, storage_options=arguments.storage_options)
    run_server(Service(live), arguments.host, arguments.port)
    return 0
