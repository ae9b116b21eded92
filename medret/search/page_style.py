"""What every page shares: a shell that fetches nothing and runs nothing, and a style dark as a reading room."""

from __future__ import annotations

from html import escape

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, style: str, body: str) -> str:
    """A whole page. title: plain text. style: a style sheet. body: HTML, its texts escaped."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


STYLE = """
:root {
  color-scheme: dark;
  --ground: #0b0d10; --panel: #14181d; --raised: #1a2027; --chip: #1e252d; --line: #262c34; --edge: #3a434e;
  --text: #e7ebf0; --soft: #a3adba; --mark: #35d0c0; --warn: #f2b84b;
  --tile: clamp(5rem, 7.6vw, 10rem);
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(0.75rem, 2.5vw, 2.5rem) 3rem; max-width: 110rem;
  background: var(--ground); color: var(--text);
  font: 1rem/1.45 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif;
}
h1 { margin: 0; font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; }
h2 { margin: 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
h3 { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0.3rem 0; }
.soft { color: var(--soft); font-size: 0.875rem; overflow-wrap: anywhere; }
.warning { color: var(--warn); border-left: 3px solid var(--warn); padding: 0.15rem 0 0.15rem 0.75rem; }
section {
  margin-top: 2rem; border: 1px solid var(--line); border-radius: 0.6rem;
  overflow: hidden; background: var(--panel);
}
.query { padding: 1rem; border-bottom: 1px solid var(--line); background: var(--raised); }
.eyebrow {
  color: var(--mark); font-size: 0.75rem; font-weight: 650; letter-spacing: 0.08em; text-transform: uppercase;
}
ol { list-style: none; margin: 0; padding: 0; }
.row {
  display: grid; grid-template-columns: minmax(14rem, 20rem) 1fr; gap: 0.75rem 1.5rem;
  padding: 1rem; align-items: start;
}
.query .row { padding: 0; }
li + li { border-top: 1px solid var(--line); }
.facts { display: grid; grid-template-columns: auto 1fr; gap: 0 0.9rem; }
.query .facts { display: block; }
.rank {
  min-width: 1.6ch; color: var(--soft); text-align: right;
  font-size: 1.6rem; font-weight: 300; line-height: 1.1; font-variant-numeric: tabular-nums;
}
.score { font-variant-numeric: tabular-nums; font-weight: 600; }
.score span { color: var(--soft); font-weight: 400; font-size: 0.875rem; }
.labels { display: flex; flex-wrap: wrap; gap: 0.3rem; margin: 0.4rem 0; }
.labels span {
  padding: 0.05rem 0.55rem; border: 1px solid var(--edge); border-radius: 1rem;
  background: var(--chip); font-size: 0.8125rem; overflow-wrap: anywhere;
}
details { color: var(--soft); font-size: 0.8125rem; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 0.75rem; margin: 0.3rem 0; }
dd { margin: 0; overflow-wrap: anywhere; color: var(--text); }
.images, .strip { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.images { gap: 0.75rem 1.25rem; }
figure { margin: 0; width: var(--tile); }
img {
  display: block; width: 100%; height: auto; aspect-ratio: 1; background: #000; border-radius: 0.2rem;
  outline: 1px solid var(--line); outline-offset: -1px;
}
figcaption { margin-top: 0.2rem; color: var(--soft); font-size: 0.75rem; line-height: 1.3; }
.pair { gap: 0.75rem; border-left: 1px solid var(--edge); padding-left: 1.25rem; }
.pair img { outline: 2px solid var(--mark); outline-offset: 1px; }
.pair figcaption { color: var(--mark); margin-top: 0.35rem; }
.absent {
  display: flex; flex-direction: column; justify-content: center; min-height: var(--tile); width: min(100%, 26rem);
  padding: 0.75rem 1rem; border: 1px dashed var(--edge); border-radius: 0.3rem;
  color: var(--soft); font-size: 0.875rem; overflow-wrap: anywhere;
}
.empty { padding: 1rem; color: var(--soft); }
footer { margin-top: 2rem; color: var(--soft); font-size: 0.8125rem; overflow-wrap: anywhere; }
@media (max-width: 56rem) {
  :root { --tile: clamp(5rem, 26vw, 9rem); }
  .row { grid-template-columns: 1fr; }
  .pair { border-left: 0; padding-left: 0; }
}
@media print {
  :root {
    color-scheme: light; --ground: #fff; --panel: #fff; --raised: #fff; --chip: #fff;
    --line: #ccc; --edge: #999; --text: #000; --soft: #444; --mark: #00796b; --warn: #7a4b00;
  }
  li { break-inside: avoid; }
}
"""
