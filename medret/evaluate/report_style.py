"""The frame of the evaluation report."""

from __future__ import annotations

from markupsafe import Markup

from medret.html.render import render


def report_frame(title: str, body: str) -> str:
    """A whole page. body: HTML, its texts escaped."""
    return render("report_frame.html.j2", title=title, body=Markup(body))  # noqa: S704
