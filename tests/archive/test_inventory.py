"""An S3 Inventory, as AWS documents it, gives the same listing as listing does."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medret.archive import Listing, list_archive
from medret.cli import main
from medret.errors import NotFoundError, StorageError, UsageError
from medret.storage import Location
from tests.dicom_bytes import instance

pytestmark = pytest.mark.s3

KEYS = (
    "nifti/a.nii", "nifti/b c+d%20(1).nii.gz", "nifti/sub/Schädel ü, \"x\".nii", "nifti/sub/b_seg.nii.gz",
    "nifti/notes.txt", "nifti-other/z.nii", "other/z.nii",
)  # fmt: skip
FOLDERS = ("nifti/", "nifti/sub/")  # empty objects, as the console of S3 makes them
CSV_FIELDS = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
PARQUET = pa.schema(
    [
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("version_id", pa.string()),
        pa.field("is_latest", pa.bool_()),
        pa.field("is_delete_marker", pa.bool_()),
        pa.field("size", pa.int64()),
        pa.field("last_modified_date", pa.timestamp("ms", "UTC")),
        pa.field("e_tag", pa.string()),
        pa.field("storage_class", pa.string()),
    ]
)
PARQUET_SCHEMA = (
    "message s3.inventory {  required binary bucket (UTF8);  required binary key (UTF8);  optional binary version_id "
    "(UTF8);  optional boolean is_latest;  optional boolean is_delete_marker;  optional int64 size;  optional int64 "
    "last_modified_date (TIMESTAMP_MILLIS);  optional binary e_tag (UTF8);  optional binary storage_class (UTF8);}"
)


DESTINATION: dict[str, str] = {}  # bucket -> that of its inventories


@pytest.fixture(scope="module")
def bucket(s3: Callable[[str], str]) -> str:
    """A bucket with volumes in it. Its inventories go to another one."""
    uri = s3("inventoried")
    DESTINATION[uri] = s3("inventories")
    store = Location(uri)
    for number, key in enumerate(KEYS):
        store.fs.pipe_file(f"{store.root}/{key}", b"x" * number)
    for key in FOLDERS:
        store.fs.pipe_file(f"{store.root}/{key}", b"")
    for number in range(6):  # one series, and two in one folder
        store.write(f"nifti/ct/{number}.dcm", instance("1.2.3", number))
        store.write(f"nifti/mixed/{number}", instance("1.2.4" if number < 3 else "1.2.5", number))
    return uri


def rows_of(bucket: str) -> list[dict[str, Any]]:
    """The bucket's objects as rows of an inventory of all versions, with an old version and two deletions."""
    store = Location(bucket)
    rows = [
        {
            "bucket": store.root, "key": key, "version_id": "v2", "is_latest": True, "is_delete_marker": False,
            "size": detail["size"], "last_modified_date": detail["LastModified"], "e_tag": detail["ETag"].strip('"'),
            "storage_class": "STANDARD",
        }
        for key, detail in store.details().items()
    ]  # fmt: skip
    old = rows[0] | {"version_id": "v1", "is_latest": False, "size": 99, "e_tag": "0" * 32}
    gone = {"is_delete_marker": True, "size": None, "e_tag": None, "key": "nifti/gone.nii"}
    folders = [rows[0] | {"key": key, "size": 0} for key in FOLDERS]
    return [*folders, old, rows[0] | gone, *rows, rows[0] | gone | {"key": "nifti/a2.nii"}]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for row in rows:
        moment = row["last_modified_date"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        flags = [str(row[name]).lower() for name in ("is_latest", "is_delete_marker")]
        rest = ["" if row[name] is None else row[name] for name in ("size", "e_tag")]
        key = quote_plus(row["key"], safe="/")
        writer.writerow([row["bucket"], key, row["version_id"], *flags, rest[0], moment, rest[1], "STANDARD"])
    return gzip.compress(text.getvalue().encode())


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, PARQUET), file)
    return file.getvalue()


