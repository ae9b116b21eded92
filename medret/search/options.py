"""The options of a search: one value, checked when it is made. All defaults stand here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict

from medret.errors import UsageError

if TYPE_CHECKING:
    import pyarrow.compute as pc

Weighted = str | Sequence[str] | Mapping[str, float]

VOLUME, VOTE, MAX, SUM, LATE, SLICE = "volume", "vote", "max", "sum", "late", "slice"
MODES = (VOLUME, VOTE, MAX, SUM, LATE, SLICE)
CONCAT, RRF = "concat", "rrf"
FUSIONS = (CONCAT, RRF)
NONE, SELF = "none", "self"
PARTS = ("slices", "box", "mask")  # the options that name a part of a query

DEFAULT_K = 10
EXPAND_MAX = 100  # volumes

SCORES = {
    VOLUME: "the cosine of the two volumes' vectors",
    VOTE: "the volume's share of the nearest slices that the query's slices found",
    MAX: "the best cosine of a slice of the query and a slice of the volume",
    SUM: "the sum of the cosines of the volume's slices that were found, over the number looked for",
    LATE: "the mean, over the query's slices, of the best cosine in the volume",
    SLICE: "the cosine of a slice of the query and the slice found",
}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a search does. Raises UsageError for values that no snapshot can satisfy.

    model, aggregation: one name, or several that are fused (a mapping gives weights); None: the snapshot's first.
    weights: path or URI of a model's weights, or a mapping by model; None: where they were when the snapshot was made.
    fuse: `concat`, the weighted sum of the members' scores, or `rrf`, reciprocal-rank fusion.
    index: hnsw | lsh | exact.
    mode: volume | vote | max | sum | late | slice, see `medret.search.modes`; in `slice` each hit is a slice. None:
    `late` for a part of a query, else `volume`.
    exclude: none | self | a label column such as subject: excludes the query and all volumes with its value there.
    where: keeps only matching volumes: a filter such as "modality = 'CT' and organ in ('liver', 'lung')" (see
    `medret.search.filters`), or a `pyarrow.compute.Expression` over the columns of `Snapshot.labels()`.
    per_slice: nearest slices that each slice of the query finds. candidates: volumes that `late`, and a fusion, compare
    in full. symmetric, same_plane: for `late`, see `medret.search.matching`. expand: for `volume`, how many of its
    nearest volumes the query is averaged with before it is asked again (query expansion, see `medret.search.modes`).

    How a query is read:
    modality, device: for queries that are files. slices: only a part of the query, `FIRST:LAST` as slice indices or
    `FIRSTmm:LASTmm` in scanner coordinates, both inclusive, along `plane` (None: the first plane that was embedded).
    box: `X0:X1,Y0:Y1,Z0:Z1`, inclusive voxels in RAS+ order. mask: path or URI of a NIfTI mask on the query's grid; the
    box around it is the query. query_slices: a slice plan over the query's slices. query_weights: weights of the
    query's slices in vote, sum and late, `uniform` or `gaussian:CENTRE,SIGMA`; None: uniform.
    """

    model: Weighted | None = None
    aggregation: Weighted | None = None
    weights: str | Mapping[str, str] | None = None
    fuse: str = CONCAT
    index: str = "hnsw"
    mode: str | None = None
    exclude: str = NONE
    where: str | pc.Expression | None = None
    per_slice: int = 20
    candidates: int = 200
    symmetric: bool = False
    same_plane: bool = True
    expand: int = 0
    modality: str | None = None
    device: str = "auto"
    slices: str | None = None
    plane: str | None = None
    box: str | None = None
    mask: str | None = None
    query_slices: str | None = None
    query_weights: str | None = None

    def __post_init__(self) -> None:
        for name, value, values in (("mode", self.used_mode, MODES), ("fuse", self.fuse, FUSIONS)):
            if value not in values:
                raise UsageError(f"{name} '{value}' is not available; there are {', '.join(values)}")
        if not isinstance(self.where, str | None):
            import pyarrow.compute as pc  # a search without a filter does not load it

            if not isinstance(self.where, pc.Expression):
                raise UsageError(f"where is a {type(self.where).__name__}, expected a text or a pyarrow expression")
        check_count("per_slice", self.per_slice, "slices")
        check_count("candidates", self.candidates, "volumes")
        weighted_names("model", self.model)
        weighted_names("aggregation", self.aggregation)
        self._check_expand()
        if len(parts := self.parts) > 1:
            raise UsageError(f"{' and '.join(parts)} both say which part of the query is meant: give one of them")
        if self.plane and not self.slices:
            raise UsageError(f"plane '{self.plane}' is the plane of a range of slices: give slices too, such as 40:58")

    def _check_expand(self) -> None:
        value: Any = self.expand
        if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= EXPAND_MAX:
            raise UsageError(f"expand is {value!r}, expected a whole number of volumes, 0 to {EXPAND_MAX}")
        if value and self.used_mode != VOLUME:
            raise UsageError(f"expand is for mode '{VOLUME}': mode '{self.used_mode}' does not search by one vector")
        members = len(weighted_names("model", self.model)) * len(weighted_names("aggregation", self.aggregation))
        if value and members > 1 and self.fuse == CONCAT:
            raise UsageError(
                f"expand decides the order and leaves the scores, which fuse '{CONCAT}' adds up: take fuse '{RRF}'"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SearchOptions:
        """The options in a mapping; raises UsageError, which names the options there are, for an unknown one."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(options.keys() - names):
            raise UsageError(f"search has no option '{unknown[0]}'; there are {', '.join(names)}")
        return cls(**options)

    @property
    def parts(self) -> list[str]:
        """The options that name a part of the query."""
        return [name for name in PARTS if getattr(self, name)]

    @property
    def used_mode(self) -> str:
        """The mode, by default `late` for a part of a query: its slices say more than one vector of the whole."""
        return self.mode or (LATE if self.parts else VOLUME)

    def weights_of(self, model: str) -> str | None:
        """Path or URI of a model's weights; None: where they were when the snapshot was made."""
        return self.weights.get(model) if isinstance(self.weights, Mapping) else self.weights

    def score_words(self, *, of_words: bool = False) -> str:
        """What the score of a hit is, in words. All scores are at most 1. of_words: the query is a text."""
        words = SCORES[self.used_mode]
        if of_words:
            words = f"{words}; a text counts as a volume of one slice"
        if self.used_mode == LATE and self.symmetric:
            words = f"{words}, and the same with the sides exchanged, averaged"
        if self.expand:
            words = f"{words}; the order is that of the query averaged with the {self.expand} volumes nearest to it"
        if len(weighted_names("model", self.model)) * len(weighted_names("aggregation", self.aggregation)) == 1:
            return words
        if self.fuse == RRF:
            return "the sum of the members' reciprocal ranks, over the most it can be"
        return f"the weighted mean of the members' scores, each {words}"


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions` as keywords, for type checkers and editors."""

    model: Weighted | None
    aggregation: Weighted | None
    weights: str | Mapping[str, str] | None
    fuse: str
    index: str
    mode: str | None
    exclude: str
    where: str | pc.Expression | None
    per_slice: int
    candidates: int
    symmetric: bool
    same_plane: bool
    expand: int
    modality: str | None
    device: str
    slices: str | None
    plane: str | None
    box: str | None
    mask: str | None
    query_slices: str | None
    query_weights: str | None


def check_count(name: str, value: Any, counted: str) -> None:
    """Raise UsageError unless a value is a whole number, at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise UsageError(f"{name} is {value!r}, expected a whole number of {counted}, at least 1")


def weighted_names(what: str, value: Weighted | None) -> list[tuple[str | None, float]]:
    """Names and their weights; None, for the snapshot's first name, weighs 1. Raises UsageError."""
    if value is None or isinstance(value, str):
        return [(value, 1.0)]
    pairs = list(value.items()) if isinstance(value, Mapping) else [(name, 1.0) for name in value]
    if not pairs:
        raise UsageError(f"no {what} is given; leave it out for the snapshot's first")
    for name, weight in pairs:
        if not (math.isfinite(weight) and weight > 0):
            raise UsageError(f"weight of {what} '{name}' is {weight!r}, expected a number above 0")
    return [(name, float(weight)) for name, weight in pairs]
