"""Plots as inline SVG: bars with intervals, a confusion matrix, a map of points, a shaded grid, and lines.

They are built as element trees, whose serialiser escapes every text; `report.css` has their colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

# Most eyes can tell these apart on a dark ground; all further classes share the grey.
COLOURS = (
    "#5ab4f0", "#f5a442", "#5fd38d", "#f0646a", "#c58af0", "#ecd44f",
    "#ff9ecb", "#b98b66", "#48d6c8", "#8f9bf7", "#b7e07a", "#d9739b",
)  # fmt: skip
OTHER_COLOUR = "#8a94a0"
NAME_LETTERS = 44  # of a name beside a plot
SHAPES = ("circle", "square", "triangle", "diamond", "cross")


@dataclass(frozen=True)
class Bar:
    """One bar. value, low, high, chance: 0 to 1. interval: whether low and high are known. strong: it is a mean."""

    name: str
    n: int
    value: float
    low: float
    high: float
    chance: float
    interval: bool
    strong: bool = False


@dataclass(frozen=True)
class Point:
    """One point of a map. colour, shape: numbers of a class. title: the text shown under the pointer."""

    x: float
    y: float
    colour: int
    shape: int
    title: str


def bars(rows: Sequence[Bar], label: str) -> Markup:
    """Draw horizontal bars on a scale from 0 to 1, with intervals as whiskers and chance as a tick."""
    left, width, right, step, top = _names_px([f"{row.name} {row.n}" for row in rows]), 330, 130, 26, 12
    height = top + step * len(rows) + 24
    plot = _plot("bars", left + width + right, height, label)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * width
        _add(plot, "line", class_="grid", x1=x, x2=x, y1=top - 6, y2=height - 22)
        _text(plot, f"{tick:g}", x, height - 6, "tick", "middle")
    for number, row in enumerate(rows):
        y = top + step * number
        group = _add(plot, "g", class_="bar strong" if row.strong else "bar")
        interval = f"95 % interval {row.low:.3f} to {row.high:.3f}" if row.interval else "no interval"
        _add(group, "title", f"{row.name}: {row.value:.3f} ({interval}), chance {row.chance:.3f}, n {row.n}")
        _with_count(_text(group, f"{_short(row.name)} ", left - 10, y + 13, "name", "end"), row.n)
        _add(group, "rect", class_="track", x=left, y=y, width=width, height=18)
        _add(group, "rect", class_="value", x=left, y=y, width=row.value * width, height=18)
        if row.interval:
            low, high, middle = left + row.low * width, left + row.high * width, y + 9
            path = f"M{low:.1f} {middle - 4}v8M{low:.1f} {middle}H{high:.1f}M{high:.1f} {middle - 4}v8"
            _add(group, "path", class_="whisker", d=path)
        x = left + row.chance * width
        _add(group, "line", class_="chance", x1=x, x2=x, y1=y - 3, y2=y + 21)
        bounds = f"{row.low:.2f} to {row.high:.2f}" if row.interval else "no interval"
        _with_count(_text(group, f"{row.value:.2f} ", left + width + 10, y + 13, "figure"), bounds)
    return _markup(plot)


def _short(name: str) -> str:
    """A name that fits beside a plot: of a long one its two ends, which tell names apart."""
    half = NAME_LETTERS // 2
    return name if len(name) <= NAME_LETTERS else f"{name[: half - 1]}…{name[-half:]}"


def _names_px(names: Sequence[str]) -> int:
    """Width of a column of names, with their counts."""
    return max([150, *(20 + 7 * min(len(name), NAME_LETTERS + 6) for name in names)])


def matrix(counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str], label: str) -> Markup:
    """Draw a table of counts, shaded by their share of the row; cells of equal row and column names are framed."""
    totals = counts.sum(axis=1).tolist()
    cell, left = 44, _names_px([f"{name} {total}" for name, total in zip(rows, totals, strict=True)])
    top = 30 + 6 * max((len(_short(name)) for name in columns), default=0)
    plot = _plot("matrix", left + cell * len(columns) + 60, top + cell * len(rows) + 8, label)
    for number, name in enumerate(columns):
        x, y = left + cell * number + cell / 2, top - 8
        _text(plot, _short(name), x, y, "name").set("transform", f"rotate(-45 {x} {y})")
    for row, name in enumerate(rows):
        y, total = top + cell * row, totals[row]
        _with_count(_text(plot, f"{_short(name)} ", left - 10, y + cell / 2 + 4, "name", "end"), total)
        for column, other in enumerate(columns):
            count = int(counts[row, column])
            share = count / max(total, 1)
            group = _add(plot, "g", class_="cell own" if other == name else "cell")
            _add(group, "title", f"{name}: the first hit is {other} for {count} of {total} queries ({share:.0%})")
            x, shade = left + cell * column + 1, "right" if other == name else "wrong"
            _shaded(group, x, y + 1, cell - 2, cell - 2, shade, share)
            if count:
                _text(group, str(count), x + cell / 2 - 1, y + cell / 2 + 4, _on_shade(share), "middle")
    return _markup(plot)


def grid(values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], label: str) -> Markup:
    """Draw a table of values, shaded from the least to the greatest."""
    cell, height, left, top = 84, 34, 110, 26
    low, high = float(values.min()), float(values.max())
    plot = _plot("grid-plot", left + cell * len(columns) + 10, top + height * len(rows) + 8, label)
    for column, name in enumerate(columns):
        _text(plot, name, left + cell * column + cell / 2, top - 8, "tick", "middle")
    for row, name in enumerate(rows):
        y = top + height * row
        _text(plot, name, left - 10, y + 21, "name", "end")
        for column in range(len(columns)):
            x, value = left + cell * column, float(values[row, column])
            share = (value - low) / (high - low) if high > low else 1.0
            _shaded(plot, x, y, cell - 2, height - 2, "right", 0.1 + 0.9 * share)
            _text(plot, f"{value:.3f}", x + cell / 2 - 1, y + 21, _on_shade(share), "middle")
    return _markup(plot)


def scatter(points: Sequence[Point], label: str) -> Markup:
    """Draw points in a frame, scaled to fit it, both axes alike."""
    width, height, margin = 1200, 620, 24
    places = np.array([[point.x, point.y] for point in points]).reshape(-1, 2)
    low, high = (places.min(axis=0), places.max(axis=0)) if len(places) else (np.zeros(2), np.ones(2))
    scale = min((width - 2 * margin) / max(high[0] - low[0], 1e-9), (height - 2 * margin) / max(high[1] - low[1], 1e-9))
    centre = (low + high) / 2
    plot = _plot("scatter", width, height, label)
    _add(plot, "rect", class_="frame", x=0.5, y=0.5, width=width - 1, height=height - 1)
    for point, place in zip(points, places, strict=True):
        x, y = width / 2 + (place[0] - centre[0]) * scale, height / 2 - (place[1] - centre[1]) * scale
        _add(_marker(plot, point.colour, point.shape, x, y), "title", point.title)
    return _markup(plot)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, label: str, log_y: bool = False
) -> Markup:
    """Draw lines over a logarithmic x axis; y is logarithmic too, or runs from its least to its greatest value.

    series: name -> (x, y) points, drawn in the order of x.
    """
    left, right, top, bottom, width, height = 70, 230, 16, 44, 460, 300
    points = [point for line in series.values() for point in line]
    if not points:
        return _markup(_plot("lines", 200, 40, label))

    def scaled(y: float) -> float:
        return math.log10(max(y, 1e-9)) if log_y else y

    (x0, x1), (y0, y1) = _span([math.log10(x) for x, _ in points]), _span([scaled(y) for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (math.log10(x) - x0) / (x1 - x0) * width, top + height - (scaled(y) - y0) / (y1 - y0) * height

    plot = _plot("lines", left + width + right, max(top + height + bottom, top + 20 * len(series) + 20), label)
    _add(plot, "rect", class_="frame", x=left, y=top, width=width, height=height)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        up, y = y0 + share * (y1 - y0), top + height - share * height
        _add(plot, "line", class_="grid", x1=left, x2=left + width, y1=y, y2=y)
        _text(plot, f"{10**up if log_y else up:.3g}", left - 8, y + 4, "tick", "end")
    for x in sorted({x for x, _ in points})[:12]:
        _text(plot, f"{x:,.0f}", place(x, points[0][1])[0], top + height + 18, "tick", "middle")
    _text(plot, x_label, left + width / 2, top + height + 38, "", "middle")
    _text(plot, y_label, left, top - 4)
    for number, (name, line) in enumerate(series.items()):
        spots, colour = [place(x, y) for x, y in sorted(line)], colour_of(number)
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        _add(plot, "path", d=path, fill="none", stroke=colour, stroke_width=2)
        for x, y in spots:
            _add(plot, "circle", class_="mark", cx=x, cy=y, r=4, fill=colour)
        y = top + 14 + 20 * number
        _add(plot, "rect", x=left + width + 16, y=y - 9, width=12, height=12, fill=colour)
        _text(plot, name, left + width + 36, y + 2)
    return _markup(plot)


def key(shape: int) -> Markup:
    """Draw a mark for a legend."""
    svg = Element("svg", {"class": "key", "viewBox": "0 0 14 14", "width": "14", "height": "14"})
    _marker(svg, -1, shape, 7, 7)
    return _markup(svg)


def colour_of(number: int) -> str:
    """The colour of class `number`; the grey for -1."""
    return COLOURS[number] if 0 <= number < len(COLOURS) else OTHER_COLOUR


def _marker(parent: Element, colour: int, shape: int, x: float, y: float) -> Element:
    """Add one mark, about 9 px wide."""
    path = {
        "circle": f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0",
        "square": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "triangle": f"M{x:.1f} {y - 5.5:.1f}l5 9h-10z",
        "diamond": f"M{x:.1f} {y - 6:.1f}l5 6l-5 6l-5-6z",
        "cross": f"M{x - 5:.1f} {y - 2:.1f}h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    }[SHAPES[min(shape, len(SHAPES) - 1)]]
    return _add(parent, "path", class_="mark", fill=colour_of(colour), d=path)


def _shaded(parent: Element, x: float, y: float, width: float, height: float, shade: str, opacity: float) -> None:
    _add(parent, "rect", class_="ground", x=x, y=y, width=width, height=height)
    _add(parent, "rect", class_=shade, x=x, y=y, width=width, height=height, fill_opacity=round(opacity, 3))


def _on_shade(share: float) -> str:
    return "count dark" if share > 0.5 else "count"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) if high > low else 0.5
    return low - pad, high + pad


def _plot(kind: str, width: float, height: float, label: str) -> Element:
    """A drawing of that size in px, which shrinks with the page. label: what it shows, for screen readers."""
    size = {"viewBox": f"0 0 {width:g} {height:g}", "style": f"max-width:{width:g}px"}
    return Element("svg", {"class": f"plot {kind}", **size, "role": "img", "aria-label": label})


def _add(parent: Element, tag: str, text: str = "", **attributes: str | float) -> Element:
    """Add an element: `class_` becomes `class`, `fill_opacity` becomes `fill-opacity`; numbers are rounded."""
    values = {
        name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{round(value, 3):.10g}"
        for name, value in attributes.items()
    }
    element = SubElement(parent, tag, values)
    element.text = text
    return element


def _text(parent: Element, text: str, x: float, y: float, kind: str = "", anchor: str = "start") -> Element:
    return _add(parent, "text", text, class_=kind, x=x, y=y, text_anchor=anchor)


def _with_count(text: Element, count: int | str) -> None:
    _add(text, "tspan", str(count), class_="n")


def _markup(svg: Element) -> Markup:
    text = tostring(svg, encoding="unicode", short_empty_elements=False)  # escapes all but the single quote
    return Markup(text.replace("'", "&#39;"))  # noqa: S704
