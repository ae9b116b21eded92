"""The endpoints under /v1: snapshot, search, volumes and slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from medret._version import __version__
from medret.errors import NotFoundError, UsageError
from medret.search import Snapshots, VolumeName
from medret.search.options import SCORES
from medret.serve.access import Caller, caller_of
from medret.serve.messages import Problem, SearchAnswer, SearchRequest, SnapshotAnswer, VolumeAnswer, VolumesAnswer
from medret.serve.service import Service
from medret.serve.slice_pictures import SIDE_MAX, window_of
from medret.serve.volumes import described, listed

Answer = TypeVar("Answer")

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        401: "A token is missing, unknown or expired",
        403: "This token may not ask this",
        404: "There is no such volume, slice or preview",
        413: "The request is larger than this server takes",
        422: "The request cannot be fulfilled as it is; the reason says why",
        429: "This caller asks too much at a time: see Retry-After",
        503: "Not now: see Retry-After",
    }.items()
}


class Asker:
    """Asks the live snapshots for one request: as its caller sees them, in one of the service's threads."""

    def __init__(self, request: Request, caller: Annotated[Caller, Depends(caller_of)]) -> None:
        self.service: Service = request.app.state.service
        self.caller = caller

    async def ask(self, question: Callable[[Snapshots], Answer]) -> Answer:
        """The answer to a question; raises its errors."""

        def answer() -> Answer:
            return self.service.live.ask(lambda opened: question(opened.view(self.caller.where)))

        return await to_thread.run_sync(answer, limiter=self.service.threads)


Asking = Annotated[Asker, Depends()]
StoreUri = Annotated[str | None, Query(description="URI of the volume's store, where several stores have that id")]
router = APIRouter(prefix="/v1", responses=PROBLEMS)


@router.get("/snapshot", responses={200: {"model": SnapshotAnswer}}, response_model=None)
async def snapshot(asking: Asking) -> Response:
    """What is served: snapshots, models, indices, and how many volumes the caller may find."""
    return _json(await asking.ask(_served))


@router.post("/search", responses={200: {"model": SearchAnswer}}, response_model=None)
async def search(asked: SearchRequest, asking: Asking) -> Response:
    """Find the volumes most like a volume or like vectors, as `medret search --json` does."""
    return _json(await asking.ask(lambda snapshots: searched(snapshots, asked, asking.service.settings.device)))


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
        return found | {"snapshots": list(snapshots.manifests)}

    return _json(await asking.ask(question))


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
        _check_seen(snapshots, name)
        return asking.service.pictures.png(snapshots, name, plane, index, image_size=side, window=chosen, crop=crop)

    return Response(await asking.ask(question), media_type="image/png")


@router.get("/volumes/{volume_id:path}", responses={200: {"model": VolumeAnswer}}, response_model=None)
async def volume(volume_id: str, asking: Asking, store: StoreUri = None) -> Response:
    """What is known of one volume."""
    return _json(await asking.ask(lambda snapshots: described(snapshots, VolumeName(volume_id, store))))


def searched(snapshots: Snapshots, asked: SearchRequest, device: str) -> dict[str, Any]:
    """Answer a search for a stored volume or for vectors; raises UsageError."""
    given = [name for name in ("volume", "vector", "vectors") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise UsageError(
            f"the request has {' and '.join(given) or 'no query'}: give one of volume, vector and vectors, or a file"
        )
    options = asked.options(device=device)
    query: Any
    if asked.volume is not None:
        query, label = VolumeName(asked.volume, asked.store), asked.volume
    else:
        values = asked.vector if asked.vector is not None else asked.vectors
        try:
            query = np.array(values, np.float32)
        except ValueError as error:
            raise UsageError("vectors have different lengths: each must have as many numbers as the others") from error
        label = f"array of shape {query.shape}"
    hits = snapshots.search(query, asked.k, **vars(options))
    return {
        "query": label,
        "hits": [hit.to_json() for hit in hits],
        "score": options.score_words(),
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


def _check_seen(snapshots: Snapshots, name: VolumeName) -> None:
    if snapshots.corpus.find(name.text) is None:
        raise NotFoundError(f"there is no volume '{name.volume_id}'")


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
