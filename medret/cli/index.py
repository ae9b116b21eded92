"""`medret index`: bring a store up to date with an archive. `medret plan`: say what that would do."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from medret.cli.shared import add_choice, add_command, parse_weights, positive_float, positive_int, share
from medret.visible import say

if TYPE_CHECKING:
    from medret.pipeline.request import IndexRequest
    from medret.pipeline.result import IndexOutcome

PLAN = """\
Say what `medret index` with the same options would do: how many volumes are new, changed, gone or in quarantine,
how many bytes it would read, how many slices it would embed, and about how long that takes. It changes nothing
and loads no model.

`touched` volumes have their old size but another time or etag. A run compares their contents and embeds only those
that differ. The same holds for new volumes with the size of a known one: they may be copies.

If `medret index` would refuse, for example because the archive has lost many volumes, this says so and why.
"""

INDEX = """\
Read every NIfTI file and DICOM series below ARCHIVE, embed slices of it with pretrained models, aggregate the slice
vectors to volume vectors, build HNSW, LSH and exact indices over both, and publish everything in STORE as one
snapshot.

ARCHIVE and STORE are folders or fsspec URIs (s3://bucket/prefix). A file that cannot be used goes into quarantine
with a code and a reason. It never stops the run, and no file is left out silently.
"""

EXAMPLES = """\
examples:
  medret index ~/ct-archive ~/ct-store
      the default model (its weights are installed with medret), 16 slices per volume, mean vectors

  medret index s3://hospital/nifti s3://hospital/medret --labels labels.csv \\
      --model dinov2 --model dreamsim --slices uniform:20 --aggregation mean --aggregation gaussian:0.5,0.2
      two models and two aggregations, reading each volume once; every hit comes with its labels

  medret index archive store --model dinov2 --weights dinov2=/models/dinov2_vitb14_pretrain.pth
      weights from a file instead of a hub (`medret models` lists the names and the file that each needs)

slice plans:    all | every:N | every:Nmm | uniform:N | random:N (random draws depend on the volume and --seed)
aggregations:   mean | max | gaussian:CENTRE,SIGMA (relative position, 0..1) | uniform:N | random:N[,SEED]
exit codes:     0 published, or nothing to do; 4 published, with volumes in quarantine; 3 refused to publish;
                2 wrong usage; 5 another run holds the store; 1 failed
"""


def add_parser(commands: Any) -> None:
    """Add both commands to the parser."""
    plan = add_command(commands, "plan", run_plan, "say what an index run would do", PLAN)
    _add_options(plan)
    plan.add_argument("--json", action="store_true", help="print one JSON document on standard output")

    index = add_command(commands, "index", run_index, "embed an archive and publish a snapshot", INDEX, EXAMPLES)
    _add_options(index)
    group = index.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    group.add_argument("--quiet", action="store_true", help="show no progress and no summary")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run. Their destinations are the names of `medret.pipeline.request.IndexKeywords`."""
    parser.add_argument(
        "archive", metavar="ARCHIVE", help="folder or URI with NIfTI files (.nii, .nii.gz) and DICOM series below it"
    )
    parser.add_argument("store", metavar="STORE", help="folder or URI to publish in; created if it is missing")
    _add_choices(parser)
    _add_models(parser)
    _add_resources(parser)
    _add_limits(parser)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to index")
    add = group.add_argument
    add_choice(group)
    add(
        "--max-volume-gib",
        type=positive_float,
        metavar="GIB",
        help="put volumes with more decoded voxels than this "
        "into quarantine; checked in the header before memory is taken (default 4)",
    )

    add = parser.add_argument_group("slices").add_argument
    add("--slices", metavar="PLAN", help="which slices are embedded (default uniform:16)")
    add(
        "--plane",
        dest="planes",
        action="append",
        choices=("axial", "coronal", "sagittal"),
        help="plane to slice along; repeatable (default axial)",
    )
    add("--window", dest="ct_window", metavar="PRESET", help="HU window for CT (default soft_tissue)")
    add(
        "--crop",
        choices=("foreground", "none"),
        help="cut volumes to the body, or keep the field of view (default foreground)",
    )
    add("--seed", type=int, help="seed of random slice plans (default 0)")
    add(
        "--previews",
        type=int,
        metavar="N",
        help="most slices of each volume that are stored as small pictures, for pages of hits; 0: none (default 5)",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models").add_argument
    add(
        "--model",
        dest="models",
        action="append",
        metavar="NAME",
        help="model to embed with, see `medret models`; "
        "repeatable (default: the models of the store, or efficientnet_lite0 for a new store)",
    )
    add(
        "--model-config",
        metavar="FILE",
        help="TOML file that says what models are fed, where their own files do not, or medret cannot follow them",
    )
    add("--replace-models", action="store_true", help="drop those models of the store that no --model names")
    add(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="read a model's weights from a path or URI; `random` makes some up, to measure speed",
    )
    add(
        "--aggregation",
        dest="aggregations",
        action="append",
        metavar="NAME",
        help="how slice vectors become a volume vector; repeatable (default mean)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), help="(default auto: a GPU if the cluster has or can get one)")
    add("--precision", choices=("auto", "fp32", "bf16"), help="(default auto: bf16 if the hardware has it)")

    add = parser.add_argument_group("index").add_argument
    add("--hnsw-m", type=positive_int, metavar="M", help="HNSW links per node (default 32)")
    add(
        "--ef-construction",
        dest="hnsw_ef_construction",
        type=positive_int,
        metavar="N",
        help="HNSW candidates while building (default 200)",
    )
    add(
        "--ef-search",
        dest="hnsw_ef_search",
        type=positive_int,
        metavar="N",
        help="HNSW candidates while searching (default 64)",
    )
    add(
        "--hnsw-codes",
        choices=("auto", "fp16", "rabitq2"),
        help="what HNSW nodes hold: float16 vectors; codes of two bits per dimension; or auto: codes, and float16 in "
        "shards whose recall@10 they take below 0.99 (default auto)",
    )
    add("--lsh-bits", type=positive_int, metavar="BITS", help="LSH bits per vector (default two per dimension)")
    add("--shard-rows", type=positive_int, metavar="ROWS", help="most vectors per index shard (default 262144)")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("cluster").add_argument
    add("--batch-size", type=positive_int, metavar="SLICES", help="slices per model call (default: by the device)")
    add("--actors", metavar="N|MIN:MAX", help="embedding actors per model (default: by the cluster and the work)")
    add("--gpus-per-actor", type=positive_float, metavar="SHARE", help="GPUs per actor, such as 0.5")
    add(
        "--expect",
        action="append",
        default=[],
        metavar="KIND=N",
        help="gpu=N or cpu=N: GPUs or CPUs that nodes bring once they are asked for; needed only where Ray's "
        "autoscaler does not say so itself; repeatable",
    )
    add(
        "--wait-minutes",
        type=float,
        metavar="M",
        help="how long to wait for the first node with a GPU or CPU if none is there; 0: do not wait (default 30)",
    )
    add(
        "--shard-volumes",
        type=positive_int,
        metavar="N",
        help="volumes per embedding shard; after a crash, those of unfinished shards are embedded again (default 64)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("running again, and when to refuse to publish").add_argument
    add("--retry-quarantined", action="store_true", help="try every volume in quarantine again")
    add(
        "--lease-seconds",
        dest="lease_s",
        type=positive_float,
        metavar="S",
        help="a run that is silent for this long loses the store to the next run (default 600)",
    )
    add(
        "--max-gone",
        type=share,
        metavar="SHARE",
        help="refuse if more than this share of the live volumes would be "
        "lost: gone, or newly in quarantine; four or fewer never count (default 0.2)",
    )
    add(
        "--max-quarantined",
        type=share,
        metavar="SHARE",
        help="refuse if more than this share of all volumes is in quarantine (default 0.5)",
    )
    add(
        "--min-labelled",
        type=share,
        metavar="SHARE",
        help="refuse if, of the volumes that had labels and stay, fewer than this share still have some (default 0.5)",
    )
    add(
        "--min-canary",
        type=share,
        metavar="COSINE",
        help="refuse if unchanged volumes, embedded again, have a lower cosine to their stored vectors (default 0.999)",
    )
    add(
        "--min-recall",
        type=share,
        metavar="R",
        help="refuse if recall@10 of an index against exact search is lower (default 0.9)",
    )


def run_plan(arguments: argparse.Namespace) -> int:
    """Run `medret plan`."""
    from medret.cli.tables import print_plan
    from medret.pipeline.dry_run import plan_index

    plan = plan_index(_request(arguments))
    if arguments.json:
        say(json.dumps(plan.to_json()))
    else:
        print_plan(plan)
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """Run `medret index`."""
    from medret.pipeline.stop import Stop

    stop = Stop()
    with stop.listening():  # before anything large is imported
        from medret.cli.tables import print_index_summary
        from medret.pipeline import run
        from medret.pipeline.result import Reporter

        quiet = arguments.quiet or arguments.json or arguments.log_json
        reporter = Reporter(quiet=quiet, warns=not (arguments.quiet or arguments.log_json))
        outcome = run.run_index(_request(arguments), reporter, stop)
    if arguments.json:
        say(json.dumps(to_json(outcome)))
    elif not arguments.quiet:
        print_index_summary(outcome, arguments.store)
    return 4 if outcome.published and outcome.counts.quarantined else 0


def _request(arguments: argparse.Namespace) -> IndexRequest:
    """Options to a request; those that are not given keep the defaults of `IndexRequest`. Raises UsageError."""
    from medret.pipeline.request import IndexKeywords, IndexRequest

    options = {name: getattr(arguments, name) for name in IndexKeywords.__annotations__}
    options["weights"] = parse_weights(arguments.weights)
    given = {name: value for name, value in options.items() if value is not None}
    return IndexRequest.of(arguments.archive, arguments.store, given)


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
        "waits_s": dict(outcome.waits_s),
        "slices_per_second": round(outcome.slices_per_second, 2),
        "quarantine": [
            {key: row[key] for key in ("volume_id", "code", "reason")} for row in outcome.quarantine.to_pylist()
        ],
        "skipped": dict(outcome.skipped),
        "labels": dict(outcome.labels),
        "models": [
            {
                "name": entry.model,
                "recipe": entry.digest,
                "weights": entry.weights_source,
                "random_weights": entry.random_weights,
                "precision": entry.precision,
            }
            for entry in outcome.recipes
        ],
        "recall_at_10": dict(outcome.recall),
        "report": outcome.report,
    }
