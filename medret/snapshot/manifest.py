"""The manifest of a snapshot: its fields, and functions that read and check it.

A snapshot's id ends in the first 16 hex digits of its manifest's sha256, the manifest holds the sha256 of its tables,
and the tables hold the sha256 of every other file: a reader who trusts CURRENT can check everything else. The size of
the manifest does not depend on the number of volumes; the tables hold what grows.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from medret.errors import CorruptError, UsageError, VersionError, first_line
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.snapshot.names import DIGEST, SHA256, TABLE_PATH
from medret.storage import NAME_DIGITS, Location

CURRENT = "CURRENT"
MANIFEST = "manifest.json"
SNAPSHOT_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}")
TableKind = Literal["files", "ledger", "changes", "tombstones"]

# Limits of a manifest, which is read whole and shown to people, whoever wrote it.
FORMAT: Literal[1] = 1
CURRENT_BYTES, MANIFEST_BYTES = 1 << 10, 1 << 22
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Dim = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
ImageSize = Annotated[int, msgspec.Meta(ge=1, le=1 << 12)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Text = Annotated[str, msgspec.Meta(max_length=10_000)]
Digest = Annotated[str, msgspec.Meta(pattern=rf"^{DIGEST}\Z")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names and types of the fields are checked when it is decoded."""


class _Model(msgspec.Struct):
    """The fields of a recipe's model that every version of medret writes."""

    name: Word
    dim: Dim
    image_size: ImageSize = msgspec.field(name="side_px")
    precision: Word


class _Slices(msgspec.Struct):
    planes: Annotated[list[Literal["axial", "coronal", "sagittal"]], msgspec.Meta(min_length=1, max_length=3)]


class _Recipe(msgspec.Struct):
    """The fields of a recipe that every version of medret writes; RecipeEntry reads them without loading the recipe."""

    digest: Digest
    model: _Model
    slices: _Slices


class RecipeEntry(_Strict, frozen=True):
    """A recipe of the snapshot and where its weights came from.

    weights_source: description. weights_uri: from which to load them again; None if the model's name is enough.
    """

    recipe: dict[str, Any]
    weights_source: Text
    weights_uri: Text | None = None
    random_weights: bool = False

    @property
    def digest(self) -> str:
        """Digest of the recipe, which every file made with it holds."""
        return str(self.recipe["digest"])

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.recipe["model"]["name"])

    @property
    def dim(self) -> int:
        """Width of the model's vectors."""
        return int(self.recipe["model"]["dim"])

    @property
    def planes(self) -> tuple[str, ...]:
        """Planes in which volumes are sliced."""
        return tuple(self.recipe["slices"]["planes"])

    @property
    def precision(self) -> str:
        """Precision in which the model computes."""
        return str(self.recipe["model"]["precision"])

    def load(self) -> Recipe:
        """Load the recipe and check its digest.

        Raises VersionError if another version of medret wrote it with other fields, CorruptError if no version did.
        """
        try:
            recipe = Recipe.from_json(self.recipe)
            msgspec.convert(asdict(recipe.slices), SliceRecipe)  # checks types, which from_json does not
            msgspec.convert(asdict(recipe.model), ModelRecipe)
            return recipe
        except (msgspec.ValidationError, ValueError, UsageError, RecursionError) as error:
            raise CorruptError(f"recipe {self.recipe.get('digest')} is damaged: {first_line(error)}") from error
        except (KeyError, TypeError) as error:
            raise VersionError(
                f"recipe {self.recipe.get('digest')} was written by a version of medret with other recipes; use that "
                "version, or index into a new store"
            ) from error


class IndexEntry(_Strict, frozen=True):
    """One index over all rows of a recipe: volume vectors of one aggregation, or slice vectors (aggregation None).

    rows: vectors that a search can find: those without a tombstone. recall: recall@10 of each approximate kind
    against exact search, measured when it was built and weighted by rows.
    """

    recipe: Word
    aggregation: Word | None
    rows: Count
    dim: Dim
    shards: Count
    recall: dict[Word, Share]


class TableEntry(_Strict, frozen=True):
    """A table that the manifest names. path: below the store. kind: `ledger` is the base of the ledger."""

    path: Annotated[str, msgspec.Meta(pattern=rf"^{TABLE_PATH.pattern}\Z")]
    kind: TableKind
    sha256: Annotated[str, msgspec.Meta(pattern=rf"^{SHA256.pattern}\Z")]
    size_bytes: Count
    rows: Count


class Counts(_Strict, frozen=True, kw_only=True):
    """The outcomes of all listed objects: listed = embedded + unchanged + quarantined + skipped.

    embedded: vectors were made, for new and changed volumes. unchanged: vectors were reused; includes renamed (and
    copied) volumes, and stale ones, which could not be read and keep their vectors. gone: volumes of the previous
    snapshot that the archive no longer has under any name.
    """

    listed: Count
    embedded: Count
    unchanged: Count = 0
    new: Count
    changed: Count = 0
    renamed: Count = 0
    gone: Count = 0
    quarantined: Count = 0
    skipped: Count = 0
    stale: Count = 0

    @property
    def volumes(self) -> int:
        """Number of listed objects that are volumes: the rows of the ledger."""
        return self.listed - self.skipped

    @property
    def reconciled(self) -> bool:
        """Whether every listed object is counted exactly once."""
        return self.listed == self.embedded + self.unchanged + self.quarantined + self.skipped


