"""Arms: the ways to search a snapshot that are compared in one run and one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.index import KINDS
from medret.search import Snapshot
from medret.search.options import MODES as ALL_MODES
from medret.search.options import SLICE, VOLUME, SearchOptions

MODES = tuple(mode for mode in ALL_MODES if mode != SLICE)  # those whose hits are volumes


@dataclass(frozen=True)
class SearchConfig:
    """One way to search. aggregation: how volume vectors were made; in other modes than `volume` it plays no part.

    default: whether `medret search` searches this way when it is told nothing.
    """

    model: str
    aggregation: str
    index: str
    mode: str
    default: bool = False

    @property
    def by_slices(self) -> bool:
        """Whether slice vectors are searched, so that configs that differ in the aggregation alone are one."""
        return self.mode != VOLUME

    @property
    def label(self) -> str:
        """The config in words."""
        return " ".join((self.model, *([] if self.by_slices else [self.aggregation]), self.index, self.mode))


@dataclass(frozen=True)
class Selection:
    """Which configs are wanted. An empty part takes all that the snapshot has."""

    models: Sequence[str] = ()
    aggregations: Sequence[str] = ()
    indices: Sequence[str] = ()
    modes: Sequence[str] = ()


def configs_of(snapshot: Snapshot, selection: Selection) -> list[SearchConfig]:
    """The configs of a snapshot; raises UsageError for a name that it does not have."""
    models = _chosen("model", selection.models, snapshot.models, snapshot)
    wanted = [parse_aggregation(name).name for name in selection.aggregations]
    aggregations = _chosen("aggregation", wanted, snapshot.aggregations, snapshot)
    built = tuple(kind for kind in KINDS if kind in snapshot.manifest.index_settings["kinds"])
    indices = _chosen("index", selection.indices, built, snapshot)
    modes = _chosen("mode", selection.modes, MODES, snapshot)
    usual = SearchOptions()
    default = (snapshot.models[0], snapshot.aggregations[0], usual.index, usual.used_mode)
    return [
        SearchConfig(model, aggregation, index, mode, (model, aggregation, index, mode) == default)
        for model in models
        for aggregation in aggregations
        for index in indices
        for mode in modes
    ]


def leading_config(configs: Sequence[SearchConfig]) -> SearchConfig:
    """The config that a report is about: the one that search uses, else the first exact one, else the first."""
    return min(configs, key=lambda config: (not config.default, config.index != "exact"))


def _chosen(what: str, wanted: Sequence[str], there: Sequence[str], snapshot: Snapshot) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise UsageError(f"{what} '{unknown[0]}' is not in snapshot {snapshot.id}, which has {', '.join(there)}")
    return tuple(dict.fromkeys(wanted)) or tuple(there)
