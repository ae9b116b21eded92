"""Group the candidates of a listing by folder, and turn folders into volumes.

Memory is taken per folder, never per instance, except for the names of objects in folders that hold several series or
objects of other kinds. A folder that the live snapshot has with the same identity is not looked at.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.dicom_head import DicomHead, is_uid, kind_of
from medret.archive.looks import AT_ONCE, candidates_in, head_at, heads_in, packed_head
from medret.archive.series import (
    RULES,
    UNCLEAR,
    Division,
    Group,
    Groups,
    Series,
    Whole,
    divided,
    is_dicom,
    is_packed,
    suffix_of,
)
from medret.archive.skip_rules import FOUND
from medret.errors import QuarantineCode
from medret.schemas import OBJECTS
from medret.storage import Identity, reaching

# The series that were looked at: the number of instances, and what the first bytes of one of them say.
SERIES = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("instances", pa.int32(), nullable=False),
        pa.field("modality", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("body_part", pa.string()),
    ]
)

Row = tuple[Any, ...]  # of OBJECTS
PARTS, NAMES = (OBJECTS.get_field_index(name) for name in ("parts", "names"))
_BATCH = 10_000  # rows that become values at once
RulesOf = Callable[[pa.Table], pa.ChunkedArray]  # rows of FOUND -> the rule that leaves out each
SHOWN = 3  # example paths per rule


@dataclass
class Grouping:
    """What a listing's candidates turn out to be.

    uri_of: path below the archive -> URI. wanted: see RulesOf. known: the live ledger's volume_id, size_bytes, etag,
    mtime and code; asked for if there is a candidate. skipped: rule -> objects. examples: rule -> paths of such
    objects, or of folders with them. looked_at: SERIES.
    """

    uri_of: Callable[[str], str]
    wanted: RulesOf
    known: Callable[[], pa.Table] | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    looked_at: pa.Table = field(default_factory=SERIES.empty_table)
    _folders: dict[str, Groups] = field(default_factory=dict)
    _partial: set[str] = field(default_factory=set)
    _single: list[tuple[str, Identity]] = field(default_factory=list)

    def add(self, found: pa.Table, rules: pa.ChunkedArray) -> None:
        """Add candidates (skip_rules.FOUND). rules: what leaves them out, or null."""
        columns = [found[name].to_pylist() for name in FOUND.names[:-1]]
        for path, size_bytes, etag, mtime, rule in zip(*columns, rules.to_pylist(), strict=True):
            folder, _, name = path.rpartition("/")
            if rule is not None:
                self._partial.add(folder)
                continue
            groups = self._folders.setdefault(folder, {})
            groups.setdefault(suffix_of(name), Group()).add(name, size_bytes, etag, mtime)

    def add_single(self, found: pa.Table) -> None:
        """Add objects that each are a volume if they are DICOM, or hold it: zips and tars."""
        columns = [found[name].to_pylist() for name in FOUND.names[:-1]]
        self._single += [(path, Identity(*identity)) for path, *identity in zip(*columns, strict=True)]

    def volumes(self) -> pa.Table:
        """All volumes (schemas.OBJECTS), in any order."""
        if not (self._folders or self._single):
            return OBJECTS.empty_table()
        known = _Known(self.known() if self.known else None, self._folders, [path for path, _ in self._single])
        rows, unknown = [], []
        for folder, groups in sorted(self._folders.items()):
            stored = [] if folder in self._partial else known.series(folder, _whole_of(groups))
            if stored:
                rows += [_row(volume_id, whole, None) for volume_id, whole in stored]
            else:
                unknown.append((folder, known.is_mixed(folder)))
        rows += self._looked_into(unknown)
        rows += [_object(*each) for each in self._single if known.has(*each)]
        rows += self._looked_at([each for each in self._single if not known.has(*each)])
        return self._without_excluded(_table(self._distinct(rows), OBJECTS))

    def _looked_into(self, folders: Sequence[tuple[str, bool]]) -> list[Row]:
        """The volumes in folders, each with whether it is known to be mixed."""
        rows, looked_at = [], []
        with ThreadPoolExecutor(AT_ONCE) as pool, ThreadPoolExecutor(AT_ONCE) as looking:
            divisions = pool.map(lambda each: self._divide(each[0], each[1], looking), folders)
            for (folder, _), division in zip(folders, divisions, strict=True):
                self._leave_out(division.skipped, folder)
                for one in division.series:
                    volume_id = folder if one.alone else posixpath.join(folder, one.uid)
                    rows.append(_row(volume_id, one.whole, one.names))
                    said = (one.head.modality, one.head.patient_id, one.head.body_part)
                    looked_at.append((volume_id, one.whole.count, *(text or None for text in said)))
                rows += [_object(posixpath.join(folder, name), one) for name, one in division.strays.items()]
        self.looked_at = _table(looked_at, SERIES)
        return rows

    def _looked_at(self, objects: Sequence[tuple[str, Identity]]) -> list[Row]:
        """The volumes among single objects."""
        rows = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for (path, identity), head in zip(objects, pool.map(self._look, objects), strict=True):
                if head is UNCLEAR and is_packed(path):  # it cannot be read now: its stored vectors stay
                    rows.append(_object(path, identity))
                elif not (head and is_dicom(head)):
                    self._leave_out({"not_a_volume": 1}, path)
                elif (kind := kind_of(head)) == "image":
                    rows.append(_object(path, identity))
                else:
                    self._leave_out({RULES[kind]: 1}, path)
        return rows

    def _leave_out(self, skipped: Mapping[str, int], path: str) -> None:
        """Count objects that are no volumes. path: of the object, or of the folder of all of them."""
        self.skipped.update(skipped)
        for rule in skipped:
            if path and len(shown := self.examples.setdefault(rule, [])) < SHOWN:
                shown.append(path)

    def _divide(self, folder: str, mixed: bool, pool: ThreadPoolExecutor) -> Division:
        uri = self.uri_of(folder)

        def look(names: Collection[str]) -> Mapping[str, DicomHead | None]:
            return heads_in(uri, names, pool)

        def entries() -> Mapping[str, Identity]:
            return self._wanted_of(folder, candidates_in(uri))

        with reaching(uri, "listed"):
            division = divided(self._folders[folder], look, entries, partial=folder in self._partial, mixed=mixed)
            return division if folder or not division.series else _in_root(division, entries)

    def _wanted_of(self, folder: str, entries: Mapping[str, Identity]) -> dict[str, Identity]:
        """The entries of a folder that no rule leaves out."""
        rules = self._rules([posixpath.join(folder, name) for name in entries])
        return {name: one for (name, one), rule in zip(entries.items(), rules, strict=True) if rule is None}

    def _rules(self, paths: Sequence[str]) -> list[str | None]:
        rules: list[str | None] = self.wanted(
            _table([(path, 0, None, None, None) for path in paths], FOUND)
        ).to_pylist()
        return rules

    def _distinct(self, rows: list[Row]) -> list[Row]:
        """The volumes without those whose name is taken: a folder may be called like a series in the folder above."""
        if len({row[0] for row in rows}) == len(rows):
            return rows
        kept: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: row[NAMES] is not None):  # first those that have a folder
            if kept.setdefault(row[0], row) is not row:
                self._leave_out({"name_taken": row[PARTS] or 1}, row[0])
        return list(kept.values())

    def _without_excluded(self, volumes: pa.Table) -> pa.Table:
        """The volumes without series that a pattern excludes by their own path, whatever those of their instances."""
        rules = self._rules(volumes["volume_id"].to_pylist())
        excluded = pa.array([rule == "excluded" for rule in rules], pa.bool_())
        self.skipped["excluded"] += pc.sum(volumes.filter(excluded)["parts"]).as_py() or 0
        return volumes.filter(pc.invert(excluded))

    def _look(self, single: tuple[str, Identity]) -> DicomHead | None:
        path, identity = single
        uri = self.uri_of(path)
        return packed_head(uri, identity.size_bytes) if is_packed(path) else head_at(uri)


def _in_root(division: Division, entries: Callable[[], Mapping[str, Identity]]) -> Division:
    """Series in the archive's root have no folder to be named by: by their UIDs, else by the names of their objects."""
    [first, *others] = division.series
    if others:
        return division
    names = first.names or tuple(sorted(entries()))
    if not is_uid(first.uid):
        now = entries()
        return Division((), {name: now[name] for name in names if name in now}, division.skipped)
    return Division((Series(first.uid, first.whole, names, False, first.head),), division.strays, division.skipped)


def _whole_of(groups: Groups) -> Whole:
    return sum((group.whole for group in groups.values()), Whole())


def _row(volume_id: str, whole: Whole, names: tuple[str, ...] | None) -> Row:
    identity = whole.identity()
    return volume_id, identity.size_bytes, identity.etag, identity.mtime, whole.count, names


def _object(path: str, identity: Identity) -> Row:
    return path, identity.size_bytes, identity.etag, identity.mtime, None, None


def as_objects(files: pa.Table) -> pa.Table:
    """Rows of FOUND that are volumes of one object each (schemas.OBJECTS)."""
    nothing = [pa.nulls(files.num_rows, OBJECTS.field(name).type) for name in ("parts", "names")]
    return pa.table([*(files[name] for name in FOUND.names[:-1]), *nothing], schema=OBJECTS)


def _table(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(column, each.type) for column, each in zip(columns, schema, strict=True)], schema=schema)


class _Known:
    """Series and packed series of the live ledger. mixed: folders that proved to hold several series."""

    def __init__(self, ledger: pa.Table | None, folders: Collection[str], objects: Collection[str]) -> None:
        self.mixed: set[str] = set()
        self._objects: dict[str, Identity] = {}
        self._alone: dict[str, Whole] = {}
        self._below: dict[str, dict[str, Whole]] = defaultdict(dict)
        if ledger is None:
            return
        in_folder = pc.replace_substring_regex(ledger["volume_id"], r"(^|/)[0-9.]+$", "")
        chosen = pc.or_(
            pc.is_in(ledger["volume_id"], value_set=pa.array([*folders, *objects], pa.string())),
            pc.is_in(in_folder, value_set=pa.array(list(folders), pa.string())),
        )
        batches = ledger.filter(chosen).to_batches(_BATCH)
        for row in (row for batch in batches for row in batch.to_pylist()):
            volume_id, identity = row["volume_id"], Identity(row["size_bytes"], row["etag"], row["mtime"])
            whole = Whole.parse(identity)
            if whole is None:
                self._objects[volume_id] = identity
            elif row["code"] == QuarantineCode.MIXED_SERIES:
                self.mixed.add(volume_id)
            else:
                folder, _, uid = volume_id.rpartition("/")
                self._alone[volume_id] = whole
                if is_uid(uid):
                    self._below[folder][volume_id] = whole

    def is_mixed(self, folder: str) -> bool:
        """Whether a folder proved to hold several series."""
        return folder in self.mixed or len(self._below.get(folder, {})) > 1

    def series(self, folder: str, whole: Whole) -> list[tuple[str, Whole]]:
        """The series that a folder holds if it is as it was: one, or several whose objects are all of its objects."""
        alone = self._alone.get(folder)
        if folder and alone is not None and alone.is_same(whole):
            return [(folder, alone)]
        below = self._below.get(folder, {})
        return list(below.items()) if sum(below.values(), Whole()).is_same(whole) else []

    def has(self, path: str, identity: Identity) -> bool:
        """Whether an object is as it was."""
        return path in self._objects and identity.is_same(self._objects[path])
