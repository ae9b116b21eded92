"""Galleries of the report: the best and the worst queries, each beside its first hits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from medret.evaluate.figures import Evaluation
from medret.evaluate.metrics import NAMES
from medret.evaluate.relevance import SUBJECT, text_column, values_of
from medret.html.images import IMAGE_SIZE, ImageRequest, VolumeImages
from medret.search import Snapshot

QUERIES_SHOWN = 5
HITS_SHOWN = 5
OF_A_CLASS = 2  # at most so many queries of one class


@dataclass(frozen=True)
class Shelf:
    """One query and its first hits. hits: (row of the candidate, score, whether it is relevant)."""

    query: int
    average_precision: float
    hits: tuple[tuple[int, float, bool], ...]


def choose(found: Evaluation, exclude: str, level: str) -> tuple[list[Shelf], list[Shelf]]:
    """The best and the worst queries by average precision: of different subjects, and of several classes."""
    detail = found.details[exclude]
    precision = detail.values[level][:, NAMES.index("mAP")]
    counted = np.flatnonzero(~np.isnan(precision))
    order = counted[np.argsort(-precision[counted], kind="stable")]
    best = _spread(found, level, order.tolist(), 1)
    worst = _spread(found, level, [row for row in order[::-1].tolist() if row not in best], OF_A_CLASS)
    return [_shelf(found, exclude, level, row) for row in best], [_shelf(found, exclude, level, row) for row in worst]


def _spread(found: Evaluation, level: str, rows: Sequence[int], of_a_class: int) -> list[int]:
    """The first few rows, no two of one subject and at most some of one class."""
    classes = text_column(found.panel.queries, level)
    subjects = text_column(found.panel.queries, SUBJECT)
    chosen: list[int] = []
    held: Counter[str | None] = Counter()
    seen: set[str] = set()
    for row in rows:
        subject = subjects[row]
        if len(chosen) < QUERIES_SHOWN and held[classes[row]] < of_a_class and subject not in seen:
            chosen.append(row)
            held[classes[row]] += 1
            seen |= {subject} if subject else set()
    return chosen


def _shelf(found: Evaluation, exclude: str, level: str, row: int) -> Shelf:
    detail = found.details[exclude]
    own = set(values_of(text_column(found.panel.queries, level)[row]))
    classes = text_column(found.panel.candidates, level)
    hits = tuple(
        (int(hit), float(score), bool(own & set(values_of(classes[hit]))))
        for hit, score in zip(detail.hits[row][:HITS_SHOWN], detail.scores[row][:HITS_SHOWN], strict=True)
        if hit >= 0
    )
    return Shelf(row, float(detail.values[level][row, NAMES.index("mAP")]), hits)


def read_images(
    snapshot: Snapshot, found: Evaluation, shelves: Sequence[Shelf]
) -> dict[tuple[str, int], str | VolumeImages]:
    """("query" or "hit", row) -> the middle slices of a volume, or why there are none. Each is read once."""
    wanted: dict[tuple[str, int], ImageRequest] = {}
    for shelf in shelves:
        wanted["query", shelf.query] = _wanted(found, "query", shelf.query)
        for row, _, _ in shelf.hits:
            wanted["hit", row] = _wanted(found, "hit", row)
    images = snapshot.read_images(list(wanted.values()), found.leading.model)
    return {key: images[one] for key, one in wanted.items()}


def _wanted(found: Evaluation, side: str, row: int) -> ImageRequest:
    labels = found.panel.queries if side == "query" else found.panel.candidates
    values = {name: labels[name][row].as_py() for name in ("volume_id", "uri", "modality")}
    return ImageRequest(str(values["uri"]), (str(values["volume_id"]), values["modality"]))


def gallery(
    found: Evaluation, level: str, shelves: Sequence[Shelf], images: Mapping[tuple[str, int], str | VolumeImages]
) -> str:
    """The shelves as a list."""
    items = []
    for shelf in shelves:
        words = f"average precision {shelf.average_precision:.2f}"
        figures = [_figure(found, level, ("query", shelf.query), images, "asked", words)]
        for rank, (row, score, relevant) in enumerate(shelf.hits, start=1):
            kind = "hit good" if relevant else "hit bad"
            figures.append(_figure(found, level, ("hit", row), images, kind, f"#{rank}, score {score:.3f}"))
        items.append(f"<li>{''.join(figures)}</li>")
    return f'<ol class="gallery">{"".join(items)}</ol>'


def _figure(
    found: Evaluation,
    level: str,
    key: tuple[str, int],
    images: Mapping[tuple[str, int], str | VolumeImages],
    kind: str,
    words: str,
) -> str:
    side, row = key
    labels = found.panel.queries if side == "query" else found.panel.candidates
    name = str(labels["volume_id"][row].as_py())
    label = ", ".join(filter(None, (text_column(labels, column)[row] for column in (level, "modality")))) or "no label"
    image = images[key]
    if isinstance(image, str):
        picture = f'<div class="absent" role="note"><strong>No image</strong><span>{escape(image)}</span></div>'
    else:
        tile = image.middle[len(image.middle) // 2]
        alt = f"{side} {name}, {label}: {tile.plane} {tile.slice_index}"
        picture = f'<img src="{tile.source}" alt="{escape(alt)}" width="{IMAGE_SIZE}" height="{IMAGE_SIZE}">'
    shown = escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")
    caption = f'<b>{escape(label)}</b><span class="id">{shown}</span>{escape(words)}'
    return f'<figure class="{kind}">{picture}<figcaption>{caption}</figcaption></figure>'
