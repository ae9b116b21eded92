"""Opening a snapshot, or several, and searching them.

Opening reads CURRENT, the manifest and the table of files. Index files, ledger and models are opened when a search
first needs them; ray is never imported, and torch only for queries that are files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import pyarrow as pa

from medret.embeddings import Slices
from medret.errors import CorruptError, DroppedError, StorageError, UsageError
from medret.recipe import Recipe
from medret.search.answer import answer, rank_ensemble
from medret.search.contents import Contents
from medret.search.corpus import Corpus, Member
from medret.search.encoders import Encoders
from medret.search.hit import Hits
from medret.search.index_search import ScoredRow, Spread, Task
from medret.search.ledger import LedgerRow
from medret.search.options import DEFAULT_K, SLICE, SearchKeywords, SearchOptions
from medret.search.pictures import Pictures
from medret.search.query import Query, QueryVectors, Volume
from medret.search.resolve import Resolver
from medret.snapshot import Manifest, current_id, read_manifest
from medret.snapshot.manifest import MANIFEST, snapshot_folder
from medret.storage import Location, normalise_uri, use_options

if TYPE_CHECKING:
    from medret.search.explain import Explanation
    from medret.volume.previews import Preview

AnyVolume = TypeVar("AnyVolume", bound=str | Volume)

OPENINGS = 20  # tries; each but the last failed because another snapshot was published meanwhile


def open_snapshot(
    uri: str | os.PathLike[str],
    snapshot_id: str | None = None,
    *,
    archive: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    spread: Spread | None = None,
    encoders: Encoders | None = None,
) -> Snapshot:
    """Open the live snapshot of a store, or an older one by its id.

    archive: where the volumes are read, for pages of hits and for a part of a stored volume; None: where the store
    says, if that is on this machine's disks or on the store's own server. storage_options: of the filesystems of the
    store and of its archive, such as `{"anon": True}`, or for one of them, `{"archive": {"anon": True}}`. spread: runs
    tasks, one per index shard, in other processes, each with `Snapshot.run`, and returns their answers in the same
    order; None: in this process. encoders: models that other snapshots loaded already.
    Raises UsageError when there is no store, nothing was published, or the store has no such snapshot; CorruptError
    when the store is damaged.
    """
    return Snapshot(Corpus([_opened(uri, snapshot_id, archive, storage_options or {})], spread), encoders)


def open_snapshots(
    snapshots: Sequence[str | os.PathLike[str] | Snapshots],
    *,
    spread: Spread | None = None,
    encoders: Encoders | None = None,
) -> Snapshots:
    """Open several snapshots, to be searched as one.

        both = medret.open_snapshots(["store-a", "store-b"])
        for hit in both.search("case.nii.gz", k=5):
            print(hit.store, hit.volume_id, hit.score)

    snapshots: URIs of stores, whose live snapshots are opened, or what `open_snapshot` returned. A volume_id that two
    stores have names two volumes. spread: as for `open_snapshot`.
    Raises UsageError for stores whose vectors cannot be compared: each model that they share must have one recipe.
    """
    if not snapshots or isinstance(snapshots, str | os.PathLike):
        raise UsageError(f"snapshots is {snapshots!r}, expected a list of stores, at least one")
    if any(isinstance(each, Snapshots) and each.corpus.is_restricted for each in snapshots):
        raise UsageError(
            "snapshots are restricted by a filter, which a search of several would lose: restrict what this returns"
        )
    corpora = [each.corpus.stores if isinstance(each, Snapshots) else (_opened(each),) for each in snapshots]
    return Snapshots(Corpus([contents for stores in corpora for contents in stores], spread), encoders)


def _opened(
    uri: str | os.PathLike[str],
    snapshot_id: str | None = None,
    archive: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] = MappingProxyType({}),
) -> Contents:
    use_options(storage_options, stores=[uri])
    store = Location(uri)
    place = None if archive is None else normalise_uri(archive)
    try:
        for _ in range(OPENINGS):
            live = current_id(store)
            if live is None:
                problem = "no snapshot was published there yet" if store.exists("") else "no store is there"
                raise UsageError(f"{store.uri}: {problem}; `medret index ARCHIVE {store.uri}` publishes one")
            chosen_id = snapshot_id or live
            if chosen_id != live and not store.exists(f"{snapshot_folder(chosen_id)}/{MANIFEST}"):
                raise UsageError(f"{store.uri} has no snapshot '{chosen_id}'; its live one is {live}")
            try:
                manifest = read_manifest(store, chosen_id)
                use_options(storage_options, others=[place or manifest.archive_uri])
                return Contents(store, chosen_id, manifest, place)
            except (CorruptError, FileNotFoundError):
                if chosen_id != live or current_id(store) == live:
                    raise  # otherwise another one was published, and this one removed, while it was opened
        raise DroppedError(f"{store.uri}: {OPENINGS} snapshots were removed while they were opened; open it again")
    except StorageError as error:
        raise UsageError(str(error)) from error


class Snapshots:
    """Snapshots that are searched as one; made by `open_snapshots`.

    models, aggregations: names that all have; the first of each is searched by default. volumes: how many there are.
    corpus: what a search reads. pictures: of volumes and queries. Several threads may search at the same time.
    """

    def __init__(self, corpus: Corpus, encoders: Encoders | None = None) -> None:
        self.models = corpus.models
        self.aggregations = corpus.aggregations
        self.volumes = corpus.volumes
        self.corpus = corpus
        self._encoders = encoders or Encoders()
        self._resolver = Resolver(corpus, self._encoders)
        self.pictures = Pictures(corpus, self._resolver)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.corpus}>"

    def restricted(self, where: str) -> Snapshots:
        """The same snapshots as if they held only the volumes that a filter keeps.

        No search, label or count shows anything of the others. Raises UsageError for the filter.
        """
        with self.corpus.reading():
            return Snapshots(self.corpus.restricted(where), self._encoders)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Snapshot id -> manifest, in the order in which they were opened."""
        return {contents.id: contents.manifest for contents in self.corpus.stores}

    def search(self, query: Query, k: int = DEFAULT_K, **options: Unpack[SearchKeywords]) -> Hits:
        """The k hits most similar to a query, best first; see `search_many`."""
        return self.search_many([query], k, **options)[0]

    def show(self, query: Query, k: int = DEFAULT_K, **options: Unpack[SearchKeywords]) -> Hits:
        """The hits of `search`, with their pictures read at once: a notebook shows them as often as it likes.

        The hits of `search` read their pictures each time that they are shown.
        """
        hits = self.search(query, k, **options)
        html = self.pictures.cards(query, hits)
        return Hits(hits, lambda shown: html if shown == hits else self.pictures.cards(query, shown))

    def search_many(
        self, queries: Sequence[Query], k: int = DEFAULT_K, **options: Unpack[SearchKeywords]
    ) -> list[Hits]:
        """The k hits most similar to each query, best first; the indices are searched once for all queries.

        A query is the path or URI of a NIfTI file, of a folder with a DICOM series or of a zip of one, a list of the
        files of a series, the volume_id of a volume of this snapshot (its stored vectors are used: no model), a (dim,)
        volume vector or an (n, dim) array of slice vectors. A text that names both a file or folder and a volume is the
        file. options: `SearchOptions` says what each means.
        Raises UsageError for a query or options that do not fit; CorruptError when a file of the snapshot is damaged;
        DroppedError when the snapshot was removed from the store: open it again.
        """
        with self.corpus.reading():
            answers = answer(self.corpus, self._resolver, queries, k, SearchOptions.of(options))
        return [Hits(hits, partial(self.pictures.cards, query)) for query, hits in zip(queries, answers, strict=True)]

    def explain(self, query: Query, hit: str, **options: Unpack[SearchKeywords]) -> Explanation:
        """Why a volume scores as it does for a query: the share of each pair of slices.

        hit: volume_id. options: as for a search; modes volume, late and max are explained, one model and aggregation at
        a time. Raises UsageError, NotFoundError.
        """
        from medret.search.explain import explain

        with self.corpus.reading():
            return explain(self.corpus, self._resolver, query, hit, SearchOptions.of(options))

    def previews(self, volume_ids: Iterable[AnyVolume]) -> dict[AnyVolume, tuple[Preview, ...]]:
        """The small pictures that were stored of volumes; none for a volume of which none were stored.

        A volume is named by its volume_id, where several stores have it by `STORE#ID`, or by a pair of its volume_id
        and the place of its store in `corpus.stores`. The result has the same names.
        Raises NotFoundError for an unknown volume, CorruptError for a damaged picture, DroppedError as a search.
        """
        found: dict[AnyVolume, tuple[Preview, ...]] = {}
        with self.corpus.reading():
            for name in volume_ids:
                volume, row = self.corpus.named(name)
                found[name] = self.corpus.stores[volume[1]].previews(row)
        return found

    def labels(self) -> pa.Table:
        """The embedded volumes in volume_id order, one store after another.

        Columns: volume_id, uri, subject, modality, body_region, organ and one string column for each metadata key, null
        where a volume has none. Read once and kept.
        """
        with self.corpus.reading():
            first, *others = self.corpus.labels
        return pa.concat_tables([first, *others]) if others else first

    def run(self, task: Task) -> Any:
        """Answer a question to one index shard, which `spread` was given in another process; see `open_snapshot`.

        Raises UsageError if that process has opened other snapshots.
        """
        ids = tuple(contents.id for contents in self.corpus.stores)
        if task.snapshots != ids:
            raise UsageError(
                f"the task is for snapshots {', '.join(task.snapshots)}, but this process has opened {', '.join(ids)}: "
                "open the same ones, by their ids"
            )
        digest, aggregation = task.index
        entry = next(entry for entry in map(self.corpus.recipe, self.models) if entry.digest == digest)
        with self.corpus.reading():
            shard = self.corpus.index(entry, aggregation).shards[task.shard]
            return getattr(shard, task.method)(*task.arguments)

    def recipe(self, model: str | None = None) -> Recipe:
        """The recipe of a model's vectors."""
        return self.corpus.recipe(model).load()

    def uri_of_query(self, query: Query) -> str | None:
        """Where a query's voxels are read: its path or URI, that of the volume it names; None for an array or list."""
        return self.pictures.uri_of_query(query)


