"""`medret index`: bring a store up to date with an archive and publish a snapshot."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from medret.cli.shared import add_command, parse_weights, positive_float, positive_int, share
from medret.errors import UsageError
from medret.visible import say

if TYPE_CHECKING:
    from medret.pipeline.request import IndexRequest
    from medret.pipeline.result import IndexOutcome

DESCRIPTION = """\
Read every NIfTI volume below ARCHIVE, embed slices of it with pretrained models, aggregate them to volume
vectors, build HNSW, LSH and exact indices over both, and publish all of it in STORE as one snapshot.

ARCHIVE and STORE are folders or fsspec URIs (s3://bucket/prefix). A file that cannot be used is put into
quarantine with a code and a reason; it never stops the run, and nothing is skipped silently.
"""

EPILOG = """\
examples:
  medret index ~/ct-archive ~/ct-store
      the default model (weights ship with it, no download), 16 slices a volume, mean vectors

  medret index s3://hospital/nifti s3://hospital/medret --labels labels.csv \\
      --model dinov2 --model dreamsim --slices uniform:20 --aggregation mean --aggregation gaussian:0.5,0.2
      two models and two aggregations over one pass of the bytes; labels come back with every hit

  medret index archive store --model dinov2 --weights dinov2=/models/dinov2_vitb14_pretrain.pth
      weights from a file instead of a hub (`medret models` lists the names and what file each wants)

slice plans:    all | every:N | uniform:N | random:N (seeded by volume and --seed)
aggregations:   mean | max | gaussian:CENTRE,SIGMA (relative position, 0..1) | uniform:N | random:N[,SEED]
exit codes:     0 published, or nothing to do; 4 published, with volumes in quarantine; 3 refused to publish;
                2 wrong usage; 5 another run holds the store; 1 failed
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "index", run, "embed an archive and publish a snapshot", DESCRIPTION, EPILOG)
    add_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    group.add_argument("--quiet", action="store_true", help="no progress")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Everything that a run is asked with: what `medret plan` takes as well."""
    parser.add_argument("archive", metavar="ARCHIVE", help="folder or URI with .nii and .nii.gz files below it")
    parser.add_argument("store", metavar="STORE", help="folder or URI to publish in; made when absent")

    group = parser.add_argument_group("what to index")
    group.add_argument(
        "--labels",
        metavar="TABLE",
        help="CSV or Parquet: path or volume_id, subject, modality, "
        "body_region, organ; further columns are kept for filters (default: a dataset.json of MSD or nnU-Net)",
    )
    group.add_argument("--glob", metavar="PATTERN", help="only volumes whose path below ARCHIVE matches")
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="no volumes whose path below ARCHIVE matches; repeatable",
    )
    group.add_argument(
        "--include-masks", action="store_true", help="index masks too, which are told by their names and contents"
    )
    group.add_argument(
        "--max-volume-gib",
        type=positive_float,
        metavar="GIB",
        help="larger volumes are quarantined, judged by their header before memory is taken (default 4)",
    )

    group = parser.add_argument_group("slices")
    group.add_argument("--slices", default="uniform:16", metavar="PLAN", help="slice plan (default %(default)s)")
    group.add_argument(
        "--plane", action="append", choices=("axial", "coronal", "sagittal"), help="repeatable (default axial)"
    )
    group.add_argument(
        "--window", default="soft_tissue", metavar="PRESET", help="HU window of CT (default %(default)s)"
    )
    group.add_argument("--crop", default="foreground", choices=("foreground", "none"), help="(default %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of random slice plans (default %(default)s)")

    group = parser.add_argument_group("models")
    group.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="repeatable; see `medret models` (default: those of the store; efficientnet_lite0 for a new one)",
    )
    group.add_argument(
        "--replace-models", action="store_true", help="let go of the store's models that no --model names"
    )
    group.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="weights of a model: a path, a URI, or `random` for trials of speed",
    )
    group.add_argument("--aggregation", action="append", metavar="NAME", help="repeatable (default mean)")
    group.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="(default %(default)s: a GPU where the cluster has one)",
    )
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        help="(default %(default)s: bf16 where the hardware has it)",
    )

    group = parser.add_argument_group("index")
    group.add_argument("--hnsw-m", type=positive_int, metavar="M", help="links a node (default 32)")
    group.add_argument("--ef-construction", type=positive_int, metavar="N", help="(default 200)")
    group.add_argument("--ef-search", type=positive_int, metavar="N", help="(default 64)")
    group.add_argument("--lsh-bits", type=positive_int, metavar="BITS", help="(default two a dimension)")
    group.add_argument("--shard-rows", type=positive_int, metavar="ROWS", help="vectors an index shard")

    group = parser.add_argument_group("cluster")
    group.add_argument("--batch-size", type=positive_int, metavar="SLICES", help="slices a model call")
    group.add_argument("--actors", type=positive_int, metavar="N", help="embedding actors a model")
    group.add_argument("--gpus-per-actor", type=positive_float, metavar="SHARE", help="share of a GPU, such as 0.5")
    group.add_argument(
        "--shard-volumes",
        type=positive_int,
        default=64,
        metavar="N",
        help="volumes an embedding shard, and the most that a killed run does again (default %(default)s)",
    )

    group = parser.add_argument_group("running again and again")
    group.add_argument("--retry-quarantined", action="store_true", help="try every volume in quarantine again")
    group.add_argument(
        "--lease-seconds",
        type=positive_float,
        default=600.0,
        metavar="S",
        help="a run that was not heard of for so long has lost the store (default %(default)g)",
    )
    group.add_argument(
        "--min-recall", type=share, default=0.9, metavar="R", help="recall@10 of each index (default %(default)g)"
    )
    group.add_argument(
        "--max-gone",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="of the live volumes, that may be lost: gone, or newly in quarantine; fewer than five always may "
        "(default %(default)g)",
    )
    group.add_argument(
        "--max-quarantined", type=share, default=0.5, metavar="SHARE", help="of the volumes (default %(default)g)"
    )
    group.add_argument(
        "--min-canary",
        type=share,
        default=0.999,
        metavar="COSINE",
        help="of unchanged volumes, embedded again, to their stored vectors (default %(default)g)",
    )
    group.add_argument(
        "--min-labelled",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="of the volumes that had labels and stay, those that must have some (default %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.pipeline.stop import Stop

    stop = Stop()
    with stop.listening():  # before anything large is imported
        from medret.cli.tables import print_index_summary
        from medret.pipeline.progress import Reporter
        from medret.pipeline.run import run_index

        reporter = Reporter(quiet=arguments.quiet or arguments.json, warns=not arguments.quiet)
        outcome = run_index(request_of(arguments), reporter, stop)
    if arguments.json:
        say(json.dumps(to_json(outcome)))
    elif not arguments.quiet:
        print_index_summary(outcome, arguments.store)
    return 4 if outcome.published and outcome.counts.quarantined else 0


def request_of(arguments: argparse.Namespace) -> IndexRequest:
    """Options to a request; raises UsageError."""
    from medret.index import IndexSettings
    from medret.pipeline.gates import GateLimits
    from medret.pipeline.request import IndexRequest, parse_aggregations
    from medret.recipe import SliceRecipe
    from medret.volume import Limits

    settings = {
        "hnsw_m": arguments.hnsw_m,
        "hnsw_ef_construction": arguments.ef_construction,
        "hnsw_ef_search": arguments.ef_search,
        "lsh_bits": arguments.lsh_bits,
        "shard_rows": arguments.shard_rows,
    }
    limits: dict[str, Any] = (
        {"max_voxels_bytes": int(arguments.max_volume_gib * 2**30)} if arguments.max_volume_gib else {}
    )
    if arguments.archive == arguments.store:
        raise UsageError(f"ARCHIVE and STORE are both {arguments.store}; give the store a place of its own")
    return IndexRequest(
        archive=arguments.archive,
        store=arguments.store,
        labels=arguments.labels,
        pattern=arguments.glob,
        exclude=tuple(arguments.exclude),
        include_masks=arguments.include_masks,
        models=tuple(arguments.model or ()),
        weights=parse_weights(arguments.weights),
        slices=SliceRecipe(
            planes=tuple(arguments.plane or ["axial"]),
            slices=arguments.slices,
            seed=arguments.seed,
            ct_window=arguments.window,
            crop=arguments.crop,
        ),
        aggregations=parse_aggregations(arguments.aggregation or ["mean"]),
        index=IndexSettings(**{name: value for name, value in settings.items() if value is not None}),
        limits=Limits(**limits),
        device=arguments.device,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        gpus_per_actor=arguments.gpus_per_actor,
        actors=arguments.actors,
        shard_volumes=arguments.shard_volumes,
        replace_models=arguments.replace_models,
        retry_quarantined=arguments.retry_quarantined,
        lease_s=arguments.lease_seconds,
        gates=GateLimits(
            min_recall=arguments.min_recall,
            max_gone=arguments.max_gone,
            max_quarantined=arguments.max_quarantined,
            min_canary=arguments.min_canary,
            min_labelled=arguments.min_labelled,
        ),
    )


def to_json(outcome: IndexOutcome) -> dict[str, Any]:
    """The document that `--json` prints."""
    return {
        "snapshot": outcome.snapshot,
        "published": outcome.published,
        "counts": asdict(outcome.counts),
        "touched": outcome.touched,
        "resumed": outcome.resumed,
        "returned": outcome.returned,
        "lost": vars(outcome.lost),
        "stale": [{key: row[key] for key in ("volume_id", "code", "reason")} for row in outcome.stale.to_pylist()],
        "slices": outcome.slices,
        "seconds": round(outcome.seconds, 3),
        "slices_per_second": round(outcome.slices_per_second, 2),
        "quarantine": [
            {key: row[key] for key in ("volume_id", "code", "reason")} for row in outcome.quarantine.to_pylist()
        ],
        "skipped": dict(outcome.skipped),
        "labels": dict(outcome.labels),
        "models": [
            {
                "name": entry.recipe["model"]["name"],
                "recipe": entry.recipe["digest"],
                "weights": entry.weights_source,
                "random_weights": entry.random_weights,
                "precision": entry.recipe["model"]["precision"],
            }
            for entry in outcome.recipes
        ],
        "recall_at_10": dict(outcome.recall),
        "report": outcome.report,
    }
