"""The tables of `medret evaluate`: all configs in one, then the classes of the config that search uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from medret.evaluate.figures import late_notes
from medret.terminal import Terminal

if TYPE_CHECKING:
    from medret.evaluate import Evaluation, Row, SearchConfig

COLUMNS = ("recall@1", "mAP")  # what fits in 80 columns; all others are in --json, --csv and --html


def print_evaluation(found: Evaluation) -> None:
    """All of an evaluation that a person reads on the terminal."""
    console = Terminal()
    console.print(
        f"snapshot {found.snapshot}: {found.query_set.queries.num_rows} queries among "
        f"{found.query_set.candidates.num_rows} volumes; only queries with at least {found.min_relevant} relevant "
        "volumes left count (--min-relevant)",
        soft_wrap=True,
    )
    for exclude in found.excludes:
        _print_arms(console, found, exclude)
    console.print("* what `medret search` does when told nothing. ANN: recall@10 of the index against exact search")
    for exclude in found.excludes:
        for level in found.levels:
            _print_classes(console, found, exclude, level)
    for one in found.left_out:
        if one.too_few_relevant or one.unlabelled:
            classes = ", ".join(f"{name} {count}" for name, count in one.by_class.items())
            unlabelled = f"; {one.unlabelled} without a label" if one.unlabelled else ""
            console.print(
                f"not scored, {one.level}, exclude {one.exclude}: {one.too_few_relevant} queries"
                f"{f' ({classes})' if classes else ''}{unlabelled}",
                soft_wrap=True,
            )
    for note in late_notes(found):
        console.print(f"note: {note}", soft_wrap=True)
    for warning in found.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, style="yellow")


def _print_arms(console: Terminal, found: Evaluation, exclude: str) -> None:
    levels = [level for level in found.levels if found.figure(found.leading, exclude, level, "macro", "mAP")]
    table = _table(f"exclude {exclude}: macro recall@1/mAP")
    table.add_column("arm", no_wrap=True)
    table.add_column("ANN", justify="right", no_wrap=True)
    for level in levels:
        table.add_column(level, justify="right", no_wrap=True)
    table.add_row("  chance", "", *(_pair(found, found.leading, exclude, one, chance=True) for one in levels))
    for config in found.configs:
        if config.by_slices and config.aggregation != found.configs[0].aggregation:
            continue  # the aggregation plays no part
        recall = found.figure(config, exclude, "all", "all", "ann_recall@10")
        name = f"* {config.label}" if config.default else f"  {config.label}"
        cells = (_pair(found, config, exclude, level) for level in levels)
        table.add_row(name, short(recall.value) if recall else "", *cells, style="bold" if config.default else "")
    console.print(table)


def _pair(found: Evaluation, config: SearchConfig, exclude: str, level: str, chance: bool = False) -> str:
    rows = [found.figure(config, exclude, level, "macro", metric) for metric in ("recall@1", "mAP")]
    return "/".join(short(row.chance if chance else row.value) for row in rows if row)


def _print_classes(console: Terminal, found: Evaluation, exclude: str, level: str) -> None:
    names = [*found.classes_of(found.leading, exclude, level), "macro", "micro"]
    rows = {name: [found.figure(found.leading, exclude, level, name, metric) for metric in COLUMNS] for name in names}
    if not all(rows["macro"]):
        return
    table = _table(f"{level}, exclude {exclude}: {found.leading.label}")
    table.add_column("class", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for metric in COLUMNS:
        for heading in (metric, "95 %", "chance"):
            table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in rows.items():
        held = [row for row in figures if row]
        cells = (cell for row in held for cell in _cells(row))
        table.add_row(name, str(held[0].n), *cells, style="bold" if name in ("macro", "micro") else "")
    console.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _cells(row: Row) -> tuple[str, str, str]:
    interval = f"{short(row.low)} {short(row.high)}" if row.has_interval else "none"
    return short(row.value), interval, short(row.chance)


def short(value: float) -> str:
    """Three digits: .875, 1.00."""
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1.00"
