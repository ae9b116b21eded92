"""The endpoints under /v1: snapshot, search, volumes and slices."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from medret._version import __version__
from medret.errors import UsageError
from medret.search import SearchOptions, Snapshots, VolumeName, Words
from medret.search.options import SCORES
from medret.serve.access import caller_of, record_of
from medret.serve.live import Opened
from medret.serve.messages import (
    Problem,
    SearchAnswer,
    SearchRequest,
    SlicesAnswer,
    SnapshotAnswer,
    VolumeAnswer,
    VolumesAnswer,
)
from medret.serve.refusals import Refused
from medret.serve.requests import checked, json_answer, read_body, search_body, seen_volume, stored_query
from medret.serve.service import Service
from medret.serve.slice_pictures import SIDE_MAX, window_of
from medret.serve.uploaded import options_of, query_of, slices_of
from medret.serve.uploads import MULTIPART, Upload, check_length, received
from medret.serve.volumes import described, listed
from medret.visible import visible

Answer = TypeVar("Answer")
LOGGER = logging.getLogger(__name__)

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The request is not HTTP as it should be",
        401: "A token is missing, unknown or expired",
        403: "This token may not ask this",
        404: "There is no such volume, slice or preview",
        408: "The request was not received in time",
        413: "The request is larger than this server takes",
        422: "The request cannot be fulfilled as it is; the reason says why",
        429: "This caller asks too much at a time: see Retry-After",
        503: "Not now: see Retry-After",
    }.items()
}


def service_of(request: Request) -> Service:
    """The service that answers a request."""
    service: Service = request.app.state.service
    return service


class Asker:
    """Asks the live snapshots for one request: as its caller sees them, in one of the service's threads."""

    def __init__(self, request: Request) -> None:
        self._request, self.service = request, service_of(request)
        self.caller, self.record = caller_of(request), record_of(request)

    async def ask(self, question: Callable[[Snapshots], Answer], stage: str = "search") -> Answer:
        """The answer to a question; raises its errors."""
        limiter = self.service.drawers if stage == "pictures" else self.service.threads
        return await self.service.in_thread(lambda: self._answered(question), limiter, self.record, stage)

    async def ask_encoding(self, question: Callable[[Snapshots], Answer]) -> Answer:
        """The answer to a question that decodes and encodes a volume, in one of the encoder's slots."""
        return await self.service.in_thread(
            lambda: self._answered(question),
            self.service.uploads.slots,
            self.record,
            "encode",
            is_gone=self._request.is_disconnected,
        )

    def _answered(self, question: Callable[[Snapshots], Answer]) -> Answer:
        def of(opened: Opened) -> Answer:
            self.record.snapshots = list(opened.ids)
            return question(self._view(opened))

        return self.service.live.ask(of)

    def _view(self, opened: Opened) -> Snapshots:
        try:
            return opened.view(self.caller.where)
        except UsageError as error:  # its text names columns
            LOGGER.warning("the filter of token %s: %s", visible(self.caller.name), visible(str(error)))
            reason = "the filter of this token does not fit what is served now: ask whoever runs this server"
            raise Refused(403, "no_access", reason) from error

    def show(self, snapshots: Snapshots, volumes: Iterable[tuple[str, str]]) -> None:
        """Record volumes as shown, each by store and volume_id; by its id alone if there is one store."""
        is_one = len(snapshots.corpus.stores) == 1
        self.record.shown = [volume_id if is_one else f"{store}#{volume_id}" for store, volume_id in volumes]


async def asker(request: Request) -> Asker:
    """The asker of a request."""
    return Asker(request)


Asking = Annotated[Asker, Depends(asker)]
StoreUri = Annotated[str | None, Query(description="URI of the volume's store, where several stores have that id")]
router = APIRouter(prefix="/v1", responses=PROBLEMS)


@router.get("/snapshot", responses={200: {"model": SnapshotAnswer}}, response_model=None)
async def snapshot(asking: Asking) -> Response:
    """What is served: snapshots, models, indices, and how many volumes the caller may find."""
    return json_answer(await asking.ask(_served))


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


def _served(snapshots: Snapshots) -> dict[str, Any]:
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
            }
            for entry in entries
        ],
        "aggregations": list(snapshots.aggregations),
        "indices": sorted(kinds),
        "modes": SCORES,
        "label_columns": [name for name in snapshots.labels().column_names if name not in ("volume_id", "uri")],
        "version": __version__,
    }
