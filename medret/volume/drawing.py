"""Draw slices as the images that models are fed: grey, one window per channel, or real values.

Images are square: the longer side of a slice fills the square, and its proportions are those of the patient. Slices are
drawn once for each distinct drawing among the models of a run, of which there is usually one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.recipe import Drawing, Images
from medret.volume.intensity import Window, to_grey
from medret.volume.slicing import fitted_size
from medret.volume.stored import Scaling

AIR_HU = -1000.0
_ORDINARY = 1e30  # far from the range of float32
_BANDS = 4  # of a CMYK image
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Filter = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Shown:
    """How the values of a volume are shown. window: of its plain images. is_hu: the real values are HU."""

    scaling: Scaling
    window: Window
    is_hu: bool
    all_finite: bool


def draw_slices(
    slices: Sequence[NDArray[Any]],
    shown: Shown,
    plane: str,
    spacing_mm: tuple[float, float],
    onto: Mapping[Images, NDArray[Any]],
) -> None:
    """Draw the slices of one plane in each way that is asked for.

    slices: stored values, (rows, columns), all of one shape, oriented as on the screen. spacing_mm: between (columns,
    rows). onto: drawing -> its stack of blank images (medret.recipe.stack_shape), one per slice.
    """

    @cache
    def grey(window: Window) -> list[NDArray[np.uint8]]:
        return [to_grey(values, shown.scaling, window, all_finite=shown.all_finite) for values in slices]

    for images, stack in onto.items():
        if isinstance(images, int):
            draw_squares(grey(shown.window), spacing_mm, stack)
            continue
        turned = slice(None, None, -1 if images.orientation == "neurological" and plane != "sagittal" else None)
        if images.values == "real":
            for values, square in zip(slices, stack, strict=True):
                _draw_real(values[:, turned], shown, spacing_mm, images, square)
            continue
        windows = [Window("hu", *limits) for limits in images.windows_hu] if shown.is_hu else []
        channels = [stack[:, channel] for channel in range(stack.shape[1])] if images.windows_hu else [stack]
        for window, channel in zip(windows or [shown.window] * len(channels), channels, strict=True):
            draw_squares([image[:, turned] for image in grey(window)], spacing_mm, channel, images.resample)


def _draw_real(
    values: NDArray[Any], shown: Shown, spacing_mm: tuple[float, float], images: Drawing, onto: NDArray[np.float32]
) -> None:
    """Draw one slice in real values. Around it, and where a value is not finite: air, or the slice's least value."""
    exact = shown.scaling.real(values)
    finite = np.isfinite(exact)
    ordinary = np.clip(exact, -_ORDINARY, _ORDINARY)  # a filter overshoots, and must stay in range
    real = np.ascontiguousarray(ordinary, np.float32)
    outside = AIR_HU if shown.is_hu else float(real[finite].min()) if finite.any() else 0.0
    real[~finite] = outside
    onto[:] = outside
    rows, columns = real.shape
    width, height = fitted_size(columns * spacing_mm[0], rows * spacing_mm[1], len(onto))
    left, top = (len(onto) - width) // 2, (len(onto) - height) // 2
    onto[top : top + height, left : left + width] = _resized(real, "F", width, height, images.resample)
    if images.clip_hu and shown.is_hu:
        np.clip(onto, *images.clip_hu, out=onto)


def draw_squares(
    images: Sequence[NDArray[np.uint8]],
    spacing_mm: tuple[float, float],
    onto: NDArray[np.uint8],
    resample: Filter = "bilinear",
) -> None:
    """Draw each image into its square, centred, with equal spacing in both directions; the longer side fills it.

    images: (rows, columns), all of one shape. spacing_mm: between (columns, rows). onto: (n, side, side), black.
    Shrinking averages over all pixels (a filter of sufficient width), so it does not alias. Pillow resizes
    four bands of one image faster than four images, with the same result, so each band is a slice.
    """
    side = onto.shape[1]
    rows, columns = images[0].shape
    width, height = fitted_size(columns * spacing_mm[0], rows * spacing_mm[1], side)
    left, top = (side - width) // 2, (side - height) // 2
    inner = onto[:, top : top + height, left : left + width]
    for at in range(0, len(images), _BANDS):
        some = images[at : at + _BANDS]
        if len(some) < _BANDS - 1:  # an empty band costs as much as a full one
            for image, square in zip(some, inner[at:], strict=False):
                square[:] = _resized(np.ascontiguousarray(image), "L", width, height, resample)
            continue
        pixels = _resized(_in_bands(some), "CMYK", width, height, resample)
        for band, square in enumerate(inner[at : at + _BANDS]):
            np.copyto(square, pixels >> np.uint32(8 * band), casting="unsafe")  # keeps the lowest byte


def _in_bands(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint32]:
    """Up to four images as the bytes of one contiguous image."""
    pixels = images[0].astype(np.uint32)
    for band, image in enumerate(images[1:], start=1):
        pixels |= image.astype(np.uint32) << np.uint32(8 * band)
    return np.ascontiguousarray(pixels)


def _resized(pixels: NDArray[Any], mode: str, width: int, height: int, resample: Filter) -> NDArray[Any]:
    """Resize. pixels: (rows, columns), contiguous, in the mode's memory layout; returns (height, width), same type."""
    image = Image.frombuffer(mode, pixels.shape[::-1], pixels, "raw", mode, 0, 1)
    image = image.resize((width, height), _FILTERS[resample])
    return np.frombuffer(image.tobytes(), pixels.dtype).reshape(height, width)
