"""A table of labels as text: CSV, TSV or Parquet, as pandas, R, Excel and BIDS write them.

delimiter       comma, semicolon, tab, bar, or (R's own) space: what the line of names has most of outside quotes;
                a first line `sep=;` says it
encoding        UTF-8, or UTF-16 with a byte order mark (Excel's "Unicode Text")
nothing         an empty cell and the words in MISSING, in any case, are no value
ignored         a first column without a name (the index of pandas, the row names of R), columns without name and
                content, empty lines
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medret.errors import NotFoundError, UsageError
from medret.storage import normalise_uri, read_uri, redacted

# BIDS demands n/a; the others are what pandas, R and Excel write where there is no value.
MISSING = frozenset({"", "-", "n/a", "na", "#n/a", "<na>", "nan", "nat", "none", "null"})

ID_COLUMNS = ("volume_id", "path")  # a row says in one of them which volume it is about

_PARQUET_MAGIC = b"PAR1"
_OTHER_FILES = (
    (b"PK\x03\x04", "a zip or an Excel workbook: save the sheet as 'CSV UTF-8'"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook: save the sheet as 'CSV UTF-8'"),
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
)
_DELIMITERS = "\t;,|"
_SEP_LINE = re.compile(r"\"?sep=(.)\"?[ \t]*", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")  # the names of pandas for a column without one


@dataclass(frozen=True)
class Table:
    """name: URI of the file, without secrets. rows: a cell for each column, None where there is no value; stripped."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


def read_table(uri: str) -> Table:
    """Read a table with a line of names first; raises UsageError."""
    place = normalise_uri(uri)
    name = redacted(place)
    try:
        data = read_uri(place)
    except FileNotFoundError as error:
        raise NotFoundError(f"label table {name} does not exist") from error
    if not data.strip():
        raise UsageError(f"label table {name} is empty; expected a line of column names")
    columns, rows = _parquet(name, data) if data.startswith(_PARQUET_MAGIC) else _csv(name, data)
    return _without_unnamed(name, columns, rows)


def _without_unnamed(name: str, columns: Sequence[str], rows: Sequence[tuple[str | None, ...]]) -> Table:
    """The table without an index and without columns that are empty from top to bottom."""
    kept = []
    for number, column in enumerate(columns):
        if _INDEX.fullmatch(column) and (number == 0 or column):
            continue
        if column:
            kept.append(number)
        elif any(row[number] for row in rows):
            raise UsageError(f"label table {name}: column {number + 1} has values and no name")
    twice = sorted({columns[number] for number in kept if columns.count(columns[number]) > 1})
    if twice:
        raise UsageError(f"label table {name}: column {twice[0]} stands there twice")
    cells = tuple(tuple(row[number] for number in kept) for row in rows)
    return Table(name, tuple(columns[number] for number in kept), cells)


def _text(name: str, data: bytes) -> str:
    """The bytes as text, or a UsageError that says what they are instead."""
    for start, what in _OTHER_FILES:
        if data.startswith(start):
            raise UsageError(f"label table {name} is {what}")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise UsageError(f"label table {name} begins as UTF-16 and is none: {error}; save it as UTF-8") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, around = data.count(b"\n", 0, error.start) + 1, data[max(0, error.start - 20) : error.start + 10]
        raise UsageError(
            f"label table {name} is neither Parquet nor UTF-8 text: byte 0x{data[error.start]:02x} in line {line}, "
            f"which Latin-1 or Windows-1252 would read as {around.decode('cp1252', 'replace')!r}; save the table as "
            "UTF-8 (Excel: 'CSV UTF-8')"
        ) from error
    if "\0" in text:
        raise UsageError(f"label table {name} holds zero bytes: UTF-16 without a byte order mark? save it as UTF-8")
    return text


def _csv(name: str, data: bytes) -> tuple[list[str], list[tuple[str | None, ...]]]:
    text = _text(name, data)
    said = _SEP_LINE.fullmatch(text.partition("\n")[0].rstrip("\r"))
    skipped = 1 if said else 0
    text = text.partition("\n")[2] if said else text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=said[1] if said else _delimiter(text), strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                lines.append((reader.line_num + skipped, stripped))
    except csv.Error as error:
        raise UsageError(f"label table {name}, line {reader.line_num + skipped}: {error}") from error
    if not lines:
        raise UsageError(f"label table {name} is empty; expected a line of column names")
    columns = lines.pop(0)[1]
    if _has_row_names(len(columns), [cells for _, cells in lines]):
        columns.insert(0, "")
    rows = []
    for line, cells in lines:
        if any(cells[len(columns) :]):
            raise UsageError(
                f"label table {name}, line {line}: {len(cells)} cells, the first line names {len(columns)}"
            )
        filled = (cells + [""] * len(columns))[: len(columns)]
        rows.append(tuple(_value(cell) for cell in filled))
    return columns, rows


def _delimiter(text: str) -> str:
    """The delimiter of the line of names: the one that sets an id column apart, else the most frequent.

    What stands inside quotes delimits nothing.
    """
    plain = _QUOTED.sub(lambda quoted: re.sub(f"[{_DELIMITERS} \r\n]", "_", quoted[0][1:-1]), text[: 1 << 20])
    names = next(iter(plain.strip(" \r\n").splitlines()), "").lower()

    def fitness(delimiter: str) -> tuple[bool, int]:
        return any(cell.strip() in ID_COLUMNS for cell in names.split(delimiter)), names.count(delimiter)

    best = max(_DELIMITERS, key=fitness)
    return best if best in names or " " not in names else " "


def _has_row_names(columns: int, rows: Sequence[Sequence[str]]) -> bool:
    """R writes no name for the column of row names, which are 1, 2, 3, ... unless they were given."""
    return bool(rows) and all(
        len(cells) == columns + 1 and cells[0] == str(number) for number, cells in enumerate(rows, start=1)
    )


def _parquet(name: str, data: bytes) -> tuple[list[str], list[tuple[str | None, ...]]]:
    try:
        content = pq.ParquetFile(pa.BufferReader(data)).read()
        columns = [[_cell(value) for value in column.to_pylist()] for column in content.columns]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"label table {name} is no readable Parquet file: {error}") from error
    return [column.strip() for column in content.column_names], list(zip(*columns, strict=True))


def _cell(value: Any) -> str | None:
    """A value of Parquet as text."""
    return _value(value.decode() if isinstance(value, bytes) else str(value))


def _value(text: str) -> str | None:
    """A cell's text; None where it stands for no value."""
    stripped = text.strip()
    return None if stripped.lower() in MISSING else stripped
