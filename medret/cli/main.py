"""The `medret` command: parsing, exit codes, and one clear line per foreseeable mistake."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from medret._version import __version__
from medret.cli import demo, evaluate, index, scan, search, serve, store, study
from medret.cli.shared import logging_to_stderr, note, use_storage_options
from medret.errors import MedretError, MissingPackageError, needs_extra, require
from medret.storage import in_words, redacted
from medret.visible import visible

WRITING = (index.run_index, store.run_gc, store.run_forget, store.run_rollback)
EPILOG = """\
exit codes:
  0  done                     3  a check refused to publish; the old snapshot stays live
  1  failed                   4  published, with volumes in quarantine
  2  wrong usage              5  another run holds the store       130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # never fail on a name that the encoding cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message: 2 for wrong usage, 0 after --help
        return int(stop.code or 0)
    with logging_to_stderr(arguments):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        with needs_extra():
            use_storage_options(arguments)
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except MedretError as error:
        note(f"medret {arguments.command}: {redacted(str(error))}", logging.ERROR)
        return error.exit_code
    except KeyboardInterrupt:
        then = (
            "; run it again to finish, `medret snapshots STORE` says what is live" if arguments.run in WRITING else ""
        )
        note(f"medret {arguments.command}: interrupted{then}", logging.ERROR)
        return 130
    except BrokenPipeError:  # the reader of our output has closed it
        _drop_output()
        return 1
    except OSError as error:  # of a path that was named, or of standard output on a full disk
        logging.getLogger("medret").debug("the command failed", exc_info=True)
        advice = "check the path, the permissions and the free space"
        with contextlib.suppress(OSError):
            note(f"medret {arguments.command}: {in_words(error)}; {advice}", logging.ERROR)
        _drop_output()
        return 1


def _open_closed_streams() -> None:
    """Give a process that was started with a closed output one that takes all: else a file gets its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115


def _drop_output() -> None:
    """Leave out what an output does not take, so that Python does not try again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Parser(argparse.ArgumentParser):
    """A parser whose messages show what was typed without obeying escape sequences in it."""

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
    parser.add_argument("--version", action="version", version=f"medret {__version__}")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"),
        help="print a completion script for this shell, and exit",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_parser(commands)
    scan.add_parser(commands)
    index.add_parser(commands)
    search.add_parser(commands)
    study.add_explain(commands)
    serve.add_parser(commands)
    evaluate.add_parser(commands)
    study.add_parser(commands)
    store.add_parser(commands)
    scan.add_models(commands)
    return parser
