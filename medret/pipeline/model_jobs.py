"""The models of a run: which, fed how, in which precision; and what that changes in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import ray

from medret.errors import GateError, UsageError
from medret.models import (
    OPEN_PREFIXES,
    ModelSpec,
    Weights,
    default_batch_size,
    model_spec,
    read_model_config,
    resolve_precision,
    resolve_weights,
    stated_by,
)
from medret.pipeline.request import DEFAULT_MODEL, IndexRequest
from medret.pipeline.store_state import BaseSnapshot, live_manifest
from medret.pipeline.stream import ModelJob
from medret.recipe import ModelRecipe, Precision, Recipe
from medret.snapshot import Journal, Manifest, RecipeEntry
from medret.storage import Location

PROBE_GPUS = 0.01  # share of a GPU for the task that asks which precisions it supports


@dataclass(frozen=True)
class WantedModel:
    """A model of a run. by_store: the recipe of the live snapshot for it, which says what it is fed if no file does."""

    spec: ModelSpec
    weights_uri: str | None
    by_store: ModelRecipe | None = None

    def resolve(self) -> tuple[ModelSpec, Weights]:
        """The model and its weights. Other weights than the store's are fed as their own files say."""
        weights = resolve_weights(self.spec, self.weights_uri)
        if self.by_store is None or weights.sha256 == self.by_store.weights_sha256:
            return self.spec, weights
        return model_spec(self.spec.name, self.weights_uri), weights


def with_models(request: IndexRequest, manifest: Manifest | None) -> IndexRequest:
    """Fill in the models of a request that names none: those of the live snapshot, else the default.

    Models of the store get the weights that their names stand for, or random ones as before. Raises UsageError for
    weights that were loaded from a path or URI: the store must not decide what is loaded from where.
    """
    if request.models:
        return request
    if manifest is None or not manifest.recipes:
        return replace(request, models=(DEFAULT_MODEL,))
    weights = dict(request.weights)
    for entry in manifest.recipes:
        name = entry.model
        if name not in weights and entry.weights_uri is not None:
            if not entry.random_weights:
                raise UsageError(
                    f"model {name} of the live snapshot was loaded from {entry.weights_uri}; give its weights again: "
                    f"--weights {name}={entry.weights_uri}"
                )
            weights[name] = entry.weights_uri
    return replace(request, models=model_names(manifest), weights=weights)


def model_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of a snapshot's models."""
    return tuple(entry.model for entry in manifest.recipes)


def refuse_replacing(request: IndexRequest, manifest: Manifest | None) -> None:
    """Raise GateError if the run would drop models of the live snapshot and the request does not say so."""
    live = model_names(manifest) if manifest else ()
    dropped = [name for name in live if name not in request.models]
    if dropped and not request.replace_models:
        every = " ".join(f"--model {name}" for name in dict.fromkeys([*live, *request.models]))
        raise GateError(
            f"refused: the live snapshot has {', '.join(live)}, this run {', '.join(request.models)}: "
            f"{', '.join(dropped)} could not be searched any more. To keep all: {every}; to drop them: --replace-models"
        )


def wanted_models(request: IndexRequest) -> list[WantedModel]:
    """The models of a run; raises UsageError for one that is unknown, or that cannot be fed as is stated."""
    stated = read_model_config(request.model_config) if request.model_config else {}
    if stray := sorted(stated.keys() - set(request.models)):
        raise UsageError(
            f"--model-config states the input of {', '.join(stray)}, but the models of this run are "
            f"{', '.join(request.models)}"
        )
    manifest = live_manifest(Location(request.store))
    stored = {entry.model: entry for entry in manifest.recipes} if manifest else {}
    models = []
    for name in request.models:
        uri = request.weights.get(name)
        is_open = name.startswith(OPEN_PREFIXES) and name not in stated
        by_store = stored[name].load().model if is_open and name in stored else None
        by_user = stated_by(by_store) if by_store else stated.get(name)
        try:
            spec = model_spec(name, uri, by_user)
        except UsageError:
            if by_store is None or uri is None:
                raise
            spec, by_store = model_spec(name, uri), None  # these files say otherwise what they are fed
        models.append(WantedModel(spec, uri, by_store))
    return models


