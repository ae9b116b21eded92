"""A table of labels as text: CSV or Parquet, told apart by the first bytes."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medret.errors import NotFoundError, UsageError
from medret.storage import normalise_uri, read_uri, redacted

_PARQUET_MAGIC = b"PAR1"
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """name: URI of the file. rows: one cell a column, None where it is empty; no white space around."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


def read_table(uri: str) -> Table:
    """Read a CSV (comma, semicolon or tab; UTF-8; a line of names first) or Parquet file; raises UsageError."""
    name = normalise_uri(uri)
    try:
        data = read_uri(name)
    except FileNotFoundError as error:
        raise NotFoundError(f"label table {redacted(name)} does not exist") from error
    if not data.strip():
        raise UsageError(f"label table {name} is empty; expected a line of column names")
    table = _parquet(name, data) if data.startswith(_PARQUET_MAGIC) else _csv(name, data)
    if "" in table.columns:
        raise UsageError(f"label table {name}: column {table.columns.index('') + 1} has no name")
    twice = sorted({column for column in table.columns if table.columns.count(column) > 1})
    if twice:
        raise UsageError(f"label table {name}: column {twice[0]} stands there twice")
    return table


def _csv(name: str, data: bytes) -> Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"label table {name} is neither Parquet nor UTF-8 text: {error}") from error
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    rows: list[tuple[str | None, ...]] = []
    columns: tuple[str, ...] = ()
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            stripped = tuple(cell.strip() for cell in cells)
            if not any(stripped):
                continue
            if not columns:
                columns = stripped
                continue
            if len(stripped) > len(columns):
                found, named = len(stripped), len(columns)
                raise UsageError(
                    f"label table {name}, line {reader.line_num}: {found} cells, the first line names {named}"
                )
            filled = stripped + ("",) * (len(columns) - len(stripped))
            rows.append(tuple(cell or None for cell in filled))
    except csv.Error as error:
        raise UsageError(f"label table {name}, line {reader.line_num}: {error}") from error
    return Table(name, columns, tuple(rows))


def _parquet(name: str, data: bytes) -> Table:
    try:
        content = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"label table {name} is no readable Parquet file: {error}") from error
    columns = [[_cell(value) for value in column.to_pylist()] for column in content.columns]
    rows = tuple(zip(*columns, strict=True))
    return Table(name, tuple(column.strip() for column in content.column_names), rows)


def _cell(value: Any) -> str | None:
    """A value as text; None for null, NaN and blank text."""
    if value is None or value != value:  # NaN is not equal to itself
        return None
    return str(value).strip() or None
