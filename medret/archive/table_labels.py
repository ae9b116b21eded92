r"""Join the rows of a user's table to the volumes of a listing.

A row names its volume in the column `volume_id` or `path`: by its id, by its whole URI or any tail of it, with `/` or
`\`, in any Unicode form, with or without .nii or .nii.gz. An absolute path of another machine
(`D:\data\sub-01\a.nii.gz`, `/mnt/data/sub-01/a.nii.gz`) ends in the id. Whole URIs of remote stores are compared
literally. A name matches the volume that it fits best, if there is just one. Ids are joined by column, other names one
by one.

A table without these columns, such as that of idc-index, names series: a volume belongs to the row whose
SeriesInstanceUID, or UUID in the Imaging Data Commons, ends its name.

The columns subject, modality, body_region and organ become labels, all others metadata. In place of subject and
body_region there may be PatientID and BodyPartExamined.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.label_origins import TABLE, from_columns
from medret.archive.label_table import ID_COLUMNS, SERIES_COLUMNS, Table, read_table
from medret.archive.listing import Listing
from medret.errors import UsageError
from medret.schemas import LABELS, VOLUME_LABELS, in_order, in_pieces, taken
from medret.vocabularies import body_region, modality_label


@dataclass(frozen=True)
class TableJoin:
    """What a table gives.

    name: its URI, without secrets. labels: of the volumes that have a row (schemas.VOLUME_LABELS), sorted by volume_id.
    unmatched_rows: rows that do not name one volume of the listing; ambiguous_rows of them fit several equally well.
    unmatched_example: the first unmatched name. root: for a table from another machine, the folder before the ids.
    """

    name: str
    labels: pa.Table
    unmatched_rows: int
    ambiguous_rows: int
    unmatched_example: str | None
    root: str | None


def join_table(uri: str, listing: Listing) -> TableJoin:
    """Read a table and join it to the listed volumes.

    Raises UsageError, naming file and column, for an unreadable file, no id column, or two rows that disagree on one
    volume.
    """
    table = read_table(uri)
    columns = _known_columns(table)
    if columns.keys().isdisjoint(ID_COLUMNS):
        return _of_series(columns, table, listing)
    rows = _joined(columns, table, listing)
    labels = _distinct(table.name, _labelled(columns, table, rows.volume_ids))
    unmatched = pc.indices_nonzero(pc.is_null(rows.volume_ids))
    example = next(iter(_names(columns, table, unmatched[:1])[0]), "") if len(unmatched) else None
    return TableJoin(table.name, labels, len(unmatched), rows.ambiguous, example, rows.root)


_SERIES = (
    r"(?:^|[/_])(?:(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})|(?P<uid>[0-9]+(?:\.[0-9]+){3,}))"
    r"(?:/\*?|\.(?i:nii|nii\.gz|zip|tar|tgz|tar\.gz))?$"
)


def _of_series(columns: Mapping[str, int], table: Table, listing: Listing) -> TableJoin:
    """Join rows that name series to the volumes whose names end in them."""
    ids = listing.objects["volume_id"]
    ends = pc.extract_regex(ids, _SERIES)
    named = pa.nulls(len(ids), pa.int32())
    again: list[tuple[int, int]] = []  # a row, and an earlier one of the same series
    for column in (name for name in SERIES_COLUMNS if name in columns):
        cells = table.cells.column(columns[column])
        if column == "series_aws_url":
            cells = pc.struct_field(pc.extract_regex(cells, _SERIES), "uuid")
        names = pc.struct_field(ends, "uid" if column == "SeriesInstanceUID" else "uuid")
        # What does not match a pattern gives "", which names nothing.
        cells, names = (pc.if_else(pc.equal(each, ""), None, each) for each in (cells.combine_chunks(), names))
        named = pc.coalesce(named, pc.index_in(names, cells, skip_nulls=True))
        first = pc.fill_null(pc.index_in(cells, cells, skip_nulls=True), -1).to_numpy()
        again += [
            (row, int(first[row])) for row in np.flatnonzero((first >= 0) & (first < np.arange(len(first)))).tolist()
        ]
    volumes, rows = ids.filter(pc.is_valid(named)), pc.drop_null(named)
    if again:
        of_row = dict(zip(rows.to_pylist(), volumes.to_pylist(), strict=True))
        more = sorted({(row, of_row[earlier]) for row, earlier in again if earlier in of_row and row not in of_row})
        rows = pa.chunked_array([*rows.chunks, pa.array([row for row, _ in more], pa.int32())], pa.int32())
        volumes = pa.chunked_array([*volumes.chunks, pa.array([name for _, name in more], pa.string())], pa.string())
    chosen = Table(table.name, taken(table.cells, rows.combine_chunks()))
    labels = _distinct(table.name, _labelled(columns, chosen, volumes))
    left = np.ones(table.cells.num_rows, np.bool_)
    left[rows.to_numpy()] = False
    key = columns[next(name for name in SERIES_COLUMNS if name in columns)]
    example = table.cells.column(key).filter(pa.array(left))[:1].to_pylist()
    return TableJoin(table.name, labels, int(left.sum()), 0, (example[0] or "") if example else None, None)


@dataclass(frozen=True)
class _Joined:
    """volume_ids: one per row, null if it names none or several. ambiguous: number of rows that name several."""

    volume_ids: pa.Array
    ambiguous: int
    root: str | None


def _joined(columns: Mapping[str, int], table: Table, listing: Listing) -> _Joined:
    """Decide which volume each row is about.

    Paths of another machine count only if they share one root, no row contains the archive's own location, and no
    plainer name means the same volume: a table over several archives must not label one with the rows of another.
    """
    cells = [table.cells.column(columns[name]) for name in ID_COLUMNS if name in columns]
    first = pc.coalesce(*cells).combine_chunks()
    exact = pc.if_else(pc.is_in(first, listing.objects["volume_id"]), first, pa.scalar(None, pa.string()))
    left = pc.indices_nonzero(pc.is_null(exact))
    names = _names(columns, table, left)
    finder = Finder(listing, {name for row in names for name in row})
    matches = [_match(row, finder) for row in names]
    plain = {match.volume_ids[0] for match in matches if len(match.volume_ids) == 1 and match.root is None}
    named = {match.volume_ids[0] for match in matches if len(match.volume_ids) == 1 and match.root is not None}
    plain |= set(exact.filter(pc.is_in(exact, pa.array(named, pa.string()))).to_pylist())
    roots = {match.root for match in matches if match.root is not None}
    trusted = len(roots) == 1 and not any(match.located for match in matches)
    volume_ids: list[str | None] = []
    for match in matches:
        volume_id = match.volume_ids[0] if len(match.volume_ids) == 1 else None
        volume_ids.append(volume_id if match.root is None or (trusted and volume_id not in plain) else None)
    pairs = list(zip(matches, volume_ids, strict=True))
    ambiguous = sum(bool(match.volume_ids) and volume_id is None for match, volume_id in pairs)
    used = any(match.root is not None and volume_id is not None for match, volume_id in pairs)
    found = pc.replace_with_mask(exact, pc.is_null(exact), pa.array(volume_ids, pa.string()))
    return _Joined(found, ambiguous, roots.pop() if used else None)


def _names(columns: Mapping[str, int], table: Table, rows: pa.Array) -> list[list[str]]:
    """The names of their volume that some rows give. rows: numbers."""
    cells = [table.cells.column(columns[name]).take(rows).to_pylist() for name in ID_COLUMNS if name in columns]
    return [[cell for cell in row if cell] for row in zip(*cells, strict=True)]


def _match(names: Sequence[str], finder: Finder) -> Match:
    """The match of the first of a row's names that fits one volume; paths of another machine are tried last."""
    matches = [match for name in names if (match := finder.find(name)).volume_ids]
    return min(matches, key=lambda match: (len(match.volume_ids) > 1, match.root is not None), default=Match())


def _known_columns(table: Table) -> dict[str, int]:
    """Known column name -> its number. Case does not matter."""
    columns: dict[str, int] = {}
    known = {name.lower(): name for name in (*ID_COLUMNS, *LABELS)}
    for number, name in enumerate(table.cells.column_names):
        if (ours := known.get(name.lower())) is None:
            continue
        if ours in columns:
            raise UsageError(f"{table.name}: column {ours} appears twice")
        columns[ours] = number
    others = {name.lower(): number for number, name in enumerate(table.cells.column_names)}
    for name, label in (("PatientID", "subject"), ("BodyPartExamined", "body_region")):
        if label not in columns and name.lower() in others:
            columns[label] = others[name.lower()]
    if columns.keys().isdisjoint(ID_COLUMNS):
        columns |= {name: others[name.lower()] for name in SERIES_COLUMNS if name.lower() in others}
        if columns.keys().isdisjoint(SERIES_COLUMNS):
            raise UsageError(
                f"{table.name}: there is no column volume_id or path to name each row's volume, nor SeriesInstanceUID "
                f"to name its series; its columns are {', '.join(table.cells.column_names)}"
            )
    return columns


def _labelled(columns: Mapping[str, int], table: Table, volume_ids: pa.Array) -> pa.Table:
    """The labels of the rows that name a volume (schemas.VOLUME_LABELS), in the order of the rows."""
    rows = table.cells.append_column("", volume_ids).filter(pc.is_valid(volume_ids))
    named = {name: columns[name] for name in LABELS if name in columns}
    used = {number for name, number in columns.items() if name not in SERIES_COLUMNS}
    named |= {name: number for number, name in enumerate(table.cells.column_names) if number not in used}
    parts = [VOLUME_LABELS.empty_table()]
    for part in in_pieces([rows]):
        texts = {name: part.column(number).combine_chunks() for name, number in named.items()}
        for name, words in _VOCABULARIES.items():
            if name in texts:
                texts[name] = _in_words(texts[name], words)
        parts.append(from_columns(part[""].combine_chunks(), texts, TABLE))
    return pa.concat_tables(parts)


