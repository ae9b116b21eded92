"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict
from rich.table import Column, Table

from medret.storage import redacted
from medret.terminal import Terminal

if TYPE_CHECKING:
    from medret.models import ModelSpec
    from medret.pipeline.dry_run import IndexPlan
    from medret.pipeline.result import IndexOutcome
    from medret.search import Hit

QUARANTINE_SHOWN = 20


def print_index_summary(outcome: IndexOutcome, store: str) -> None:
    """What an index run did."""
    console = Terminal()
    state = "published" if outcome.published else "is up to date"
    table = Table(title=f"snapshot {outcome.snapshot} {state}", title_justify="left", show_header=False)
    for name, value in asdict(outcome.counts).items():
        if value or name in ("listed", "embedded", "quarantined"):
            table.add_row(name, str(value))
    for rule, count in sorted(outcome.skipped.items()):
        table.add_row(f"  skipped: {rule}", str(count))
    table.add_row("labelled", f"{outcome.labels['matched']} ({outcome.labels['unlabelled_volumes']} without)")
    if unmatched := outcome.labels["unmatched_rows"]:
        table.add_row("rows of labels that match no volume", str(unmatched))
    for entry in outcome.recipes:
        note = ": for trials of speed, such vectors mean nothing" if entry.random_weights else ""
        table.add_row(f"model {entry.model}", f"{entry.weights_source}{note}")
    table.add_row("slices", f"{outcome.slices} ({outcome.slices_per_second:.1f} a second)")
    for kind, recall in outcome.recall.items():
        table.add_row(f"recall@10 of {kind}", f"{recall:.3f} of exact search")
    table.add_row("seconds", f"{outcome.seconds:.1f}")
    if outcome.waits_s:
        table.add_row("  of these", ", ".join(f"{name} {value:.1f}" for name, value in outcome.waits_s.items()))
    if outcome.report:
        table.add_row("run report", outcome.report)
    console.print(table)
    for line in _without_hu(outcome.labels):
        console.print(line, soft_wrap=True)
    if outcome.quarantine.num_rows:
        _print_quarantine(console, outcome)
    if outcome.stale.num_rows:
        console.print(
            f"{outcome.stale.num_rows} volumes cannot be read for the moment and keep their vectors, such as "
            f"{outcome.stale['volume_id'][0].as_py()}",
            soft_wrap=True,
        )
    console.print(f"search it: medret search {store} QUERY.nii.gz", markup=False, soft_wrap=True)


def _without_hu(labels: Mapping[str, Any]) -> Iterator[str]:
    if count := labels["ct_without_hu"]:
        yield f"{count} volumes are labelled CT and hold no Hounsfield units: they are shown by percentiles"


def _print_quarantine(console: Terminal, outcome: IndexOutcome) -> None:
    table = _folded("volume", "code", "reason", title=f"quarantine: {outcome.quarantine.num_rows} volumes")
    for row in outcome.quarantine.slice(0, QUARANTINE_SHOWN).to_pylist():
        table.add_row(row["volume_id"], row["code"], row["reason"])
    console.print(table)
    if outcome.quarantine.num_rows > QUARANTINE_SHOWN:
        console.print(f"... and {outcome.quarantine.num_rows - QUARANTINE_SHOWN} more, all in the store's quarantine/")


def print_snapshots(snapshots: Sequence[Mapping[str, Any]]) -> None:
    """The history of a store."""
    headings = ("snapshot", "", "volumes", "embedded", "gone", "quarantined", "models", "recall@10")
    table = _folded(*headings, box=None, pad_edge=False)
    for one in snapshots:
        live = "live" if one["live"] else ""
        if one["problem"]:
            table.add_row(one["snapshot"], live, one["problem"])
            continue
        counts = one["counts"]
        recall = min(one["recall_at_10"].values(), default=None)
        table.add_row(
            one["snapshot"],
            live,
            str(counts["embedded"] + counts["unchanged"]),
            *(str(counts[name]) for name in ("embedded", "gone", "quarantined")),
            ", ".join(f"{model['name']} ({model['recipe'][:6]})" for model in one["models"]),
            "" if recall is None else f"{recall:.3f}",
        )
    Terminal().print(table)


