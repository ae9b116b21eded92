"""The models of a run: their recipes, at the precision that the store or the device asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from medret.models import ModelSpec, Weights, resolve_precision
from medret.pipeline.cluster import PoolPlan
from medret.pipeline.request import IndexRequest
from medret.pipeline.stream import ModelJob
from medret.recipe import ModelRecipe, Precision, Recipe
from medret.schemas import FILES
from medret.snapshot import RecipeEntry, current_id, read_files, read_ledger, read_manifest
from medret.storage import Location


@dataclass(frozen=True)
class Previous:
    """The live snapshot before this run: content hash by volume, its recipes, and its files (schemas.FILES)."""

    content: Mapping[str, str | None]
    recipes: tuple[Recipe, ...]
    files: pa.Table


def previous_snapshot(store: Location) -> Previous:
    """What is live in a store; empty when nothing is."""
    live = current_id(store)
    if live is None:
        return Previous({}, (), FILES.empty_table())
    manifest = read_manifest(store, live)
    ledger = read_ledger(store, live, manifest, ["volume_id", "content_sha256"])
    content = dict(zip(ledger["volume_id"].to_pylist(), ledger["content_sha256"].to_pylist(), strict=True))
    return Previous(content, tuple(entry.load() for entry in manifest.recipes), read_files(store, live, manifest))


def model_jobs(
    request: IndexRequest,
    device: str,
    pools: PoolPlan,
    specs: Sequence[ModelSpec],
    weights: Sequence[Weights],
    previous: Previous,
) -> list[ModelJob]:
    """What each model of the request is to do, in the request's order."""
    precisions = _precisions(request, device, pools, specs, weights, previous)
    return [_model_job(request, s, w, p, device) for s, w, p in zip(specs, weights, precisions, strict=True)]


def _precisions(
    request: IndexRequest, device: str, pools: PoolPlan, specs: Sequence[ModelSpec], weights: Sequence[Weights],
    previous: Previous,
) -> list[Precision]:  # fmt: skip
    """The precision of each model: as asked for; else as the store began with; else what the device does best."""
    known = {(r.model.name, r.model.weights_sha256): r.model.precision for r in previous.recipes}
    found: Precision | None = None
    precisions: list[Precision] = []
    for spec, weight in zip(specs, weights, strict=True):
        kept = known.get((spec.name, weight.sha256)) if request.precision == "auto" else None
        if kept is None and found is None:
            if device == "cuda":  # the driver's machine may have no GPU: ask a machine that has one
                probe = ray.remote(num_cpus=0, num_gpus=pools.num_gpus)(resolve_precision)
                asked: Any = probe.remote(request.precision, device)
                found = ray.get(asked)
            else:
                found = resolve_precision(request.precision, device)
        precision = kept or found
        assert precision is not None
        precisions.append(precision)
    return precisions


def _model_job(request: IndexRequest, spec: ModelSpec, weights: Weights, precision: Precision, device: str) -> ModelJob:
    model = ModelRecipe(
        name=spec.name,
        weights_sha256=weights.sha256,
        side_px=spec.side_px,
        mean=spec.mean,
        std=spec.std,
        dim=spec.dim,
        precision=precision,
        layers=spec.layers,
    )
    batch_size = request.batch_size or (128 if device == "cuda" else 8)
    return ModelJob(spec, weights, request.weights.get(spec.name), Recipe(request.slices, model), device, batch_size)


def recipe_entry(job: ModelJob) -> RecipeEntry:
    """The manifest's entry for a model."""
    given = Location(job.given).uri if job.given and not job.weights.random else job.given
    return RecipeEntry(
        recipe=job.recipe.to_json(),
        weights_source=job.weights.source,
        weights_uri=given,
        random_weights=job.weights.random,
    )
