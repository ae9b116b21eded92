"""Text from files, labels and stores, so that what shows it only shows it.

A terminal obeys escape sequences, text can run backwards, a line break makes two lines of one, and a spreadsheet
calculates what begins like a formula. None of that is to happen because a label says so.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence

# Controls (C0, DEL, C1), marks and overrides of direction, separators of lines, halves of surrogate pairs.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001  # spreadsheets take the wide ones too


def visible(text: str) -> str:
    r"""The text on one line, with `\x1b` and the like in place of characters that would do something."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(text: str, *, error: bool = False) -> None:
    """One visible line on standard output, or on standard error."""
    print(visible(text), file=sys.stderr if error else sys.stdout)


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV table. Texts are visible, and those that a spreadsheet would run begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.lstrip().startswith(FORMULA) else visible(value)
