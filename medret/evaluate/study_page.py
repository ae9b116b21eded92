"""A study as a self-contained HTML page: its plots, its notes and its table."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from medret.evaluate.report_style import report_frame
from medret.evaluate.study import Study


def study_page(study: Study) -> str:
    """The page as text; it has no scripts and fetches nothing."""
    title = f"Study: {study.name}"
    plots = "".join(f"<div><h3>{escape(heading)}</h3>{svg}</div>" for heading, svg in study.plots)
    notes = "".join(f"<li>{escape(note)}</li>" for note in study.notes)
    head = "".join(f"<th>{escape(name)}</th>" for name in study.table.column_names)
    rows = "\n".join(f"<tr>{''.join(_cell(value) for value in row.values())}</tr>" for row in study.table.to_pylist())
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = f"""<header>
<h1>{escape(title)}</h1>
<p class="soft">snapshot {escape(study.snapshot)} of {escape(study.store)}, made {made}</p>
<ul class="plain">{notes}</ul>
</header>
<main>
<section aria-labelledby="plots"><h2 id="plots">Plots</h2><div class="plots">{plots}</div></section>
<section aria-labelledby="table"><h2 id="table">Table</h2>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>
</main>
<footer>Stored vectors were reused: nothing was embedded. For research: not a medical device.</footer>"""
    return report_frame(title, body)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"<td>{value:.4g}</td>"
    return f"<td{' class=text' if isinstance(value, str) else ''}>{escape(str(value))}</td>"
