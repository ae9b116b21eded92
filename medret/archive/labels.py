"""Join labels to the volumes of a listing: from a CSV or Parquet table, or from dataset.json files.

A row names its volume in the column `volume_id` or `path`; `medret.archive.volume_names` says how. The columns subject,
modality, body_region and organ become labels, all others metadata. Empty cells, and words that stand for them, carry no
label. Rows that match no volume are counted, and a table that matches nothing is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medret.archive.label_sources import ID_COLUMNS, Table, read_descriptions, read_table
from medret.archive.listing import DESCRIPTION, Listing
from medret.archive.volume_names import Finder, Match
from medret.errors import UsageError
from medret.modalities import modality_label

_LABEL_COLUMNS = ("subject", "modality", "body_region", "organ")


@dataclass(frozen=True)
class Labels:
    """The labels of a volume. metadata: further columns of the table, as text."""

    subject: str | None = None
    modality: str | None = None
    body_region: str | None = None
    organ: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is any label."""
        return any((self.subject, self.modality, self.body_region, self.organ, self.metadata))


@dataclass(frozen=True)
class LabelJoin:
    """Labels joined to the volumes of a listing.

    labels: volume_id -> Labels, for the volumes that have a row or a dataset.json.
    unmatched_rows: rows that do not name one volume of the listing; ambiguous_rows of them fit several equally well.
    source: URI of the table, or "dataset.json"; None without labels.
    unmatched_example: the first unmatched name. volume_example: the first volume's id.
    root: for a table from another machine, the folder before the ids there.
    ignored: path -> reason, for dataset.json files of other tools.
    """

    labels: Mapping[str, Labels]
    unmatched_rows: int
    unlabelled_volumes: int
    source: str | None = None
    ambiguous_rows: int = 0
    unmatched_example: str | None = None
    volume_example: str | None = None
    root: str | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The counts for reports, without names, which may be those of patients. matched: number of volumes."""
        return {
            "source": self.source,
            "matched": len(self.labels),
            "unmatched_rows": self.unmatched_rows,
            "ambiguous_rows": self.ambiguous_rows,
            "unlabelled_volumes": self.unlabelled_volumes,
            "ignored_files": len(self.ignored),
        }

    @property
    def mismatch(self) -> str | None:
        """Why the table is useless: none of its rows matches a volume. None if one does."""
        if self.labels or self.volume_example is None or self.source in (None, DESCRIPTION):
            return None
        if self.unmatched_example is None:
            return f"label table {self.source} has no rows below its column names"
        several = f" ({self.ambiguous_rows} fit several volumes)" if self.ambiguous_rows else ""
        return (
            f"label table {self.source}: none of its {self.unmatched_rows} rows names one volume of the archive"
            f"{several}: a row names {self.unmatched_example!r}, a volume is called {self.volume_example!r}; give "
            "paths below the archive in the column path or volume_id"
        )


def read_labels(table_uri: str | None, listing: Listing) -> LabelJoin:
    """Read labels and join them to the listed volumes.

    table_uri: of a CSV or Parquet file; None reads the archive's dataset.json files, if there are any.

    Raises UsageError, naming file and column, for an unreadable file, no id column, or two rows that disagree on one
    volume. `LabelJoin.mismatch` tells whether no row matches.
    """
    if table_uri is None:
        return _from_descriptions(listing)
    table = read_table(table_uri)
    columns, finder = _known_columns(table), Finder(listing)
    rows = _joined([_match(columns, row, finder) for row in table.rows])
    labels: dict[str, Labels] = {}
    unmatched: list[int] = []
    for number, volume_id in enumerate(rows.volume_ids):
        if volume_id is None:
            unmatched.append(number)
            continue
        known = _labels_of(table, columns, table.rows[number])
        if labels.setdefault(volume_id, known) != known:
            difference = _difference(labels[volume_id], known)
            raise UsageError(f"{table.name}: two rows for {volume_id} disagree: {difference}; keep one of them")
    return LabelJoin(
        labels,
        len(unmatched),
        listing.objects.num_rows - len(labels),
        table.name,
        rows.ambiguous,
        next(_ids(columns, table.rows[unmatched[0]]), "") if unmatched else None,
        listing.objects["volume_id"][0].as_py() if listing.objects.num_rows else None,
        rows.root,
    )


@dataclass(frozen=True)
class _Joined:
    """volume_ids: one per row, None if it names none or several. ambiguous: number of rows that name several."""

    volume_ids: Sequence[str | None]
    ambiguous: int
    root: str | None


def _joined(matches: Sequence[Match]) -> _Joined:
    """Decide which volume each row is about.

    Paths of another machine count only if they share one root, no row contains the archive's own location, and no
    plainer name means the same volume: a table over several archives must not label one with the rows of another.
    """
    plain = {match.volume_ids[0] for match in matches if len(match.volume_ids) == 1 and match.root is None}
    roots = {match.root for match in matches if match.root is not None}
    trusted = len(roots) == 1 and not any(match.located for match in matches)
    volume_ids: list[str | None] = []
    for match in matches:
        volume_id = match.volume_ids[0] if len(match.volume_ids) == 1 else None
        volume_ids.append(volume_id if match.root is None or (trusted and volume_id not in plain) else None)
    pairs = list(zip(matches, volume_ids, strict=True))
    ambiguous = sum(bool(match.volume_ids) and volume_id is None for match, volume_id in pairs)
    used = any(match.root is not None and volume_id is not None for match, volume_id in pairs)
    return _Joined(volume_ids, ambiguous, roots.pop() if used else None)


def _match(columns: Mapping[str, int], row: tuple[str | None, ...], finder: Finder) -> Match:
    """The match of the first of a row's ids that fits one volume; paths of another machine are tried last."""
    matches = [match for name in _ids(columns, row) if (match := finder.find(name)).volume_ids]
    return min(matches, key=lambda match: (len(match.volume_ids) > 1, match.root is not None), default=Match())


