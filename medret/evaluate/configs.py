"""Search configurations: the ways to search a snapshot that one evaluation compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.index import EXACT, KINDS
from medret.search import Snapshot
from medret.search.options import LATE, SLICE, VOLUME, SearchOptions
from medret.search.options import MODES as ALL_MODES

MODES = tuple(mode for mode in ALL_MODES if mode != SLICE)  # those whose hits are volumes
FUSED_MODES = (VOLUME, LATE)  # those whose scores are cosines, which several models' can be added to
PLUS = " + "


@dataclass(frozen=True)
class SearchConfig:
    """One way to search.

    model: a name, or several joined by ` + `: the mean of their scores counts (`fuse` concat, equal weights).
    aggregation: how volume vectors were made; it matters only in mode `volume`.

    default: whether `medret search` without options searches this way; two configurations are equal without it.
    """

    model: str
    aggregation: str
    index: str
    mode: str
    default: bool = field(default=False, compare=False)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models; several are fused."""
        return tuple(self.model.split(PLUS))

    @property
    def by_slices(self) -> bool:
        """Whether slice vectors are searched, so that the aggregation makes no difference."""
        return self.mode != VOLUME

    @property
    def label(self) -> str:
        """The configuration in words."""
        return " ".join((self.model, *([] if self.by_slices else [self.aggregation]), self.index, self.mode))


@dataclass(frozen=True)
class Selection:
    """Which configurations to evaluate. An empty part stands for everything that the snapshot has."""

    models: Sequence[str] = ()
    aggregations: Sequence[str] = ()
    indices: Sequence[str] = ()
    modes: Sequence[str] = ()


def configs_of(snapshot: Snapshot, selection: Selection) -> list[SearchConfig]:
    """List the configurations of a snapshot; raises UsageError for a name that it does not have.

    Of several models, all together follow each alone, by exact search if there is an exact index.
    """
    models = checked_names("model", selection.models, snapshot.models, snapshot)
    names = [parse_aggregation(name).name for name in selection.aggregations]
    aggregations = checked_names("aggregation", names, snapshot.aggregations, snapshot)
    built = tuple(kind for kind in KINDS if kind in snapshot.manifest.index_settings["kinds"])
    indices = checked_names("index", selection.indices, built, snapshot)
    modes = checked_names("mode", selection.modes, MODES, snapshot)
    usual = SearchOptions()
    default = (snapshot.models[0], snapshot.aggregations[0], usual.index, usual.used_mode)
    searches = list(product(models, aggregations, indices, modes))
    if len(models) > 1:
        fused = [mode for mode in modes if mode in FUSED_MODES]
        index = EXACT if EXACT in indices else indices[0]  # what an index loses is measured for each model
        searches += product([PLUS.join(models)], aggregations, [index], fused)
    return [SearchConfig(*search, default=search == default) for search in searches]


def leading_config(configs: Sequence[SearchConfig]) -> SearchConfig:
    """The configuration that a report is about: the default of searches, else the first exact one, else the first."""
    return min(configs, key=lambda config: (not config.default, config.index != EXACT))


def checked_names(what: str, selected: Sequence[str], known: Sequence[str], snapshot: Snapshot) -> tuple[str, ...]:
    """The names that were selected, or all that are known. Raises UsageError for another. what: a word for them."""
    unknown = [name for name in selected if name not in known]
    if unknown:
        raise UsageError(f"{what} '{unknown[0]}' is not in snapshot {snapshot.id}, which has {', '.join(known)}")
    return tuple(dict.fromkeys(selected)) or tuple(known)
