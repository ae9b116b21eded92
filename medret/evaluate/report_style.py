"""The style sheet of the evaluation report: that of the page of search results, and what plots and tables need."""

from __future__ import annotations

from medret.search.page_style import STYLE as PAGE_STYLE

STYLE = (
    PAGE_STYLE
    + """
:root { --good: #35d0c0; --bad: #f0646a; --value: #3d8bd4; --track: #222a33; --grid: #303842; --dark: #0b0d10; }
body { max-width: 84rem; }
section { padding: 1.25rem clamp(0.9rem, 2vw, 1.5rem); overflow: visible; }
section > h2 { font-size: 1.2rem; }
section > .soft { max-width: 60rem; }
h3 { margin-top: 1.25rem; }
.facts-line { display: flex; flex-wrap: wrap; gap: 0.2rem 1.5rem; margin: 0.6rem 0 0; padding: 0; }
.facts-line div { display: flex; gap: 0.4rem; }
.facts-line dt { color: var(--soft); }
dl.facts-line dd { overflow-wrap: anywhere; }
.warning { margin: 0.8rem 0 0; max-width: 66rem; }
.scroll { overflow-x: auto; margin-top: 0.8rem; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.4rem; }
th, td {
  padding: 0.32rem 0.8rem 0.32rem 0; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; vertical-align: baseline;
}
th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th[scope=row], .text { text-align: left; color: var(--text); }
td.big { font-size: 1.05rem; font-weight: 650; }
td .n, .n { color: var(--soft); font-weight: 400; font-size: 0.8125rem; }
tr.default th, tr.default td { background: var(--raised); }
tr.default th[scope=row] { box-shadow: inset 3px 0 0 var(--mark); padding-left: 0.6rem; }
tr.means td, tr.means th { font-weight: 650; }
.plots { display: flex; flex-wrap: wrap; gap: 1.25rem 2.5rem; align-items: flex-start; }
.plots > div { flex: 1 1 26rem; min-width: 0; }
svg.plot { display: block; width: 100%; height: auto; margin-top: 0.6rem; }
svg text { font: 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--text); }
svg .tick, svg .n { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--grid); }
svg .track { fill: var(--track); }
svg .value { fill: var(--value); }
svg .strong .value { fill: var(--mark); }
svg .strong text { font-weight: 650; }
svg .whisker { fill: none; stroke: var(--text); stroke-width: 1.5; }
svg .chance { stroke: var(--warn); stroke-width: 2; }
svg .ground { fill: var(--track); }
svg .right { fill: var(--good); }
svg .wrong { fill: var(--bad); }
svg .own .ground { stroke: var(--edge); stroke-width: 1.5; }
svg .count { font-weight: 600; }
svg .count.dark { fill: var(--dark); }
svg .frame { fill: none; stroke: var(--line); }
svg .mark { stroke: var(--dark); stroke-width: 0.7; fill-opacity: 0.92; }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; margin: 0.6rem 0 0; padding: 0; font-size: 0.8125rem; }
.legend span { display: inline-flex; align-items: center; gap: 0.35rem; }
.legend .swatch { width: 0.9rem; height: 0.9rem; border-radius: 0.15rem; }
.legend .line { width: 2px; height: 1rem; background: var(--warn); }
svg.key { flex: none; }
.gallery { list-style: none; padding: 0; margin: 0.6rem 0 0; }
.gallery { --tile: clamp(6.5rem, 12.5vw, 10.5rem); }
.gallery li {
  display: flex; flex-wrap: wrap; gap: 0.6rem 0.75rem; padding: 0.9rem 0; border-top: 1px solid var(--line);
}
.gallery figure { width: var(--tile); }
.gallery .asked {
  width: calc(var(--tile) + 1.4rem); margin-right: 0.7rem; padding-right: 1.4rem; border-right: 1px solid var(--edge);
}
.gallery .hit img { outline-width: 2px; }
.gallery .hit.good img { outline-color: var(--good); }
.gallery .hit.bad img { outline-color: var(--bad); }
.gallery .absent { min-height: 0; aspect-ratio: 1; width: 100%; font-size: 0.75rem; padding: 0.5rem; overflow: hidden; }
.gallery figcaption b { display: block; color: var(--text); font-weight: 600; }
.gallery .good b::before { content: "same: "; color: var(--good); }
.gallery .bad b::before { content: "other: "; color: var(--bad); }
.gallery figcaption .id { display: block; overflow-wrap: anywhere; }
footer dl { grid-template-columns: max-content 1fr; max-width: 60rem; }
ul.plain { margin: 0.5rem 0 0; padding-left: 1.1rem; }
ul.plain li { border: 0; }
@media print {
  :root { --value: #1f6fb5; --track: #eee; --grid: #ddd; --good: #00796b; --bad: #b3261e; --dark: #fff; }
  section { break-inside: avoid-page; }
}
"""
)
