"""What an evaluation is to do: its options, and which levels and exclusions follow from them and from the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medret.errors import UsageError
from medret.evaluate.averages import Bootstrap
from medret.evaluate.configs import Selection
from medret.evaluate.confounds import SOURCE, Confound, confound
from medret.evaluate.query_set import QuerySet
from medret.evaluate.relevance import SELF, SUBJECT, Level, text_column
from medret.evaluate.result import LeftOut
from medret.evaluate.tally import Scope
from medret.search import Snapshot

LEVELS = ("modality", "body_region", "organ")
MIN_RELEVANT = 3


@dataclass(frozen=True)
class Options:
    """What to evaluate. levels, excludes: empty for the usual ones. depth: of every list, instead of the usual ones.

    sources: columns that a label may follow from; where it does, scores without hits of the same source are added.
    """

    levels: Sequence[str] = ()
    excludes: Sequence[str] = ()
    sources: Sequence[str] = (SOURCE,)
    selection: Selection = field(default_factory=Selection)
    min_relevant: int = MIN_RELEVANT
    depth: int | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


def find_confounds(panel: QuerySet, levels: Sequence[Level], sources: Sequence[str]) -> list[Confound]:
    """How far each level follows from each source column that there is."""
    there = [source for source in sources if source in panel.candidates.column_names]
    found = (confound(panel.candidates, level.name, source) for level in levels for source in there)
    return [one for one in found if one is not None]


def level_names(snapshot: Snapshot, panel: QuerySet, options: Options) -> list[str]:
    """The levels that have labels on both sides."""
    for name in options.levels:
        if name not in panel.candidates.column_names:
            raise UsageError(f"level '{name}' is not a label of {snapshot.uri}, which has {_names(panel)}")
    wanted = list(dict.fromkeys(options.levels or LEVELS))
    sides = (panel.queries, panel.candidates)
    found = [name for name in wanted if all(any(text_column(side, name)) for side in sides)]
    if not found:
        raise UsageError(
            f"{snapshot.uri}: nothing can be scored, because no volume has a label of {', '.join(wanted)}; "
            "index with --labels TABLE"
        )
    return found


def exclude_names(panel: QuerySet, options: Options, confounds: Sequence[Confound], warnings: list[str]) -> list[str]:
    """The columns by which candidates are left out; adds to the warnings what was asked for and cannot be."""
    known = (*panel.candidates.column_names, SELF)
    for name in (*options.excludes, *(source for source in options.sources if source != SOURCE)):
        if name not in known:
            raise UsageError(f"--exclude or --source '{name}' is no label of the store, which has {_names(panel)}")
    wanted = list(options.excludes) or [SUBJECT]
    if SUBJECT in wanted and not any(text_column(panel.candidates, SUBJECT)):
        warnings.append("no volume has a subject: each volume counts as a subject of its own, and only it is left out")
        wanted = [SELF if name == SUBJECT else name for name in wanted]
    wanted = list(dict.fromkeys([*wanted, *(found.source for found in confounds if found.warns)]))
    for name in wanted:
        missing = 0 if name == SELF else text_column(panel.queries, name).count(None)
        if missing:
            warnings.append(f"{missing} queries have no {name}: of each of them its own volume alone is left out")
    return wanted


def _names(panel: QuerySet) -> str:
    return ", ".join(name for name in panel.candidates.column_names if name not in ("volume_id", "uri"))


def left_out_of(exclude: str, scope: Scope) -> LeftOut:
    """Which queries a scope leaves out."""
    few = scope.labelled & ~scope.counted
    by_class = zip(scope.level.classes, scope.level.queries[few].sum(axis=0).tolist(), strict=True)
    return LeftOut(
        exclude=exclude,
        level=scope.level.name,
        counted=int(scope.counted.sum()),
        classes=int(scope.level.queries[scope.counted].any(axis=0).sum()),
        too_few_relevant=int(few.sum()),
        by_class={name: count for name, count in by_class if count},
        unlabelled=int((~scope.labelled).sum()),
    )