def _known_columns(table: Table) -> dict[str, int]:
    """Known column name -> its number. Case does not matter."""
    columns: dict[str, int] = {}
    for number, name in enumerate(table.columns):
        known = name.lower()
        if known not in (*ID_COLUMNS, *_LABEL_COLUMNS):
            continue
        if known in columns:
            raise UsageError(f"{table.name}: column {known} appears twice")
        columns[known] = number
    if not any(name in columns for name in ID_COLUMNS):
        raise UsageError(
            f"{table.name}: there is no column volume_id or path to name each row's volume; "
            f"its columns are {', '.join(table.columns)}"
        )
    return columns


def _ids(columns: Mapping[str, int], row: tuple[str | None, ...]) -> Iterator[str]:
    for name in ID_COLUMNS:
        if name in columns and (cell := row[columns[name]]):
            yield cell


def _labels_of(table: Table, columns: Mapping[str, int], row: tuple[str | None, ...]) -> Labels:
    values = {name: row[columns[name]] if name in columns else None for name in _LABEL_COLUMNS}
    modality = values["modality"]
    known = set(columns.values())
    return Labels(
        subject=values["subject"],
        modality=modality_label(modality) if modality else None,
        body_region=values["body_region"],
        organ=values["organ"],
        metadata={
            name: cell
            for number, (name, cell) in enumerate(zip(table.columns, row, strict=True))
            if cell is not None and number not in known
        },
    )


def _difference(one: Labels, other: Labels) -> str:
    """The first column in which two rows differ, and both values."""
    for name in _LABEL_COLUMNS:
        if getattr(one, name) != getattr(other, name):
            return f"{name} is {getattr(one, name)!r} and {getattr(other, name)!r}"
    names = sorted(set(one.metadata) | set(other.metadata))
    name = next(name for name in names if one.metadata.get(name) != other.metadata.get(name))
    return f"{name} is {one.metadata.get(name)!r} and {other.metadata.get(name)!r}"


def _from_descriptions(listing: Listing) -> LabelJoin:
    """Label all volumes beside or below a dataset.json by its task; the deepest file counts."""
    tasks, ignored = read_descriptions(listing.archive_uri, listing.descriptions)
    labels: dict[str, Labels] = {}
    for volume_id in listing.objects["volume_id"].to_pylist():
        folder = volume_id.partition("/")[0] if "/" in volume_id else ""
        task = tasks.get(folder) or tasks.get("")
        if task is not None:
            labels[volume_id] = Labels(
                modality=task.modality, body_region=task.body_region, organ=task.organ, metadata={"task": task.name}
            )
    source = DESCRIPTION if tasks else None
    return LabelJoin(labels, 0, listing.objects.num_rows - len(labels), source, ignored=ignored)
