"""Plots of the report as inline SVG: bars with intervals, a confusion matrix, a map of points. Text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

# Told apart by most eyes on dark ground; classes beyond these share the last, grey.
COLOURS = (
    "#5ab4f0",
    "#f5a442",
    "#5fd38d",
    "#f0646a",
    "#c58af0",
    "#ecd44f",
    "#ff9ecb",
    "#b98b66",
    "#48d6c8",
    "#8f9bf7",
    "#b7e07a",
    "#d9739b",
)
OTHER_COLOUR = "#8a94a0"
SHAPES = ("circle", "square", "triangle", "diamond", "cross")


@dataclass(frozen=True)
class Bar:
    """One bar. value, low, high, chance: 0 to 1. interval: whether low and high say anything. strong: a mean."""

    name: str
    n: int
    value: float
    low: float
    high: float
    chance: float
    interval: bool
    strong: bool = False


def bars(rows: Sequence[Bar], label: str, name_px: int = 150) -> str:
    """Horizontal bars on a scale from 0 to 1, with intervals as whiskers and chance as a tick."""
    left, width, right, step, top = name_px, 330, 130, 26, 12
    height = top + step * len(rows) + 24
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * width
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{tick:g}</text>')
    for number, row in enumerate(rows):
        y = top + step * number
        middle = y + 9
        strong = " strong" if row.strong else ""
        said = _said(row)
        parts.append(f'<g class="bar{strong}"><title>{escape(f"{row.name}: {said}, n {row.n}")}</title>')
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 13}" text-anchor="end">{escape(row.name)}')
        parts.append(f' <tspan class="n">{row.n}</tspan></text>')
        parts.append(f'<rect class="track" x="{left}" y="{y}" width="{width}" height="18"/>')
        parts.append(f'<rect class="value" x="{left}" y="{y}" width="{row.value * width:.1f}" height="18"/>')
        if row.interval:
            low, high = left + row.low * width, left + row.high * width
            path = f"M{low:.1f} {middle - 4}v8M{low:.1f} {middle}H{high:.1f}M{high:.1f} {middle - 4}v8"
            parts.append(f'<path class="whisker" d="{path}"/>')
        x = left + row.chance * width
        parts.append(f'<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 21}"/>')
        parts.append(f'<text class="figure" x="{left + width + 10}" y="{y + 13}">{row.value:.2f}')
        interval = f"{row.low:.2f} to {row.high:.2f}" if row.interval else "no interval"
        parts.append(f' <tspan class="n">{interval}</tspan></text></g>')
    total = left + width + right
    return _svg("bars", total, height, label, "".join(parts))


def _said(row: Bar) -> str:
    interval = f" (95 % interval {row.low:.3f} to {row.high:.3f})" if row.interval else " (no interval)"
    return f"{row.value:.3f}{interval}, chance {row.chance:.3f}"


def matrix(counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str], label: str) -> str:
    """A table of counts, shaded by their share of the row. Cells whose row and column have one name are framed."""
    cell, left = 44, 150
    top = 30 + 6 * max((len(name) for name in columns), default=0)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = []
    for number, name in enumerate(columns):
        x, y = left + cell * number + cell / 2, top - 8
        parts.append(f'<text class="name" x="{x}" y="{y}" transform="rotate(-45 {x} {y})">{escape(name)}</text>')
    for row, name in enumerate(rows):
        y = top + cell * row
        total = int(counts[row].sum())
        parts.append(f'<text class="name" x="{left - 10}" y="{y + cell / 2 + 4}" text-anchor="end">{escape(name)}')
        parts.append(f' <tspan class="n">{total}</tspan></text>')
        for column, other in enumerate(columns):
            count, share = int(counts[row, column]), float(shares[row, column])
            own = " own" if other == name else ""
            said = f"{name}: the first hit is {other} for {count} of {total} queries ({share:.0%})"
            parts.append(f'<g class="cell{own}"><title>{escape(said)}</title>')
            x, side = left + cell * column + 1, cell - 2
            parts.append(f'<rect class="ground" x="{x}" y="{y + 1}" width="{side}" height="{side}"/>')
            shade = "right" if own else "wrong"
            box = f'x="{x}" y="{y + 1}" width="{side}" height="{side}"'
            parts.append(f'<rect class="{shade}" {box} fill-opacity="{share:.3f}"/>')
            if count:
                dark = " dark" if share > 0.5 else ""
                place = f'x="{x + side / 2}" y="{y + cell / 2 + 4}" text-anchor="middle"'
                parts.append(f'<text class="count{dark}" {place}>{count}</text>')
            parts.append("</g>")
    return _svg("matrix", left + cell * len(columns) + 60, top + cell * len(rows) + 8, label, "".join(parts))


@dataclass(frozen=True)
class Point:
    """One point of a map. colour, shape: numbers. title: what it says when pointed at."""

    x: float
    y: float
    colour: int
    shape: int
    title: str


def scatter(points: Sequence[Point], label: str) -> str:
    """Points in a frame, scaled to fit it, both axes alike."""
    width, height, margin = 1200, 620, 24
    places = np.array([[point.x, point.y] for point in points]).reshape(-1, 2)
    low, high = (places.min(axis=0), places.max(axis=0)) if len(places) else (np.zeros(2), np.ones(2))
    scale = min((width - 2 * margin) / max(high[0] - low[0], 1e-9), (height - 2 * margin) / max(high[1] - low[1], 1e-9))
    centre = (low + high) / 2
    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}"/>']
    for point, place in zip(points, places, strict=True):
        x, y = width / 2 + (place[0] - centre[0]) * scale, height / 2 - (place[1] - centre[1]) * scale
        parts.append(marker(point.colour, point.shape, float(x), float(y), point.title))
    return _svg("scatter", width, height, label, "".join(parts))


def marker(colour: int, shape: int, x: float, y: float, title: str = "") -> str:
    """One mark, about 9 px wide."""
    path = {
        "circle": f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0",
        "square": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "triangle": f"M{x:.1f} {y - 5.5:.1f}l5 9h-10z",
        "diamond": f"M{x:.1f} {y - 6:.1f}l5 6l-5 6l-5-6z",
        "cross": f"M{x - 5:.1f} {y - 2:.1f}h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    }[SHAPES[min(shape, len(SHAPES) - 1)]]
    fill = colour_of(colour)
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<path class="mark" fill="{fill}" d="{path}">{told}</path>'


def colour_of(number: int) -> str:
    """The colour of class `number`."""
    return COLOURS[number] if 0 <= number < len(COLOURS) else OTHER_COLOUR


def key(colour: int, shape: int) -> str:
    """A mark for a legend."""
    return f'<svg class="key" viewBox="0 0 14 14" width="14" height="14">{marker(colour, shape, 7, 7)}</svg>'


def _svg(kind: str, width: float, height: float, label: str, body: str) -> str:
    """viewBox and a width in px that shrinks with the page."""
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )
