"""What the commands share: their parsers' form and the types of their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from medret.errors import UsageError


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a sub-command whose help keeps the line breaks of its texts."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def positive_int(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


positive_int.__name__ = "whole number above 0"  # argparse names the type in its message


def positive_float(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


positive_float.__name__ = "number above 0"


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


share.__name__ = "number from 0 to 1"


def parse_weights(given: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` options to a mapping; raises UsageError."""
    weights: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"--weights '{text}' is not of the form NAME=PATH, such as dinov2=/models/dinov2.pth")
        if name in weights:
            raise UsageError(f"--weights names {name} twice: {weights[name]} and {value}")
        weights[name] = value
    return weights
