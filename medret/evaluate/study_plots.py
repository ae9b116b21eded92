"""Plots of studies as inline SVG: a shaded grid of values, and lines over logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.report_plots import colour_of


@dataclass(frozen=True)
class Line:
    """One series. points: (x, y), drawn in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def grid(values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], label: str) -> str:
    """A table of values, shaded from the least to the greatest."""
    cell, height, left, top = 84, 34, 110, 26
    low, high = float(values.min()), float(values.max())
    parts = [
        f'<text class="tick" x="{left + cell * at + cell / 2}" y="{top - 8}" text-anchor="middle">{escape(name)}</text>'
        for at, name in enumerate(columns)
    ]
    for row, name in enumerate(rows):
        y = top + height * row
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 21}" text-anchor="end">{escape(name)}</text>')
        for column in range(len(columns)):
            value = float(values[row, column])
            share = (value - low) / (high - low) if high > low else 1.0
            x, dark = left + cell * column, " dark" if share > 0.5 else ""
            parts.append(f'<rect class="ground" x="{x}" y="{y}" width="{cell - 2}" height="{height - 2}"/>')
            box = f'x="{x}" y="{y}" width="{cell - 2}" height="{height - 2}"'
            parts.append(f'<rect class="right" {box} fill-opacity="{0.1 + 0.9 * share:.3f}"/>')
            place = f'x="{x + cell / 2 - 1}" y="{y + 21}" text-anchor="middle"'
            parts.append(f'<text class="count{dark}" {place}>{value:.3f}</text>')
    return _svg("grid-plot", left + cell * len(columns) + 10, top + height * len(rows) + 8, label, "".join(parts))


def lines(series: Sequence[Line], x_label: str, y_label: str, label: str, log_y: bool = False) -> str:
    """Lines over a logarithmic x axis; y logarithmic too, or from its least to its greatest value."""
    left, right, top, bottom, width, height = 70, 230, 16, 44, 460, 300
    points = [point for one in series for point in one.points]
    if not points:
        return _svg("lines", 200, 40, label, "")
    xs = [math.log10(x) for x, _ in points]
    ys = [math.log10(max(y, 1e-9)) if log_y else y for _, y in points]
    (x0, x1), (y0, y1) = _span(xs), _span(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        up = math.log10(max(y, 1e-9)) if log_y else y
        return left + (math.log10(x) - x0) / (x1 - x0) * width, top + height - (up - y0) / (y1 - y0) * height

    parts = [f'<rect class="frame" x="{left}" y="{top}" width="{width}" height="{height}"/>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        up = y0 + share * (y1 - y0)
        value = 10**up if log_y else up
        y = top + height - share * height
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for x in sorted({x for x, _ in points})[:12]:
        at, _ = place(x, points[0][1])
        parts.append(f'<text class="tick" x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{x:,.0f}</text>')
    centre = left + width / 2
    parts.append(f'<text x="{centre}" y="{top + height + 38}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{left}" y="{top - 4}" text-anchor="start">{escape(y_label)}</text>')
    for number, one in enumerate(series):
        spots = [place(x, y) for x, y in sorted(one.points)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        colour = colour_of(number)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in spots]
        y = top + 14 + 20 * number
        parts.append(f'<rect x="{left + width + 16}" y="{y - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 36}" y="{y + 2}">{escape(one.name)}</text>')
    total = max(top + height + bottom, top + 20 * len(series) + 20)
    return _svg("lines", left + width + right, total, label, "".join(parts))


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) if high > low else 0.5
    return low - pad, high + pad


def _svg(kind: str, width: float, height: float, label: str, body: str) -> str:
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )
