"""`medret serve` on Ray Serve: replicas that answer requests, and beside them encoders, on GPUs where there are some.

    serve run jobs.serve:build stores=s3://hospital/medret token_file=/etc/medret/tokens.toml

`Arguments` lists what can be given. Ray Serve answers at every address of a node that its HTTP options name, so a file
of tokens must be given. deploy/rayservice.yaml runs it on Kubernetes.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from medret.errors import MedretError, UnreachableError, UsageError
from medret.search import Encoders, SearchOptions
from medret.search.encoders import Embed
from medret.serve import LiveStores, ServeSettings, Service, create_app
from medret.serve.access import AuditLog, Tokens
from medret.serve.app import WATCH_SECONDS
from medret.snapshot import RecipeEntry
from medret.storage import use_options

ONGOING = 4  # requests per replica at which Ray Serve adds another, if it may
ENCODING = 1  # the same per encoder: a replica asks for one thing at a time
ANSWERING = 64  # requests that a replica takes at a time; it answers some of them at once, and queues the others
EMBED_SECONDS = 300  # for the slices of one volume, the model's loading included


class Arguments(BaseModel):
    """What `build` is given. replicas, encoders: the fewest and the most; they grow as requests wait.

    cpus: of each replica. encoder_cpus, gpus: of each encoder; a part of 1 lets several share a GPU, 0 is a processor.
    archive: where the volumes of the first store lie, or store -> where its own lie. weights: model -> URI, or file on
    the nodes of encoders. The others are options of `medret serve`.
    """

    model_config = ConfigDict(extra="forbid")

    stores: str | list[str]
    token_file: str
    audit: str | None = None
    archive: str | dict[str, str] | None = None
    storage_options: dict[str, Any] = {}
    weights: dict[str, str] = {}
    replicas: tuple[int, int] = (1, 4)
    encoders: tuple[int, int] = (1, 1)
    cpus: float = Field(1, ge=0)
    encoder_cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)


class RemoteEncoders(Encoders):
    """Encoders whose models are loaded by another deployment: slices and words go there, and vectors come back."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        super().__init__()
        self._handle = handle

    def embed(self, entry: RecipeEntry, options: SearchOptions) -> Embed:
        """The function that sends slices to an encoder; raises WeightsError as `Encoders.embed` does."""
        weights = options.weights_of(entry.model)

        def embed(slices: NDArray[np.uint8]) -> NDArray[np.float32]:
            return _vectors(entry, self._handle.embed.remote(entry, weights, slices))

        return embed

    def directions(self, entry: RecipeEntry, options: SearchOptions, text: str) -> NDArray[np.float32]:
        """The direction of a text, from an encoder; errors as those of `Encoders.directions`."""
        return _vectors(entry, self._handle.directions.remote(entry, options.weights_of(entry.model), text))


def _vectors(entry: RecipeEntry, answer: Any) -> NDArray[np.float32]:
    """What an encoder answers, a DeploymentResponse; raises its errors, and UnreachableError if there is no answer."""
    try:
        vectors: NDArray[np.float32] = answer.result(timeout_s=EMBED_SECONDS)
    except RayTaskError as error:
        if isinstance(error.cause, MedretError):
            raise error.cause from error
        raise
    except (RayActorError, TimeoutError) as error:
        raise UnreachableError(f"no encoder of {entry.model} has answered: {error}") from error
    return vectors


class Encoder:
    """Turns slices and words into vectors. Each model is loaded when it is first needed."""

    def __init__(self, arguments: Arguments) -> None:
        _log()
        use_options(arguments.storage_options, others=arguments.weights.values())
        self._encoders = Encoders()

    def embed(self, entry: RecipeEntry, weights: str | None, slices: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The vectors of slices; raises WeightsError."""
        return self._encoders.embed(entry, SearchOptions(weights=weights))(slices)

    def directions(self, entry: RecipeEntry, weights: str | None, text: str) -> NDArray[np.float32]:
        """The direction of a text; raises UsageError, WeightsError."""
        return self._encoders.directions(entry, SearchOptions(weights=weights), text)


class Answers:
    """Answers requests as `medret serve` does. Each replica follows the stores on its own."""

    def __init__(self, arguments: Arguments, encoder: DeploymentHandle[Any]) -> None:
        _log()
        stores = [arguments.stores] if isinstance(arguments.stores, str) else arguments.stores
        tokens = Tokens(arguments.token_file)
        audit = None if arguments.audit is None else AuditLog(arguments.audit)
        archive = arguments.archive
        self._live = LiveStores(
            stores,
            archives={stores[0]: archive} if isinstance(archive, str) else archive or {},
            storage_options=arguments.storage_options,
            encoders=RemoteEncoders(encoder),
        )
        settings = ServeSettings(weights=arguments.weights)
        self._service = Service(self._live, settings, tokens=tokens, audit=audit)
        self._service.check_filters()
        self._live.watch(WATCH_SECONDS)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service)


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, for `serve run` and RayService; raises UsageError for arguments that it does not have."""
    try:
        checked = Arguments.model_validate(arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"argument {at}: {first['msg']}; there are {', '.join(Arguments.model_fields)}") from error
    stores = [checked.stores] if isinstance(checked.stores, str) else checked.stores
    if isinstance(checked.archive, dict) and (others := checked.archive.keys() - set(stores)):
        raise UsageError(f"argument archive names {min(others)}, which is none of the stores: {', '.join(stores)}")
    encoder: Any = serve.deployment(
        Encoder,
        max_ongoing_requests=2 * ONGOING,
        autoscaling_config=_scaled(checked.encoders, ENCODING),
        ray_actor_options={"num_cpus": checked.encoder_cpus, "num_gpus": checked.gpus},
    )
    answers: Any = serve.deployment(
        serve.ingress()(Answers),
        max_ongoing_requests=ANSWERING,
        autoscaling_config=_scaled(checked.replicas, ONGOING),
        ray_actor_options={"num_cpus": checked.cpus},
    )
    application: serve.Application = answers.bind(checked, encoder.bind(checked))
    return application


def _log() -> None:
    """Send medret's log to standard error, which Ray keeps beside its own."""
    logger = logging.getLogger("medret")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)


def _scaled(bounds: tuple[int, int], ongoing: float) -> dict[str, Any]:
    return {"min_replicas": bounds[0], "max_replicas": bounds[1], "target_ongoing_requests": ongoing}
