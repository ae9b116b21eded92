"""Make text from files, labels and stores safe to show on terminals and in spreadsheets.

A terminal obeys escape sequences, text can run backwards, a line break splits a line, and a spreadsheet evaluates what
begins like a formula. A label must not cause any of this.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence

# Control characters (C0, DEL, C1), direction marks and overrides, line separators, lone surrogates.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001  # spreadsheets take the wide ones too


def visible(text: str) -> str:
    r"""The text on one line, with escapes such as `\x1b` in place of characters that have an effect."""
    return _UNSHOWN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def say(text: str, *, error: bool = False) -> None:
    """Print one visible line to standard output, or to standard error."""
    print(visible(text), file=sys.stderr if error else sys.stdout)


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV table. Text is made visible; an apostrophe precedes text that a spreadsheet would evaluate."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.lstrip().startswith(FORMULA) else visible(value)