class Snapshot(Snapshots):
    """One immutable, complete set of vectors and indices; made by `open_snapshot`.

    uri, id, manifest: what was opened. models, aggregations: names; the first of each is searched by default.
    Several threads may search it at the same time.
    """

    def __init__(self, corpus: Corpus, encoders: Encoders | None = None) -> None:
        super().__init__(corpus, encoders)
        (self._contents,) = corpus.stores
        self.uri, self.id, self.manifest = self._contents.uri, self._contents.id, self._contents.manifest

    def resolve(self, query: Query, **options: Unpack[SearchKeywords]) -> QueryVectors:
        """The vectors of a query in the space of the indices of one model and aggregation.

        options: those of `SearchOptions` that say how a query is read; others change nothing.
        """
        chosen = SearchOptions.of(options)
        with self.corpus.reading():
            return self._resolver.resolve(query, self._member(chosen), chosen)

    def rank(
        self,
        queries: Sequence[QueryVectors],
        k: int,
        *,
        excluded: Sequence[AbstractSet[str]] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[list[ScoredRow]]:
        """At most k volumes per query, best first, equal scores in the order of volume_id.

        k may be the number of volumes: then every kept volume is ranked (vote, max and sum: those that any slice found;
        late: with index `exact` all, else the candidates). excluded: for each query the volume_ids that it must not
        find; None: as the option `exclude` says. options: as for a search; model and aggregation must be those that the
        queries were resolved with. Raises UsageError.
        """
        chosen = SearchOptions.of(options)
        if chosen.used_mode == SLICE:
            raise UsageError(f"mode '{SLICE}' ranks slices, not volumes")
        with self.corpus.reading():
            if excluded is None:
                hidden = self.corpus.excluded(queries, chosen.exclude)
            else:
                distinct = {id(ids): frozenset((volume_id, 0) for volume_id in ids) for ids in excluded}
                hidden = [distinct[id(ids)] for ids in excluded]
            groups = self.corpus.query_groups(hidden, chosen.where)
            return self.corpus.rank(self._member(chosen), queries, k, groups, chosen)

    def rank_fused(
        self,
        by_model: Mapping[str, Sequence[QueryVectors]],
        k: int,
        *,
        excluded: Sequence[AbstractSet[str]],
        **options: Unpack[SearchKeywords],
    ) -> list[list[ScoredRow]]:
        """As `rank`, under several models whose scores are fused. by_model: the queries as each model's vectors."""
        chosen = SearchOptions.of({**options, "model": list(by_model)})
        with self.corpus.reading():
            distinct = {id(ids): frozenset((volume_id, 0) for volume_id in ids) for ids in excluded}
            groups = self.corpus.query_groups([distinct[id(ids)] for ids in excluded], chosen.where)
            members = self.corpus.members(chosen)
            for member in members:
                self.corpus.indices(member, chosen)  # raises UsageError for an index that was not built
            return rank_ensemble(self.corpus, members, list(by_model.values()), k, groups, chosen)

    def _member(self, options: SearchOptions) -> Member:
        """The one model and aggregation of options; raises UsageError for several."""
        members = self.corpus.members(options)
        if len(members) > 1:
            raise UsageError("one model and one aggregation are ranked at a time: `search` fuses several")
        return members[0]

    def slices_of(self, volume_id: str, model: str | None = None) -> Slices | None:
        """The slice vectors of a volume as the index holds them; None when the snapshot has none of it."""
        with self.corpus.reading():
            return self.corpus.index(self.corpus.recipe(model), None).slices_of((volume_id, 0))

    def volume(self, volume_id: str) -> LedgerRow | None:
        """What the ledger says about a volume; None if it does not have it."""
        with self.corpus.reading():
            return self._contents.ledger.row(volume_id)
