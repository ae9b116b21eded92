"""Slices of volumes as PNG: read from the archive, decoded once and kept while there is room."""

from __future__ import annotations

import io
from collections import OrderedDict
from threading import Lock

from PIL import Image

from medret.errors import NotFoundError, UsageError, VolumeError
from medret.search import Snapshots, VolumeName
from medret.search.query_files import read_volume_query
from medret.volume import CT_WINDOWS, VolumeView, view_volume
from medret.volume.intensity import Window, ct_window

SIDE_MAX = 1024  # px

Key = tuple[tuple[str, ...], str, str]  # snapshots, volume, recipe


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
        key = (tuple(snapshots.manifests), name.text, recipe.digest)
        found = snapshots.corpus.find(name.text)  # first: what is kept may be hidden from this caller
        if found is None:
            raise NotFoundError(f"there is no volume '{name.volume_id}'")
        (_, store), row = found
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


PRESETS = tuple(CT_WINDOWS)
