"""What an evaluation scores: its options, and the levels, exclusions and confounds that follow from the labels.

A level is confounded if its label can be predicted from where a volume comes from: then a score says little about the
content of the images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pyarrow as pa

from medret.errors import UsageError
from medret.evaluate.configs import Selection
from medret.evaluate.metrics import Bootstrap
from medret.evaluate.query_sets import QuerySet
from medret.evaluate.relevance import SELF, SUBJECT, Exclusion, exclusion_of, level_of, text_column, values_of
from medret.evaluate.scoring import ScoredQueries, scored_queries
from medret.schemas import LABELS
from medret.search import Snapshot

LEVELS = LABELS[1:]
MIN_RELEVANT = 3
SOURCE = "dataset"
SEPARABLE = 0.5  # a `share` or `excess` from here on is a warning


@dataclass(frozen=True)
class Options:
    """What to evaluate. levels, excludes: empty for the defaults. depth: ranks of every list; None for the default.

    sources: columns that a label may be predictable from; if it is, scores without hits of the same source are added.
    """

    levels: Sequence[str] = ()
    excludes: Sequence[str] = ()
    sources: Sequence[str] = (SOURCE,)
    selection: Selection = field(default_factory=Selection)
    min_relevant: int = MIN_RELEVANT
    depth: int | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


@dataclass(frozen=True)
class ScoringPlan:
    """What is scored. queries: the column of an exclusion -> its queries at each level.

    warnings: about requests that cannot be met.
    """

    levels: list[str]
    exclusions: list[Exclusion]
    queries: dict[str, list[ScoredQueries]]
    confounds: list[Confound]
    warnings: list[str]


def scoring_plan(snapshot: Snapshot, query_set: QuerySet, options: Options, batch_pairs: int) -> ScoringPlan:
    """Find what can be scored; raises UsageError for an unknown column, and if nothing can be scored.

    batch_pairs: the pairs of query and candidate that are judged at the same time.
    """
    candidates = query_set.candidates
    warnings: list[str] = []
    levels = [level_of(name, query_set.queries, candidates) for name in _level_names(snapshot, query_set, options)]
    known = [source for source in options.sources if source in candidates.column_names]
    pairs = product(levels, known)
    confounds = [one for level, source in pairs if (one := confound(candidates, level.name, source))]
    exclusions = [
        exclusion_of(name, query_set.queries, candidates, query_set.self_candidates)
        for name in _exclude_names(query_set, options, confounds, warnings)
    ]
    batch = max(1, batch_pairs // max(candidates.num_rows, 1))
    queries = {
        exclusion.column: [scored_queries(level, exclusion, options.min_relevant, batch) for level in levels]
        for exclusion in exclusions
    }
    if not any(at_level.counted.any() for at_levels in queries.values() for at_level in at_levels):
        raise UsageError(
            f"{snapshot.uri}: no query has {options.min_relevant} relevant volumes left by {', '.join(queries)}; try a "
            "smaller --min-relevant or another --exclude"
        )
    return ScoringPlan([level.name for level in levels], exclusions, queries, confounds, warnings)


def _level_names(snapshot: Snapshot, query_set: QuerySet, options: Options) -> list[str]:
    """The levels that both queries and candidates have labels of."""
    for name in options.levels:
        if name not in query_set.candidates.column_names:
            raise UsageError(f"level '{name}' is not a label of {snapshot.uri}, which has {_names(query_set)}")
    requested = list(dict.fromkeys(options.levels or LEVELS))
    sides = (query_set.queries, query_set.candidates)
    scored = [name for name in requested if all(any(text_column(side, name)) for side in sides)]
    if not scored:
        raise UsageError(
            f"{snapshot.uri}: nothing can be scored, because no volume has a label of {', '.join(requested)}; "
            "index with --labels TABLE"
        )
    return scored


def _exclude_names(
    query_set: QuerySet, options: Options, confounds: Sequence[Confound], warnings: list[str]
) -> list[str]:
    """The columns by which candidates are excluded; adds a warning for each request that cannot be met."""
    known = (*query_set.candidates.column_names, SELF)
    for name in (*options.excludes, *(source for source in options.sources if source != SOURCE)):
        if name not in known:
            raise UsageError(f"--exclude or --source '{name}' is no label of the store, which has {_names(query_set)}")
    columns = list(options.excludes) or [SUBJECT]
    if SUBJECT in columns and not any(text_column(query_set.candidates, SUBJECT)):
        warnings.append("no volume has a subject: each volume counts as a subject of its own, and only it is left out")
        columns = [SELF if name == SUBJECT else name for name in columns]
    columns = list(dict.fromkeys([*columns, *(confounded.source for confounded in confounds if confounded.warns)]))
    for name in columns:
        missing = 0 if name == SELF else text_column(query_set.queries, name).count(None)
        if missing:
            warnings.append(f"{missing} queries have no {name}: of each of them its own volume alone is left out")
    return columns


def _names(query_set: QuerySet) -> str:
    return ", ".join(name for name in query_set.candidates.column_names if name not in ("volume_id", "uri"))


@dataclass(frozen=True)
class Confound:
    """How far the labels of a level can be predicted from a source column.

    single: classes whose volumes all come from one source. share: the share of volumes with such a class.
    predicted: the share of volumes whose class is the most frequent one among the other volumes of their source.
    excess: by how much that beats the most frequent class of all: 0 not at all, 1 it predicts every volume.
    """

    level: str
    source: str
    single: tuple[str, ...]
    classes: int
    share: float
    predicted: float
    excess: float

    @property
    def warns(self) -> bool:
        """Whether the label can be predicted so well that the score needs a warning."""
        return max(self.share, self.excess) >= SEPARABLE

    @property
    def message(self) -> str:
        """The warning, in a sentence."""
        return (
            f"{self.level} follows from {self.source}: {len(self.single)} of {self.classes} classes, with "
            f"{self.share:.0%} of the volumes, come from one {self.source} each, and naming the most frequent "
            f"{self.level} of a {self.source} is right for {self.predicted:.0%}; believe the score among other "
            f"{self.source}s, not the one beside it"
        )

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "level": self.level,
            "source": self.source,
            "classes_from_one_source": list(self.single),
            "share": self.share,
            "predicted_by_source": self.predicted,
            "separable": self.warns,
            "message": self.message,
        }


def confound(labels: pa.Table, level: str, source: str) -> Confound | None:
    """Compare the volumes that have a label and a source; None if there is only one class or only one source."""
    volumes = [
        (values, origin)
        for text, origin in zip(text_column(labels, level), text_column(labels, source), strict=True)
        if origin is not None and (values := values_of(text))
    ]
    counts = Counter(value for values, _ in volumes for value in values)
    by_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for values, origin in volumes:
        by_source[origin].update(values)
    if len(counts) < 2 or len(by_source) < 2:
        return None
    single = tuple(sorted(value for value in counts if counts[value] in {one[value] for one in by_source.values()}))
    share = sum(not set(single).isdisjoint(values) for values, _ in volumes) / len(volumes)
    predicted = sum(_is_predicted(values, by_source[origin]) for values, origin in volumes) / len(volumes)
    floor = max(counts.values()) / len(volumes)
    excess = (predicted - floor) / (1 - floor) if floor < 1 else 0.0  # 1: every volume has that class
    return Confound(level, source, single, len(counts), share, predicted, excess)


def _is_predicted(values: Collection[str], counts: Counter[str]) -> bool:
    """Whether a volume has the most frequent class of the other volumes of its source. counts: of all of them."""
    others = counts - Counter(values)
    most = max(others.values(), default=0)
    return most > 0 and any(others[value] == most for value in values)