def publish(bucket: str, kind: str = "CSV", files: list[bytes] | None = None, **changes: Any) -> str:
    """Put an inventory where AWS puts it; returns the URI of its manifest. files: one per half of the rows."""
    source, store = Location(bucket), Location(DESTINATION[bucket])
    rows = rows_of(bucket)
    write, suffix = (as_csv, "csv.gz") if kind == "CSV" else (as_parquet, "parquet")
    files = files if files is not None else [write(rows[: len(rows) // 2]), write(rows[len(rows) // 2 :])]
    folder = f"{source.root}/daily"
    entries = []
    for number, data in enumerate(files):
        key = f"{folder}/data/{number}.{suffix}"
        store.write(key, data)
        entries.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    created = changes.pop("created", datetime.now(UTC))
    manifest: Mapping[str, Any] = {
        "sourceBucket": source.root,
        "destinationBucket": f"arn:aws:s3:::{store.root}",
        "version": "2016-11-30",
        "creationTimestamp": str(int(created.timestamp() * 1000)),
        "fileFormat": kind,
        "fileSchema": CSV_FIELDS if kind == "CSV" else PARQUET_SCHEMA,
        "files": entries,
    } | changes
    path = f"{folder}/2026-01-01T01-00Z/manifest.json"
    store.write(path, json.dumps(manifest).encode())
    return store.uri_of(path)


def facts(listing: Listing) -> tuple[list[dict[str, Any]], dict[str, int]]:
    return listing.objects.to_pylist(), dict(listing.skipped)


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_it_lists_what_a_listing_lists(bucket: str, kind: str) -> None:
    """Same ids, identities and counts, so nothing is embedded again after a change from one to the other."""
    manifest = publish(bucket, kind)
    for archive in (f"{bucket}/nifti", f"{bucket}/nifti/sub", bucket):
        listed, known = list_archive(archive), list_archive(archive, inventory=manifest)
        assert facts(known) == facts(listed)
        assert (known.archive_uri, known.notes) == (archive, ())
        assert list(known.items()) == list(listed.items())
        assert listed.series.num_rows == (0 if archive.endswith("sub") else 3)


def test_an_inventory_of_current_versions_has_no_flags(bucket: str) -> None:
    rows = [row for row in rows_of(bucket) if row["is_latest"] and not row["is_delete_marker"]]
    lines = gzip.decompress(as_csv(rows)).decode().splitlines()
    cells = [row[:2] + row[5:] for row in csv.reader(lines)]
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(cells)
    schema = "Bucket, Key, Size, LastModifiedDate, ETag, StorageClass"
    manifest = publish(bucket, files=[gzip.compress(text.getvalue().encode())], fileSchema=schema)
    archive = f"{bucket}/nifti"
    assert facts(list_archive(archive, inventory=manifest)) == facts(list_archive(archive))
    table = pa.Table.from_pylist(rows, PARQUET).drop_columns(["is_latest", "is_delete_marker", "version_id"])
    file = io.BytesIO()
    pq.write_table(table, file)
    manifest = publish(bucket, "Parquet", files=[file.getvalue()])
    assert facts(list_archive(archive, inventory=manifest)) == facts(list_archive(archive))


def test_an_old_inventory_is_reported(bucket: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = publish(bucket, created=datetime.now(UTC) - timedelta(days=3))
    [note] = list_archive(f"{bucket}/nifti", inventory=manifest).notes
    assert "72 hours old, expected at most 48" in note
    assert main(["plan", f"{bucket}/nifti", str(tmp_path), "--inventory", manifest]) == 0
    assert "72 hours old" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sourceBucket": "another"}, "is of bucket another, the archive is in bucket inventoried-"),
        ({"fileFormat": "ORC"}, "is in ORC; set its output format to CSV or Parquet"),
        ({"fileSchema": "Bucket, Key, Size"}, "lacks LastModifiedDate, ETag; add the additional metadata fields"),
        ({"fileFormat": "Parquet", "fileSchema": "message s3.inventory {  required binary key (UTF8);}"}, "lacks Size"),
        ({"creationTimestamp": "yesterday"}, "is not the manifest.json of an S3 Inventory"),
        ({"sourceBucket": 7}, r"is not the manifest.json of an S3 Inventory: .*sourceBucket"),
    ],
)
def test_inventories_that_cannot_be_used(bucket: str, changes: dict[str, Any], words: str) -> None:
    manifest = publish(bucket, files=[], **changes)
    with pytest.raises(UsageError, match=words):
        list_archive(f"{bucket}/nifti", inventory=manifest)


def test_places_that_hold_no_inventory(bucket: str, tmp_path: Any) -> None:
    manifest = publish(bucket)
    for archive, inventory in ((str(tmp_path), manifest), (bucket, str(tmp_path / "manifest.json"))):
        with pytest.raises(UsageError, match="both must be in S3"):
            list_archive(archive, inventory=inventory)
    with pytest.raises(NotFoundError, match=r"none/manifest\.json does not exist"):
        list_archive(bucket, inventory=f"{bucket}/none/manifest.json")
    with pytest.raises(NotFoundError, match="names no object there"):
        list_archive(f"{bucket}/nowhere", inventory=manifest)


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_files_of_an_inventory_that_are_damaged(bucket: str, kind: str) -> None:
    manifest = publish(bucket, kind)
    store = Location(DESTINATION[bucket])
    path = f"{Location(bucket).root}/daily/data/0.{'csv.gz' if kind == 'CSV' else 'parquet'}"
    store.write(path, b"replaced")
    with pytest.raises(StorageError, match="does not have the MD5 checksum"):
        list_archive(bucket, inventory=manifest)
    manifest = publish(bucket, kind, files=[b"no such format"])
    with pytest.raises(StorageError, match=r"is not what .*manifest\.json describes"):
        list_archive(bucket, inventory=manifest)
    store.delete(path)
    with pytest.raises(NotFoundError, match=r"data/0\.[a-z.]+ does not exist"):
        list_archive(bucket, inventory=manifest)
