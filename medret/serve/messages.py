"""What is asked and answered over HTTP, as types: they check requests, and are the OpenAPI schema.

A refusal is the answer that says why a request was not fulfilled: which error gives which.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from medret.errors import (
    CorruptError,
    DroppedError,
    MedretError,
    MissingPackageError,
    NotFoundError,
    StorageError,
    UsageError,
    VolumeError,
    WeightsError,
)
from medret.search import SearchOptions
from medret.search.options import DEFAULT_K, EXPAND_MAX, FUSIONS, MODES
from medret.storage import redacted
from medret.visible import visible

K_MAX = 1000
VECTORS_MAX = 4096
Names = str | list[str] | dict[str, float]
Text = Annotated[str, Field(max_length=20_000)]

_DEFAULTS = SearchOptions()


class SearchRequest(BaseModel):
    """A search. One of `volume`, `text`, `vector` and `vectors` is the query; an uploaded file takes their place.

    All other fields are the options of `medret search`, under their names.
    """

    model_config = ConfigDict(extra="forbid")

    volume: Text | None = Field(None, description="volume_id of an indexed volume, as hits show it")
    store: Text | None = Field(None, description="URI of the store of `volume`, where several stores have that id")
    text: Text | None = Field(None, description="words, for models that put words beside images")
    vector: list[float] | None = Field(None, description="one volume vector", max_length=65_536)
    vectors: list[list[float]] | None = Field(None, description="slice vectors", max_length=VECTORS_MAX)
    k: int = Field(DEFAULT_K, ge=1, le=K_MAX, description="how many hits")
    model: Names | None = Field(None, description="a name, several, or weights by name; null: the first")
    aggregation: Names | None = Field(None, description="a name, several, or weights by name; null: the first")
    fuse: Literal[FUSIONS] = _DEFAULTS.fuse  # type: ignore[valid-type]
    index: Literal["hnsw", "lsh", "exact"] = _DEFAULTS.index  # type: ignore[assignment]
    mode: Literal[MODES] | None = Field(None, description="null: late for a part of a query, else volume")  # type: ignore[valid-type]
    exclude: Text = Field(_DEFAULTS.exclude, description="none, self, or a label column such as subject")
    where: Text | None = Field(None, description="only volumes whose labels match, such as modality = 'CT'")
    per_slice: int = Field(_DEFAULTS.per_slice, ge=1, le=10_000)
    candidates: int = Field(_DEFAULTS.candidates, ge=1, le=100_000)
    symmetric: bool = _DEFAULTS.symmetric
    same_plane: bool = _DEFAULTS.same_plane
    expand: int = Field(
        _DEFAULTS.expand, ge=0, le=EXPAND_MAX, description="volumes that the query is averaged with, mode volume"
    )
    modality: Text | None = Field(None, description="modality of an uploaded file, if its voxels do not show it")
    slices: Text | None = Field(None, description="FIRST:LAST, only these slices of the query")
    plane: Text | None = Field(None, description="plane of `slices`")
    box: Text | None = Field(None, description="X0:X1,Y0:Y1,Z0:Z1, only this box of the query, RAS+ voxels")
    query_slices: Text | None = Field(None, description="slice plan over the query's slices, such as uniform:8")
    query_weights: Text | None = Field(None, description="uniform, or gaussian:CENTRE,SIGMA")

    def options(self, **values: Any) -> SearchOptions:
        """The options of the search; raises UsageError. values: those that the request does not decide."""
        named = {field.name for field in fields(SearchOptions)} & type(self).model_fields.keys()
        return SearchOptions(**{name: getattr(self, name) for name in named}, **values)


class Problem(BaseModel):
    """Why a request was refused. code: one word; of a file that cannot be used, its quarantine code."""

    code: str
    reason: str


class SlicePairMessage(BaseModel):
    """A slice of the query (null: it has none) and the slice of the hit that is most like it."""

    plane: str
    query: int | None
    hit: int
    score: float
    query_source: str | None = None
    hit_source: str | None = None


class SliceMatchMessage(BaseModel):
    """First and last slice of the ranges that match best, and every pair of slices."""

    query: list[int] | None
    hit: list[int]
    plane: str
    score: float
    matches: list[SlicePairMessage]
    query_sources: list[str] | None = None
    hit_sources: list[str] | None = None


class HitMessage(BaseModel):
    """One hit."""

    rank: int
    volume_id: str
    store: str
    uri: str
    score: float
    labels: dict[str, str | None]
    slices: SliceMatchMessage | None


class SearchAnswer(BaseModel):
    """The hits of one query, best first. score: what a score is, in words. snapshots: that were searched."""

    query: str
    hits: list[HitMessage]
    score: str
    snapshots: list[str]


class SlicePictureMessage(BaseModel):
    """A slice of an uploaded volume. image: a data URI of a PNG."""

    plane: str
    slice_index: int
    image: str


class SlicesAnswer(BaseModel):
    """An uploaded volume: sides in voxels and spacing along x, y, z (RAS+), plane -> the slices that are embedded.

    pictures: of these slices, or of 128 of them.
    """

    shape: list[int]
    spacing_mm: list[float]
    planes: dict[str, list[int]]
    pictures: list[SlicePictureMessage]


class VolumeRow(BaseModel):
    """One indexed volume and its labels."""

    volume_id: str
    store: str
    labels: dict[str, str | None]


class FacetValue(BaseModel):
    """A value of a label, and how many of the listed volumes have it."""

    value: str | None
    count: int


class VolumesAnswer(BaseModel):
    """A page of volumes. total: how many there are. next: pass it as `after` for the next page; null: the last."""

    total: int
    volumes: list[VolumeRow]
    next: str | None
    facets: dict[str, list[FacetValue]] | None = None
    snapshots: list[str]


class PreviewMessage(BaseModel):
    """A stored picture of a slice: the number is its place in `/v1/volumes/{volume_id}/previews/{number}`."""

    plane: str
    slice_index: int


class VolumeAnswer(VolumeRow):
    """One volume. planes: plane -> the indices of its embedded slices. shape, spacing_mm: along x, y, z (RAS+)."""

    uri: str
    planes: dict[str, list[int]]
    shape: list[int] | None
    spacing_mm: list[float] | None
    previews: list[PreviewMessage]
    snapshots: list[str]


class ModelMessage(BaseModel):
    """A model of the snapshots. random_weights: whether its vectors mean nothing. text: whether it takes words."""

    name: str
    recipe: str
    dim: int
    random_weights: bool
    text: bool


class SnapshotAnswer(BaseModel):
    """What is served."""

    snapshots: list[str]
    stores: list[str]
    created: list[str]
    volumes: int
    models: list[ModelMessage]
    aggregations: list[str]
    indices: list[str]
    modes: dict[str, str]
    label_columns: list[str]
    version: str


class WindowMessage(BaseModel):
    """A range of values that is shown from black to white: `width` around `level`."""

    name: str
    level: float
    width: float


class OptionsAnswer(BaseModel):
    """What a search may be asked. defaults: of every option. modes: what their scores are, in words."""

    defaults: dict[str, Any]
    modes: dict[str, str]
    fusions: list[str]
    ct_windows: list[WindowMessage]


class ViewAnswer(BaseModel):
    """How a volume is shown. shape, spacing_mm: along x, y, z (RAS+). hounsfield: whether CT windows mean something."""

    shape: list[int]
    spacing_mm: list[float]
    hounsfield: bool
    window: WindowMessage


class MapPoint(BaseModel):
    """A volume on the map, and its value of the label that colours it."""

    volume_id: str
    store: str
    x: float
    y: float
    value: str | None


class MapAnswer(BaseModel):
    """A map: near points have similar volume vectors. total: volumes that the points were chosen from."""

    points: list[MapPoint]
    total: int
    label: str | None
    spread: list[float] = Field(description="share of the variance of all vectors along x and along y")
    model: str
    aggregation: str
    snapshots: list[str]


class Refused(Exception):  # noqa: N818  # it is an answer
    """Refuse a request: the status, a code of one word, the reason, and for how many seconds it is of no use to ask."""

    def __init__(self, status: int, code: str, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.status, self.code, self.reason, self.retry_after = status, code, reason, retry_after

    def answer(self) -> JSONResponse:
        """The answer to send."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="medret"'
        return problem(self.status, self.code, self.reason, headers)


def problem(status: int, code: str, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says why a request was refused; the reason may quote what was sent."""
    return JSONResponse({"code": code, "reason": visible(reason)}, status, headers)


def refusal(error: MedretError) -> JSONResponse:
    """The answer for an error that medret raises on purpose."""
    cause = error if isinstance(error, VolumeError) else error.__cause__
    reason = redacted(str(error))
    match error:
        case NotFoundError():
            return problem(404, "not_found", reason)
        case MissingPackageError() | WeightsError():  # the server's, not the request's
            return problem(503, "no_model", reason)
        case UsageError() | VolumeError():
            if isinstance(cause, VolumeError):
                return problem(422, cause.code, redacted(cause.reason))
            return problem(422, "wrong_usage", reason)
        case DroppedError():
            return problem(503, "replaced", reason, {"Retry-After": "1"})
        case StorageError():
            return problem(503, "unreachable", reason, {"Retry-After": "10"})
        case CorruptError():
            return problem(500, "damaged", reason)
        case _:
            return problem(500, "failed", reason)
