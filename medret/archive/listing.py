"""List the volumes of an archive as an Arrow table, and count what is left out by rule.

All work is done by column, in parts: a volume takes some 100 bytes of memory, whatever the size of the archive.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.grouping import SERIES, SHOWN, Grouping, as_objects
from medret.archive.inventory import read_inventory
from medret.archive.series import packed
from medret.archive.skip_rules import (
    NOT_A_VOLUME,
    first_paths,
    found,
    found_tables,
    in_derivatives,
    is_nifti,
    matcher,
    rules_of,
    suffixes_of,
)
from medret.errors import NotFoundError, UsageError
from medret.schemas import OBJECTS, in_order
from medret.storage import Location, reaching
from medret.storage.objects import Beat, with_stall_limit

_SURPRISING = ("no_access", "not_a_file", "not_text_name")
_BATCH = 10_000  # rows that become values at once
# Files that describe volumes: of the Medical Segmentation Decathlon and nnU-Net, and of BIDS.
DESCRIPTION, DATA_SET, PARTICIPANTS = "dataset.json", "dataset_description.json", "participants.tsv"
_DESCRIPTIONS = (
    r"^(?:[^./][^/]*/)?(?:dataset\.json|dataset_description\.json|participants\.tsv)$"
    r"|^[^./][^/]*/(?i:task|dataset)\d+_[^/]*/dataset\.json$"
)


@dataclass(frozen=True)
class ArchiveObject:
    """A volume as the store lists it. etag: without quotes, if the store has one. mtime: ISO 8601 in UTC.

    parts: number of objects of a series; None: the volume is one object. names: of these objects, if other candidates
    lie in their folder too.
    """

    volume_id: str
    uri: str
    size_bytes: int
    etag: str | None
    mtime: str | None
    parts: int | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """Everything below an archive's prefix.

    objects: the volumes (schemas.OBJECTS), sorted by volume_id.
    skipped: rule -> number of objects that it left out (never 0).
    descriptions: paths below the archive of the files found that describe volumes: dataset.json, participants.tsv, ...
    examples: rule -> the first paths that it left out, or folders of such DICOM objects; names that are not text are
        escaped.
    suffixes: suffix in lower case, or "" -> number of objects whose names say that they are no volumes.
    single: whether archive_uri is that of a single volume.
    notes: lines for the user on what was listed.
    series: the DICOM series that were looked at (grouping.SERIES); those that are known are not.
    """

    archive_uri: str
    objects: pa.Table
    skipped: Mapping[str, int]
    descriptions: tuple[str, ...] = ()
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    single: bool = False
    notes: tuple[str, ...] = ()
    series: pa.Table = field(default_factory=SERIES.empty_table)
    suffixes: Mapping[str, int] = field(default_factory=dict)

    @property
    def listed(self) -> int:
        """All volumes, and all objects that are none."""
        return int(self.objects.num_rows) + sum(self.skipped.values())

    @property
    def surprises(self) -> dict[str, tuple[str, ...]]:
        """The examples of those rules that users may not expect."""
        return {rule: self.examples[rule] for rule in _SURPRISING if rule in self.examples}

    @property
    def prefix(self) -> str:
        """The text before each volume_id in the URI of its volume."""
        return f"{self.archive_uri.rpartition('/')[0] if self.single else self.archive_uri}/"

    def uri_of(self, volume_id: str) -> str:
        """The URI of a volume."""
        return f"{self.prefix}{volume_id}"

    def items(self, rows: pa.Table | None = None) -> Iterator[ArchiveObject]:
        """Volumes as values, made in batches. rows: some of `objects`, with any further columns; None: all of them."""
        table = (self.objects if rows is None else rows).select(OBJECTS.names)
        for batch in table.to_batches(_BATCH):
            columns = [column.to_pylist() for column in batch.columns]
            for volume_id, size_bytes, etag, mtime, parts, names in zip(*columns, strict=True):
                within = None if names is None else tuple(names)
                yield ArchiveObject(volume_id, self.uri_of(volume_id), size_bytes, etag, mtime, parts, within)


def list_archive(
    uri: str,
    pattern: str | None = None,
    *,
    exclude: Sequence[str] = (),
    include_masks: bool = False,
    inventory: str | None = None,
    known: Callable[[], pa.Table] | None = None,
) -> Listing:
    """List an archive.

    uri: any fsspec URI or local path, of a folder or of a single volume.
    pattern, exclude: globs. Without a slash they match file names, else paths below the archive, where `*` stays within
        a folder and `**` stands for any number of folders.
    include_masks: also list files whose names are those of masks, and the derivatives of BIDS data sets.
    inventory: URI of the manifest.json of an S3 Inventory, which is read in place of a listing.
    known: gives volume_id, size_bytes, etag, mtime and code of the live snapshot's volumes, if there is something to
        look at. Folders and zips that it has with the same identity are not looked at.

    Raises UsageError for a URI, glob or inventory that is not understood, NotFoundError when nothing is there,
    StorageError when the archive or the inventory cannot be read.
    """
    keep = [matcher(pattern)] if pattern is not None else []
    drop = [matcher(each) for each in exclude]
    location = Location(uri)
    volumes = [OBJECTS.empty_table()]
    skipped: Counter[str] = Counter()

    def rules_for(part: pa.Table) -> pa.ChunkedArray:
        return rules_of(part, masks=include_masks or single, keep=keep, drop=drop)

    def uri_of(path: str) -> str:
        return location.uri if single else location.uri_of(path)

    grouping = Grouping(uri_of, rules_for, known)
    examples: defaultdict[str, list[str]] = defaultdict(list)
    suffixes: Counter[str] = Counter()
    descriptions: list[str] = []
    single = False
    source = read_inventory(inventory, location) if inventory is not None else None
    for part in source.tables() if source else _everything(location):
        if single := part["volume_id"][0].as_py() == "":
            part = part.set_column(0, part.schema.field(0), [[posixpath.basename(location.root)]])
        rules = rules_for(part)
        volumes.append(_sorted_out(part, rules, grouping, single=single))
        left_out = {row["values"]: row["counts"] for row in rules.value_counts().to_pylist() if row["values"]}
        skipped.update(left_out)
        for rule in left_out:
            paths = part["volume_id"].filter(pc.equal(rules, rule))
            examples[rule] = sorted([*examples[rule], *first_paths(paths, SHOWN)])[:SHOWN]
            if rule == NOT_A_VOLUME:
                suffixes.update(suffixes_of(paths))
        descriptions += part["volume_id"].filter(_are_descriptions(part)).to_pylist()
    objects = _sorted([*volumes, grouping.volumes()])
    skipped.update(grouping.skipped)
    derived = in_derivatives(objects["volume_id"])
    if not include_masks and pc.any(derived).as_py():
        examples["derivatives"] = first_paths(objects["volume_id"].filter(derived), SHOWN)
        skipped["derivatives"] = pc.sum(pc.fill_null(objects["parts"].filter(derived), 1)).as_py()
        objects = objects.filter(pc.invert(derived))
    if not objects.num_rows and not skipped:
        hint = (
            f"inventory {source.uri} names no object there"
            if source
            else "expected a folder of NIfTI files or DICOM series"
        )
        raise NotFoundError(f"archive {location.uri} does not exist or holds no objects; {hint}")
    note = source.age_note(datetime.now(UTC)) if source else None
    return Listing(
        location.uri,
        objects,
        {rule: count for rule, count in skipped.items() if count},
        tuple(sorted(descriptions)),
        {rule: tuple(paths) for rule, paths in {**grouping.examples, **examples}.items() if paths},
        single,
        (note,) if note else (),
        grouping.looked_at,
        dict(suffixes),
    )


def _sorted_out(part: pa.Table, rules: pa.ChunkedArray, grouping: Grouping, *, single: bool) -> pa.Table:
    """The NIfTI files of a part that no rule leaves out (schemas.OBJECTS); what may be DICOM goes to the grouping."""
    lower = pc.utf8_lower(part["volume_id"])
    nifti, is_packed, free = is_nifti(lower), packed(lower), pc.is_null(rules)
    files = part.filter(pc.and_(nifti, free))
    if pc.all(nifti).as_py():
        return as_objects(files)
    alone = pc.invert(nifti) if single else is_packed
    grouping.add_single(part.filter(pc.and_(alone, free)))
    by_pattern = pc.is_in(rules, value_set=pa.array(["label_mask", "excluded", "outside_glob"]))
    in_folder = pc.and_(pc.invert(pc.or_(nifti, alone)), pc.or_(free, by_pattern))
    grouping.add(part.filter(in_folder), rules.filter(in_folder))
    return as_objects(files)


def _everything(location: Location) -> Iterator[pa.Table]:
    """All objects below a location (skip_rules.FOUND)."""
    if location.is_local:
        yield from walk(location.root)
        return
    for page in location.pages():
        yield from found_tables(found(path, detail) for path, detail in page.items())


def _are_descriptions(part: pa.Table) -> pa.Array:
    """Whether each row of FOUND is such a file at the archive's root or in a folder there that is not hidden.

    The dataset.json of an nnU-Net data set may lie one folder deeper (nnUNet_raw/Dataset001_X).
    """
    return pc.and_(pc.match_substring_regex(part["volume_id"], _DESCRIPTIONS), pc.is_null(part["rule"]))


def _sorted(parts: Sequence[pa.Table]) -> pa.Table:
    """All rows in the order of their ids. Object stores list in this order, so that the parts only need arranging."""
    filled = sorted((part for part in parts if part.num_rows), key=lambda part: part["volume_id"][0].as_py())
    objects = pa.concat_tables([OBJECTS.empty_table(), *filled])
    ids = objects["volume_id"]
    arranged = pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py() if len(ids) > 1 else True
    return objects if arranged else in_order(objects, "volume_id")


def walk(root: str) -> list[pa.Table]:
    """Everything below a local folder (skip_rules.FOUND), in any order; a file `root` alone, as "".

    It follows links, walks no circle and opens no file. A link to nothing is a volume that cannot be read. fsspec would
    silently leave out linked folders, and fail on a single folder without permission. Raises NotFoundError if nothing
    is there, UsageError if it is neither folder nor file, and StorageError if a folder does not answer for minutes or
    cannot be listed for a reason other than its permissions: a broken mount must not look like an archive that shrank.
    """
    root = root or "/"
    with reaching(root, "listed"):
        try:
            return with_stall_limit(lambda beat: list(found_tables(_walk(root, beat))), root)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"archive {root} does not exist; expected a folder of NIfTI files or DICOM series"
            ) from error


def _walk(root: str, beat: Beat) -> Iterator[tuple[Any, ...]]:
    status = Path(root).stat()
    if stat.S_ISREG(status.st_mode):
        yield _file("", status)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"archive {root} is neither a folder nor a file")
    # Each folder with its real path and those of the folders above it: a link back to one of them is not followed.
    folders: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while folders:
        below, chain = folders.pop()
        try:
            with os.scandir(f"{root}/{below}") as scanned:
                names = [entry.name for entry in scanned]
        except FileNotFoundError:  # removed since its parent was listed
            continue
        except OSError as error:
            if not below or not (isinstance(error, PermissionError) or _is_hidden(below)):
                raise
            yield found(below.rstrip("/"), {}, "no_access")
            continue
        for name in names:
            path = below + name
            try:
                status = Path(root, path).stat()
            except OSError:  # a link to nothing, to itself or to a forbidden place: reported when it is read
                yield found(path, {})
                continue
            if stat.S_ISDIR(status.st_mode):
                real = os.path.realpath(f"{root}/{path}")
                if real not in chain:
                    folders.append((f"{path}/", (*chain, real)))
            else:
                yield _file(path, status)
            beat()


def _file(path: str, status: os.stat_result) -> tuple[Any, ...]:
    rule = None if stat.S_ISREG(status.st_mode) else "not_a_file"
    return found(path, {"size": status.st_size, "mtime": status.st_mtime}, rule)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
