"""What one snapshot holds: its index shards, ledger and embeddings, each opened when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.embeddings import Slices
from medret.embeddings.parquet import as_corrupt, judged, open_parquet, read_parquet
from medret.errors import CorruptError, DroppedError, MedretError, UsageError
from medret.index import CENTRE_KIND, IndexSettings, centre_of
from medret.schemas import FILES, ROWS, SLICE_COLUMNS, TOMBSTONES
from medret.search.answers_kept import keep_answers
from medret.search.basis import OwnCentre, moved_to
from medret.search.cache import LocalFiles
from medret.search.hit import Sources
from medret.search.index_search import IndexKey
from medret.search.ledger import Ledger, LedgerRow, read_label_table
from medret.search.places import SUFFIXES, Refused, place_of
from medret.search.shard import Shard, ShardFiles
from medret.snapshot import Manifest, RecipeEntry
from medret.snapshot.files import (
    SLICES,
    VOLUMES,
    ShardKey,
    StoredFile,
    dead_volumes,
    live_rows,
    previews_files,
    read_index_files,
    slices_files,
    stored_files,
)
from medret.snapshot.manifest import MANIFEST, TableKind, snapshot_folder
from medret.snapshot.names import check_files
from medret.storage import Location, read_checked

if TYPE_CHECKING:
    from medret.volume.previews import Preview

SOURCES_KEPT = 4096  # volumes
PREVIEWS_KEPT = 512  # volumes, of about 12 kB each


class Contents:
    """The parts of one snapshot, by name."""

    def __init__(self, store: Location, snapshot_id: str, manifest: Manifest, archive: str | None = None) -> None:
        self.uri = store.uri
        self._archive = archive
        self._store = store
        self.id = snapshot_id
        self.manifest = manifest
        self._local = LocalFiles(store)
        self.settings = IndexSettings.from_json(manifest.index_settings)
        self._index_files = [file for path in self._tables("files") for file in read_index_files(path)]

    def check_present(self, error: Exception) -> None:
        """Raise DroppedError, from the error of a read, if the snapshot was removed from the store."""
        if not self._store.exists(f"{snapshot_folder(self.id)}/{MANIFEST}"):
            raise DroppedError(
                f"snapshot {self.id} is no longer in {self.uri}: it was removed while it was open; open the store "
                "again for the live one"
            ) from error

    @cached_property
    def ledger(self) -> Ledger:
        """Labels, URIs and outcomes by volume_id."""
        return Ledger(self._files("ledger"), self._files("changes"))

    @cached_property
    def labels(self) -> pa.Table:
        """The labels of all embedded volumes, in volume_id order."""
        return read_label_table(self._tables("ledger"), self._tables("changes"))

    @cached_property
    def _dead(self) -> dict[str, set[str]]:
        """Index shard -> the volumes whose rows in it are dead."""
        dead: dict[str, set[str]] = {}
        for path in self._tables("tombstones"):
            file = open_parquet(path, str(path), TOMBSTONES)
            with as_corrupt(str(path)):
                for key, volume_ids in dead_volumes(judged(file.read(), path.stat().st_size)).items():
                    dead.setdefault(key, set()).update(volume_ids)
        return dead

    def _tables(self, kind: TableKind) -> list[Path]:
        return [file() for file in self._files(kind)]

    def _files(self, kind: TableKind) -> list[Callable[[], Path]]:
        return [partial(self._local.path, table.path, table.sha256) for table in self.manifest.tables_of(kind)]

    def place(self, row: LedgerRow) -> str:
        """Where a volume is read, or `Refused`."""
        archive = self.manifest.archive_uri
        return place_of(row.volume_id, row.uri, archive=archive, store=self.uri, user_archive=self._archive)

    def row_at(self, place: str) -> LedgerRow | None:
        """What the ledger says about the volume that is read at a place; None if none is."""
        for archive in filter(None, (self.manifest.archive_uri, self._archive)):
            if place.startswith(f"{archive}/"):
                row = self.ledger.row(place[len(archive) + 1 :])
                if row is not None and self.place(row) == place:
                    return row
        return None

    def readable(self, row: LedgerRow) -> str:
        """Where a volume is read; raises UsageError if it is not."""
        place = self.place(row)
        if isinstance(place, Refused):
            raise UsageError(f"{row.volume_id} cannot be read: {place.reason}")
        return place

    def with_positions(self, entry: RecipeEntry, row: LedgerRow, slices: Slices) -> Slices:
        """The indexed slices of a volume with where they lie, from the Parquet shard that holds their vectors.

        Slices are looked up by plane and index: the shard orders the slices of a volume by the recipe's planes, the
        index by the planes' names.
        """
        assert slices.slice_indices is not None
        columns = ["plane", "position", "relative", "position_mm"]
        table = self._embedded_slices(entry.digest, row.shards.get(entry.digest, ""), row.volume_id, columns)
        plane, position, relative, mm = (table[name].to_pylist() for name in columns)
        at = {key: number for number, key in enumerate(zip(plane, position, strict=True))}
        indexed_keys = zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)
        order = [at.get(key, -1) for key in indexed_keys]
        if -1 in order:
            raise MedretError(
                f"snapshot {self.id}: no file has the indexed slice vectors of {row.volume_id}; run `medret verify`"
            )
        relative_position, position_mm = (np.array(column, np.float32)[order] for column in (relative, mm))
        return replace(slices, relative_position=relative_position, position_mm=position_mm)

    def sources(self, entry: RecipeEntry, row: LedgerRow) -> Sources:
        """What the slices of a volume were made from; empty for NIfTI, without a look into any file."""
        if row.volume_id.lower().endswith(SUFFIXES):
            return {}
        return self._kept_sources(entry.digest, row.shards.get(entry.digest, ""), row.volume_id)

    @cached_property
    def _kept_sources(self) -> Callable[[str, str, str], Sources]:
        return keep_answers(self._sources, SOURCES_KEPT)

    def _sources(self, digest: str, shard: str, volume_id: str) -> Sources:
        columns = ["plane", "position", "source"]
        table = self._embedded_slices(digest, shard, volume_id, columns)
        rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
        return {(plane, position): source for plane, position, source in rows if source is not None}

    def _embedded_slices(self, digest: str, shard: str, volume_id: str, columns: list[str]) -> pa.Table:
        """The rows of a volume in the Parquet file of its slice vectors; none if no file has them."""
        import pyarrow.compute as pc

        if (file := self._slices_files.get((digest, shard))) is None:
            return pa.schema(SLICE_COLUMNS).empty_table().select(columns)
        local = self._checked_path(file)
        parquet = open_parquet(local, str(local), SLICE_COLUMNS)
        with as_corrupt(str(local)):
            table = judged(parquet.read(["volume_id", *columns]), local.stat().st_size)
        return table.filter(pc.equal(table["volume_id"], volume_id)).select(columns)

    def previews(self, row: LedgerRow) -> tuple[Preview, ...]:
        """The previews of a volume, stored with the first of its models that has some; none if no model has."""
        keys = ((entry.digest, row.shards.get(entry.digest, "")) for entry in self.manifest.recipes)
        found = (self._kept_previews(*key, row.volume_id) for key in keys if key in self._previews_files)
        return next(filter(None, found), ())

    @cached_property
    def _kept_previews(self) -> Callable[[str, str, str], tuple[Preview, ...]]:
        return keep_answers(self._previews, PREVIEWS_KEPT)

    def _previews(self, digest: str, shard: str, volume_id: str) -> tuple[Preview, ...]:
        from medret.search.stored_previews import read_previews  # Pillow: only where pictures are shown

        return read_previews(self._checked_path(self._previews_files[digest, shard]), volume_id)

    def _checked_path(self, file: StoredFile) -> Path:
        """The local path of a file that the table of files names, after a check of its row there."""
        with as_corrupt(f"the table of files of snapshot {self.id}"):
            check_files([asdict(file)])
        return self._local.path(file.path, file.sha256)

    @cached_property
    def _slices_files(self) -> dict[ShardKey, StoredFile]:
        """Embedding shard -> the file of its slice vectors."""
        return slices_files(self._files_table())

    @cached_property
    def _previews_files(self) -> dict[ShardKey, StoredFile]:
        """Embedding shard -> the file of its previews."""
        return previews_files(self._files_table())

    def _files_table(self) -> pa.Table:
        tables = (read_parquet(path.read_bytes(), name=str(path), fields=list(FILES)) for path in self._tables("files"))
        return pa.concat_tables(tables)

    def centre(self, key: IndexKey, dim: int) -> OwnCentre | None:
        """The centre of an index and the number of volumes that it was fitted to; None if it is not centred."""
        for file in self._files_of(key):
            if file.kind == CENTRE_KIND:
                path = self._local.path(file.path, file.sha256)
                return centre_of(path.read_bytes(), str(path), dim), file.rows
        return None

    def shards(self, key: IndexKey, dim: int, store: int, centre: NDArray[np.float32] | None) -> list[Shard]:
        """The shards of an index, seen from `centre`. store: the number of this store."""
        files = [file for file in self._files_of(key) if file.kind != CENTRE_KIND]
        moved = moved_to(centre, self.centre(key, dim), partial(self.embedded, key), self._local)
        return [
            Shard(listed, dim, self.settings, self._local, store, moved) for listed in group_shards(files, self._dead)
        ]

    def _files_of(self, key: IndexKey) -> list[StoredFile]:
        return [file for file in self._index_files if (file.recipe, file.aggregation) == key]

    def embedded(self, key: IndexKey, shard: str) -> pa.Table:
        """The live rows of an index shard as they were embedded: schemas.ROWS and `vector`."""
        (digest, aggregation), tables = key, []
        kind, absent = (VOLUMES, ROWS.names[1:]) if aggregation else (SLICES, [])
        for path in self._tables("files"):
            listed = read_parquet(path.read_bytes(), name=str(path), fields=list(FILES))
            for file in stored_files(listed, [kind], recipe=digest, aggregation=aggregation):
                if file.indexed_in == shard:
                    names = [name for name in (*ROWS.names, "vector") if name not in absent]
                    table = read_parquet(read_checked(self._store, file.path, file.sha256), names, name=file.path)
                    rows = self.ledger.rows(set(table["volume_id"].to_pylist()))
                    live = {volume_id for volume_id, row in rows.items() if row.shards.get(digest) == file.shard}
                    tables.append(live_rows(table.replace_schema_metadata(None), live))
        if not tables:
            raise CorruptError(f"index shard {shard} of {self.uri} names no embedding files; run `medret verify`")
        joined = pa.concat_tables(tables)
        for name in absent:
            joined = joined.append_column(name, pa.nulls(joined.num_rows, ROWS.field(name).type))
        return joined

    @cached_property
    def indexed_in(self) -> dict[tuple[str, str | None, str], str]:
        """(recipe, aggregation, embedding shard) -> the index shard that holds its vectors, where that is known."""
        indexed_in: dict[tuple[str, str | None, str], str] = {}
        for path in self._tables("files"):
            names = ["recipe", "aggregation", "shard", "indexed_in"]
            file = open_parquet(path, str(path), FILES)
            with as_corrupt(str(path)):
                *keys, index_shards = (
                    column.to_pylist() for column in judged(file.read(names), path.stat().st_size).columns
                )
            indexed_in |= {
                key: shard for key, shard in zip(zip(*keys, strict=True), index_shards, strict=True) if shard
            }
        return indexed_in


def group_shards(files: Iterable[StoredFile], dead: Mapping[str, AbstractSet[str]]) -> list[ShardFiles]:
    """Group index files into shards, ordered by key. dead: volumes under tombstones, by key."""
    shards: dict[str, dict[str, StoredFile]] = {}
    for file in files:
        shards.setdefault(file.shard or "", {})[file.kind] = file
    return [
        ShardFiles(
            key,
            next(iter(members.values())).rows,
            {kind: (file.path, file.sha256) for kind, file in members.items()},
            frozenset(dead.get(key, ())),
        )
        for key, members in sorted(shards.items())
    ]