class GateEntry(_Strict, frozen=True):
    """A check that the snapshot passed before it was published. found, limit: values in words."""

    name: Text
    found: Text
    limit: Text


class Manifest(_Strict, frozen=True, kw_only=True):
    """The content of a snapshot and how it was made.

    parent: id of the previous live snapshot. pattern, exclude, include_masks: the part of the archive that was indexed.
    skipped: rule -> number of objects that it skipped. slices: slice vectors per model. gates: checks that passed.
    """

    format: Literal[1] = FORMAT
    created: Word
    medret_version: Word
    run: Word
    parent: str | None = None
    archive_uri: Text
    pattern: Text | None = None
    exclude: list[Text] = []
    include_masks: bool = False
    recipes: Annotated[list[RecipeEntry], msgspec.Meta(min_length=1)]
    aggregations: Annotated[list[Word], msgspec.Meta(min_length=1)]
    index_settings: dict[str, Any]
    indices: list[IndexEntry]
    counts: Counts
    skipped: dict[str, Count]
    slices: Count
    gates: list[GateEntry] = []
    tables: list[TableEntry]

    def to_bytes(self) -> bytes:
        """Encode the manifest as the bytes of its file; equal manifests give equal bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    def tables_of(self, kind: TableKind) -> list[TableEntry]:
        """Return the tables of one kind, in order."""
        return [table for table in self.tables if table.kind == kind]


def snapshot_folder(snapshot_id: str) -> str:
    """Return the path of a snapshot's folder below the store."""
    return f"snapshots/{snapshot_id}"


def snapshot_ids(store: Location) -> list[str]:
    """Return the complete snapshots of a store, oldest first: those whose manifest was written."""
    parts = [path.split("/") for path in store.files("snapshots")]
    return sorted(p[1] for p in parts if len(p) == 3 and p[2] == MANIFEST and SNAPSHOT_ID.fullmatch(p[1]))


def current_id(store: Location) -> str | None:
    """Return the live snapshot's id, None if nothing was ever published; raise CorruptError if CURRENT is damaged."""
    try:
        text = store.read(CURRENT, CURRENT_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    if not text.endswith("\n") or not SNAPSHOT_ID.fullmatch(text[:-1]):
        raise CorruptError(
            f"{store.uri_of(CURRENT)} is damaged: it holds {text[:60]!r}, expected one snapshot id and a newline; "
            "write the id of a folder of snapshots/ into it"
        )
    return text[:-1]


def read_manifest(store: Location, snapshot_id: str) -> Manifest:
    """Read the manifest of a snapshot and check it against its id; raise UsageError, CorruptError or VersionError."""
    if not SNAPSHOT_ID.fullmatch(snapshot_id):
        raise UsageError(f"'{snapshot_id}' is not a snapshot id (such as 20260101T000000Z-0123456789abcdef)")
    path = f"{snapshot_folder(snapshot_id)}/{MANIFEST}"
    try:
        data = store.read(path, MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise CorruptError(f"{store.uri_of(path)} is missing: snapshot {snapshot_id} cannot be opened") from error
    if hashlib.sha256(data).hexdigest()[:NAME_DIGITS] != snapshot_id[-NAME_DIGITS:]:
        raise CorruptError(f"{store.uri_of(path)} is damaged: its sha256 is not the one in the snapshot's id")
    return _decoded(data, store.uri_of(path))


def _decoded(data: bytes, name: str) -> Manifest:
    """Decode a manifest; raise CorruptError for a value of a type or size that medret does not write."""
    try:
        top = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        fields_known = top.keys() <= set(Manifest.__struct_fields__)
        if not fields_known or msgspec.json.decode(top.get("format", b"0")) != FORMAT:
            raise VersionError(
                f"{name} has a format that this version does not know; open it with the version of medret that wrote "
                "it, or index again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
        datetime.fromisoformat(manifest.created)
        for entry in manifest.recipes:
            msgspec.convert(entry.recipe, _Recipe)
        for kind in ("files", "ledger"):
            if not any(table.kind == kind for table in manifest.tables):
                raise ValueError(f"it names no table of kind {kind}")
        for table in manifest.tables:
            if not table.path.startswith(f"tables/{table.kind}-{table.sha256[:NAME_DIGITS]}."):
                raise ValueError(f"it lists {table.path} under another kind or sha256")
        if len(manifest.tables_of("changes")) > 1:
            raise ValueError("it names several tables of changes")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptError(f"{name} is damaged: {first_line(error)}; index again into a new store") from error
    return manifest
