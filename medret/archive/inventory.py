"""List an archive from an S3 Inventory: the list of a bucket's objects that AWS writes daily or weekly.

It is read in place of a listing: its manifest.json names files of 10^5 or 10^6 rows in CSV or Parquet. Identities are
those that a listing gives, so a store may be brought up to date from either. What the inventory names and is gone by
now, or has been replaced, is found out when it is read, as after any listing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote_plus

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from medret.archive.skip_rules import FOUND
from medret.errors import NotFoundError, StorageError, UsageError
from medret.storage import Location, normalise_uri, read_uri, redacted, scheme_of

OLD = timedelta(hours=48)  # AWS delivers a daily inventory within this time
_S3 = ("s3", "s3a")
_BATCH = 100_000  # rows of a Parquet file

# What is needed of each object: its name in the manifest of CSV files, and in Parquet files.
_NEEDED = {"Key": "key", "Size": "size", "LastModifiedDate": "last_modified_date", "ETag": "e_tag"}
_VERSIONS = {"IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker"}  # in an inventory of all versions
_VERSIONS_KEPT = {"IsLatest": "true", "IsDeleteMarker": "false"}


class _File(msgspec.Struct):
    key: str
    md5: str = msgspec.field(name="MD5checksum")


class _Manifest(msgspec.Struct, rename="camel"):
    source_bucket: str
    creation_timestamp: str  # milliseconds since 1970
    file_format: str
    file_schema: str
    files: list[_File]


@dataclass(frozen=True)
class Inventory:
    """An inventory of a bucket. uri: of its manifest.json. archive: the part of the bucket that is wanted."""

    uri: str
    archive: Location
    manifest: _Manifest

    @property
    def created(self) -> datetime:
        """When AWS began to write it, in UTC."""
        return datetime.fromtimestamp(int(self.manifest.creation_timestamp) / 1000, UTC)

    def age_note(self, now: datetime) -> str | None:
        """A line on an inventory that is older than it should be; None for a recent one."""
        if now - self.created <= OLD:
            return None
        hours = (now - self.created) / timedelta(hours=1)
        return (
            f"inventory {self.uri} is {hours:.0f} hours old, expected at most {OLD / timedelta(hours=1):.0f}: objects "
            "that were added since are missing; give the newest manifest.json, or look why AWS wrote none since"
        )

    def tables(self) -> Iterator[pa.Table]:
        """All objects below the archive (skip_rules.FOUND), in parts. Raises StorageError for a damaged file."""
        for file in self.manifest.files:
            uri = f"{self.uri.partition('://')[0]}://{_bucket(self.uri)}/{file.key}"
            data = _read(uri)
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != file.md5:
                raise StorageError(
                    f"{uri} does not have the MD5 checksum that {self.uri} gives: it is damaged, or was replaced; give "
                    "the newest manifest.json"
                )
            in_csv = self.manifest.file_format == "CSV"
            try:
                for rows in _csv(data, _csv_fields(self.manifest.file_schema)) if in_csv else _parquet(data):
                    found = self._found(rows)
                    if found.num_rows:
                        yield found
            except (pa.ArrowException, OSError) as error:
                raise StorageError(f"{uri} is not what {self.uri} describes: {error}") from error

    def _found(self, rows: pa.Table) -> pa.Table:
        """The rows of latest versions below the archive."""
        for field, expected in _VERSIONS_KEPT.items():
            if field in rows.column_names:
                rows = rows.filter(pc.equal(pc.fill_null(rows[field], expected), expected))
        key = self.archive.root.partition("/")[2]
        below = f"{key}/" if key else ""
        rows = rows.filter(pc.starts_with(rows["Key"], below))
        folders = pc.and_(pc.ends_with(rows["Key"], "/"), pc.equal(pc.fill_null(rows["Size"].cast(pa.int64()), 0), 0))
        rows = rows.filter(pc.invert(folders))  # as in storage.s3.is_folder
        times = rows["LastModifiedDate"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
        columns = [
            pc.utf8_slice_codeunits(rows["Key"], len(below)),
            pc.fill_null(rows["Size"].cast(pa.int64()), 0),
            pc.utf8_trim(rows["ETag"], '"'),
            pc.strftime(times, "%Y-%m-%dT%H:%M:%S+00:00"),
            pa.nulls(rows.num_rows, pa.string()),
        ]
        return pa.table(columns, schema=FOUND)


def read_inventory(uri: str, archive: Location) -> Inventory:
    """Read the manifest.json of an inventory that covers an archive.

    Raises UsageError if it is not one, is of another bucket, or lacks fields; StorageError if it cannot be read.
    """
    place = normalise_uri(uri)
    name = redacted(place)
    if scheme_of(place) not in _S3 or scheme_of(archive.uri) not in _S3:
        raise UsageError(f"inventory {name} of archive {archive.uri}: both must be in S3 (s3://bucket/...)")
    try:
        manifest = msgspec.json.decode(_read(place), type=_Manifest)
        inventory = Inventory(name, archive, manifest)
        _ = inventory.created
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{name} is not the manifest.json of an S3 Inventory: {error}; give the one in the folder of a date"
        ) from error
    bucket = archive.root.partition("/")[0]
    if manifest.source_bucket != bucket:
        raise UsageError(f"inventory {name} is of bucket {manifest.source_bucket}, the archive is in bucket {bucket}")
    if manifest.file_format not in ("CSV", "Parquet"):
        raise UsageError(
            f"inventory {name} is in {manifest.file_format}; set its output format to CSV or Parquet, and give the "
            "next manifest.json"
        )
    given = _columns(manifest)
    if missing := [field for field in _NEEDED if field not in given]:
        raise UsageError(
            f"inventory {name} lacks {', '.join(missing)}; add the additional metadata fields Size, Last modified and "
            "ETag to the inventory's configuration, and give the next manifest.json"
        )
    return inventory


def _columns(manifest: _Manifest) -> Sequence[str]:
    """The fields of an inventory, by their names in CSV files."""
    if manifest.file_format == "CSV":
        return _csv_fields(manifest.file_schema)
    return [field for field, name in {**_NEEDED, **_VERSIONS}.items() if f" {name}" in manifest.file_schema]


def _csv_fields(schema: str) -> list[str]:
    return [field.strip() for field in schema.split(",")]


def _csv(data: bytes, names: Sequence[str]) -> Iterator[pa.Table]:
    """The needed columns of a gzipped CSV file, as text. Its keys are URL-encoded, with `+` for a space."""
    options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=[name for name in names if name in {**_NEEDED, **_VERSIONS}],
        null_values=[""],
        strings_can_be_null=True,
    )
    stream = pa.CompressedInputStream(pa.BufferReader(data), "gzip")
    with pacsv.open_csv(stream, pacsv.ReadOptions(column_names=list(names)), convert_options=options) as reader:
        for batch in reader:
            keys = pa.array([unquote_plus(key) for key in batch.column("Key").to_pylist()], pa.string())
            rows = pa.Table.from_batches([batch])
            yield rows.set_column(rows.schema.get_field_index("Key"), "Key", keys)


def _parquet(data: bytes) -> Iterator[pa.Table]:
    """The needed columns of a Parquet file."""
    file = pq.ParquetFile(pa.BufferReader(data))
    names = {name: field for field, name in {**_NEEDED, **_VERSIONS}.items() if name in file.schema_arrow.names}
    for batch in file.iter_batches(_BATCH, columns=list(names)):
        rows = pa.Table.from_batches([batch])
        columns = {names[name]: rows[name] for name in rows.column_names}
        for field in _VERSIONS.keys() & columns.keys():
            columns[field] = columns[field].cast(pa.string())
        yield pa.table(columns)


def _bucket(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[0]


def _read(uri: str) -> Any:
    try:
        return read_uri(uri)
    except FileNotFoundError as error:
        raise NotFoundError(f"inventory file {redacted(uri)} does not exist; give the newest manifest.json") from error
