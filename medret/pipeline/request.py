"""The options of an index run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypedDict

from medret.embeddings import Aggregation, parse_aggregation
from medret.errors import UsageError
from medret.index import IndexSettings
from medret.pipeline.pools import ActorRange, Expected
from medret.recipe import SliceRecipe
from medret.snapshot import LEASE_S
from medret.storage import Location, redacted, refuse_secrets, use_options
from medret.vocabularies import labels_of_tags
from medret.volume import Limits, parse_slice_plan
from medret.volume.intensity import CT_WINDOWS
from medret.volume.previews import MIDDLE_SLICES, PREVIEWS_MAX

DEFAULT_MODEL = "efficientnet_lite0"
# A GPU node of a cloud needs up to ten minutes to start and to install or fetch the software; a zone may be short of
# them for longer. A scheduled run may wait for that, as long as it ends before the next one begins.
WAIT_MINUTES = 30.0
NAME_LISTS = (
    "exclude",
    "no_dicom_labels",
    "models",
    "planes",
    "aggregations",
    "expect",
)  # options that take one name or several


@dataclass(frozen=True)
class GateLimits:
    """The limits of the gates.

    min_recall: recall@10 of each index. max_gone: share of the live snapshot's volumes that may be lost.
    max_quarantined, max_duplicates: shares of volumes. min_canary: cosine to the stored vectors. min_labelled: share of
    the volumes with labels, among those still listed, that must keep some.
    """

    min_recall: float = 0.9
    max_gone: float = 0.2
    max_quarantined: float = 0.5
    max_duplicates: float = 0.5
    min_canary: float = 0.999
    min_labelled: float = 0.5


@dataclass(frozen=True)
class IndexRequest:
    """One run of `medret index`.

    archive, store: fsspec URIs. labels: URI of a table, or None. no_dicom_labels: tags, by their keywords, that give no
    labels, or `all`. pattern: glob below the archive. exclude: globs to
    leave out. include_masks: index what is named as a mask, or looks like one, too. inventory: URI of the manifest.json
    of an S3 Inventory, to read in place of a listing. storage_options: of the filesystems of remote places
    (`medret.storage.uris`). models: distinct names; empty means those of the live snapshot,
    else DEFAULT_MODEL. weights: model name -> path, URI or `random[:SEED]`. model_config:
    path or URI of a TOML file that says what models are fed (medret.models.model_input). batch_size:
    slices per model call. gpus_per_actor: share of one GPU. actors: embedding actors per model. (None: device and
    cluster decide these three.) expect: what can come to the cluster. wait_minutes: how long to wait for the first node
    that fits. previews: pictures to store per volume that is embedded. shard_volumes: volumes per embedding shard;
    after a crash, those of unfinished shards are embedded again. replace_models: drop models of the live snapshot that
    are not named. retry_quarantined: try every quarantined volume again. lease_s: seconds of silence after which a run
    loses the store. gates: limits of the checks before publication.
    """

    archive: str
    store: str
    labels: str | None = None
    no_dicom_labels: tuple[str, ...] = ()
    pattern: str | None = None
    exclude: tuple[str, ...] = ()
    include_masks: bool = False
    inventory: str | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    models: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    model_config: str | None = None
    slices: SliceRecipe = field(default_factory=SliceRecipe)
    previews: int = MIDDLE_SLICES
    aggregations: tuple[Aggregation, ...] = (Aggregation("mean"),)
    index: IndexSettings = field(default_factory=IndexSettings)
    limits: Limits = field(default_factory=Limits)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int | None = None
    gpus_per_actor: float | None = None
    actors: ActorRange | None = None
    expect: Expected = field(default_factory=Expected)
    wait_minutes: float = WAIT_MINUTES
    shard_volumes: int = 64
    replace_models: bool = False
    retry_quarantined: bool = False
    lease_s: float = LEASE_S
    gates: GateLimits = field(default_factory=GateLimits)

    @classmethod
    def of(cls, archive: str, store: str, options: Mapping[str, Any]) -> IndexRequest:
        """A request from the flat options that `IndexKeywords` lists; raises UsageError."""
        if unknown := sorted(options.keys() - IndexKeywords.__annotations__.keys()):
            known = ", ".join(IndexKeywords.__annotations__)
            raise UsageError(f"index has no option '{unknown[0]}'; there are {known}")
        left: dict[str, Any] = {name: _names(value) if name in NAME_LISTS else value for name, value in options.items()}
        left |= {name: os.fspath(value) for name, value in left.items() if isinstance(value, os.PathLike)}

        def take(kind: type) -> Any:
            """An instance of a dataclass, with those of the options that are its fields."""
            return kind(**{name: left.pop(name) for name in [f.name for f in fields(kind)] if name in left})

        slices, index, gates = take(SliceRecipe), take(IndexSettings), take(GateLimits)
        limits = Limits()
        if (gib := left.pop("max_volume_gib", None)) is not None:
            limits = Limits(max_voxels_bytes=int(gib * 2**30))
        aggregations = tuple(parse_aggregation(text) for text in left.pop("aggregations", ("mean",)))
        if (actors := left.get("actors")) is not None:
            left["actors"] = ActorRange.parse(str(actors))
        left["expect"] = Expected.parse(left.pop("expect", ()))
        left |= {"slices": slices, "index": index, "gates": gates, "limits": limits, "aggregations": aggregations}
        return cls(archive, store, **left)

    def __post_init__(self) -> None:
        if self.archive == self.store:
            raise UsageError(f"archive and store are both {self.store}; give the store a place of its own")
        for what, uri in (("archive", self.archive), ("store", self.store), *self.weights.items()):
            refuse_secrets(uri, what)
        labels_of_tags(self.no_dicom_labels)
        parse_slice_plan(self.slices.slices)
        if self.slices.ct_window not in CT_WINDOWS:
            raise UsageError(f"CT window '{self.slices.ct_window}' is unknown; there are {', '.join(CT_WINDOWS)}")
        self._check_choices()
        aggregations = tuple(a.name for a in self.aggregations)
        for what, values, fewest in (("model", self.models, 0), ("aggregation", aggregations, 1)):
            if len(values) < fewest or len(set(values)) != len(values):
                raise UsageError(
                    f"expected one or more distinct values for --{what}, found {', '.join(values) or 'none'}"
                )
        if self.models and (stray := set(self.weights) - set(self.models)):
            raise UsageError(
                f"--weights names {', '.join(sorted(stray))}, but the models of this run are {', '.join(self.models)}"
            )
        self._check_numbers()

    def _check_choices(self) -> None:
        chosen: Sequence[tuple[str, str, Sequence[str]]] = (
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("precision", self.precision, ("auto", "fp32", "bf16")),
            ("crop", self.slices.crop, ("foreground", "none")),
        )
        for option, value, known in chosen:
            if value not in known:
                raise UsageError(f"--{option} is '{value}', expected one of {', '.join(known)}")

    def _check_numbers(self) -> None:
        positive = {"batch-size": self.batch_size, "gpus-per-actor": self.gpus_per_actor}
        for option, value in {**positive, "shard-volumes": self.shard_volumes}.items():
            if value is not None and value <= 0:
                raise UsageError(f"--{option} is {value}, expected more than 0")
        if self.gpus_per_actor is not None and self.gpus_per_actor > 1:
            raise UsageError(f"--gpus-per-actor is {self.gpus_per_actor}, expected a share of one GPU: at most 1")
        if not 0 <= self.previews <= PREVIEWS_MAX:
            raise UsageError(f"--previews is {self.previews}, expected 0 to {PREVIEWS_MAX} pictures per volume")
        if not 0 <= self.wait_minutes < math.inf:
            raise UsageError(f"--wait-minutes is {self.wait_minutes}, expected 0 or more")

    def open_store(self) -> Location:
        """The store; from now on, all places of the run are opened with the storage options."""
        places = (self.archive, self.labels, self.inventory, self.model_config, *self.weights.values())
        others = [place for place in places if place]
        use_options(self.storage_options, stores=[self.store], others=others)
        return Location(self.store)

    @property
    def hidden_labels(self) -> frozenset[str]:
        """The names of the labels that are not taken from tags."""
        return labels_of_tags(self.no_dicom_labels)

    @property
    def volume_limits(self) -> Limits:
        """`limits`, and whether volumes that look like masks are quarantined."""
        return replace(self.limits, refuse_masks=not self.include_masks)


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


class IndexKeywords(TypedDict, total=False):
    """The options of an index run, as keywords.

    `IndexRequest`, `SliceRecipe`, `IndexSettings` and `GateLimits` explain them and hold their defaults.
    aggregations: names such as `mean` or `gaussian:0.5,0.2`. max_volume_gib: the largest volume that is decoded.
    actors: `N` or `MIN:MAX`. expect: `gpu=N`, `cpu=N`.
    """

    labels: str | None
    no_dicom_labels: str | Sequence[str]
    pattern: str | None
    exclude: str | Sequence[str]
    include_masks: bool
    inventory: str | None
    storage_options: Mapping[str, Any]
    max_volume_gib: float
    models: str | Sequence[str]
    weights: Mapping[str, str]
    model_config: str | None
    replace_models: bool
    planes: str | Sequence[str]
    slices: str
    seed: int
    ct_window: str
    crop: str
    previews: int
    aggregations: str | Sequence[str]
    hnsw_m: int
    hnsw_ef_construction: int
    hnsw_ef_search: int
    hnsw_codes: str
    lsh_bits: int
    shard_rows: int
    device: str
    precision: str
    batch_size: int
    actors: int | str
    expect: str | Sequence[str]
    wait_minutes: float
    gpus_per_actor: float
    shard_volumes: int
    retry_quarantined: bool
    lease_s: float
    min_recall: float
    max_gone: float
    max_quarantined: float
    min_canary: float
    min_labelled: float


def request_facts(request: IndexRequest) -> dict[str, Any]:
    """The request, for the run report."""
    return {
        "archive": request.archive,
        "store": request.store,
        "labels": redacted(request.labels) if request.labels else None,
        "no_dicom_labels": list(request.no_dicom_labels),
        "pattern": request.pattern,
        "exclude": list(request.exclude),
        "include_masks": request.include_masks,
        "inventory": redacted(request.inventory) if request.inventory else None,
        "slices": vars(request.slices),
        "aggregations": [aggregation.name for aggregation in request.aggregations],
        "index": request.index.to_json(),
        "precision": request.precision,
        "batch_size": request.batch_size,
        "shard_volumes": request.shard_volumes,
        "gates": asdict(request.gates),
    }
