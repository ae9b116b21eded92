"""Join labels to the volumes of a listing: from a CSV or Parquet table, or from MSD's dataset.json.

A row names its volume in the column `volume_id` or `path`: a path below the archive, a whole URI, or any tail of
the URI that only one volume has (`volumes/case.nii.gz` for an archive called `volumes`). Columns subject, modality,
body_region and organ become labels, all others metadata; empty cells say nothing.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from medret.archive.listing import Listing
from medret.archive.msd import MsdTask, read_msd_task
from medret.archive.tables import Table, read_table
from medret.errors import UsageError
from medret.modalities import modality_label

_ID_COLUMNS = ("volume_id", "path")
_LABEL_COLUMNS = ("subject", "modality", "body_region", "organ")


@dataclass(frozen=True)
class Labels:
    """What is known of a volume. metadata: further columns of the table, as text."""

    subject: str | None = None
    modality: str | None = None
    body_region: str | None = None
    organ: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelJoin:
    """labels: volume_id -> Labels. unmatched_rows: of the table, that name no volume of the listing."""

    labels: Mapping[str, Labels]
    unmatched_rows: int
    unlabelled_volumes: int


def read_labels(table_uri: str | None, listing: Listing) -> LabelJoin:
    """Read labels and join them to the volumes listed.

    table_uri: of a CSV or Parquet file; None: what dataset.json files in the archive say, if there are any.
    Raises UsageError naming file and column: unreadable, no id column, two rows that disagree on one volume.
    """
    if table_uri is None:
        labels = _from_descriptions(listing)
        return LabelJoin(labels, 0, len(listing.objects) - len(labels))
    table = read_table(table_uri)
    columns = _known_columns(table)
    finder = _Finder(listing)
    labels = {}
    unmatched = 0
    for row in table.rows:
        volume_id = next((found for name in _ids(columns, row) if (found := finder.find(name)) is not None), None)
        if volume_id is None:
            unmatched += 1
            continue
        known = _labels_of(table, columns, row)
        if labels.setdefault(volume_id, known) != known:
            difference = _difference(labels[volume_id], known)
            raise UsageError(f"{table.name}: two rows for {volume_id} disagree: {difference}; keep one of them")
    return LabelJoin(labels, unmatched, len(listing.objects) - len(labels))


def _known_columns(table: Table) -> dict[str, int]:
    """Known column name -> its number; names are taken in any case."""
    columns: dict[str, int] = {}
    for number, name in enumerate(table.columns):
        known = name.lower()
        if known not in (*_ID_COLUMNS, *_LABEL_COLUMNS):
            continue
        if known in columns:
            raise UsageError(f"{table.name}: column {known} stands there twice")
        columns[known] = number
    if not any(name in columns for name in _ID_COLUMNS):
        raise UsageError(
            f"{table.name}: no column volume_id or path tells which volume a row is about; "
            f"its columns are {', '.join(table.columns)}"
        )
    return columns


def _ids(columns: Mapping[str, int], row: tuple[str | None, ...]) -> Iterator[str]:
    for name in _ID_COLUMNS:
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
    """The first column on which two rows differ, and both values."""
    for name in _LABEL_COLUMNS:
        if getattr(one, name) != getattr(other, name):
            return f"{name} is {getattr(one, name)!r} and {getattr(other, name)!r}"
    names = sorted(set(one.metadata) | set(other.metadata))
    name = next(name for name in names if one.metadata.get(name) != other.metadata.get(name))
    return f"{name} is {one.metadata.get(name)!r} and {other.metadata.get(name)!r}"


class _Finder:
    """Volumes by the names that people give them."""

    def __init__(self, listing: Listing) -> None:
        self._ids = {item.volume_id for item in listing.objects}
        self._by_name: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for item in listing.objects:
            self._by_name[posixpath.basename(item.uri)].append((item.uri, item.volume_id))

    def find(self, name: str) -> str | None:
        """The volume_id that `name` means; None when there is none, or more than one."""
        if name in self._ids:
            return name
        plain = name.removeprefix("file://")
        if "://" not in plain:
            plain = posixpath.normpath(plain)
        if plain in self._ids:
            return plain
        whole = plain.startswith("/") or "://" in plain
        candidates = [
            volume_id
            for uri, volume_id in self._by_name.get(posixpath.basename(plain), ())
            if uri == plain or (not whole and uri.endswith(f"/{plain}"))
        ]
        return candidates[0] if len(candidates) == 1 else None


def _from_descriptions(listing: Listing) -> dict[str, Labels]:
    """Labels by task for all volumes beside or below a dataset.json; the deeper one counts."""
    tasks: dict[str, MsdTask] = {}
    for path in listing.descriptions:
        tasks[posixpath.dirname(path)] = read_msd_task(listing.archive_uri, path)
    labels: dict[str, Labels] = {}
    for item in listing.objects:
        folder = item.volume_id.partition("/")[0] if "/" in item.volume_id else ""
        task = tasks.get(folder) or tasks.get("")
        if task is not None:
            labels[item.volume_id] = Labels(
                modality=task.modality, body_region=task.body_region, organ=task.organ, metadata={"task": task.name}
            )
    return labels
