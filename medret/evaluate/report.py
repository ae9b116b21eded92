"""The report of an evaluation: one self-contained HTML file, without scripts and without a network.

It is written for a reader of images: what is found how often, how sure that is, what is taken for what, and how the
best and the worst cases look. Every text is escaped: names and labels come from outside.
"""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.averages import MACRO, MICRO
from medret.evaluate.figures import Evaluation, late_notes
from medret.evaluate.relevance import text_column, values_of
from medret.evaluate.report_gallery import choose, gallery, read_images
from medret.evaluate.report_map import legend_names, map_points
from medret.evaluate.report_plots import Bar, bars, colour_of, key, matrix, scatter
from medret.evaluate.report_style import report_frame
from medret.evaluate.report_tables import (
    among,
    arms_table,
    class_table,
    counts_line,
    headline_table,
    left_out_table,
    scored,
    words,
)
from medret.search import Snapshot


def report_page(snapshot: Snapshot, found: Evaluation, title: str = "How well this archive is searched") -> str:
    """The page as text. Slices are read from the archive; a file that is out of reach leaves a note in its place."""
    level = "organ" if any(place[1] == "organ" for place in scored(found)) else scored(found)[0][1]
    sections = [
        _headline(found),
        _recall(found),
        *_confusions(found, level),
        _map(snapshot, found, level),
        *_galleries(snapshot, found, level),
        _arms(found),
        _details(found),
    ]
    main = "\n".join(sections)
    header, footer = _header(snapshot, found, title), _footer(snapshot, found)
    return report_frame(title, f"{header}\n<main>\n{main}\n</main>\n{footer}")


