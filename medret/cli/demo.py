"""`medret demo`: make a small corpus, index it, search it and show the hits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medret.cli.shared import add_command, positive_int

DESCRIPTION = """\
Make a small corpus of synthetic phantoms, index it with the default model's real ImageNet weights, search it
with phantoms that are not in it, and write a page that shows the hits.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "demo", run, "make a small corpus, index it and search it", DESCRIPTION, "")
    parser.add_argument(
        "folder", nargs="?", default="demo", metavar="FOLDER", help="folder for all files of the demo (default ./demo)"
    )
    parser.add_argument(
        "--volumes-per-kind",
        type=positive_int,
        default=5,
        metavar="N",
        help="phantoms of each kind (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.demo.demo import run_demo
    from medret.errors import UsageError

    try:
        return run_demo(Path(arguments.folder), volumes_per_kind=arguments.volumes_per_kind)
    except OSError as error:
        raise UsageError(
            f"{arguments.folder}: the demo cannot be written there: {error}; name another folder"
        ) from error
