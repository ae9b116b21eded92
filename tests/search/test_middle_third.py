"""A query made of the middle third of a real volume finds that volume first, and where in it the third lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medret.embeddings import Slices, plane_codes, unit_slices
from medret.models import Encoder, model_spec, resolve_weights
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.search import Snapshot, open_snapshot
from medret.volume import read_volume

MODEL = "efficientnet_lite0"
SLICES = 16
LEAST = 24  # slices of a volume, or its third is next to nothing
SAMPLE = 5


def _embedded(encoder: Encoder, path: Path, recipe: SliceRecipe) -> tuple[Slices, dict[str, Any]]:
    data = path.read_bytes()
    volume = read_volume(data, path.name, recipe, [224])
    vectors, norms = unit_slices(encoder.embed(volume.pixels[224]))
    positions = np.array([ref.slice_index for ref in volume.slices], np.int32)
    relative = np.array([ref.relative_position for ref in volume.slices], np.float32)
    positions_mm = np.array([ref.position_mm for ref in volume.slices], np.float32)
    planes = plane_codes([ref.plane for ref in volume.slices])
    row: dict[str, Any] = {"volume_id": path.name, "uri": str(path), "size_bytes": len(data), "status": "embedded"}
    row.update(slices=len(planes), content_sha256=hashlib.sha256(data).hexdigest())
    row["facts"] = json.dumps(volume.facts.to_json())
    return Slices(vectors, planes, positions, relative, positions_mm, norms, volume_id=path.name), row


@pytest.fixture(scope="module")
def real(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory, store_maker: Callable[..., Any]
) -> tuple[Snapshot, list[Path]]:
    """A snapshot of some small real volumes, chosen evenly by name."""
    paths = sorted(path for path in (shared_data / "volumes").glob("*.nii.gz") if path.stat().st_size < 1_500_000)
    shapes: list[tuple[int, ...]] = [nib.load(path).header.get_data_shape() for path in paths]  # type: ignore[attr-defined]
    paths = [path for path, shape in zip(paths, shapes, strict=True) if len(shape) == 3 and min(shape) >= LEAST]
    paths = paths[:: max(1, len(paths) // SAMPLE)][:SAMPLE]
    spec = model_spec(MODEL)
    weights = resolve_weights(spec)
    slices = SliceRecipe(slices=f"uniform:{SLICES}")
    recipe = Recipe(slices, ModelRecipe(MODEL, weights.sha256, 224, spec.mean, spec.std, spec.dim, "fp32"))
    encoder = Encoder(spec, weights)
    made = [_embedded(encoder, path, slices) for path in paths]
    store = store_maker(
        tmp_path_factory.mktemp("real-store"),
        tuple(volume for volume, _ in made),
        recipe=recipe,
        ledger=[row | {"shards": [(recipe.digest, "shard-0")]} for _, row in made],
        aggregations=("mean",),
    )
    return open_snapshot(store.uri), paths


def _off(found: tuple[int, int], truth: tuple[int, int], stored: Any) -> float:
    """By how many steps of the stored slice plan the ends differ, at most."""
    step = float(np.median(np.diff(stored.slice_indices)))
    return max(abs(found[0] - truth[0]), abs(found[1] - truth[1])) / step


def test_as_a_range_of_a_stored_volume(real: tuple[Snapshot, list[Path]]) -> None:
    snapshot, paths = real
    for path in paths:
        stored = snapshot.slices_of(path.name)
        assert stored is not None
        assert stored.slice_indices is not None
        step = float(np.median(np.diff(stored.slice_indices)))
        low, high = stored.slice_indices[0] - step / 2, stored.slice_indices[-1] + step / 2
        truth = (round(low + (high - low) / 3), round(low + 2 * (high - low) / 3))
        hit = snapshot.search(path.name, 1, slices=f"{truth[0]}:{truth[1]}")[0]
        assert hit.volume_id == path.name
        assert hit.slices is not None
        assert hit.slices.query == truth
        assert _off(hit.slices.hit, truth, stored) <= 1


def test_as_a_file_of_its_own(real: tuple[Snapshot, list[Path]], tmp_path: Path) -> None:
    snapshot, paths = real
    right = 0
    for path in paths:
        image: Any = nib.as_closest_canonical(nib.load(path))
        count = image.shape[2]
        first, last = count // 3, 2 * count // 3
        cut = tmp_path / f"{path.name.removesuffix('.gz')}"
        nib.save(image.slicer[:, :, first:last], cut)
        hit = snapshot.search(cut, 1, mode="late")[0]
        stored = snapshot.slices_of(path.name)
        assert stored is not None
        assert stored.slice_indices is not None
        truth = (
            max(first, int(stored.slice_indices[0])),
            min(last - 1, int(stored.slice_indices[-1])),
        )  # as far as body goes
        if hit.volume_id == path.name and hit.slices and _off(hit.slices.hit, truth, stored) <= 2:
            right += 1
    assert right >= 0.95 * len(paths)
