"""The second stage, in one pool of Ray actors per model: turn slices into vectors."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from medret.models import ModelSpec, Weights, stage_weights, staged_weights, tune_malloc
from medret.pipeline.batch_schema import STOPPED, pixels_column, vectors_column
from medret.pipeline.counter import Tally
from medret.recipe import Images, Recipe, stack_dtype, stack_shape


class EmbedStage:
    """One model in one actor. It embeds the slices of several volumes as one stream of batches of equal shape.

    Threads may call it side by side (PoolPlan.at_once).
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        contents: Mapping[str, Any],  # role -> object reference to the file's bytes, fetched on nodes without the file
        recipe: Recipe,
        *,
        device: str,
        batch_size: int,
        threads: int,
        drop_pixels: bool,
        counter: Any,
    ) -> None:
        if device == "cpu":
            tune_malloc()
        from medret.models import Encoder  # torch: only where a model runs, not in every reading and writing worker

        staged = staged_weights(weights) or stage_weights(
            weights, {role: ray.get(ref) for role, ref in contents.items()}
        )
        self._encoder = Encoder(
            spec, staged, device=device, precision=recipe.model.precision, batch_size=batch_size, threads=threads
        )
        self._recipe = recipe
        self._drop_pixels = drop_pixels
        self._counter = counter
        self._tallies = threading.local()
        # What torch and the model consist of stays to the end. Without this, every full collection looks through all of
        # it, and those at the end of the process take a second of a core.
        gc.freeze()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the model outputs to every row. Quarantined rows get null; so do all rows once the run is stopping."""
        started = time.monotonic()
        volumes, tally = table["volume_id"].to_pylist(), self._tally()
        tally.begin(volumes)
        drawn = self._recipe.model.images
        if tally.is_stopping():
            place = table.schema.get_field_index("code")
            table = table.set_column(place, "code", pa.array([STOPPED] * table.num_rows, pa.string()))
        column = _pixels(table, drawn)
        images = [_image_stack(cell.as_buffer(), drawn) for cell in column if cell.is_valid]
        stack = np.concatenate(images or [np.empty((0, *stack_shape(drawn)), stack_dtype(drawn))])
        raw = np.ascontiguousarray(self._encoder.embed(stack), dtype=np.float32)
        vectors, at = [], 0
        for cell in column:
            n = len(_image_stack(cell.as_buffer(), drawn)) if cell.is_valid else 0
            vectors.append(raw[at : at + n].tobytes() if cell.is_valid else None)
            at += n
        if self._drop_pixels:
            table = table.drop_columns(pixels_column(drawn))
        done = table.num_rows - table["code"].to_pylist().count(STOPPED)
        tally.add(done, len(stack), stack.nbytes, time.monotonic() - started)
        tally.report()
        tally.done(volumes)
        return table.append_column(vectors_column(self._recipe), pa.array(vectors, pa.large_binary()))

    def _tally(self) -> Tally:
        """This thread's own."""
        if not hasattr(self._tallies, "own"):
            self._tallies.own = Tally(self._counter, f"embed {self._recipe.model.name}")
        own: Tally = self._tallies.own
        return own


def _pixels(table: pa.Table, drawn: Images) -> list[Any]:
    """The pixel cells to embed: null for quarantined rows, whatever an earlier stage left there."""
    cells, codes = table[pixels_column(drawn)], table["code"]
    return [cell if not code.is_valid else pa.scalar(None, cell.type) for cell, code in zip(cells, codes, strict=True)]


def _image_stack(buffer: pa.Buffer, drawn: Images) -> NDArray[Any]:
    return np.frombuffer(buffer, stack_dtype(drawn)).reshape(-1, *stack_shape(drawn))
