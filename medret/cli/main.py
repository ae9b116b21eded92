"""The `medret` command: parsing, exit codes, and one clear line for every foreseeable mistake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import medret
from medret.cli import (
    demo,
    duplicates,
    evaluate,
    forget,
    history,
    index,
    models,
    plan,
    search,
    study,
    unlock,
    verify,
)  # fmt: skip
from medret.errors import MedretError
from medret.storage import redacted

EPILOG = """\
exit codes:
  0  done                     3  a check refused to publish; the old snapshot stays live
  1  failed                   4  published, with volumes in quarantine
  2  wrong usage              5  another run holds the store
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message: 2 for wrong usage, 0 after --help
        return int(stop.code or 0)
    try:
        code: int = arguments.run(arguments)
        return code
    except MedretError as error:
        print(f"medret {arguments.command}: {redacted(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"medret {arguments.command}: interrupted; nothing was published", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medret",
        description="Make an archive of CT and MRI volumes searchable by content, without training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medret {medret.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, plan, index, search, evaluate, study, duplicates, verify, history, forget, unlock, models):
        module.add_parser(commands)
    return parser
