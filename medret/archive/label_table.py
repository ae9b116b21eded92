"""Read a table of labels: CSV, TSV or Parquet, as pandas, R, Excel, BIDS and idc-index write them.

Cells are read as text:

delimiter       comma, semicolon, tab, bar, or (in R's files) space: the most frequent in the header line outside
                quotes, or the one that a first line `sep=;` declares
encoding        UTF-8, or UTF-16 with a byte order mark (Excel's "Unicode Text")
missing values  empty cells and the words in MISSING, in any case
ignored         a first column without a name (pandas' index, R's row names), columns without name and content, empty
                lines
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medret.errors import NotFoundError, UsageError
from medret.schemas import PART_ROWS
from medret.storage import normalise_uri, read_uri, redacted

# BIDS requires n/a; pandas, R and Excel write the others for a missing value.
MISSING = frozenset({"", "-", "n/a", "na", "#n/a", "<na>", "nan", "nat", "none", "null"})

ID_COLUMNS = ("volume_id", "path")  # a row names its volume in one of them, or its series in one of SERIES_COLUMNS
SERIES_COLUMNS = ("crdc_series_uuid", "series_aws_url", "SeriesInstanceUID")  # of DICOM and idc-index, the best first

_PARQUET_MAGIC = b"PAR1"
_OTHER_FILES = (
    (b"PK\x03\x04", "a zip or an Excel workbook: save the sheet as 'CSV UTF-8'"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook: save the sheet as 'CSV UTF-8'"),
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
)
_DELIMITERS = "\t;,|"
_SEP_LINE = re.compile(r"\"?sep=(.)\"?[ \t]*", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")  # pandas' names for a column without one


@dataclass(frozen=True)
class Table:
    """name: URI of the file, without secrets. cells: columns of stripped text, null for a missing value."""

    name: str
    cells: pa.Table


def read_table(uri: str) -> Table:
    """Read a table whose first line holds the column names; raises UsageError."""
    place = normalise_uri(uri)
    name = redacted(place)
    try:
        data = read_uri(place)
    except FileNotFoundError as error:
        raise NotFoundError(f"label table {name} does not exist") from error
    if not data.strip():
        raise UsageError(f"label table {name} is empty; expected a line of column names")
    names, columns = _parquet(name, data) if data.startswith(_PARQUET_MAGIC) else _csv(name, data)
    return _without_unnamed(name, names, [_values(column) for column in columns])


def _without_unnamed(name: str, names: Sequence[str], columns: Sequence[pa.ChunkedArray]) -> Table:
    """The table without its index and without columns that have neither name nor values."""
    kept = []
    for number, column in enumerate(names):
        if _INDEX.fullmatch(column) and (number == 0 or column):
            continue
        if column:
            kept.append(number)
        elif columns[number].null_count < len(columns[number]):
            raise UsageError(f"label table {name}: column {number + 1} has values but no name")
    twice = sorted({names[number] for number in kept if names.count(names[number]) > 1})
    if twice:
        raise UsageError(f"label table {name}: column {twice[0]} appears twice")
    cells = pa.table([columns[number] for number in kept], names=[names[number] for number in kept])
    return Table(name, cells)


def _text(name: str, data: bytes) -> str:
    """Decode the bytes; raises UsageError, which says what the file is if it is not text."""
    for start, what in _OTHER_FILES:
        if data.startswith(start):
            raise UsageError(f"label table {name} is {what}")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"label table {name} has a UTF-16 byte order mark but is not UTF-16: {error}; save it as UTF-8"
            ) from error
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


def _csv(name: str, data: bytes) -> tuple[list[str], list[pa.ChunkedArray]]:
    text = _text(name, data)
    declared = _SEP_LINE.fullmatch(text.partition("\n")[0].rstrip("\r"))
    skipped = 1 if declared else 0
    text = text.partition("\n")[2] if declared else text
    content = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")  # StringIO takes four bytes per letter
    reader = csv.reader(content, delimiter=declared[1] if declared else _delimiter(text), strict=True)
    lines = _filled_lines(name, reader, skipped)
    _, names = next(lines, (0, []))
    names = [name.strip() for name in names]
    if not names:
        raise UsageError(f"label table {name} is empty; expected a line of column names")
    width = len(names) + 1  # R writes row names 1, 2, 3, ..., and no name for their column
    parts: list[list[pa.Array]] = [[pa.array([], pa.string())] * width]
    longer, row_names, rows = "", True, 0
    while part := list(islice(lines, PART_ROWS)):
        for line, cells in part:
            rows += 1
            row_names = row_names and len(cells) == width and cells[0].strip() == str(rows)
            if not longer and any(map(str.strip, cells[len(names) :])):
                longer = f"line {line}: {len(cells)} cells, the first line names {len(names)}"
        filled = [(cells + [""] * width)[:width] for _, cells in part]
        parts.append([pa.array(column, pa.string()) for column in zip(*filled, strict=True)])
    columns = [pa.chunked_array(chunks) for chunks in zip(*parts, strict=True)]
    if row_names and rows:
        return ["", *names], columns
    if longer:
        raise UsageError(f"label table {name}, {longer}")
    return names, columns[:-1]


def _filled_lines(name: str, reader: Any, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a csv.reader that are not empty: number and cells. skipped: lines before the reader's."""
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield reader.line_num + skipped, cells
    except csv.Error as error:
        raise UsageError(f"label table {name}, line {reader.line_num + skipped}: {error}") from error


def _delimiter(text: str) -> str:
    """The delimiter of the header line: the one that separates an id column, else the most frequent outside quotes."""
    plain = _QUOTED.sub(lambda quoted: re.sub(f"[{_DELIMITERS} \r\n]", "_", quoted[0][1:-1]), text[: 1 << 20])
    names = next(iter(plain.strip(" \r\n").splitlines()), "").lower()

    def fitness(delimiter: str) -> tuple[bool, int]:
        return any(cell.strip() in ID_COLUMNS for cell in names.split(delimiter)), names.count(delimiter)

    best = max(_DELIMITERS, key=fitness)
    return best if best in names or " " not in names else " "


def _parquet(name: str, data: bytes) -> tuple[list[str], list[pa.ChunkedArray]]:
    try:
        content = pq.ParquetFile(pa.BufferReader(data)).read()
        columns = [_as_text(column) for column in content.columns]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"label table {name} is not a readable Parquet file: {error}") from error
    return [column.strip() for column in content.column_names], columns


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A Parquet column as text, in Python's words if it is of another type."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    parts = [column.slice(at, PART_ROWS).to_pylist() for at in range(0, len(column), PART_ROWS)]
    texts = [
        [value.decode() if isinstance(value, bytes) else None if value is None else str(value) for value in part]
        for part in parts
    ]
    return pa.chunked_array([pa.array(part, pa.string()) for part in texts], pa.string())


def _values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The stripped text of cells; null for those that stand for a missing value."""
    stripped = pc.utf8_trim_whitespace(column)
    missing = pc.is_in(pc.utf8_lower(stripped), pa.array(sorted(MISSING)))
    return pc.if_else(missing, pa.scalar(None, pa.string()), stripped)
