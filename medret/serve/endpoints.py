"""The endpoints under /v1: snapshot, search, volumes, slices; and for people, options, previews, views and maps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.convertors import IntegerConvertor, register_url_convertor

from medret._version import __version__
from medret.errors import NotFoundError, UsageError, VolumeError
from medret.search import SearchOptions, Snapshots, VolumeName, Words
from medret.search.encoders import takes_words
from medret.search.options import FUSIONS, SCORES
from medret.serve.messages import (
    MapAnswer,
    OptionsAnswer,
    Problem,
    SearchAnswer,
    SearchRequest,
    SlicesAnswer,
    SnapshotAnswer,
    ViewAnswer,
    VolumeAnswer,
    VolumesAnswer,
)
from medret.serve.requests import (
    Asker,
    Asking,
    checked,
    json_answer,
    options_of,
    query_of,
    read_body,
    search_body,
    seen_volume,
    stored_query,
)
from medret.serve.slice_pictures import SIDE_MAX, slices_of, window_of
from medret.serve.uploads import MULTIPART, Upload, check_length, received
from medret.serve.volumes import described, drawn_map, listed
from medret.volume import CT_WINDOWS

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The request is not HTTP as it should be",
        401: "A token is missing, unknown or expired",
        403: "This token may not ask this",
        404: "There is no such volume or preview",
        408: "The request was not received in time",
        413: "The request is larger than this server takes",
        422: "The request cannot be fulfilled as it is; the reason says why",
        429: "This caller asks too much at a time: see Retry-After",
        503: "Not now: see Retry-After",
    }.items()
}


StoreUri = Annotated[str | None, Query(description="URI of the volume's store, where several stores have that id")]
router = APIRouter(prefix="/v1", responses=PROBLEMS)


@router.get("/snapshot", responses={200: {"model": SnapshotAnswer}}, response_model=None)
async def snapshot(asking: Asking) -> Response:
    """What is served: snapshots, models, indices, and how many volumes the caller may find."""
    weights = asking.service.settings.weights
    return json_answer(await asking.ask(lambda snapshots: _served(snapshots, weights)))


@router.post(
    "/search", responses={200: {"model": SearchAnswer}}, response_model=None, openapi_extra=search_body(with_json=True)
)
async def search(request: Request, asking: Asking) -> Response:
    """Find the volumes most like a volume, vectors or an uploaded file, as `medret search --json` does."""
    if request.headers.get("content-type", "").lower().startswith(MULTIPART):
        return await _search_uploaded(request, asking)
    settings = asking.service.settings
    asked = checked(await read_body(request, max_bytes=settings.body_bytes, seconds=settings.upload_seconds))
    asking.record.asked = asked.model_dump(exclude_defaults=True, exclude={"vector", "vectors"})
    service = asking.service

    def question(snapshots: Snapshots) -> dict[str, Any]:
        query, label = stored_query(snapshots, asked)
        return _searched(snapshots, asking, query, label, asked.k, asked.options(**service.query_options))

    if asked.text is None and (asked.volume is None or asked.box is None):
        return json_answer(await asking.ask(question))
    with service.uploads.place(asking.caller.name):  # words are encoded; a box is read from the archive, and encoded
        return json_answer(await asking.ask_encoding(question))


async def _search_uploaded(request: Request, asking: Asker) -> Response:
    async with _received(request, asking) as (upload, asked):

        def question(snapshots: Snapshots) -> dict[str, Any]:
            query = query_of(upload, asked, asking.service.limits, asking.record)
            options = options_of(asked, query, asking.service.query_options)
            return _searched(snapshots, asking, query, query.name, asked.k, options)

        return json_answer(await asking.ask_encoding(question))


@router.post(
    "/slices", responses={200: {"model": SlicesAnswer}}, response_model=None, openapi_extra=search_body(with_json=False)
)
async def slices(request: Request, asking: Asking) -> Response:
    """Pictures of the slices of an uploaded file that a search with it embeds. Nothing of the file is kept."""
    async with _received(request, asking) as (upload, asked):

        def question(snapshots: Snapshots) -> dict[str, Any]:
            query = query_of(upload, asked, asking.service.limits, asking.record)
            return slices_of(snapshots, query, options_of(asked, query, asking.service.query_options))

        return json_answer(await asking.ask_encoding(question))


@asynccontextmanager
async def _received(request: Request, asking: Asker) -> AsyncIterator[tuple[Upload, SearchRequest]]:
    """An upload and its options, which hold a place until they are answered."""
    settings = asking.service.settings
    check_length(request, settings.upload_bytes)
    with asking.service.uploads.place(asking.caller.name):
        began = perf_counter()
        async with received(request, max_bytes=settings.upload_bytes, seconds=settings.upload_seconds) as upload:
            asking.record.seconds["receive"] = perf_counter() - began
            asking.service.uploads.received_bytes += upload.size_bytes
            asked = checked(upload.options)
            asking.record.asked = asked.model_dump(exclude_defaults=True, exclude={"vector", "vectors"})
            yield upload, asked


@router.get("/options", response_model=OptionsAnswer)
async def options() -> dict[str, Any]:
    """What a search may be asked, with the defaults; and the windows for CT."""
    fields = SearchRequest.model_fields
    return {
        "defaults": {name: field.default for name, field in fields.items()},
        "modes": SCORES,
        "fusions": list(FUSIONS),
        "ct_windows": [{"name": name, "level": level, "width": width} for name, (level, width) in CT_WINDOWS.items()],
    }


class _Place(IntegerConvertor):
    """A number in a path, within what can be converted."""

    regex = "[0-9]{1,9}"


register_url_convertor("place", _Place())


# An id may hold slashes: this stands before the route of a volume, and takes numbers alone.
@router.get(
    "/volumes/{volume_id:path}/previews/{number:place}",
    responses={200: {"content": {"image/jpeg": {}}}},
    response_class=Response,
)
async def preview(volume_id: str, number: int, asking: Asking, store: StoreUri = None) -> Response:
    """A small picture that was stored of a volume, for where the archive is out of reach. number: its place, from 0."""
    name = VolumeName(volume_id, store)

    def question(snapshots: Snapshots) -> bytes:
        asking.show(snapshots, [seen_volume(snapshots, name)])
        previews = snapshots.previews([name.text])[name.text]
        if number >= len(previews):
            raise NotFoundError(f"there is no preview {number} of '{volume_id}': {len(previews)} are stored")
        return previews[number].image

    return Response(await asking.ask(question, "pictures"), media_type="image/jpeg")


@router.get("/view", responses={200: {"model": ViewAnswer}}, response_model=None)
async def view(
    volume: Annotated[str, Query(max_length=20_000, description="volume_id")], asking: Asking, store: StoreUri = None
) -> Response:
    """How a volume is shown: its size, and the window that its slices have unless another is asked for."""

    def question(snapshots: Snapshots) -> dict[str, Any]:
        name = VolumeName(volume, store)
        asking.show(snapshots, [seen_volume(snapshots, name)])
        try:
            seen = asking.service.pictures.view(snapshots, name)
        except VolumeError as error:
            raise UsageError(f"{volume} cannot be shown: {error.code}: {error.reason}") from error
        window = seen.examined.window
        return {
            "shape": list(seen.shape),
            "spacing_mm": [float(each) for each in seen.examined.geometry.spacing_mm],
            "hounsfield": seen.examined.shown_as.is_hu,
            "window": {
                "name": window.name,
                "level": (window.low + window.high) / 2,
                "width": window.high - window.low,
            },
        }

    return json_answer(await asking.ask(question, "pictures"))


@router.get("/map", responses={200: {"model": MapAnswer}}, response_model=None)
async def archive_map(
    asking: Asking,
    model: Annotated[str | None, Query(description="null: the first")] = None,
    where: Annotated[str | None, Query(max_length=20_000, description="as in a search")] = None,
    label: Annotated[str | None, Query(description="the label that colours the points; null: one is chosen")] = None,
) -> Response:
    """The volumes that a filter keeps as points in a plane, at most 5,000, near each other if they look alike."""

    def question(snapshots: Snapshots) -> dict[str, Any]:
        drawn = drawn_map(snapshots, model=model, where=where, label=label)
        asking.show(snapshots, ((point["store"], point["volume_id"]) for point in drawn["points"]))
        return drawn

    return json_answer(await asking.ask(question))


@router.get("/volumes", responses={200: {"model": VolumesAnswer}}, response_model=None)
async def volumes(
    asking: Asking,
    where: Annotated[str | None, Query(max_length=20_000, description="as in a search")] = None,
    contains: Annotated[str, Query(max_length=1000, description="part of the volume_id, in any case")] = "",
    after: Annotated[str | None, Query(max_length=5000, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    facets: Annotated[bool, Query(description="also count the values of labels")] = False,
) -> Response:
    """List the volumes that a filter keeps, page by page, with the values of their labels."""

    def question(snapshots: Snapshots) -> dict[str, Any]:
        found = listed(snapshots, where=where, contains=contains, after=after, limit=limit, facets=facets)
        asking.show(snapshots, ((row["store"], row["volume_id"]) for row in found["volumes"]))
        return found | {"snapshots": list(snapshots.manifests)}

    return json_answer(await asking.ask(question))


# Before the route of a volume: an id may hold slashes, and the longer path decides.
@router.get(
    "/volumes/{volume_id:path}/slices/{plane}/{index}.png",
    responses={200: {"content": {"image/png": {}}}},
    response_class=Response,
)
async def slice_picture(
    volume_id: str,
    plane: str,
    index: int,
    asking: Asking,
    store: StoreUri = None,
    preset: Annotated[str | None, Query(description="a CT window by name, such as lung")] = None,
    window: Annotated[float | None, Query(description="width of the range of values shown, above 0")] = None,
    level: Annotated[float | None, Query(description="middle of the range of values shown")] = None,
    crop: Annotated[str, Query(description="none: the whole slice; foreground: the body")] = "none",
    side: Annotated[int, Query(ge=16, le=SIDE_MAX, description="pixels of the longer side")] = 512,
) -> Response:
    """One slice of a volume, read from the archive. index: along the plane's axis, RAS+ order."""
    chosen = window_of(preset, window, level)
    name = VolumeName(volume_id, store)

    def question(snapshots: Snapshots) -> bytes:
        asking.show(snapshots, [seen_volume(snapshots, name)])
        return asking.service.pictures.png(snapshots, name, plane, index, image_size=side, window=chosen, crop=crop)

    return Response(await asking.ask(question, "pictures"), media_type="image/png")


