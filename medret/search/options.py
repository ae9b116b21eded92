"""What a search can be asked, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

Weighted = str | Sequence[str] | Mapping[str, float]


class QueryOptions(TypedDict, total=False):
    """What is meant by a query, and how it is read.

    modality, device: for queries that are files.
    slices: only a part of the query, `FIRST:LAST` in slice positions or `FIRSTmm:LASTmm` in scanner coordinates, both
    inclusive, along `plane` (default: the first that was embedded). box: `X0:X1,Y0:Y1,Z0:Z1`, inclusive voxels in RAS+
    order. mask: path or URI of a NIfTI mask on the query's grid; the box around it is the query.
    query_slices: a slice plan, over the query's slices. query_weights: `uniform` or `gaussian:CENTRE,SIGMA`, of the
    query's slices in vote, sum and late.
    """

    modality: str | None
    device: str
    slices: str | None
    plane: str | None
    box: str | None
    mask: str | None
    query_slices: str | None
    query_weights: str | None


class ResolveOptions(QueryOptions, total=False):
    """How a query becomes vectors: `QueryOptions`, and

    model, aggregation: default to the snapshot's first. weights: for queries that are files, a path or URI where they
    lie elsewhere than when the snapshot was made.
    """

    model: str | None
    aggregation: str | None
    weights: str | None


class SearchOptions(QueryOptions, total=False):
    """All options of a search: `QueryOptions`, and

    model, aggregation: one, or several that are fused (a mapping gives weights). weights: of the model, or by model,
    where they lie elsewhere than when the snapshot was made. fuse: `concat`, the weighted sum of the members'
    scores, or `rrf`, reciprocal-rank fusion.
    index: hnsw (default) | lsh | exact. mode: volume | vote | max | sum | late | slice, see
    `medret.search.modes`; in `slice` each hit is a slice. Default: volume, and late for a part of a query.
    exclude: none | self | subject | any label column: leaves out what has the query's value there, and the query.
    where: a filter such as "modality = 'CT' and organ in ('liver', 'lung')", see `medret.search.filters`.
    per_slice: how many slices each slice of the query looks for (default 20). candidates: how many volumes `late`, and
    a fusion, compare in full (default 200). symmetric, same_plane: of `late`, see `medret.search.late`.
    """

    model: Weighted | None
    aggregation: Weighted | None
    fuse: str
    weights: str | Mapping[str, str] | None
    index: str
    mode: str
    exclude: str
    where: str | None
    per_slice: int
    candidates: int
    symmetric: bool
    same_plane: bool
