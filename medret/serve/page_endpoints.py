"""The endpoints for people who look: options in words, how a volume is shown, previews, and maps."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from medret.errors import NotFoundError, UsageError, VolumeError
from medret.search import Snapshots, VolumeName
from medret.search.options import FUSIONS, SCORES
from medret.serve.archive_map import drawn_map
from medret.serve.endpoints import PROBLEMS, Asking, StoreUri
from medret.serve.messages import SearchRequest
from medret.serve.page_messages import MapAnswer, OptionsAnswer, ViewAnswer
from medret.serve.requests import json_answer, seen_volume
from medret.volume import CT_WINDOWS

router = APIRouter(prefix="/v1", responses=PROBLEMS)


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


# An id may hold slashes: this stands before the route of a volume, and takes numbers alone.
@router.get(
    "/volumes/{volume_id:path}/previews/{number:int}",
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

    return json_answer(await asking.ask(question))


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