def known_precisions(
    request: IndexRequest,
    specs: Sequence[ModelSpec],
    weights: Sequence[Weights],
    base: BaseSnapshot,
    journal: Journal,
) -> list[Precision | None]:
    """The precision of each model: as requested, else as in the store; None if the device decides."""
    if request.precision != "auto":
        return [request.precision] * len(specs)
    entries = base.manifest.recipes if base.manifest else []
    models = [entry.load().model for entry in entries]
    published = {(model.name, model.weights_sha256): model.precision for model in models}
    journalled = {digest for shards in journal.ledger["shards"].to_pylist() for digest, _ in shards}
    precisions: list[Precision | None] = []
    for spec, weight in zip(specs, weights, strict=True):
        precision = published.get((spec.name, weight.sha256))
        for candidate in get_args(Precision):  # of a first run that did not finish
            if precision is None and recipe_of(request, spec, weight, candidate).digest in journalled:
                precision = candidate
        precisions.append(precision)
    return precisions


def model_jobs(
    request: IndexRequest,
    device: str,
    specs: Sequence[ModelSpec],
    weights: Sequence[Weights],
    precisions: Sequence[Precision | None],
) -> list[ModelJob]:
    """One job per model, in the order of the request. precisions: None for the best one of the device."""
    best: Precision | None = None
    if None in precisions:
        if device == "cuda":  # the driver's machine may have no GPU: ask one that has
            probe = ray.remote(num_cpus=0, num_gpus=PROBE_GPUS)(resolve_precision)
            answer: Any = probe.remote(request.precision, device)
            best = ray.get(answer)
        else:
            best = resolve_precision(request.precision, device)
    batch_size = request.batch_size or default_batch_size(device)
    jobs = []
    for spec, weight, fixed in zip(specs, weights, precisions, strict=True):
        precision = fixed or best
        assert precision is not None
        recipe = recipe_of(request, spec, weight, precision)
        jobs.append(ModelJob(spec, weight, request.weights.get(spec.name), recipe, device, batch_size))
    return jobs


def recipe_of(request: IndexRequest, spec: ModelSpec, weights: Weights, precision: Precision) -> Recipe:
    """The recipe of one model of the request."""
    model = ModelRecipe(
        name=spec.name,
        weights_sha256=weights.sha256,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        dim=spec.dim,
        precision=precision,
        layers=spec.layers,
        contract=spec.contract,
    )
    return Recipe(request.slices, model)


def recipe_entry(job: ModelJob) -> RecipeEntry:
    """The entry of a model in the manifest."""
    weights_uri = job.weights_uri
    if weights_uri and not job.weights.random:
        weights_uri = Location(weights_uri).uri
    return RecipeEntry(
        recipe=job.recipe.to_json(),
        weights_source=job.weights.source,
        weights_uri=weights_uri,
        random_weights=job.weights.random,
    )


def recipe_changes(recipes: Sequence[Recipe], manifest: Manifest | None) -> list[str]:
    """Options that differ from the recipes of the live snapshot, so that the model must embed every volume again."""
    before = {entry.model: entry for entry in manifest.recipes} if manifest else {}
    changes = []
    for recipe in recipes:
        entry = before.get(recipe.model.name)
        if entry is None or entry.digest == recipe.digest:
            continue
        for part in ("slices", "model"):
            now, was = recipe.to_json()[part], entry.recipe[part]
            changes += [
                f"{recipe.model.name}: {name} is {_short(now.get(name))}, was {_short(was.get(name))}"
                for name in dict.fromkeys([*now, *was])
                if _plain(now.get(name)) != _plain(was.get(name))
            ]
    return list(dict.fromkeys(changes))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
