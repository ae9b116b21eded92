"""The report of an evaluation: one self-contained HTML file for readers of images.

It shows how often each class is found and how certain that is, which classes are confused, and how the best and the
worst queries look. This module chooses what is shown; `report.html.j2` has the texts and the layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medret.evaluate.figures import Evaluation, notes_of
from medret.evaluate.metrics import MACRO, NAMES
from medret.evaluate.relevance import SELF, SUBJECT, text_column, values_of
from medret.html import render
from medret.html.cards import IMAGE_SIZE, ImageRequest, Tile
from medret.html.plots import COLOURS, Bar, Point, bars, colour_of, key, matrix, scatter
from medret.search import Snapshot
from medret.search.query import VolumeName

POINTS_MAX = 3000  # of the map; of larger archives a sample is drawn
QUERIES_SHOWN = 5
HITS_SHOWN = 5
WORST_PER_CLASS = 2


def report_page(snapshot: Snapshot, evaluation: Evaluation, title: str = "How well this archive is searched") -> str:
    """Render the page. Slices are read from the archive; a file that is out of reach leaves a note in its place."""
    places = evaluation.places
    level = "organ" if any(name == "organ" for _, name in places) else places[0][1]
    gallery_exclude = next(exclude for exclude, name in places if name == level)
    best, worst = _best_and_worst(evaluation, gallery_exclude, level)
    best_gallery, worst_gallery = _galleries(snapshot, evaluation, gallery_exclude, level, (best, worst))
    shown = {
        "facts": _facts(snapshot, evaluation),
        "warnings": _warnings(snapshot, evaluation),
        "level": level,
        "recalls": [_recall_plot(evaluation, exclude, name) for exclude, name in places],
        "confusions": [_confusion_plot(evaluation, exclude, name) for exclude, name in places if name == level],
        "map": _map(snapshot, evaluation, level),
        "gallery_exclude": gallery_exclude,
        "best": best_gallery,
        "worst": worst_gallery,
        "notes": notes_of(evaluation),
        "footer": _footer(snapshot, evaluation),
    }
    values = {"words": _words, "among": _among, "counts": _counts, "image_size": IMAGE_SIZE}
    return render("report.html.j2", title=title, evaluation=evaluation, shown=shown, **values)


# --- texts -----------------------------------------------------------------------------------------------------------


def _words(name: str) -> str:
    """A label column as a reader says it."""
    return name.replace("_", " ")


def _among(exclude: str) -> str:
    """Which volumes may be found under an exclusion."""
    return "all other volumes" if exclude == SELF else f"other {_words(exclude)}s"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _facts(snapshot: Snapshot, evaluation: Evaluation) -> dict[str, str]:
    return {
        "archive": snapshot.manifest.archive_uri,
        "volumes": str(evaluation.query_set.candidates.num_rows),
        "queries": str(evaluation.query_set.queries.num_rows),
        "searched as": evaluation.leading.label,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _warnings(snapshot: Snapshot, evaluation: Evaluation) -> list[str]:
    random = [entry.model for entry in snapshot.manifest.recipes if entry.random_weights]
    warnings = [f"{name}: random weights, for trying things out. Such figures say nothing." for name in random]
    warnings += evaluation.warnings
    failures = evaluation.query_set.failures
    if failures:
        names = ", ".join(failure.query for failure in failures)
        warnings.append(f"{len(failures)} query files could not be used and are in no figure: {names}")
    return warnings


def _footer(snapshot: Snapshot, evaluation: Evaluation) -> dict[str, str]:
    recipe = snapshot.recipe(evaluation.leading.model)
    slices, model = recipe.slices, recipe.model
    ranks = ", ".join(f"{index} {depth}" for index, depth in evaluation.depths.items())
    return {
        "snapshot": f"{evaluation.snapshot} of {evaluation.store}",
        "recipe": f"{recipe.digest}: slices {slices.slices}, planes {', '.join(slices.planes)}, crop {slices.crop}, "
        f"CT window {slices.ct_window}, other percentiles {slices.percentiles[0]:g} to {slices.percentiles[1]:g}; "
        f"{model.name} at {model.image_size} px, {model.precision}, weights {model.weights_sha256[:16]}",
        "ranks per list": f"{ranks}; a volume beyond them counts as not found",
        "medret": f"{snapshot.manifest.medret_version}. For research: not a medical device.",
    }


# --- plots -----------------------------------------------------------------------------------------------------------


def _recall_plot(evaluation: Evaluation, exclude: str, level: str) -> tuple[str, Markup]:
    rows = []
    for name in [MACRO, *evaluation.classes_of(evaluation.leading, exclude, level)]:
        for row in evaluation.figures(evaluation.leading, exclude, level, name, ["recall@1"]):
            figures = (row.value, row.low, row.high, row.chance)
            rows.append(Bar(name, row.n, *figures, row.has_interval, name == MACRO))
    heading = f"{_words(level)}, among {_among(exclude)}"
    return heading, bars(rows, f"recall@1 by class: {heading}")


def _confusion_plot(evaluation: Evaluation, exclude: str, level: str) -> tuple[str, Markup]:
    heading = f"among {_among(exclude)}"
    return heading, matrix(*confusion(evaluation, exclude, level), f"Confusion of {_words(level)}, {heading}")


def confusion(evaluation: Evaluation, exclude: str, level: str) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Count the first hit's class (columns) by the query's class (rows), over the queries that were scored.

    A query of several classes counts in each; a relevant first hit counts as the query's class.
    """
    detail = evaluation.details[exclude]
    of_queries, of_candidates = (
        text_column(table, level) for table in (evaluation.query_set.queries, evaluation.query_set.candidates)
    )
    pairs: list[tuple[str, str]] = []
    for row in np.flatnonzero(~np.isnan(detail.values[level][:, 0])):
        labelled = (values_of(of_candidates[hit]) for hit in detail.hits[row] if hit >= 0)
        first = next((values for values in labelled if values), None)
        if first:
            values = values_of(of_queries[row])
            pairs += [(value, value if set(first) & set(values) else first[0]) for value in values]
    rows = sorted({query for query, _ in pairs})
    columns = rows + sorted({hit for _, hit in pairs} - set(rows))
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for query, hit in pairs:
        counts[rows.index(query), columns.index(hit)] += 1
    return counts, rows, columns