CAUSES = {
    "unchanged": "stay as they are",
    "resumed": "were embedded by an unfinished run",
    "returned": "have vectors in an older snapshot",
    "new": "to embed",
    "changed": "to embed",
    "recipe": "to embed with further models",
    "retried": "in quarantine; to try again",
    "refused": "in quarantine; stay there",
    "touched": "were written to; their contents are compared first",
    "gone": "are not in the archive any more; to leave out",
}


def print_plan(plan: IndexPlan) -> None:
    """What a run would do."""
    console = Terminal()
    live = plan.snapshot or "none yet"
    table = Table(title=f"{plan.listed} objects; live snapshot: {live}", title_justify="left", show_header=False)
    for cause, meaning in CAUSES.items():
        if plan.causes.get(cause):
            table.add_row(cause, str(plan.causes[cause]), meaning)
    for rule, count in sorted(plan.skipped.items()):
        table.add_row("skipped", str(count), rule)
    console.print(table)
    for line in (*plan.label_notes, *_without_hu(plan.labels)):
        console.print(line, soft_wrap=True)
    if ignored := plan.ignored_reports:
        console.print(f"ignored: {len(ignored)} files in runs/ that are not run reports, such as {ignored[0]}")
    for difference in plan.embeds_anew:
        console.print(f"every volume is embedded again: {difference}", soft_wrap=True)
    for refusal in plan.refusals:
        console.print(f"medret index would refuse: {refusal}", soft_wrap=True)
    if plan.up_to_date:
        console.print("up to date: a run would do nothing")
        return
    seconds = "" if plan.seconds is None else f", about {plan.seconds:.0f} s at the speed of earlier runs"
    console.print(f"at most {plan.size_bytes / 2**20:.1f} MiB to read, {plan.slices} slices to embed{seconds}")


def print_hits(query: str, hits: Sequence[Hit], score: str, *, with_store: bool = False) -> None:
    """Hits, best first. score: what that of a hit is, in words. with_store: name the store of each hit."""
    terminal = Terminal()
    terminal.print(f"most similar to {redacted(query)}", soft_wrap=True, style="italic")
    table = Table(box=None, pad_edge=False)
    store = ("store",) if with_store else ()
    for heading in ("rank", "score", "volume", *store, "modality", "region", "organ", "slices: query ~ hit"):
        numeric, long = heading in ("rank", "score"), heading in ("volume", "store")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=not long)
    for hit in hits:
        labels = [str(hit.labels.get(name) or "") for name in ("modality", "body_region", "organ")]
        place = (hit.volume_id, redacted(hit.store)) if with_store else (hit.volume_id,)
        table.add_row(str(hit.rank), f"{hit.score:.4f}", *place, *labels, _match(hit))
    terminal.print(table)
    terminal.print(f"score: {score}", soft_wrap=True)


def print_models(specs: Sequence[ModelSpec]) -> None:
    """The registry."""
    table = _folded("name", "dim", "side px", "licence", "weights")
    for spec in specs:
        licence = f"{spec.licence}: {spec.terms}" if spec.terms else spec.licence
        table.add_row(spec.name, str(spec.dim), str(spec.image_size), licence, spec.source)
    Terminal().print(table)


def _folded(*headings: str, **options: Any) -> Table:
    """A table whose cells are folded, not cut."""
    return Table(*(Column(heading, overflow="fold") for heading in headings), title_justify="left", **options)


def _match(hit: Hit) -> str:
    match = hit.slices
    if match is None:
        return ""
    of_query = f"{_range(match.query)} ~ " if match.query else ""
    return f"{match.plane} {of_query}{_range(match.hit)}"


def _range(positions: tuple[int, int]) -> str:
    first, last = positions
    return str(first) if first == last else f"{first}-{last}"
