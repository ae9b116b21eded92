"""What is answered about an uploaded volume: the volumes most like it, and pictures of its slices."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from medret.errors import UsageError
from medret.search import FileContent, SearchOptions, Snapshots
from medret.search.options import weighted_names
from medret.search.query import parse_box, parse_range
from medret.serve.access import Record
from medret.serve.messages import SearchRequest
from medret.serve.uploads import Upload
from medret.volume import Limits, content_sha256, view_volume
from medret.volume.read import planned_slices

PICTURES_MAX = 128
PICTURE_SIDE = 256  # px
MASK_NAME = "mask"


def query_of(upload: Upload, asked: SearchRequest, limits: Limits, record: Record) -> FileContent:
    """The query that an uploaded file is; raises UsageError, VolumeError."""
    if given := [name for name in ("volume", "store", "text", "vector", "vectors") if getattr(asked, name) is not None]:
        raise UsageError(f"there is a file and {given[0]}: give one query")
    content, mask = upload.content(), upload.mask_content()
    record.uploads[:] = [content_sha256(content)] + ([] if mask is None else [content_sha256(mask)])
    return FileContent(upload.name, content, limits, mask)


def options_of(asked: SearchRequest, query: FileContent, options: dict[str, Any]) -> SearchOptions:
    """The options of a search with an uploaded file; raises UsageError."""
    return asked.options(**options, mask=None if query.mask is None else MASK_NAME)


def slices_of(snapshots: Snapshots, query: FileContent, options: SearchOptions) -> dict[str, Any]:
    """The slices of an uploaded volume that a search with it embeds, and pictures of them: `messages.SlicesAnswer`.

    Of more than 128, that many are drawn, evenly spread. Raises UsageError, VolumeError.
    """
    from medret.volume.slicing import mask_region

    entry = snapshots.corpus.recipe(weighted_names("model", options.model)[0][0])
    recipe = entry.load().slices
    volume_id, label = snapshots.corpus.identify(
        query.name, snapshots.corpus.with_content(content_sha256(query.content))
    )
    view = view_volume(query.content, recipe, modality=options.modality or label, limits=query.limits)
    box, region = view.box(recipe.crop), None
    if options.slices:
        asked = parse_range(options.slices, options.plane or recipe.planes[0])
        region, recipe = asked.region(), replace(recipe, planes=(asked.plane,))  # type: ignore[arg-type]  # it is one
    elif options.box:
        region = parse_box(options.box)
    elif query.mask is not None:
        region = mask_region(query.mask, query.content, query.limits)
    if region is not None:
        box = region.within(box, view.examined.geometry, view.shape)
    planes = {plane: indices.tolist() for plane, indices in planned_slices(recipe, volume_id, box, view.shape).items()}
    places = [(plane, index) for plane, indices in planes.items() for index in indices]
    if len(places) > PICTURES_MAX:
        spread = np.linspace(0, len(places) - 1, PICTURES_MAX).round().astype(int)
        places = [places[at] for at in spread]
    return {
        "shape": list(view.shape),
        "spacing_mm": list(view.examined.geometry.spacing_mm),
        "planes": planes,
        "pictures": [
            {
                "plane": plane,
                "slice_index": index,
                "image": _data_uri(view.draw(plane, index, image_size=PICTURE_SIDE)),
            }
            for plane, index in places
        ],
    }


def _data_uri(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