def _map(snapshot: Snapshot, evaluation: Evaluation, level: str) -> dict[str, Any]:
    """Volume vectors in two dimensions. Colours are the classes, the most frequent first; shapes the modalities."""
    labels, config = evaluation.query_set.candidates, evaluation.leading
    rows = np.arange(labels.num_rows)
    if len(rows) > POINTS_MAX:
        rows = np.sort(np.random.default_rng(evaluation.bootstrap.seed).choice(rows, POINTS_MAX, replace=False))
    ids = labels["volume_id"].to_pylist()
    names = (VolumeName(ids[row]) for row in rows)
    queries = [snapshot.resolve(name, model=config.model, aggregation=config.aggregation) for name in names]
    places, variance = principal_components(np.array([query.volume for query in queries], np.float64))
    classes = ["; ".join(values_of(text)) or "no label" for text in text_column(labels, level)]
    modalities = [text or "unknown" for text in text_column(labels, "modality")]
    colours, shapes = _by_count(classes), _by_count(modalities)
    points = [
        Point(
            float(x),
            float(y),
            colours.index(classes[row]),
            shapes.index(modalities[row]),
            f"{ids[row]}: {classes[row]}, {modalities[row]}",
        )
        for row, (x, y) in zip(rows.tolist(), places, strict=True)
    ]
    legend = [(name, colour_of(number)) for number, name in enumerate(colours[: len(COLOURS)])]
    if len(colours) > len(COLOURS):
        legend.append((f"{len(colours) - len(COLOURS)} other classes", colour_of(-1)))
    return {
        "points": len(points),
        "variance": variance,
        "colours": legend,
        "shapes": [(name, key(number)) for number, name in enumerate(shapes)],
        "drawn": scatter(points, f"Embedding map coloured by {_words(level)}"),
    }


def _by_count(names: Sequence[str]) -> list[str]:
    return [name for name, _ in sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0]))]