_VOCABULARIES = {"modality": modality_label, "body_region": lambda text: body_region(text) or text}


def _in_words(column: pa.Array, vocabulary: Callable[[str], str]) -> pa.Array:
    """The column in medret's words."""
    words = pc.unique(column)
    ours = [None if word is None else vocabulary(word) for word in words.to_pylist()]
    return pa.array(ours, pa.string()).take(pc.index_in(column, words))


def _distinct(name: str, labels: pa.Table) -> pa.Table:
    """One row per volume, sorted; raises UsageError if two rows disagree. labels: VOLUME_LABELS. name: of the table."""
    labels = in_order(labels, "volume_id")
    ids = labels["volume_id"]
    again = pc.equal(ids[1:], ids[:-1]) if len(ids) > 1 else pa.chunked_array([], pa.bool_())
    for number in pc.indices_nonzero(again).to_pylist():
        one, other = labels.slice(number, 2).to_pylist()
        if one != other:
            raise UsageError(
                f"{name}: two rows for {one['volume_id']} disagree: {_difference(one, other)}; keep one of them"
            )
    return labels.filter(pc.invert(pa.chunked_array([pa.array([False]), *again.chunks]))) if len(ids) else labels


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first column in which two rows differ, and both values."""
    values, others = ({**row, **dict(row["metadata"])} for row in (one, other))
    names = [*LABELS, *sorted(dict([*one["metadata"], *other["metadata"]]))]
    name = next(name for name in names if values.get(name) != others.get(name))
    return f"{name} is {values.get(name)!r} and {others.get(name)!r}"


_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_DRIVE = re.compile(r"/?([A-Za-z]:/.*)", re.DOTALL)


@dataclass(frozen=True)
class Match:
    """The volumes that a name matches.

    volume_ids: none, one, or several that it fits equally well.
    located: the name contains part of the archive's own location.
    root: for a path of another machine, the part before the volume's id.
    """

    volume_ids: tuple[str, ...] = ()
    located: bool = False
    root: str | None = None


@dataclass(frozen=True)
class _Name:
    """A name in parts. remote: it is a URI. absolute: it is a URI or an absolute path."""

    folders: tuple[str, ...]
    file: str
    remote: bool
    absolute: bool

    @property
    def stem(self) -> str:
        return _SUFFIX.sub("", self.file)


@dataclass(frozen=True)
class _Volume:
    volume_id: str
    below: _Name  # the id
    whole: _Name  # the URI


class Finder:
    """The volumes of a listing, by name. names: those that will be asked for; others find nothing."""

    def __init__(self, listing: Listing, names: Collection[str]) -> None:
        ids = listing.objects["volume_id"]
        self._ids = frozenset(ids.filter(pc.is_in(ids, pa.array(names, pa.string()))).to_pylist())
        stems = pa.array({_parse(name).stem for name in names}, pa.string())
        self._by_stem: dict[str, list[_Volume]] = defaultdict(list)
        for volume_id in ids.filter(pc.is_in(_stems(listing), stems)).to_pylist():
            whole = _parse(listing.uri_of(volume_id))
            self._by_stem[whole.stem].append(_Volume(volume_id, _parse(volume_id), whole))

    def find(self, name: str) -> Match:
        """The volumes that `name` fits best."""
        if name in self._ids:
            return Match((name,))
        parsed = _parse(name)
        fits = [(fit, volume) for volume in self._by_stem.get(parsed.stem, ()) if (fit := _fit(parsed, volume))]
        if not fits:
            return Match()
        best = min(fit for fit, _ in fits)
        volumes = [volume for fit, volume in fits if fit == best]
        first, depth = volumes[0], len(parsed.folders) - len(volumes[0].below.folders)
        foreign = best[1] == _FOREIGN
        return Match(
            tuple(volume.volume_id for volume in volumes),
            located=not foreign and len(parsed.folders) > len(first.below.folders),
            root="/".join(parsed.folders[:depth]) or "/" if foreign else None,
        )


_ITSELF, _TAIL, _FOREIGN = range(3)


def _fit(name: _Name, volume: _Volume) -> tuple[bool, int, int] | None:
    """How well a name with the right stem fits (smaller is better); None if it does not."""
    other_suffix = name.file != volume.whole.file
    count, whole, below = len(name.folders), volume.whole.folders, volume.below.folders
    if name.folders == (whole if name.absolute else below):
        return other_suffix, _ITSELF, 0
    if not name.absolute and count <= len(whole) and whole[len(whole) - count :] == name.folders:
        return other_suffix, _TAIL, 0
    if name.absolute and not name.remote and name.folders[count - len(below) :] == below:
        return other_suffix, _FOREIGN, -len(below)
    return None


def _parse(name: str) -> _Name:
    text = unicodedata.normalize("NFC", name).removeprefix("file://")
    remote = "://" in text
    if not remote:
        text = text.replace("\\", "/")
        drive = _DRIVE.fullmatch(text)
        text = posixpath.normpath(drive[1] if drive else text)
    parts = text.split("/")
    absolute = remote or parts[0] == "" or bool(_DRIVE.fullmatch(text))
    while len(parts) > 1 and parts[0] == "..":
        del parts[0]
    return _Name(tuple(parts[:-1]), parts[-1], remote, absolute)


def _stems(listing: Listing) -> pa.ChunkedArray:
    """`_Name.stem` of each volume's URI, by column."""
    folders = r"(?s)^.*/" if "://" in listing.prefix else r"(?s)^.*[/\\]"
    files = pc.replace_substring_regex(listing.objects["volume_id"], folders, "")
    return pc.utf8_normalize(pc.replace_substring_regex(files, r"(?i)\.nii(\.gz)?$", ""), "NFC")
