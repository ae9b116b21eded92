"""The `medret` command: parsing, exit codes, and one clear line for every foreseeable mistake."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import medret
from medret.cli import (
    demo,
    duplicates,
    evaluate,
    export,
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
from medret.errors import MedretError, MissingPackageError
from medret.extras import needs_extra, require
from medret.storage import redacted
from medret.visible import say, visible

EPILOG = """\
exit codes:
  0  done                     3  a check refused to publish; the old snapshot stays live
  1  failed                   4  published, with volumes in quarantine
  2  wrong usage              5  another run holds the store
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that its encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message: 2 for wrong usage, 0 after --help
        return int(stop.code or 0)
    try:
        with needs_extra():
            code: int = arguments.run(arguments)
        return code
    except MedretError as error:
        say(f"medret {arguments.command}: {redacted(str(error))}", error=True)
        return error.exit_code
    except KeyboardInterrupt:
        say(f"medret {arguments.command}: interrupted; nothing was published", error=True)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 1


class Parser(argparse.ArgumentParser):
    """Whose messages show what was typed, and do no more."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and exit with 2."""
        super().error(visible(message))


class _PrintCompletion(argparse.Action):
    """Print the completion script of a shell and exit."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, option: str | None = None) -> None:
        try:
            require("shtab")
        except MissingPackageError as error:
            parser.exit(error.exit_code, f"medret {option}: {error}\n")
        import shtab

        sys.stdout.write(shtab.complete(parser, shell=shell))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="medret",
        description="Make an archive of CT and MRI volumes searchable by content, without training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medret {medret.__version__}")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"),
        help="print a completion script for this shell, and exit",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = (demo, plan, index, search, evaluate, study, duplicates, export, verify, history, forget, unlock, models)
    for module in modules:
        module.add_parser(commands)
    return parser
