"""What the commands share: the form of their parsers, types of options, progress, logging and files to write."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from medret.errors import UsageError
from medret.storage import parse_options, redacted, use_options
from medret.visible import say, visible

Number = TypeVar("Number", int, float)
LOGGER = logging.getLogger("medret")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}  # what every record has


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """Add a command whose help keeps the line breaks of its texts, with the options that every command has."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log on standard error what happens; -vv logs more"
    )
    parser.add_argument("--log-json", action="store_true", help="log on standard error as JSON, one object per line")
    return parser


def add_store(parser: argparse.ArgumentParser, *, snapshot: bool = True, as_json: bool = True) -> None:
    """Add STORE and, for commands that read it, --snapshot and --json."""
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    add_storage_options(parser)
    if snapshot:
        parser.add_argument("--snapshot", metavar="ID", help="an older snapshot (default: the live one)")
    if as_json:
        parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")


def add_storage_options(parser: Any) -> None:
    """Add --storage-option. `use_storage_options` gives its values to the filesystems."""
    parser.add_argument(
        "--storage-option",
        dest="storage_options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the filesystems behind remote URIs, such as anon=true for public buckets; archive.KEY=VALUE "
        "and store.KEY=VALUE are for one of them; repeatable",
    )


def add_choice(group: Any) -> None:
    """Add the options that say what of an archive is taken, and with which labels."""
    add = group.add_argument
    add(
        "--labels",
        metavar="TABLE",
        help="CSV or Parquet table with a column path or volume_id, and any of subject, modality, body_region, "
        "organ; further columns are kept for filters. Its labels count before those that medret finds in tags of DICOM "
        "series and in paths (BIDS, MSD, nnU-Net, KiTS, BraTS)",
    )
    add(
        "--no-dicom-labels",
        action="append",
        metavar="TAGS",
        help="take no labels from these DICOM tags, such as PatientID,StudyDate, or from any (all); repeatable",
    )
    add(
        "--inventory",
        metavar="URI",
        help="manifest.json of an S3 Inventory (CSV or Parquet) of ARCHIVE's bucket, to read in place of a listing",
    )
    add("--glob", dest="pattern", metavar="PATTERN", help="index only volumes whose path below ARCHIVE matches")
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out volumes whose path below ARCHIVE matches; repeatable",
    )
    add(
        "--include-masks",
        action="store_true",
        help="index segmentations too; without this they are recognised by name and content and left out",
    )
    add_storage_options(group)


def use_storage_options(arguments: argparse.Namespace) -> None:
    """Parse --storage-option, and use its values for all places that the command names; raises UsageError."""
    arguments.storage_texts = list(getattr(arguments, "storage_options", ()))
    arguments.storage_options = parse_options(arguments.storage_texts)
    if not arguments.storage_options:
        return

    def named(*names: str) -> list[str]:
        values = (getattr(arguments, name, None) for name in names)
        return [text for value in values if value for text in ([value] if isinstance(value, str) else value)]

    others = named("archive", "labels", "inventory", "queries", "query", "mask", "masks", "mask_names", "model_config")
    others += [uri for text in named("weights") if (uri := text.partition("=")[2])]
    use_options(arguments.storage_options, stores=named("store", "also"), others=others)


def add_repeatable(parser: Any, option: str, metavar: str, text: str | None = None) -> None:
    """Add an option that may be given several times. text: its help."""
    parser.add_argument(option, action="append", default=[], metavar=metavar, help=text)


def per_store(values: Sequence[str], stores: Sequence[str], option: str) -> dict[str, str]:
    """Store -> the value of an option that is given as VALUE, for the first store, or as STORE=VALUE.

    values: of the option `option`. stores: as they were named. Raises UsageError for two values of one store.
    """
    found: dict[str, str] = {}
    for text in values:
        store = next((each for each in stores if text.startswith(f"{each}=")), None)
        value = text if store is None else text[len(store) + 1 :]
        store = store or stores[0]
        if store in found:
            raise UsageError(
                f"{option} says {found[store]} and {value} for the store {store}, expected one value per store; "
                f"name another store as in {option} STORE={value}"
            )
        found[store] = value
    return found


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and the fields that the call named in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The object on one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(redacted(f"{record.levelname.lower()}: {record.name}: {record.getMessage()}"))


@contextlib.contextmanager
def logging_to_stderr(arguments: argparse.Namespace) -> Iterator[None]:
    """Send medret's log to standard error, as -v or --log-json ask; without them, nowhere."""
    if not (arguments.verbose or arguments.log_json):
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if arguments.log_json else _Lines())
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG if arguments.verbose > 1 else logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def note(text: str, level: int = logging.INFO) -> None:
    """One line on standard error: to the log if that is JSON, else as it is."""
    if _logs_json():
        LOGGER.log(level, "%s", text)
    else:
        say(text, error=True)


def _logs_json() -> bool:
    return any(isinstance(handler.formatter, JsonLines) for handler in LOGGER.handlers)


def report(text: str) -> None:
    """One line of progress on a terminal, which the next one replaces."""
    if sys.stderr.isatty() and not _logs_json():
        sys.stderr.write(f"\r\x1b[K{visible(text)}")
        sys.stderr.flush()


def clear() -> None:
    """Remove the line of progress."""
    report("")


def write_text(path: Path, text: str) -> None:
    """Write a file and the folders above it; raises UsageError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


def _number(kind: Callable[[str], Number], name: str, is_valid: Callable[[Number], bool]) -> Callable[[str], Number]:
    """A type of options. name: what is expected, in argparse's message too."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"{text} is not a {name}")
        return value

    parse.__name__ = name
    return parse


count = _number(int, "whole number from 0 on", lambda value: value >= 0)
positive_int = _number(int, "whole number above 0", lambda value: value > 0)
positive_float = _number(float, "number above 0", lambda value: 0 < value < float("inf"))
port = _number(int, "port from 0 to 65535", lambda value: 0 <= value <= 65535)
share = _number(float, "number from 0 to 1", lambda value: 0 <= value <= 1)


def parse_weights(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` options to a mapping; raises UsageError."""
    weights: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"--weights '{text}' is not of the form NAME=PATH, such as dinov2=/models/dinov2.pth")
        if name in weights:
            raise UsageError(f"--weights names {name} twice: {weights[name]} and {value}")
        weights[name] = value
    return weights