def _header(snapshot: Snapshot, found: Evaluation, title: str) -> str:
    labels, manifest = found.panel, snapshot.manifest
    facts = {
        "archive": manifest.archive_uri,
        "volumes": str(labels.candidates.num_rows),
        "queries": str(labels.queries.num_rows),
        "searched as": found.leading.label,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    random = [str(entry.recipe["model"]["name"]) for entry in manifest.recipes if entry.random_weights]
    warnings = [f"{name}: random weights, for trying things out. Such figures say nothing." for name in random]
    warnings += found.warnings
    if labels.failures:
        names = ", ".join(failure.query for failure in labels.failures)
        warnings.append(f"{len(labels.failures)} query files could not be used and are in no figure: {names}")
    noted = "\n".join(f'<p class="warning">{escape(text)}</p>' for text in warnings)
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"""<header>
<h1>{escape(title)}</h1>
<dl class="facts-line">{items}</dl>
{noted}
</header>"""


def _section(anchor: str, title: str, text: str, *parts: str) -> str:
    body = "\n".join(parts)
    return f"""<section aria-labelledby="{anchor}">
<h2 id="{anchor}">{escape(title)}</h2>
<p class="soft">{escape(text)}</p>
{body}
</section>"""


def _headline(found: Evaluation) -> str:
    return _section(
        "headline",
        "In short",
        "recall@1: how often the first hit is of the query's class. mAP: how far up the list all volumes of the class "
        "are, 1 when they come first. Chance: what a random order would reach. Among other subjects: scans of the "
        "query's own subject are not to be found; among other datasets: nothing from its own source is.",
        headline_table(found),
    )


def _recall(found: Evaluation) -> str:
    parts = ['<div class="plots">']
    for exclude, level in scored(found):
        rows = []
        for name in [MACRO, *found.classes_of(found.leading, exclude, level)]:
            row = found.figure(found.leading, exclude, level, name, "recall@1")
            if row:
                figures = (row.value, row.low, row.high, row.chance)
                rows.append(Bar(name, row.n, *figures, row.has_interval, name in (MACRO, MICRO)))
        label = f"{words(level)}, among {among(exclude)}"
        parts.append(f"<div><h3>{escape(label)}</h3>{bars(rows, f'recall@1 by class: {label}')}</div>")
    parts.append("</div>")
    legend = (
        '<p class="legend"><span><i class="swatch" style="background:var(--value)"></i>recall@1</span>'
        '<span><i class="line"></i>chance</span><span>whisker: 95 % interval over subjects</span></p>'
    )
    text = "How often the first hit is of the same class. The number beside a name: queries."
    return _section("recall", "First hit, class by class", text, legend, *parts)


def _confusions(found: Evaluation, level: str) -> list[str]:
    parts = []
    for exclude in found.excludes:
        if (exclude, level) not in scored(found):
            continue
        counts, rows, columns = confusion(found, exclude, level)
        label = f"among {among(exclude)}"
        drawn = matrix(counts, rows, columns, f"Confusion of {words(level)}, {label}")
        parts.append(f"<div><h3>{escape(label)}</h3>{drawn}</div>")
    text = (
        f"A row: queries of one {words(level)}. A column: the {words(level)} of their first hit. Numbers are queries, "
        "shades their share of the row; on the diagonal both are the same."
    )
    body = f'<div class="plots">{"".join(parts)}</div>'
    return [_section("confusion", "What is taken for what", text, body)] if parts else []


def confusion(found: Evaluation, exclude: str, level: str) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Counts of the first hit's class (columns) by the query's class (rows), over the queries that were scored.

    A query of several classes counts in each; a relevant first hit counts as the query's class.
    """
    detail = found.details[exclude]
    own, other = (text_column(table, level) for table in (found.panel.queries, found.panel.candidates))
    pairs: list[tuple[str, str]] = []
    for row in np.flatnonzero(~np.isnan(detail.values[level][:, 0])):
        labelled = (values_of(other[hit]) for hit in detail.hits[row] if hit >= 0)
        first = next((values for values in labelled if values), None)
        if first:
            values = values_of(own[row])
            pairs += [(value, value if set(first) & set(values) else first[0]) for value in values]
    rows = sorted({asked for asked, _ in pairs})
    columns = rows + sorted({hit for _, hit in pairs} - set(rows))
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for asked, hit in pairs:
        counts[rows.index(asked), columns.index(hit)] += 1
    return counts, rows, columns


def _map(snapshot: Snapshot, found: Evaluation, level: str) -> str:
    points, colours, shapes, share = map_points(snapshot, found, level)
    named, rest = legend_names(colours)
    entries = [
        f'<span><i class="swatch" style="background:{colour_of(number)}"></i>{escape(name)}</span>'
        for number, name in enumerate(named)
    ]
    if rest:
        swatch = f'<i class="swatch" style="background:{colour_of(len(named))}"></i>'
        entries.append(f"<span>{swatch}{rest} other classes</span>")
    entries += [f"<span>{key(-1, number)}{escape(name)}</span>" for number, name in enumerate(shapes)]
    text = (
        f"Each mark is a volume ({len(points)} of {found.panel.candidates.num_rows}), placed by the first two "
        f"principal components of its vector ({found.leading.model}, {found.leading.aggregation}): {share:.0%} of the "
        f"variance. Colour: {words(level)}. Shape: modality. Near each other here is not always near in all dimensions."
    )
    drawn = scatter(points, f"Embedding map coloured by {words(level)}")
    return _section("map", "Map of the archive", text, f'<p class="legend">{"".join(entries)}</p>', drawn)


def _galleries(snapshot: Snapshot, found: Evaluation, level: str) -> list[str]:
    exclude = next(name for name in found.excludes if (name, level) in scored(found))
    best, worst = choose(found, exclude, level)
    images = read_images(snapshot, found, [*best, *worst])
    middle = "Middle slice of the query, then of its first hits"
    return [
        _section(
            "worst",
            "The worst queries",
            f"{middle}, among {among(exclude)}: those with the lowest average precision, of different subjects.",
            gallery(found, level, worst, images),
        ),
        _section(
            "best",
            "The best queries",
            f"{middle}, among {among(exclude)}: the best one of each of some classes.",
            gallery(found, level, best, images),
        ),
    ]


def _arms(found: Evaluation) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in late_notes(found))
    listed = f'<h3>Where late interaction is worse</h3><ul class="plain">{notes}</ul>' if notes else ""
    text = "Every way to search that was tried, on the same queries."
    return _section("arms", "All arms", text, arms_table(found), listed)


def _details(found: Evaluation) -> str:
    tables = [class_table(found, exclude, level) for exclude, level in scored(found)]
    counts = "".join(
        f"<li>{escape(words(level))}: {counts_line(list(classes.items()))}</li>"
        for level, classes in found.classes.items()
    )
    return _section(
        "details",
        "All figures of the leading arm, and what was counted",
        "recall@10: share of all volumes of the class that is among the first ten. precision@5: share of the first "
        "five that is of the class. Intervals: 95 %, from "
        f"{found.bootstrap.resamples} draws of subjects within their classes.",
        *tables,
        "<h3>Queries that count</h3>",
        left_out_table(found),
        "<h3>Volumes of each class</h3>",
        f'<ul class="plain">{counts}</ul>',
    )


def _footer(snapshot: Snapshot, found: Evaluation) -> str:
    recipe = snapshot.recipe(found.leading.model)
    slices, model = recipe.slices, recipe.model
    ranked = ", ".join(f"{index} {depth}" for index, depth in found.depths.items())
    facts = {
        "snapshot": f"{found.snapshot} of {found.store}",
        "recipe": f"{recipe.digest}: slices {slices.slices}, planes {', '.join(slices.planes)}, crop {slices.crop}, "
        f"CT window {slices.ct_window}, other percentiles {slices.percentiles[0]:g} to {slices.percentiles[1]:g}; "
        f"{model.name} at {model.image_size} px, {model.precision}, weights {model.weights_sha256[:16]}",
        "ranks of each list": f"{ranked}; what a list does not hold counts as not found",
        "medret": f"{snapshot.manifest.medret_version}. For research: not a medical device.",
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<footer><dl>{items}</dl></footer>"
