"""Slices of volumes as PNG: of indexed ones, decoded once and kept while there is room, and of uploaded ones."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from medret.errors import NotFoundError, UsageError, VolumeError
from medret.search import FileContent, SearchOptions, Snapshots, VolumeName
from medret.search.options import weighted_names
from medret.search.query import Volume, parse_box, parse_range
from medret.search.query_files import read_volume_query
from medret.volume import VolumeView, content_sha256, view_volume
from medret.volume.intensity import Window, ct_window
from medret.volume.read import planned_slices

SIDE_MAX = 1024  # px
PICTURES_MAX = 128  # of an uploaded volume
PICTURE_SIDE = 256  # px, of them

Key = tuple[tuple[str, ...], Volume, str]  # snapshots, volume, recipe


class SlicePictures:
    """Decoded volumes, the last used first. max_bytes: of their voxels, which bounds the memory that they take."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._views: OrderedDict[Key, VolumeView] = OrderedDict()
        self._decoding: dict[Key, Lock] = {}
        self._lock = Lock()

    def view(self, snapshots: Snapshots, name: VolumeName) -> VolumeView:
        """A volume to look at, as the snapshots' first model sees it.

        Raises UsageError, NotFoundError or StorageError if it cannot be read, VolumeError if it cannot be decoded.
        """
        recipe = snapshots.recipe()
        found = snapshots.corpus.find(name.text)  # first: what is kept may be hidden from this caller
        if found is None:
            raise NotFoundError(f"there is no volume '{name.volume_id}'")
        (_, store), row = found
        key = (tuple(snapshots.manifests), found[0], recipe.digest)  # not its name: volumes of two stores may share it
        with self._lock:
            decoding = self._decoding.setdefault(key, Lock())
        with decoding:  # of two threads that need a volume, one decodes it
            if view := self._kept(key):
                return view
            try:
                content = read_volume_query(snapshots.corpus.stores[store].readable(row))
                view = view_volume(content, recipe.slices, modality=row.labels["modality"])
                self._keep(key, view)
            finally:
                with self._lock:
                    self._decoding.pop(key, None)
        return view

    def _kept(self, key: Key) -> VolumeView | None:
        with self._lock:
            view = self._views.get(key)
            if view:
                self._views.move_to_end(key)
            return view

    def _keep(self, key: Key, view: VolumeView) -> None:
        with self._lock:
            self._views[key] = view
            while len(self._views) > 1 and sum(kept.size_bytes for kept in self._views.values()) > self._max_bytes:
                self._views.popitem(last=False)

    def png(
        self,
        snapshots: Snapshots,
        name: VolumeName,
        plane: str,
        slice_index: int,
        *,
        image_size: int,
        window: Window | None,
        crop: str,
    ) -> bytes:
        """One slice; see `VolumeView.draw`."""
        try:
            view = self.view(snapshots, name)
            pixels = view.draw(plane, slice_index, image_size=image_size, window=window, crop=crop)
        except VolumeError as error:
            raise UsageError(f"{name.volume_id} cannot be shown: {error.code}: {error.reason}") from error
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # much quicker than 6, little larger
        return buffer.getvalue()


def window_of(preset: str | None, width: float | None, level: float | None) -> Window | None:
    """The window of a preset, or of a width around a level; None if neither is given. Raises UsageError."""
    if preset is not None:
        if (width, level) != (None, None):
            raise UsageError("give a preset, or window and level, not both")
        return ct_window(preset)
    if (width, level) == (None, None):
        return None
    if width is None or level is None or not 0 < width < 1e9 or not abs(level) < 1e9:
        raise UsageError("window and level belong together: window is the width of the range of values, above 0")
    return Window("chosen", level - width / 2, level + width / 2)


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
    planned = planned_slices(recipe, volume_id, box, view.shape, view.examined.geometry.spacing_mm)
    planes = {plane: indices.tolist() for plane, indices in planned.items()}
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
