"""What studies share: their result and its page, stored slice vectors, and scoring any similarity of volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from medret.embeddings import Slices, plane_codes, read_vectors
from medret.embeddings.parquet import read_parquet
from medret.errors import UsageError
from medret.evaluate.levels import SOURCE, Options, scoring_plan
from medret.evaluate.metrics import NAMES, Bootstrap, Figure
from medret.evaluate.query_sets import archive_queries
from medret.evaluate.relevance import subject_numbers, text_column
from medret.evaluate.scoring import Ranking, Tally, halves
from medret.html import render
from medret.index import CENTRE_KIND
from medret.search import Snapshot
from medret.snapshot import read_files, read_ledger
from medret.snapshot.files import LIVE_COLUMNS, SLICES, live_rows, live_shards, stored_files
from medret.storage import Location, read_checked
from medret.visible import csv_text

METRICS = ("recall@1", "mAP")
BATCH_PAIRS = 20_000_000
VOLUMES_MAX = 20_000

Similarity = Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]]  # rows of queries to (rows, volumes)

Row = dict[str, Any]  # a figure: column -> value


@dataclass(frozen=True)
class Study:
    """A finished study. rows: its figures. plots: (heading, SVG). notes: what readers need to know."""

    name: str
    store: str
    snapshot: str
    rows: Sequence[Row]
    plots: Sequence[tuple[str, Markup]]
    notes: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """The study as a JSON object."""
        named = {"study": self.name, "store": self.store, "snapshot": self.snapshot, "notes": list(self.notes)}
        return {**named, "rows": list(self.rows)}

    def to_csv(self) -> str:
        """The figures as CSV text."""
        return csv_text(list(self.rows[0]), (row.values() for row in self.rows))


def study_page(study: Study) -> str:
    """Render a study as a self-contained page: its plots, notes and table."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return render("study.html.j2", title=f"Study: {study.name}", study=study, made=made)


def read_slices(snapshot: Snapshot, model: str | None, enough: int | None = None) -> dict[str, Slices]:
    """Read the Parquet shards of a model's slice vectors: volume_id -> its slices, in volume_id order.

    enough: read no further shard once so many slices were read.
    """
    store = Location(snapshot.uri)
    digest = snapshot.recipe(model).digest
    shards = stored_files(read_files(store, snapshot.id, snapshot.manifest), [SLICES], recipe=digest)
    if not shards:
        raise UsageError(f"{snapshot.uri} has no slice vectors of this model: its Parquet files are not there to study")
    columns = ["volume_id", "plane", "relative", "position_mm", "vector"]
    live = live_shards(read_ledger(store, snapshot.id, snapshot.manifest, LIVE_COLUMNS), digest)
    tables = []
    for file in shards:
        data = read_checked(store, file.path, file.sha256, file.size_bytes)
        rows = read_parquet(data, columns, name=file.path).replace_schema_metadata(None)
        tables.append(live_rows(rows, live[file.key].volumes if file.key in live else ()))
        if enough is not None and sum(table.num_rows for table in tables) >= enough:
            break
    table = pa.concat_tables(tables)
    ids = np.array(table["volume_id"].to_pylist(), object)
    order = np.argsort(ids, kind="stable")
    names, firsts = np.unique(ids[order].astype(str), return_index=True)
    planes = plane_codes(table["plane"].to_pylist())[order]
    relative, mm = (np.array(table[name].to_pylist(), np.float32)[order] for name in ("relative", "position_mm"))
    vectors = read_vectors(table)[order].astype(np.float32)
    every = Slices(vectors, planes, relative_position=relative, position_mm=mm)
    ranges = map(slice, firsts.tolist(), [*firsts[1:].tolist(), len(order)])
    return {name: replace(every.take(rows), volume_id=name) for name, rows in zip(names.tolist(), ranges, strict=True)}


def is_centred(snapshot: Snapshot) -> bool:
    """Whether the indices of a snapshot subtract a centre."""
    return bool(stored_files(read_files(Location(snapshot.uri), snapshot.id, snapshot.manifest), [CENTRE_KIND]))


class SimilarityScorer:
    """Scores any similarity between the volumes of a snapshot at every level and exclusion, comparing all pairs."""

    def __init__(self, snapshot: Snapshot, options: Options) -> None:
        query_set = archive_queries(snapshot)
        self.volume_ids: list[str] = query_set.candidates["volume_id"].to_pylist()
        count = len(self.volume_ids)
        if count > VOLUMES_MAX:
            raise UsageError(f"{snapshot.uri} has {count} volumes: a study compares all with all, up to {VOLUMES_MAX}")
        self._plan = scoring_plan(snapshot, query_set, options, BATCH_PAIRS)
        self.notes = self._plan.warnings
        self._bootstrap = Bootstrap(min(options.bootstrap.resamples, 300), options.bootstrap.seed)
        self._subjects = subject_numbers(query_set.queries)
        self._halves = halves(text_column(query_set.queries, SOURCE))

    def score(self, variant: str, similarities: Iterable[Similarity]) -> list[Row]:
        """Rank all volumes by similarities that differ in their seed alone; return macro figures.

        value, and low and high (of the 95 % interval over subjects; None if there is none), are means over the seeds;
        spread is their standard deviation. queries: ALL, or one of HALVES of the sources, if there are several.
        """
        rows = []
        by_seed = [list(self._figures(similarity)) for similarity in similarities]
        for same in zip(*by_seed, strict=True):
            names, first = same[0]
            seeds = [figure for _, figure in same]
            means = {name: float(np.mean([getattr(one, name) for one in seeds])) for name in ("value", "low", "high")}
            known = {name: None if math.isnan(mean) else mean for name, mean in means.items()}
            spread = float(np.std([figure.value for figure in seeds]))
            fixed = {"spread": spread, "seeds": len(seeds), "chance": first.chance, "n": first.n}
            rows.append({"arm": variant, **names, **known, **fixed})
        return rows

    def _figures(self, similarity: Similarity) -> Iterator[tuple[dict[str, str], Figure]]:
        """Yield exclusion, level, metric and which queries, and the macro figure."""
        tallies = {name: [Tally(queries) for queries in at_levels] for name, at_levels in self._plan.queries.items()}
        count = len(self.volume_ids)
        step = max(1, BATCH_PAIRS // count)
        for start in range(0, count, step):
            rows = np.arange(start, min(start + step, count))
            scores = np.asarray(similarity(rows), np.float32)
            order = np.argsort(-scores, axis=1, kind="stable")
            ranking = Ranking(order, np.take_along_axis(scores, order, axis=1))
            for exclusion in self._plan.exclusions:
                kept = exclusion.kept(rows)
                for tally in tallies[exclusion.column]:
                    tally.add(rows, kept, ranking)
        for exclude, at_levels in tallies.items():
            for tally, (which, own) in product(at_levels, self._halves.items()):
                part = tally.of(own)
                if part.queries.counted.any():
                    means = part.averages(self._subjects, count, self._bootstrap)
                    for metric in METRICS:
                        names = {"exclude": exclude, "level": tally.queries.level.name, "metric": metric}
                        yield {**names, "queries": which}, means.figure(0, NAMES.index(metric))
