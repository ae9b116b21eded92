"""`medret search`: the volumes of a store that look most like a query."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.cli.shared import add_command, add_storage_options, parse_weights, per_store
from medret.errors import UsageError
from medret.search.options import DEFAULT_K, LATE, SearchOptions
from medret.search.query_files import is_there
from medret.storage import redacted
from medret.visible import say

if TYPE_CHECKING:
    from medret.search import Hit

DEFAULTS = SearchOptions()

DESCRIPTION = """\
Search the live snapshot of STORE for the volumes most similar to each QUERY: a NIfTI file, a folder with a DICOM
series, FOLDER/SeriesInstanceUID, a zip or tar of a series, a URI of any of these, the id of a volume that is in the
snapshot (its stored vectors are used), or a .npy file with a vector or slice vectors; or words (--text), if the
model puts words beside images. A file is read, sliced and
embedded exactly as the snapshot's recipe says. Every hit says which of its slices matched which of the query's, and
the contiguous range that matches best.

modes:
  volume   one vector per volume; score: their cosine
  vote     each slice of the query finds its nearest slices; score: the volume's share of them
  max      the same; score: the best cosine among them
  sum      the same; score: the sum of their cosines, divided by the number of slices looked for
  late     candidates from both indices, then late interaction (MaxSim) over all their slices; score: the mean, over
           the query's slices, of the best cosine in the volume. With --index exact every volume is a candidate
  slice    each hit is one slice
"""

EPILOG = """\
examples:
  medret search ~/ct-store case.nii.gz -k 5
  medret search s3://hospital/medret case.nii.gz --index exact --json
  medret search ~/ct-store patient7/ct.nii.gz --exclude subject --html hits.html
  medret search ~/ct-store case.nii.gz --mode late --where "modality = 'CT' and organ in ('liver', 'spleen')"
  medret search ~/ct-store case.nii.gz --slices 40:58                  only these axial slices; which are like them?
  medret search ~/ct-store case.nii.gz --plane coronal --slices=-20mm:35mm
  medret search ~/ct-store case.nii.gz --mask lesion.nii.gz            the box around a mask on the same grid
  medret search ~/ct-store case.nii.gz --model dinov2=0.7 --model dreamsim=0.3
  medret search ~/ct-store case.nii.gz --also ~/mr-store --also s3://hospital/medret     as if it were one store
  medret search ~/ct-store export/patient7/series3                     a folder with a DICOM series
  medret search ~/ct-store --text "CT of the abdomen, liver with cysts" --model medsiglip
  medret search ~/ct-store one.nii.gz two.nii.gz three.nii.gz --json   {"results": [...]}, in one pass

filters: COLUMN = 'text', <>, <, <=, >, >=, in ('a', 'b'), like 'P0%', is null, joined by and, or, not and parentheses.
A column is a label or a column of the label table; put a name with spaces in double quotes. A number
without quotes is compared as a number.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "search", run, "find similar volumes", DESCRIPTION, EPILOG)
    parser.add_argument("store", metavar="STORE", help="folder or URI of a store")
    parser.add_argument(
        "query", metavar="QUERY", nargs="*", help="NIfTI file, DICOM folder or URI, volume id, or .npy of vectors"
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="WORDS",
        help="a query in words, for models that put words beside images (`medret models`; repeatable)",
    )
    parser.add_argument("-k", type=int, default=DEFAULT_K, metavar="K", help="how many hits (default %(default)s)")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="STORE2",
        help="search this store too, as if both were one; its vectors must have the same recipe (repeatable)",
    )
    _add_index_options(parser)
    _add_query_options(parser)
    parser.add_argument(
        "--archive",
        action="append",
        default=[],
        metavar="[STORE2=]URI",
        help="where the volumes of STORE lie, or those of another that is searched, for --html, --box and --mask "
        "(default: where the store says, if that is on this machine's disks or on the store's own server; repeatable)",
    )
    add_storage_options(parser)
    parser.add_argument(
        "--snapshot",
        action="append",
        default=[],
        metavar="[STORE2=]ID",
        help="an older snapshot of STORE, or of another that is searched (default: the live one; repeatable)",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with the query's slices beside the hits'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def _add_index_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to search")
    several = "several are fused (default: the snapshot's first)"
    group.add_argument("--model", action="append", default=[], metavar="NAME[=WEIGHT]", help=several)
    group.add_argument("--aggregation", action="append", default=[], metavar="NAME[=WEIGHT]", help=several)
    group.add_argument(
        "--fuse",
        metavar="HOW",
        help=f"concat: the weighted sum of the members' scores; rrf: reciprocal ranks (default {DEFAULTS.fuse})",
    )
    group.add_argument("--index", choices=("hnsw", "lsh", "exact"), help=f"(default {DEFAULTS.index})")
    group.add_argument(
        "--mode",
        metavar="MODE",
        help=f"one of those above (default {DEFAULTS.used_mode}; {LATE} for a part of a query)",
    )
    group.add_argument("--where", metavar="FILTER", help="only volumes whose labels match, see below")
    group.add_argument(
        "--exclude",
        metavar="WHAT",
        help="none; self: exclude the query's own volume; subject, or any label column: exclude all volumes with the "
        f"query's value there (default {DEFAULTS.exclude})",
    )
    group.add_argument(
        "--per-slice",
        type=int,
        metavar="N",
        help=f"nearest slices that each slice of the query finds (default {DEFAULTS.per_slice})",
    )
    group.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help=f"volumes that late and a fusion compare in full (default {DEFAULTS.candidates})",
    )
    group.add_argument(
        "--expand",
        type=int,
        metavar="N",
        help="volume: average the query with the N volumes nearest to it, and let the mean decide the order; scores "
        f"are still the query's own cosines (default {DEFAULTS.expand}; 2 is a good choice)",
    )
    group.add_argument("--symmetric", action="store_true", default=None, help="late: the mean of both directions")