def principal_components(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Project (n, dim) vectors to (n, 2); also returns the share of their variance that is left.

    The sign of an axis means nothing; it is chosen so that the point farthest from the middle is on the positive side.
    """
    centred = vectors - vectors.mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    kept = min(2, len(lengths))
    places[:, :kept] = left[:, :kept] * lengths[:kept]
    signs = np.sign(places[np.abs(places).argmax(axis=0), np.arange(2)])
    total = float((lengths**2).sum())
    return places * np.where(signs == 0, 1, signs), float((lengths[:kept] ** 2).sum() / total) if total else 1.0


# --- galleries -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """One volume of a gallery. image: its middle slice, or why it cannot be shown."""

    kind: str
    image: Tile | str
    alt: str
    label: str
    volume_id: str
    note: str


def _best_and_worst(evaluation: Evaluation, exclude: str, level: str) -> tuple[list[int], list[int]]:
    """The queries of the best and the worst average precision: of different subjects, and of several classes."""
    precision = evaluation.details[exclude].values[level][:, NAMES.index("mAP")]
    counted = np.flatnonzero(~np.isnan(precision))
    order = counted[np.argsort(-precision[counted], kind="stable")]
    best = _spread(evaluation, level, order.tolist(), 1)
    return best, _spread(evaluation, level, [row for row in order[::-1].tolist() if row not in best], WORST_PER_CLASS)


def _spread(evaluation: Evaluation, level: str, rows: Sequence[int], per_class: int) -> list[int]:
    """The first few rows, no two of the same subject and at most `per_class` of a class."""
    classes = text_column(evaluation.query_set.queries, level)
    subjects = text_column(evaluation.query_set.queries, SUBJECT)
    chosen: list[int] = []
    for row in rows:
        of_class = sum(classes[other] == classes[row] for other in chosen)
        known = subjects[row] is not None and subjects[row] in {subjects[other] for other in chosen}
        if len(chosen) < QUERIES_SHOWN and of_class < per_class and not known:
            chosen.append(row)
    return chosen


def _galleries(
    snapshot: Snapshot, evaluation: Evaluation, exclude: str, level: str, galleries: Sequence[Sequence[int]]
) -> list[list[list[_Picture]]]:
    """Per gallery and query: its picture, then those of its first hits. Every volume is read once."""
    detail, labels = evaluation.details[exclude], evaluation.query_set
    classes = text_column(labels.candidates, level)
    hits = {row: [int(hit) for hit in detail.hits[row][:HITS_SHOWN] if hit >= 0] for rows in galleries for row in rows}
    requests = {("query", row): _request(labels.queries, row) for row in hits}
    requests |= {("hit", hit): _request(labels.candidates, hit) for shown in hits.values() for hit in shown}
    images = snapshot.pictures.read(list(requests.values()), evaluation.leading.model)

    def picture(side: str, row: int, kind: str, note: str) -> _Picture:
        table = labels.queries if side == "query" else labels.candidates
        name = str(table["volume_id"][row].as_py())
        values = [text_column(table, column)[row] for column in (level, "modality")]
        label = ", ".join(value for value in values if value) or "no label"
        shown = images[requests[side, row]]
        image = shown if isinstance(shown, str) else shown.middle[len(shown.middle) // 2]
        return _Picture(kind, image, f"{side} {name}, {label}: {image}", label, name, note)

    def shelf(row: int) -> list[_Picture]:
        precision = detail.values[level][row, NAMES.index("mAP")]
        of_query = set(values_of(text_column(labels.queries, level)[row]))
        pictures = [picture("query", row, "asked", f"average precision {precision:.2f}")]
        for rank, hit in enumerate(hits[row], start=1):
            kind = "hit good" if of_query & set(values_of(classes[hit])) else "hit bad"
            pictures.append(picture("hit", hit, kind, f"#{rank}, score {detail.scores[row][rank - 1]:.3f}"))
        return pictures

    return [[shelf(row) for row in rows] for rows in galleries]


def _request(table: Any, row: int) -> ImageRequest:
    values = {name: table[name][row].as_py() for name in ("volume_id", "uri", "modality")}
    return ImageRequest(str(values["uri"]), (str(values["volume_id"]), values["modality"]))