@router.get("/volumes/{volume_id:path}", responses={200: {"model": VolumeAnswer}}, response_model=None)
async def volume(volume_id: str, asking: Asking, store: StoreUri = None) -> Response:
    """What is known of one volume."""
    name = VolumeName(volume_id, store)

    def question(snapshots: Snapshots) -> dict[str, Any]:
        asking.show(snapshots, [seen_volume(snapshots, name)])
        return described(snapshots, name)

    return json_answer(await asking.ask(question))


def _searched(
    snapshots: Snapshots, asking: Asker, query: Any, label: str, k: int, options: SearchOptions
) -> dict[str, Any]:
    hits = snapshots.search(query, k, **vars(options))
    asking.show(snapshots, ((hit.store, hit.volume_id) for hit in hits))
    return {
        "query": label,
        "hits": [hit.to_json() for hit in hits],
        "score": options.score_words(of_words=isinstance(query, Words)),
        "snapshots": list(snapshots.manifests),
    }


def _served(snapshots: Snapshots, weights: Mapping[str, str]) -> dict[str, Any]:
    manifests = snapshots.manifests
    entries = [snapshots.corpus.recipe(name) for name in snapshots.models]
    kinds = {kind for entry in entries for kind in snapshots.corpus.index(entry, snapshots.aggregations[0]).kinds}
    return {
        "snapshots": list(manifests),
        "stores": [contents.uri for contents in snapshots.corpus.stores],
        "created": [manifest.created for manifest in manifests.values()],
        "volumes": snapshots.volumes,
        "models": [
            {
                "name": entry.model,
                "recipe": entry.digest,
                "dim": entry.dim,
                "random_weights": entry.random_weights,
                "text": takes_words(entry, weights.get(entry.model)),
            }
            for entry in entries
        ],
        "aggregations": list(snapshots.aggregations),
        "indices": sorted(kinds),
        "modes": SCORES,
        "label_columns": [name for name in snapshots.labels().column_names if name not in ("volume_id", "uri")],
        "version": __version__,
    }
