"""The demonstration: make an archive, index it, search it with volumes that are not in it, and show the hits."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from medret.demo.phantoms import KINDS, write_corpus
from medret.errors import MedretError, UsageError
from medret.pipeline.request import IndexRequest
from medret.pipeline.result import Reporter
from medret.pipeline.run import run_index
from medret.search import Hit, open_snapshot
from medret.search.snapshot import results_page
from medret.terminal import Terminal

MODEL = "efficientnet_lite0"  # its weights come with a package, so nothing is downloaded


@dataclass(frozen=True)
class Query:
    """One search of the demonstration. path: a volume that is not in the archive."""

    organ: str
    modality: str
    path: Path
    hits: list[Hit]


def run_demo(folder: Path, *, volumes_per_kind: int = 5, k: int = 5) -> int:
    """Make a small archive below `folder`, index it, search it and show the hits; returns an exit code."""
    console = Terminal()
    folder = folder.resolve()
    archive, store = folder / "archive", folder / "store"
    console.print(
        f"[bold]1. Making {len(KINDS) * volumes_per_kind} synthetic volumes[/] of {len(KINDS)} kinds", markup=True
    )
    labels = write_corpus(archive, volumes_per_kind=volumes_per_kind, seed=0)
    _refuse_other_files(archive, labels)
    queries = write_corpus(folder / "queries", volumes_per_kind=1, seed=1)

    console.print("[bold]2. Indexing them[/], as this command does:", markup=True)
    console.print(f"   medret index {archive} {store} --labels {labels} --model {MODEL}", soft_wrap=True)
    outcome = run_index(IndexRequest(str(archive), str(store), str(labels), models=(MODEL,)), Reporter())
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
    new_volumes = _read_queries(queries)
    answers = snapshot.search_many([path for _, _, path in new_volumes], k=k)
    searched = [Query(*query, hits) for query, hits in zip(new_volumes, answers, strict=True)]
    console.print(_table(searched))
    same = [hit.labels["organ"] == query.organ for query in searched for hit in query.hits]
    console.print(
        f"{sum(same)} of the {len(same)} hits show the organ of their query; a random choice would "
        f"reach 1 in {len(KINDS)}. These are synthetic phantoms, easy to tell apart: they show that the parts work "
        "together, not how well patients' volumes are retrieved."
    )
    page = folder / "page.html"
    results = [
        (f"{query.organ} ({query.modality}), not in the archive", str(query.path), query.hits) for query in searched
    ]
    page.write_text(results_page(snapshot, results, title="medret demo"), encoding="utf-8")
    console.print("[bold]4. Open this page in a browser:[/]", markup=True)
    console.print(f"   {page}", soft_wrap=True)
    return 0


def _refuse_other_files(archive: Path, labels: Path) -> None:
    """Refuse an archive with other files: they would be indexed too, and the demo must not delete them."""
    known = {archive / row["path"] for row in _read_table(labels)}
    others = [path for path in archive.rglob("*") if path.is_file() and path not in known]
    if others:
        raise UsageError(
            f"{archive} holds {len(others)} files that this demo did not make, such as {others[0].name}: "
            "name another folder, or remove it"
        )


def _read_queries(labels: Path) -> list[tuple[str, str, Path]]:
    """Organ, modality and path of every query."""
    folder = labels.with_name("queries")
    return [(row["organ"], row["modality"], folder / row["path"]) for row in _read_table(labels)]


def _read_table(labels: Path) -> list[dict[str, str]]:
    with labels.open(newline="") as file:
        return list(csv.DictReader(file))


def _table(queries: Sequence[Query]) -> Table:
    """One row per query, one column per rank: cosine and organ, in red if it is not the query's."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # narrow enough for 80 columns
    table.add_column("query", style="bold")
    for rank in range(1, max(len(query.hits) for query in queries) + 1):
        table.add_column(f"hit {rank}", no_wrap=True)
    for query in queries:
        cells = []
        for hit in query.hits:
            text = f"{hit.score:.2f} {hit.labels['organ']}"
            cells.append(Text(text, style="" if hit.labels["organ"] == query.organ else "red"))
        table.add_row(query.organ, *cells)
    return table
