"""`medret demo`: make a small archive, index it, search it with volumes that are not in it, and show the hits."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.cli.shared import add_command, positive_int
from medret.errors import MedretError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from medret.search import Hit

DESCRIPTION = """\
Make a small corpus of synthetic phantoms, index it with the default model's real ImageNet weights, search it
with phantoms that are not in it, and write a page that shows the hits.
"""
MODEL = "efficientnet_lite0"  # its weights come with a package, so nothing is downloaded
HITS_MAX = 5

Row = dict[str, str]  # of a table of labels


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "demo", run, "make a small corpus, index it and search it", DESCRIPTION)
    folder = "folder for all files of the demo (default ./demo)"
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo"), metavar="FOLDER", help=folder)
    number = "phantoms of each kind (default %(default)s)"
    parser.add_argument("--volumes-per-kind", type=positive_int, default=5, metavar="N", help=number)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    try:
        run_demo(arguments.folder.resolve(), arguments.volumes_per_kind, quiet=arguments.log_json)
    except OSError as error:
        raise UsageError(
            f"{arguments.folder}: the demo cannot be written there: {error}; name another folder"
        ) from error
    return 0


def run_demo(folder: Path, volumes_per_kind: int, *, quiet: bool = False) -> None:
    """Make a small archive below `folder` (absolute), index it, search it and show the hits.

    quiet: the run sends its progress to the log.
    """
    from medret.demo.phantoms import KINDS, write_corpus
    from medret.pipeline.request import IndexRequest
    from medret.pipeline.result import Reporter
    from medret.pipeline.run import run_index
    from medret.search import open_snapshot
    from medret.terminal import Terminal

    console = Terminal()
    archive, store = folder / "archive", folder / "store"
    console.print(
        f"[bold]1. Making {len(KINDS) * volumes_per_kind} synthetic volumes[/] of {len(KINDS)} kinds", markup=True
    )
    labels = write_corpus(archive, volumes_per_kind=volumes_per_kind, seed=0)
    _refuse_other_files(archive, _rows(labels))
    queries = _rows(write_corpus(folder / "queries", volumes_per_kind=1, seed=1))

    console.print("[bold]2. Indexing them[/], as this command does:", markup=True)
    console.print(f"   medret index {archive} {store} --labels {labels} --model {MODEL}", soft_wrap=True)
    outcome = run_index(IndexRequest(str(archive), str(store), str(labels), models=(MODEL,)), Reporter(quiet=quiet))
    if outcome.counts.quarantined:
        raise MedretError(
            f"{outcome.counts.quarantined} volumes of the demo went into quarantine: {outcome.quarantine}"
        )
    console.print(
        f"   {outcome.counts.embedded} volumes and {outcome.slices} slices in {outcome.seconds:.1f} s; "
        f"snapshot {outcome.snapshot}",
        soft_wrap=True,
    )

    console.print("[bold]3. Searching it[/] with one new subject of each kind", markup=True)
    snapshot = open_snapshot(str(store))
    paths = [folder / "queries" / query["path"] for query in queries]
    answers = snapshot.search_many(paths, k=min(volumes_per_kind, HITS_MAX))
    console.print(_table(queries, answers))
    same = [hit.labels["organ"] == query["organ"] for query, hits in zip(queries, answers, strict=True) for hit in hits]
    console.print(
        f"{sum(same)} of the {len(same)} hits show the organ of their query; a random choice would "
        f"reach 1 in {len(KINDS)}. These are synthetic phantoms, easy to tell apart: they show that the parts work "
        "together, not how well patients' volumes are retrieved."
    )
    page = folder / "page.html"
    titles = [f"{query['organ']} ({query['modality']}), not in the archive" for query in queries]
    results = list(zip(titles, map(str, paths), answers, strict=True))
    page.write_text(snapshot.pictures.page(results, title="medret demo"), encoding="utf-8")
    console.print("[bold]4. Open this page in a browser:[/]", markup=True)
    console.print(f"   {page}", soft_wrap=True)


def _refuse_other_files(archive: Path, labels: Sequence[Row]) -> None:
    """Refuse an archive with other files: they would be indexed too, and the demo must not delete them."""
    from medret.demo.phantoms import KINDS

    known = {archive / row["path"] for row in labels}
    others = [path for path in archive.rglob("*") if path.is_file() and path not in known]
    if others:
        made = [path for path in others if path.parent.name in KINDS and path.name.startswith(f"{path.parent.name}_")]
        whose = "of a larger demo" if made == others else "that this demo did not make"
        raise UsageError(
            f"{archive} holds {len(others)} files {whose}, such as {others[0].name}: name another folder, or remove it"
        )


def _rows(labels: Path) -> list[Row]:
    with labels.open(newline="") as file:
        return list(csv.DictReader(file))


def _table(queries: Sequence[Row], answers: Sequence[Sequence[Hit]]) -> Table:
    """One row per query, one column per rank: cosine and organ, in red if it is not the query's."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # narrow enough for 80 columns
    table.add_column("query", style="bold")
    for rank in range(1, max(map(len, answers)) + 1):
        table.add_column(f"hit {rank}", no_wrap=True)
    for query, hits in zip(queries, answers, strict=True):
        organs = [str(hit.labels["organ"]) for hit in hits]
        styles = ["" if organ == query["organ"] else "red" for organ in organs]
        cells = [f"{hit.score:.2f} {organ}" for hit, organ in zip(hits, organs, strict=True)]
        table.add_row(query["organ"], *map(Text, cells, styles))
    return table