def _add_query_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the query")
    group.add_argument(
        "--slices",
        metavar="FIRST:LAST",
        help="only these slices, both inclusive: slice indices along the plane's axis (0: the most inferior, "
        "posterior or left), or 40mm:58mm in scanner coordinates",
    )
    group.add_argument("--plane", metavar="PLANE", help="the plane of --slices (default: the first that was embedded)")
    group.add_argument("--box", metavar="X0:X1,Y0:Y1,Z0:Z1", help="only this box: first and last voxel, RAS+ order")
    group.add_argument("--mask", metavar="FILE", help="only the box around a NIfTI mask on the query's grid")
    group.add_argument("--query-slices", metavar="PLAN", help="slice plan over the query's slices, such as uniform:8")
    group.add_argument(
        "--query-weights",
        metavar="WEIGHTS",
        help="weights of the query's slices in vote, sum and late: uniform, or gaussian:CENTRE,SIGMA (default uniform)",
    )
    group.add_argument("--modality", metavar="CT|MRI|...", help="modality of the query, if its voxels do not show it")
    group.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a model's weights, if they are elsewhere on this machine",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.search import Snapshots, Words, open_snapshot, open_snapshots

    queries = [*arguments.query, *map(Words, arguments.text)]
    if not queries:
        raise UsageError("there is no query: give a file, a folder, a volume id, or --text WORDS")
    options = _options(arguments)
    stores = [arguments.store, *arguments.also]
    archives = per_store(arguments.archive, stores, "--archive")
    ids = per_store(arguments.snapshot, stores, "--snapshot")
    opened = [
        open_snapshot(each, ids.get(each), archive=archives.get(each), storage_options=arguments.storage_options)
        for each in stores
    ]
    snapshot: Snapshots = open_snapshots(opened) if len(opened) > 1 else opened[0]
    _refuse_instances(arguments.query)
    answers = snapshot.search_many(queries, arguments.k, **vars(options))
    results = list(zip([*arguments.query, *arguments.text], answers, strict=True))
    if arguments.html:
        from medret.cli.shared import write_text

        page = snapshot.pictures.page(
            [
                (label, snapshot.uri_of_query(query), hits)
                for query, (label, hits) in zip(queries, results, strict=True)
            ],
            score=options.score_words(of_words=not arguments.query),
        )
        write_text(arguments.html, page)
    if arguments.json:
        documents = [_document(query, hits) for query, hits in results]
        say(json.dumps(documents[0] if len(documents) == 1 else {"results": documents}))
    else:
        from medret.cli.tables import print_hits

        for query, hits in results:
            score = options.score_words(of_words=query in arguments.text)
            print_hits(query, hits, score, with_store=bool(arguments.also))
        if arguments.html:
            say(f"page: {arguments.html.resolve()}")
    return 0


def _refuse_instances(queries: Sequence[str]) -> None:
    """Raise UsageError if several of the queries are files of one DICOM series: each would be a query of its own."""
    by_series: dict[str, list[Path]] = {}
    for path in map(Path, queries if len(queries) > 1 else ()):
        if not path.name.endswith((".nii", ".nii.gz", ".npy")) and is_there(path) and path.is_file():
            from medret.archive.looks import head_at  # loads pandas, which a search does without

            head = head_at(str(path))
            by_series.setdefault(head.series_uid if head else "", []).append(path)
    by_series.pop("", None)
    for instances in by_series.values():
        if len(instances) > 1:
            raise UsageError(
                f"{len(instances)} of the queries, such as {instances[0]}, are instances of one DICOM series, and each "
                f"would be a query of its own: give their folder, {instances[0].parent}"
            )


def _document(query: str, hits: Sequence[Hit]) -> dict[str, Any]:
    return {"query": redacted(query), "hits": [hit.to_json() for hit in hits]}


def _options(arguments: argparse.Namespace) -> SearchOptions:
    weights = parse_weights(arguments.weights)
    values: dict[str, Any] = {
        **{field.name: getattr(arguments, field.name, None) for field in fields(SearchOptions)},
        "model": _weighted("--model", arguments.model) or None,
        "aggregation": _weighted("--aggregation", arguments.aggregation) or None,
        "weights": weights,
    }
    return SearchOptions(**{name: value for name, value in values.items() if value is not None})


def _weighted(option: str, texts: Sequence[str]) -> dict[str, float]:
    """`NAME` or `NAME=WEIGHT` options; raises UsageError."""
    weights: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            weight = float(value)
        except ValueError as error:
            raise UsageError(f"{option} '{text}' is not of the form NAME or NAME=WEIGHT, such as dinov2=0.7") from error
        if not name or name in weights:
            raise UsageError(f"{option} '{text}' names {'nothing' if not name else f'{name} a second time'}")
        weights[name] = weight
    return weights
